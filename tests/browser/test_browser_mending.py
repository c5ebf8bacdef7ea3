"""What changes while a page is open, what a browser has no room for, what is refused; and pages by keys alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from browsing import events_of, until

from plaudit.feedback import drafts
from plaudit.feedback.projects import Entry

pytest_plugins = ["site_fixtures"]
PageOf = Callable[..., Any]
FULL = """() => {
  for (let size = 1 << 20, n = 0; size >= 1; size >>= 1) {
    try { for (;;) localStorage.setItem(`full-${n++}`, "x".repeat(size)); } catch { /* smaller ones may fit */ }
  }
}"""


def pairs(count: int) -> list[Entry]:
    return [Entry(f"Name bird {i}.", (f"A robin {i}.", f"A stone {i}.")) for i in range(count)]


def begin(page: Any, project: str) -> None:
    page.goto(f"/projects/{project}/judge")
    page.wait_for_selector("#item[aria-busy=false]")


def send(page: Any, key: str) -> None:
    page.keyboard.press(key)
    page.keyboard.press("Enter")


def comment(page: Any, text: str) -> None:
    page.keyboard.press("c")
    page.keyboard.type(text)
    page.keyboard.press("Escape")


def save(page: Any) -> None:
    page.locator("#task button").click()
    page.wait_for_selector("#task .done:not([hidden])")


def test_saving_settings_changes_what_was_changed_on_the_page_alone(site: Any, page_of: PageOf) -> None:
    project = site.project("comparison", pairs(2), raters=["Ann", "Bob"])
    page = page_of(site.account("Olga", "owner"))
    page.goto(f"/projects/{project}#settings")
    page.locator("#raters").wait_for()
    site.projects.welcome(project, "Cy")
    site.projects.change(project, name="Renamed", settings={"overlap": 3, "blur": True})
    page.fill("#rest-minutes", "30")
    page.fill("#raters", "Ann\nDee")
    save(page)
    found = site.projects.get(project)
    task = found.task
    assert (found.name, task.overlap, task.blur, task.rest_minutes) == ("Renamed", 3, True, 30)
    assert task.raters == ("Ann", "Cy", "Dee")
    # From then on the page has what stands.
    assert page.input_value("#raters") == "Ann\nCy\nDee"
    assert (page.input_value("#project-name"), page.input_value("#overlap")) == ("Renamed", "3")
    page.locator("#blur").uncheck()
    page.fill("#most", "9")
    save(page)
    task = site.projects.get(project).task
    assert (task.blur, task.most_judgements, task.raters) == (False, 9, ("Ann", "Cy", "Dee"))
    page.fill("#most", "")
    page.fill("#raters", "")
    save(page)
    task = site.projects.get(project).task
    assert (task.most_judgements, task.raters) == (None, ()), "everybody"


def test_a_decision_needs_no_secure_address(site: Any, page_of: PageOf) -> None:
    project = site.project("comparison", pairs(1))
    page = page_of(site.account("Olga", "owner"))
    page.add_init_script("delete Crypto.prototype.randomUUID")  # as over http on any host but this one
    begin(page, project)
    send(page, "1")
    (event,) = events_of(site, 1)
    page.goto(f"/projects/{project}/items/{event.item}")
    page.locator("#decision .choice").first.click()
    page.locator("#decide button").click()
    page.wait_for_selector("#decide .done:not([hidden])")
    assert page.evaluate("document.activeElement.textContent") == "Decide"


def test_an_item_that_is_not_there_is_said_to_be_none(site: Any, page_of: PageOf) -> None:
    page = page_of(site.account("Olga", "owner"))
    page.goto(f"/projects/{site.project('comparison', pairs(1))}/items/nope")
    page.wait_for_selector("#shown[aria-busy=false] .fault")
    assert "there is no such item" in page.inner_text("#shown")


def test_a_browser_without_room_sends_all_the_same(site: Any, page_of: PageOf) -> None:
    project = site.project("comparison", pairs(4))
    page = page_of(site.account("Ann"))
    begin(page, project)
    page.evaluate(FULL)
    comment(page, "long" * 300)
    send(page, "1")
    (event,) = events_of(site, 1)
    assert event.comment == "long" * 300
    page.wait_for_selector("#item[aria-busy=false] .send")
    page.context.set_offline(True)
    comment(page, "long" * 300)
    send(page, "1")
    page.wait_for_selector("text=Answers that are not kept on this device until they are sent: 1")
    send(page, "2")
    page.wait_for_selector("text=until they are sent: 2")
    page.context.set_offline(False)
    assert len({one.item for one in events_of(site, 3)}) == 3
    until(page, "document.getElementById('notice').hidden")
    send(page, "1")
    events_of(site, 4)
    assert len(site.store.log()) == 4, "each counted once"


def test_what_there_is_room_for_again_is_kept(site: Any, page_of: PageOf) -> None:
    project = site.project("comparison", pairs(3))
    page = page_of(site.account("Ann"))
    page.goto("/language/zh?back=/projects")
    begin(page, project)
    page.evaluate(FULL)
    page.context.set_offline(True)
    send(page, "1")
    page.wait_for_selector("text=未能保存在本机的评判：1")
    page.evaluate(
        "for (const name of Object.keys(localStorage)) if (name.startsWith('full-')) localStorage.removeItem(name)"
    )
    send(page, "1")
    page.wait_for_selector("text=已保存在本机并会自动重试的评判：2")
    assert len(json.loads(page.evaluate("localStorage.getItem('plaudit-outbox-Ann')"))) == 2


def refused(site: Any, page: Any) -> tuple[str, str]:
    """An answer with a comment that waits in the browser and is going to be refused; its project and item."""
    project = site.project("category", [Entry("Nice film.")], labels=["bad", "good"])
    begin(page, project)
    page.context.set_offline(True)
    comment(page, "a careful comment")
    send(page, "1")
    page.wait_for_timeout(300)
    (waiting,) = json.loads(page.evaluate("localStorage.getItem('plaudit-outbox-Ann')"))
    site.projects.change(project, settings={"labels": ["awful", "great"]})
    page.goto("about:blank")
    page.context.set_offline(False)
    return project, waiting["body"]["item"]


@pytest.mark.parametrize("elsewhere", ["another project", "the list"])
def test_what_is_refused_elsewhere_comes_back_where_it_is_from(
    site: Any, page_of: PageOf, elsewhere: str
) -> None:
    other = site.project("comparison", pairs(1))
    page = page_of(site.account("Ann"))
    project, item = refused(site, page)
    page.goto("/projects" if elsewhere == "the list" else f"/projects/{other}/judge")
    page.wait_for_selector("#notice:has-text('An answer was not taken: ')")
    until(page, "localStorage.getItem('plaudit-outbox-Ann') === null")
    assert page.evaluate(f"localStorage.getItem('plaudit-draft-Ann-{project}-{item}') !== null")
    for _ in range(100):
        if item in drafts.of(site.store, "Ann"):
            break
        page.wait_for_timeout(50)
    assert drafts.of(site.store, "Ann")[item]["comment"] == "a careful comment", (
        "also where the browser is another"
    )
    begin(page, project)
    assert page.input_value("#comment") == "a careful comment"
    assert page.locator(".send").is_disabled(), "its label is none of those that are asked for now"
    assert page.locator(".choice[aria-pressed=true]").count() == 0
    send(page, "2")
    (event,) = events_of(site, 1)
    assert (event.payload["label"], event.comment) == ("great", "a careful comment")


def test_a_refused_correction_stays_one(site: Any, page_of: PageOf) -> None:
    project = site.project("category", [Entry("Nice film."), Entry("Bad film.")], labels=["bad", "good"])
    page = page_of(site.account("Ann"))
    begin(page, project)
    send(page, "1")
    (first,) = events_of(site, 1)
    page.keyboard.press("u")
    page.wait_for_selector(".choice[aria-pressed=true]")
    site.projects.change(project, settings={"labels": ["bad", "great"]})
    send(page, "2")
    page.wait_for_selector("#notice:has-text('An answer was not taken: ')")
    draft = page.evaluate(f"localStorage.getItem('plaudit-draft-Ann-{project}-{first.item}')")
    assert json.loads(draft)["supersedes"] == first.id
    page.keyboard.press("Escape")
    assert page.locator("#notice").is_hidden()
    page.reload()
    page.wait_for_selector("#item[aria-busy=false]")
    page.keyboard.press("s")
    assert [event.kind for event in events_of(site, 2)] == ["category", "skip"]


DRAFTS: dict[str, tuple[Entry, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "rating": (
        Entry("p", ("x",)), {"criteria": [{"name": "a"}, {"name": "b"}]}, {"scores": {"a": 0.5, "b": 0.2}},
        {"criteria": [{"name": "b"}, {"name": "c"}]},
    ),
    "category": (Entry("p"), {"labels": ["a", "b"]}, {"label": "a"}, {"labels": ["c", "b"]}),
    "comparison": (Entry("p", ("x", "y")), {}, {"choice": 0, "strength": 3}, {"strength": False}),
    "ranking": (Entry("p", ("x", "y", "z")), {}, {"ranking": [0, 1]}, {}),
    "edit": (Entry("p", ("x", "y")), {}, {"chosen": 7, "completion": "z"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", DRAFTS)
def test_of_a_draft_what_no_longer_fits_is_dropped(site: Any, page_of: PageOf, kind: str) -> None:
    entry, task, payload, settings = DRAFTS[kind]
    project = site.project(kind, [entry], **task)
    (item,) = site.store.items()
    drafts.save(site.store, site.account("Ann"), item, {"payload": payload, "comment": "kept"})
    site.projects.change(project, settings=settings)
    page = page_of("Ann")
    begin(page, project)
    assert page.locator(".send").is_disabled()
    assert page.input_value("#comment") == "kept"
    assert page.locator(".choice[aria-pressed=true]").count() == 0
    if kind == "rating":
        assert page.locator(".criterion output").all_inner_texts() == ["0.20", "not given"]
        page.locator("#score-1").focus()
        send(page, "9")
        (event,) = events_of(site, 1)
        assert event.payload["scores"] == {"b": 0.2, "c": 0.9}


def test_a_page_that_is_refused_says_so_in_the_reader_s_language(site: Any, page_of: PageOf) -> None:
    project = site.project("comparison", pairs(1), raters=["Bob"])
    page = page_of(site.account("Ann"))
    for at, status, words in (
        ("/people", 403, "You may not see this page"),
        (f"/projects/{project}/judge", 404, "There is no such page"),
        ("/nowhere", 404, "There is no such page"),
    ):
        answer = page.goto(at)
        assert (answer.status, page.inner_text("h1")) == (status, words)
        assert page.locator("nav .who").inner_text() == "Ann"
    page.get_by_role("link", name="中文").click()
    assert page.inner_text("h1") == "没有这个页面"
    page.goto("/people")
    assert "您无权查看此页面" in page.inner_text("main")
    assert "needs the right" not in page.inner_text("main")
    page.locator("#log-out").click()
    page.wait_for_url("**/log-in")


TABBED = """() => {
  const at = document.activeElement;
  if (at === document.body) return null;
  const all = [...document.querySelectorAll("*")], { x, y, width, height } = at.getBoundingClientRect();
  const top = document.elementFromPoint(x + width / 2, y + Math.min(height, 20) / 2);
  return { at: all.indexOf(at), seen: top !== null && (at.contains(top) || top.contains(at)) };
}"""
REACHED = """() => [
  ...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']"),
].filter((one) => !one.disabled && one.checkVisibility({ visibilityProperty: true })).length"""


@pytest.mark.parametrize("width", [360, 1280])
def test_tab_goes_through_pages_and_out_again(site: Any, page_of: PageOf, width: int) -> None:
    main = site.project("comparison", pairs(2))
    judged = [
        main,
        site.project("rating", [Entry("p", ("x",))], criteria=[{"name": "a"}, {"name": "b"}]),
        site.project("ranking", [Entry("p", ("x", "y", "z"))]),
        site.project("edit", [Entry("p", ("x", "y"))]),
    ]
    items = {item.meta["project"]: id for id, item in site.store.items().items()}
    page = page_of(site.account("Olga", "owner"), viewport={"width": width, "height": 640})
    places = [f"/projects/{main}#settings", f"/projects/{main}#data"]
    places += [
        place for id in judged for place in (f"/projects/{id}/judge", f"/projects/{id}/items/{items[id]}")
    ]
    for place in places:
        page.goto("about:blank")
        page.goto(place)
        until(
            page,
            "document.readyState === 'complete' && !document.querySelector('[aria-busy=true]:not([hidden] *)')",
        )
        for key in ("Tab", "Shift+Tab"):
            page.evaluate("document.activeElement.blur()")
            reached, wanted = set[int](), page.evaluate(REACHED)
            for _ in range(2 * wanted + 4):
                page.keyboard.press(key)
                if (found := page.evaluate(TABBED)) is not None:
                    assert found["seen"], (place, found)
                    reached.add(found["at"])
            assert len(reached) == wanted, (place, key)


def test_the_focus_stays_with_what_was_pressed(site: Any, page_of: PageOf) -> None:
    project = site.project("ranking", [Entry("p", ("x", "y", "z"))])
    page = page_of(site.account("Olga", "owner"))
    begin(page, project)
    label = "document.activeElement.ariaLabel"
    page.get_by_label("Move A down").focus()
    for key, focused in (
        ("Enter", "Move A down"), ("Enter", "Move A up"), ("ArrowUp", "Move A up"), ("j", "Move A up"),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert page.evaluate(label) == focused
    page.goto(f"/projects/{project}#settings")
    page.locator("#task button").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#task .done:not([hidden])")
    assert page.evaluate("document.activeElement.closest('form')?.id") == "task"


def test_escape_closes_the_message_then_the_comment(site: Any, page_of: PageOf) -> None:
    page = page_of(site.account("Ann"))
    begin(page, site.project("comparison", pairs(3)))
    page.locator("#keys summary").click()
    page.locator("#use-keys").uncheck()
    page.locator("details.more summary").click()
    page.context.set_offline(True)
    page.locator(".choice").first.click()
    page.locator(".send").click()
    page.wait_for_selector("text=Not sent yet")
    page.locator("details.more summary").click()
    page.focus("#comment")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")
    page.keyboard.press("Escape")
    assert page.locator("#notice").is_hidden()
    assert page.locator("details.more[open]").count() == 1
    page.locator("details.more summary").focus()
    page.keyboard.press("Escape")
    assert page.locator("details.more[open]").count() == 0
    assert page.evaluate("document.activeElement.id") == "item"
