"""A rater's whole day, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from browsing import events_of, until

from plaudit.feedback.projects import Entry

pytest_plugins = ["site_fixtures"]
PageOf = Callable[..., Any]


def pairs(count: int) -> list[Entry]:
    return [Entry(f"Name bird {i}.", (f"A **robin** {i}.", f"A stone {i}.")) for i in range(count)]


def begin(page: Any, project: str) -> None:
    page.goto(f"/projects/{project}/judge")
    page.wait_for_selector("#item[aria-busy=false]")


def test_from_the_invitation_to_the_last_item(site: Any, page_of: PageOf) -> None:
    lesson = Entry(
        "Practise.", ("Good.", "Bad."), part="training", answer={"choice": 0}, why="The other is rude."
    )
    project = site.project("comparison", [lesson, *pairs(4)], rest_minutes=0)
    site.projects.write_guideline(project, {"en": "Prefer birds.", "zh": "请偏好鸟类。"})
    page = page_of(None)
    page.goto(site.invitation(project=project))
    page.fill("#name", "Quiet otter")
    page.fill("#password", "a long password")
    page.press("#password", "Enter")
    page.wait_for_url(f"**/projects/{project}/judge")
    # 1. Practice: nobody sees it, and it is explained.
    page.wait_for_selector("text=To practise")
    assert "Prefer birds." in page.inner_text("#guidelines")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector(".lesson")
    said = page.inner_text(".lesson")
    assert "The other is rude." in said
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Name bird")
    assert site.store.current() == []
    # 2. By keys alone.
    assert page.locator(".answer strong").first.inner_text() == "robin", "Markdown is shown"
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    (first,) = events_of(site, 1)
    assert first.payload["strength"] == 3
    assert first.payload["choice"] == first.presented[0], "the left one, whichever it is"
    assert first.guideline_version == f"{project}/1"
    # 3. Undo: the answer comes back, and the new one takes its place.
    page.keyboard.press("u")
    page.wait_for_selector('[aria-pressed="true"]')
    page.keyboard.press("5")
    page.keyboard.press("Enter")
    for _ in range(100):
        (again,) = events_of(site, 1)
        if again.supersedes is not None:
            break
        page.wait_for_timeout(50)
    assert (again.payload["choice"], again.supersedes) == ("tie", first.id)
    # 4. A draft outlives the page.
    page.keyboard.press("c")
    page.keyboard.type("half a thought")
    page.keyboard.press("Escape")
    page.keyboard.press("7")
    page.reload()
    page.wait_for_selector('[aria-pressed="true"]')
    assert page.input_value("#comment") == "half a thought"
    page.keyboard.press("Enter")
    assert [event.comment for event in events_of(site, 2)][1] == "half a thought"
    # 5. Passing over, and a flag.
    page.keyboard.press("s")
    page.locator("details.more summary").click()
    page.get_by_label("harmful").check()
    page.locator("body").click(position={"x": 5, "y": 5})
    page.keyboard.press("0")
    page.keyboard.press("Enter")
    events = events_of(site, 4)
    assert [event.kind for event in events] == ["comparison", "comparison", "skip", "comparison"]
    assert (events[3].payload["choice"], events[3].payload["flags"]) == ("both_bad", ["harmful"])
    page.wait_for_selector("text=Nothing is left")
    assert all(event.payload.get("seconds", 0) >= 0 for event in events)


def test_the_next_item_is_there_within_a_tenth_of_a_second(site: Any, page_of: PageOf) -> None:
    project = site.project("comparison", pairs(12))
    page = page_of(site.account("Ann"))
    begin(page, project)
    page.evaluate(
        """() => {
          window.took = [];
          let pressed = null;
          const begin = (event) => { if (event.key === "Enter") pressed = performance.now(); };
          const ended = (mark) => {
            if (pressed !== null) { window.took.push(mark.startTime - pressed); pressed = null; }
          };
          addEventListener("keydown", begin, true);
          new PerformanceObserver((list) => list.getEntriesByName("shown").forEach(ended)).observe({ type: "mark" });
        }"""
    )
    for number in range(8):
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        until(page, f"window.took.length > {number}")
        page.wait_for_timeout(300)  # somebody reads
    took = sorted(page.evaluate("window.took"))
    assert took[len(took) // 2] < 100, took


def test_offline_and_back(site: Any, page_of: PageOf) -> None:
    project = site.project("comparison", pairs(4))
    page = page_of(site.account("Ann"))
    begin(page, project)
    page.context.set_offline(True)
    for _ in range(3):
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        page.wait_for_timeout(200)
    page.wait_for_selector("text=The studio cannot be reached")
    assert site.store.current() == []
    assert len(json.loads(page.evaluate("localStorage.getItem('plaudit-outbox-Ann')"))) == 3
    page.context.set_offline(False)
    events = events_of(site, 3)
    assert len({event.item for event in events}) == 3
    page.wait_for_selector(".scale")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    events_of(site, 4)
    until(page, "localStorage.getItem('plaudit-outbox-Ann') === null")
    assert len(site.store.log()) == 4, "sent again, counted once"
    page.wait_for_selector("text=Nothing is left")


def test_nobody_sends_what_another_has_left(site: Any, page_of: PageOf) -> None:
    project = site.project("comparison", pairs(2), overlap=2)
    page = page_of(site.account("Ann"))
    begin(page, project)
    page.context.set_offline(True)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    page.context.clear_cookies()
    site.account("Bob")
    page.context.set_offline(False)
    page.wait_for_url("**/log-in")
    page.fill("#name", "Bob")
    page.fill("#password", "correct horse")
    page.press("#password", "Enter")
    page.wait_for_url("**/projects")
    begin(page, project)
    page.wait_for_timeout(500)
    assert site.store.current() == [], "Ann's answer waits for Ann"


def test_two_raters_at_once_share_no_item(site: Any, page_of: PageOf) -> None:
    project = site.project("comparison", pairs(2), overlap=1)
    pages = [page_of(site.account(name)) for name in ("Ann", "Bob")]
    for page in pages:
        begin(page, project)
    shown = [page.inner_text("#item") for page in pages]
    # Two are loaded ahead, so that the second finds nothing left: never the same.
    assert shown[0] != shown[1]
    for _ in range(2):
        pages[0].keyboard.press("1")
        pages[0].keyboard.press("Enter")
    events_of(site, 2)
    assert {event.rater for event in site.store.current()} == {"Ann"}


def test_a_rating_by_keys(site: Any, page_of: PageOf) -> None:
    criteria = [
        {"name": "warmth", "label": "Warmth", "help": "Is it kind?", "low": "cold", "high": "kind"},
        {"name": "overall"},
    ]
    project = site.project("rating", [Entry("Say hello.", ("Hi!",))], criteria=criteria)
    page = page_of(site.account("Ann"))
    begin(page, project)
    assert page.locator(".send").is_disabled()
    page.keyboard.press("7")
    page.keyboard.press("+")
    page.keyboard.press("Enter")
    (event,) = events_of(site, 1)
    assert event.payload["scores"] == {"warmth": 0.7, "overall": 1.0}


def test_a_category_by_keys(site: Any, page_of: PageOf) -> None:
    project = site.project("category", [Entry("Nice film.", ())], labels=["bad", "good"])
    page = page_of(site.account("Ann"))
    begin(page, project)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    (event,) = events_of(site, 1)
    assert event.payload["label"] == "good"


def test_a_ranking_by_keys_and_by_hand(site: Any, page_of: PageOf) -> None:
    project = site.project(
        "ranking", [Entry("A", ("one", "two", "three")), Entry("B", ("one", "two", "three"))]
    )
    page = page_of(site.account("Ann"))
    begin(page, project)
    before = page.locator(".ranks .prose").all_inner_texts()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    (event,) = events_of(site, 1)
    texts = ["one", "two", "three"]
    assert [texts[i] for i in event.payload["ranking"]] == [before[1], before[0], before[2]]
    page.wait_for_selector("text=B")
    before = page.locator(".ranks .prose").all_inner_texts()
    page.drag_and_drop(".ranks li:nth-child(3)", ".ranks li:nth-child(1)")
    assert page.locator(".ranks .prose").all_inner_texts() == [before[2], before[0], before[1]]
    page.keyboard.press("Enter")
    event = events_of(site, 2)[1]
    assert [texts[i] for i in event.payload["ranking"]] == [before[2], before[0], before[1]]


def test_the_better_of_two_is_mended(site: Any, page_of: PageOf) -> None:
    project = site.project("edit", [Entry("Say hello.", ("Helo!", "No."))])
    page = page_of(site.account("Ann"))
    begin(page, project)
    shown = page.locator(".answer .prose").all_inner_texts()
    page.keyboard.press(str(1 + shown.index("Helo!")))
    assert page.input_value("#edited") == "Helo!"
    page.fill("#edited", "Hello!")
    page.locator(".send").click()
    (event,) = events_of(site, 1)
    assert (event.payload["completion"], event.payload["chosen"]) == ("Hello!", 0)


def test_differences_are_marked(site: Any, page_of: PageOf) -> None:
    texts = ("The quick brown fox jumps. 我喜欢红色的花。", "The quick red fox jumps. 我喜欢白色的花。")
    project = site.project("comparison", [Entry("Tell me.", texts)])
    page = page_of(site.account("Ann"))
    begin(page, project)
    page.keyboard.press("d")
    found = page.locator("mark").all_inner_texts()
    assert sorted(found) == sorted(["brown", "红", "red", "白"])
    page.keyboard.press("d")
    assert page.locator("mark").count() == 0


def test_harmful_texts_are_blurred_until_wanted(site: Any, page_of: PageOf) -> None:
    project = site.project("comparison", pairs(1), blur=True)
    page = page_of(site.account("Ann"))
    begin(page, project)
    blur = "getComputedStyle(document.querySelector('.answer .prose')).filter"
    assert "blur" in page.evaluate(blur)
    page.keyboard.press("b")
    assert page.evaluate(blur) == "none"


def test_it_fits_a_phone(site: Any, page_of: PageOf) -> None:
    long = "word " * 300 + "averyveryverylongwordwithoutanyspaces" * 5
    project = site.project("comparison", [Entry(long, (long, f"```\n{'x' * 300}\n```"))])
    page = page_of(
        site.account("Ann"), viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    begin(page, project)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".choice").first.tap()
    page.locator(".send").tap()
    events_of(site, 1)


def test_it_speaks_chinese(site: Any, page_of: PageOf) -> None:
    project = site.project("comparison", pairs(1))
    site.projects.write_guideline(project, {"en": "Prefer birds.", "zh": "请偏好鸟类。"})
    page = page_of(site.account("Ann"))
    begin(page, project)
    page.get_by_role("link", name="中文").click()
    page.wait_for_selector("#item[aria-busy=false]")
    assert page.evaluate("document.documentElement.lang") == "zh"
    assert "请偏好鸟类。" in page.inner_text("#guidelines")
    assert "Prefer" not in page.inner_text("main")
    assert "跳过" in page.inner_text(".actions")


@pytest.mark.parametrize(
    "text", ["<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "[a](javascript:alert(1))"]
)
def test_what_a_model_or_an_owner_wrote_stays_text(site: Any, page_of: PageOf, text: str) -> None:
    project = site.project("comparison", [Entry(text, (text, "fine"))])
    site.projects.change(project, name=text)
    site.projects.write_guideline(project, {"en": text})
    owner = page_of(site.account("Olga", "owner"))
    begin(owner, project)
    assert text.split("(")[0] in owner.inner_text("#title")
    owner.goto(f"/projects/{project}")
    owner.wait_for_selector(".figures dd")
    owner.goto("/projects")
    owner.wait_for_selector(".card")
    assert owner.locator("main img, main script").count() == 0
