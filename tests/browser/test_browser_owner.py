"""An owner's whole project, in a real browser; and what an automated audit of accessibility says of every page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import until

from plaudit.access.accounts import Accounts
from plaudit.feedback import answering
from plaudit.feedback.projects import Entry
from plaudit.loop.worker import Worker

pytest_plugins = ["site_fixtures"]
PageOf = Callable[..., Any]
PAIRS = [Entry(f"Name bird {i}.", (f"A robin {i}.", f"A stone {i}.")) for i in range(6)]


LOADED = (
    "document.readyState === 'complete' && "
    "[...document.querySelectorAll('[aria-busy=true]')].every((one) => one.closest('[hidden]'))"
)


def part(page: Any, name: str) -> Any:
    page.locator(f".tabs a[data-part={name}]").click()
    found = page.locator(f"section#{name}")
    found.wait_for(state="visible")
    return found


def judge_all(site: Any, project: str, rater: str, first: int) -> None:
    """The robin of every pair, but of the first what is given."""
    number = 0
    while turns := answering.upcoming(site.projects, site.projects.get(project), rater, time.time()):
        turn = turns[0]
        payload = {"choice": first if number == 0 else 0, "strength": None}
        answering.judge(
            site.projects,
            project,
            rater,
            turn.item.id,
            payload,
            event=f"{rater}-{number}",
            assignment=turn.assignment,
        )
        number += 1


def test_a_project_from_nothing_to_records(site: Any, page_of: PageOf, tmp_path: Path) -> None:
    page = page_of(site.account("Olga", "owner"))
    # 1. Made, with items, a guideline and settings.
    page.fill("#project-name", "Robins")
    page.select_option("#project-kind", "comparison")
    page.get_by_role("button", name="Create").click()
    page.wait_for_url("**/projects/*")
    project = page.url.rpartition("/")[2]
    items = tmp_path / "items.jsonl"
    items.write_text(
        "".join(json.dumps({"prompt": e.prompt, "completions": e.completions}) + "\n" for e in PAIRS)
    )
    part(page, "data")
    page.set_input_files("#file", str(items))
    page.locator("#add-items button").click()
    page.wait_for_selector("#add-items .done:not([hidden])")
    assert "6" in page.inner_text("#add-items .done")
    part(page, "settings")
    page.fill("#overlap", "3")
    page.fill("#gold-every", "0")
    page.locator("#task button").click()
    page.wait_for_selector("#task .done:not([hidden])")
    page.fill("#guideline-en", "Prefer birds.")
    page.locator("#guideline button").click()
    page.wait_for_selector("#guideline .done:not([hidden])")
    part(page, "overview")
    page.locator("#invite button").click()
    page.wait_for_selector("#invite .done:not([hidden])")
    assert "/welcome/" in page.inner_text("#invite .done")
    # 2. Judged by three, of whom one disagrees about one item.
    for name in ("Ann", "Bob", "Cem"):
        judge_all(site, project, site.account(name), 1 if name == "Cem" else 0)
    page.reload()
    page.wait_for_selector("#counts dd")
    assert "18" in page.inner_text("#counts")
    quality = part(page, "quality")
    quality.locator("table").first.wait_for()
    assert "Krippendorff" in quality.inner_text()
    assert "Cem" in quality.inner_text()
    # 3. A reviewer decides where they disagree.
    queue = part(page, "disagreements")
    queue.locator("a").first.wait_for()
    assert queue.locator("tbody tr").count() == 1
    queue.locator("a").first.click()
    page.wait_for_selector("#said tbody tr")
    assert page.locator("#said tbody tr").count() == 3
    page.locator(".scale .choice").first.click()
    page.fill("#reason", "A stone is no bird.")
    page.locator("#decide button").click()
    page.wait_for_selector("#decide .done:not([hidden])")
    until(page, "document.querySelectorAll('#said tbody tr').length === 4")
    decided = site.store.current()[-1]
    assert (decided.rater, decided.payload["adjudicates"], decided.comment) == (
        "Olga",
        True,
        "A stone is no bird.",
    )
    # 4. A worker samples and reads; value and models are shown.
    page.goto(f"/projects/{project}#data")
    page.fill("#sample-model", "tiny")
    page.fill("#sample-tokens", "4")
    page.fill("#sample-prompts", "Say hello.\nSay goodbye.")
    page.locator("#sample button").click()
    page.wait_for_selector("#sample .done:not([hidden])")
    part(page, "value")
    page.fill("#vector-model", "tiny")
    page.locator("#vectors button").click()
    page.wait_for_selector("#vectors .done:not([hidden])")
    assert Worker(site.store).run(once=True) == 2
    page.reload()
    page.wait_for_selector("#curve[aria-busy=false]")
    assert "fewer than" in page.inner_text("#curve") or page.locator("#curve svg").count() == 1
    page.locator("#prioritise button").click()
    page.wait_for_selector("#prioritise .done:not([hidden])")
    # 5. Out again.
    part(page, "data")
    page.select_option("#format", "trl")
    with page.expect_download() as waited:
        page.locator("#download button").click()
    rows = [json.loads(line) for line in Path(waited.value.path()).read_text().splitlines()]
    assert len(rows) == 19
    assert set(rows[0]) == {"prompt", "chosen", "rejected"}
    page.goto("/people")
    page.wait_for_selector("#audit tbody tr")
    assert "take" not in page.inner_text("#notice")


def test_runs_grow_before_one_s_eyes(site: Any, page_of: PageOf) -> None:
    place = site.runs / "ppo"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("recipe: ppo\n")
    log = place / "metrics.jsonl"
    log.write_text(
        "".join(json.dumps({"step": n, "reward": n / 10, "kl": 0.01 * n}) + "\n" for n in range(1, 4))
    )
    page = page_of(site.account("Olga", "owner"))
    page.goto("/runs")
    page.wait_for_selector("#curves svg")
    assert page.locator("#curves svg circle").count() == 6
    with log.open("a") as file:
        file.write(json.dumps({"step": 4, "reward": 0.9, "kl": 0.05}) + "\n")
    until(page, "document.querySelectorAll('#curves svg circle').length === 8")


def test_a_loop_says_what_it_waits_for(site: Any, page_of: PageOf) -> None:
    place = site.runs / "loop"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("recipe: loop\n")
    gains = {"rates": {"anchor": 0.66}, "intervals": {"anchor": [0.58, 0.74]}}
    one = {
        "round": 1,
        "steps": {"sample": 90.0},
        "judgements": {"studio": 40},
        "accuracy": 0.7,
        "published": True,
    }
    told: dict[str, Any] = {
        "name": "assistant",
        "rounds": [one | gains | {"why": "preferred to anchor"}],
        "champion": {"round": 1, "version": "assistant-1234"},
        "target": 0.7,
        "judgements": 42,
        "seconds": {"total": 90.0},
        "waiting": {"round": 2, "for": "judgements", "have": 3, "want": 40},
        "at": {"round": 2, "step": "collect"},
        "ended": None,
    }
    (place / "status.json").write_text(json.dumps(told))
    page = page_of(site.account("Olga", "owner"))
    page.goto("/loops")
    page.wait_for_selector("#loops svg")
    assert "Round 2 waits for judgements: 3 of 40 are there." in page.inner_text("#loops .state")
    assert "66" in page.inner_text("#loops table")
    (place / "status.json").write_text(json.dumps(told | {"waiting": None}))
    until(page, "document.querySelector('#loops .state').textContent.includes('collecting judgements')")
    page.goto("/language/zh?back=/loops")
    page.wait_for_selector("#loops svg")
    assert "收集评判" in page.inner_text("#loops .state")


def test_a_playground_vote(site: Any, page_of: PageOf) -> None:
    page = page_of(site.account("Olga", "owner"))
    page.goto("/playground")
    page.fill("#one", "tiny")
    page.fill("#other", "tiny")
    page.fill("#message", "Hello")
    page.locator("#ask > button").click()
    page.wait_for_selector("text=Waiting for a worker")
    Worker(site.store).run(once=True)
    page.wait_for_selector("#answers .choice")
    page.locator("#answers .choice").nth(1).click()
    page.wait_for_selector("text=A was tiny")
    (event,) = site.store.current()
    assert event.payload["choice"] == "tie"


def test_keys_are_made_and_revoked(site: Any, page_of: PageOf) -> None:
    page = page_of(site.account("Olga", "owner"))
    page.goto("/account")
    page.fill("#label", "script")
    page.locator("#new-key button").click()
    page.wait_for_selector("#new-key .done:not([hidden])")
    assert "plaudit_" in page.inner_text("#new-key .done")
    page.get_by_role("button", name="Revoke").click()
    page.wait_for_selector("text=You have no key.")


def test_a_password_is_changed_and_an_account_closed(site: Any, page_of: PageOf) -> None:
    site.account("Ann")
    page = page_of(site.account("Olga", "owner"), sure=True)
    page.goto("/account")
    page.fill("#old", "not it at all")
    page.fill("#new", "battery staple")
    page.locator("#password button").click()
    page.wait_for_selector("text=name or password is wrong")
    page.fill("#old", "correct horse")
    page.locator("#password button").click()
    page.wait_for_selector("#password .done:not([hidden])")
    page.fill("#label", "script")
    page.locator("#new-key button").click()
    page.wait_for_selector("#new-key .done:not([hidden])")
    page.goto("/people")
    page.wait_for_selector("text=Every line is as it was written.")
    page.locator("#people tr", has_text="Ann").get_by_role("button", name="Close").click()
    page.wait_for_selector("#people tr:has-text('Ann')", state="detached")
    assert Accounts(site.store.engine).get("Ann") is None
    assert "Ann" in site.store.raters()


def test_a_role_is_given_and_a_rater_is_exported(site: Any, page_of: PageOf) -> None:
    site.account("Ann")
    page = page_of(site.account("Olga", "owner"), sure=True)
    page.goto("/people")
    page.get_by_label("Role of Ann").select_option("reviewer")
    page.wait_for_selector("#notice:has-text('Saved.')")
    account = Accounts(site.store.engine).get("Ann")
    assert account is not None
    assert account.role == "reviewer"
    row = page.locator("#people tr", has_text="Ann")
    with page.expect_download() as waited:
        row.get_by_role("button", name="Export").click()
    assert waited.value.suggested_filename == "Ann.json"
    assert json.loads(Path(waited.value.path()).read_text())["rater"] == "Ann"
    admin = page_of(site.account("Adam", "admin"))
    admin.goto("/people")
    mine = admin.locator("#people tr", has_text="Adam")
    mine.wait_for()
    assert mine.locator("select, button").count() == 0  # an admin is changed by an owner alone


@pytest.fixture(scope="module")
def axe() -> Any:
    found = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python (make setup)"
    )
    return found.Axe()


@pytest.mark.parametrize(
    ("language", "scheme"), [("en", "light"), pytest.param("zh", "dark", marks=pytest.mark.proof)]
)
def test_an_audit_finds_nothing(site: Any, page_of: PageOf, axe: Any, language: str, scheme: str) -> None:
    projects = {
        "comparison": site.project("comparison", PAIRS, overlap=2),
        "rating": site.project(
            "rating", [Entry("Say hello.", ("Hi!",))], criteria=[{"name": "warmth", "help": "Kind?"}]
        ),
        "ranking": site.project("ranking", [Entry("A", ("one", "two", "three"))]),
        "category": site.project("category", [Entry("Nice.", ())], labels=["good", "bad"]),
        "edit": site.project("edit", [Entry("Say hello.", ("Helo!",))]),
    }
    for name in ("Ann", "Bob"):
        judge_all(site, projects["comparison"], site.account(name), 1 if name == "Bob" else 0)
    place = site.runs / "ppo"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("recipe: ppo\n")
    (place / "metrics.jsonl").write_text('{"step": 1, "reward": 0.1}\n{"step": 2, "reward": 0.2}\n')
    item = site.store.current()[0].item
    page = page_of(site.account("Olga", "owner"), color_scheme=scheme)
    page.goto(f"/language/{language}?back=/projects")
    main = projects["comparison"]
    places = [
        "/projects", *(f"/projects/{id}/judge" for id in projects.values()), f"/projects/{main}",
        *(f"/projects/{main}#{name}" for name in ("quality", "disagreements", "value", "models", "data", "settings")),
        f"/projects/{main}/items/{item}", "/people", "/runs", "/loops", "/playground", "/account",
    ]  # fmt: skip
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    for at in places:
        page.goto("about:blank")
        page.goto(at)
        until(page, LOADED)
        page.wait_for_timeout(200)  # what has just been drawn
        found = axe.run(page, options=rules)
        assert found.violations_count == 0, f"{at}: {found.generate_report()}"
    nobody = page_of(None, color_scheme=scheme)
    for at in ("/log-in", site.invitation()):
        nobody.goto(at)
        found = axe.run(nobody, options=rules)
        assert found.violations_count == 0, f"{at}: {found.generate_report()}"
