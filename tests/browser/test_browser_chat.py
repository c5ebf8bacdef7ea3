"""The chat page in a real browser: a conversation, and all that one may say of its answers, in both languages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browsing import until

from plaudit.feedback.judgements import everything
from plaudit.feedback.served import Served
from plaudit.types import Preference

pytest_plugins = ["site_fixtures", "serving_fixtures"]
PageOf = Callable[..., Any]


@pytest.fixture
def page(browser: Any, host: Any) -> Iterator[Any]:
    context = browser.new_context(base_url=host.url, locale="en-GB")
    context.set_default_timeout(15_000)
    faults = list[str]()
    made = context.new_page()
    made.on("pageerror", lambda error: faults.append(str(error)))
    yield made
    context.close()
    assert faults == []


def enter(page: Any, host: Any) -> None:
    page.goto("/")
    page.fill("#key", host.key)
    page.press("#key", "Enter")
    until(page, "document.querySelectorAll('#model option').length === 1")


def say(page: Any, text: str, answers: int) -> None:
    page.fill("#say", text)
    page.press("#say", "Enter")
    until(page, f"document.querySelectorAll('.assistant .acts').length === {answers}")


def events(host: Any, count: int, page: Any) -> list[Any]:
    found = functools.partial(host.store.current)
    for _ in range(100):
        if len(found()) >= count:
            break
        page.wait_for_timeout(50)
    assert len(found()) == count
    return list(found())


def test_a_conversation_and_what_is_said_of_it(page: Any, host: Any) -> None:
    enter(page, host)
    say(page, "How are you?", 1)
    first = page.locator(".assistant .text").text_content()
    # A thumb, then the other one, then neither.
    page.get_by_role("button", name="Good").click()
    assert events(host, 1, page)[0].payload["scores"] == {"overall": 1.0}
    page.get_by_role("button", name="Bad").click()
    until(page, "document.querySelector('[aria-pressed=true]').dataset.t === 'down'")
    assert events(host, 1, page)[0].payload["scores"] == {"overall": 0.0}
    page.get_by_role("button", name="Bad").click()
    until(page, "document.querySelector('[aria-pressed=true]') === null")
    events(host, 0, page)
    # A correction, which the conversation goes on with.
    page.get_by_role("button", name="Correct it").click()
    page.get_by_label("What it should have said").fill("Very well, <b>thank you</b>.")
    page.get_by_role("button", name="Send the correction").click()
    (event,) = events(host, 1, page)
    assert (event.kind, event.payload["completion"]) == ("demonstration", "Very well, <b>thank you</b>.")
    assert page.locator(".assistant .text").inner_text() == "Very well, <b>thank you</b>."
    say(page, "Good to hear.", 2)
    kept = [Served(host.store).get(id) for id in ids(host)]
    assert kept[-1].prompt is not None
    assert isinstance(kept[-1].prompt, tuple)
    assert [turn.content for turn in kept[-1].prompt] == [
        "How are you?", "Very well, <b>thank you</b>.", "Good to hear.",
    ]  # fmt: skip
    assert len({one.conversation for one in kept}) == 1
    assert kept[0].completions is not None
    assert first == kept[0].completions[0].text


def ids(host: Any) -> list[str]:
    with host.store.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT id FROM responses ORDER BY created_at")
        return [row[0] for row in rows]


def test_another_answer_is_compared_with_the_first(page: Any, host: Any) -> None:
    enter(page, host)
    say(page, "How are you?", 1)
    page.get_by_role("button", name="Another answer").click()
    page.get_by_role("button", name="The second").click()
    events(host, 1, page)
    (judged,) = everything(host.store)
    first, second = (Served(host.store).get(id) for id in ids(host))
    assert first.completions is not None
    assert second.completions is not None
    assert second.regenerates == first.id
    record = judged.record
    assert isinstance(record, Preference)
    assert record.choice in (0, 1)
    assert record.completions[record.choice] == second.completions[0].text
    assert record.completions[1 - record.choice] == first.completions[0].text
    until(page, "document.querySelectorAll('.pair').length === 0")
    assert page.locator(".assistant .text").count() == 1
    assert Served(host.store).signals()[first.id]["regenerate"] == 1.0


def test_the_page_speaks_chinese_and_stays_so(page: Any, host: Any) -> None:
    enter(page, host)
    page.get_by_role("button", name="中文").click()
    assert page.get_by_role("button", name="发送").count() == 1
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.reload()
    assert page.get_by_role("button", name="发送").count() == 1
    say(page, "你好", 1)
    page.get_by_role("button", name="好", exact=True).click()
    events(host, 1, page)


def test_a_wrong_key_is_said_and_a_right_one_goes_on(page: Any, host: Any) -> None:
    page.goto("/")
    page.fill("#key", "nonsense")
    page.press("#key", "Enter")
    until(page, "document.getElementById('fault').textContent.includes('no API key')")
    enter(page, host)
    assert page.locator("#entry").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_audit_of_the_page_finds_nothing(browser: Any, host: Any, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python (make setup)"
    ).Axe()
    context = browser.new_context(base_url=host.url, locale="en-GB", color_scheme=scheme)
    page = context.new_page()
    enter(page, host)
    say(page, "How are you?", 1)
    page.get_by_role("button", name="Correct it").click()
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = axe.run(page, options={"runOnly": {"type": "tag", "values": tags}})
    assert found.response["violations"] == []
    context.close()
