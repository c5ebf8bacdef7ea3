"""The studio's HTTP API: who may do what, and a rater's and an owner's way through it."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from clients import WORD, client
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from plaudit.access import audit
from plaudit.access.roles import ALLOWED, ROLES, Permission
from plaudit.feedback.jobs import Jobs
from plaudit.feedback.projects import Projects
from plaudit.studio import (
    computing,
    exchanging,
    hooking,
    judging,
    owning,
    pages,
    people,
    reviewing,
    watching,
)
from plaudit.studio.guard import FORGERY, Guard
from plaudit.types import UserError

pytest_plugins = ["studio_fixtures"]
PAIRS = [{"prompt": f"prompt {i}", "completions": [f"one {i}", f"other {i}"]} for i in range(6)]


def new_project(owner: TestClient, kind: str = "comparison", **task: Any) -> str:
    settings = {"kind": kind, "random_share": 0.0, "gold_every": 0} | task
    made = owner.post("/api/v1/projects", json={"name": "Pairs", "task": settings})
    assert made.status_code == 201, made.text
    found: str = made.json()["id"]
    return found


def test_a_rater_s_way_from_the_link_to_the_last_item(app: Any) -> None:
    owner = client(app, "owner")
    project = new_project(owner, overlap=1)
    added = owner.post(f"/api/v1/projects/{project}/items", json={"items": PAIRS})
    assert added.json() == {"added": 6}
    link = owner.post("/api/v1/invitations", json={"role": "rater", "project": project}).json()["link"]
    rater = client(app)
    token = link.rpartition("/")[2]
    assert rater.get(f"/welcome/{token}").status_code == 200
    begun = rater.post(f"/api/v1/invitations/{token}", json={"name": "Quiet otter", "password": WORD}).json()
    assert begun["project"] == project
    rater.headers[FORGERY] = begun["csrf"]
    seen = list[str]()
    while turns := rater.get(f"/api/v1/projects/{project}/next").json()["turns"]:
        turn = turns[0]
        seen.append(turn["item"])
        said = {
            "event": f"e{len(seen)}", "item": turn["item"], "assignment": turn["assignment"],
            "payload": {"choice": turn["completions"][0]["index"], "strength": 2}, "comment": "so",
        }  # fmt: skip
        for _ in range(2):
            written = rater.post(f"/api/v1/projects/{project}/answers", json=said)
            assert written.json() == {"seq": len(seen), "next": None}, "sent twice, counted once"
    assert len(set(seen)) == 6
    events = app.state.projects.store.current()
    assert [event.rater for event in events] == ["Quiet otter"] * 6
    assert all(event.payload["choice"] == event.presented[0] for event in events)
    page = rater.get(f"/projects/{project}/judge")
    assert page.status_code == 200
    assert "Pairs" in page.text


TABLE: dict[tuple[str, str], Permission | None] = {
    ("GET", "/api/v1/projects/{project}/next"): "judge",
    ("POST", "/api/v1/projects/{project}/answers"): "judge",
    ("POST", "/api/v1/projects/{project}/practice"): "judge",
    ("PUT", "/api/v1/drafts/{item}"): "judge",
    ("GET", "/api/v1/projects"): "judge",
    ("POST", "/api/v1/projects"): "manage",
    ("GET", "/api/v1/projects/{project}"): "judge",
    ("PATCH", "/api/v1/projects/{project}"): "manage",
    ("POST", "/api/v1/projects/{project}/copies"): "manage",
    ("POST", "/api/v1/projects/{project}/items"): "manage",
    ("GET", "/api/v1/projects/{project}/quality"): "review",
    ("GET", "/api/v1/projects/{project}/items/{item}"): "review",
    ("POST", "/api/v1/projects/{project}/adjudications"): "review",
    ("GET", "/api/v1/projects/{project}/own"): "judge",
    ("GET", "/api/v1/projects/{project}/counts"): "review",
    ("POST", "/api/v1/projects/{project}/samples"): "manage",
    ("POST", "/api/v1/projects/{project}/vectors"): "manage",
    ("POST", "/api/v1/projects/{project}/scores"): "manage",
    ("GET", "/api/v1/jobs"): "manage",
    ("GET", "/api/v1/jobs/{job}"): "manage",
    ("DELETE", "/api/v1/jobs/{job}"): "manage",
    ("GET", "/api/v1/projects/{project}/value"): "review",
    ("GET", "/api/v1/projects/{project}/standings"): "review",
    ("POST", "/api/v1/projects/{project}/priorities"): "manage",
    ("GET", "/api/v1/projects/{project}/models"): "review",
    ("POST", "/api/v1/playground"): "answer",
    ("GET", "/api/v1/playground/{job}"): "answer",
    ("POST", "/api/v1/playground/{job}/vote"): "answer",
    ("GET", "/api/v1/projects/{project}/records"): "manage",
    ("POST", "/api/v1/projects/{project}/records"): "manage",
    ("GET", "/api/v1/raters/{name}"): "own",
    ("PUT", "/api/v1/raters/{name}/retracted"): "own",
    ("DELETE", "/api/v1/raters/{name}"): "own",
    ("GET", "/api/v1/runs"): "review",
    ("GET", "/api/v1/loops"): "review",
    ("GET", "/api/v1/metrics"): "review",
    ("GET", "/api/v1/webhooks"): "own",
    ("POST", "/api/v1/webhooks"): "own",
    ("DELETE", "/api/v1/webhooks/{id}"): "own",
    ("POST", "/api/v1/log-out"): None,
    ("GET", "/api/v1/me"): None,
    ("POST", "/api/v1/invitations"): "manage",
    ("GET", "/api/v1/accounts"): "manage",
    ("PUT", "/api/v1/accounts/{name}/role"): "manage",
    ("PUT", "/api/v1/accounts/{name}/disabled"): "manage",
    ("DELETE", "/api/v1/accounts/{name}"): "manage",
    ("PUT", "/api/v1/me/password"): None,
    ("GET", "/api/v1/audit/check"): "own",
    ("GET", "/api/v1/keys"): None,
    ("POST", "/api/v1/keys"): None,
    ("DELETE", "/api/v1/keys/{id}"): None,
    ("GET", "/api/v1/audit"): "own",
    ("GET", "/projects"): "judge",
    ("GET", "/projects/{project}/judge"): "judge",
    ("GET", "/projects/{project}"): "review",
    ("GET", "/projects/{project}/items/{item}"): "review",
    ("GET", "/runs"): "review",
    ("GET", "/loops"): "review",
    ("GET", "/playground"): "answer",
    ("GET", "/account"): "judge",
    ("GET", "/people"): "manage",
}
"""What each route needs: None is any log-in."""
OPEN = {
    ("POST", "/api/v1/log-in"), ("POST", "/api/v1/invitations/{token}"), ("GET", "/"), ("GET", "/log-in"),
    ("GET", "/welcome/{token}"), ("GET", "/language/{language}"),
}  # fmt: skip


def test_an_answer_brings_what_comes_next(app: Any) -> None:
    owner, ann = client(app, "owner", "Olga"), client(app, "rater", "Ann")
    project = new_project(owner)
    owner.post(f"/api/v1/projects/{project}/items", json={"items": PAIRS})
    owner.put(f"/api/v1/projects/{project}/guidelines", json={"texts": {"en": "Be fair."}})
    first = ann.get(f"/api/v1/projects/{project}/next?count=2").json()
    turns, seen = first["turns"], list[str]()
    while turns:
        turn = turns.pop(0)
        seen.append(turn["item"])
        said = {
            "event": f"e{len(seen)}", "item": turn["item"], "assignment": turn["assignment"], "ahead": 2,
            "payload": {"choice": 0, "strength": 1}, "have": [one["item"] for one in turns],
        }  # fmt: skip
        for _ in range(2):  # sent twice: the same answer, and the same turns
            written = ann.post(f"/api/v1/projects/{project}/answers", json=said).json()
            assert written["seq"] == len(seen)
        coming = written["next"]
        assert {name: coming[name] for name in ("task", "guideline", "guidelines")} == {
            name: first[name] for name in ("task", "guideline", "guidelines")
        }
        assert len(turns) + len(coming["turns"]) == min(2, 6 - len(seen))
        turns += coming["turns"]
    assert len(set(seen)) == 6
    refused = ann.post(f"/api/v1/projects/{project}/answers", json=said | {"event": "new"})
    assert refused.status_code == 400, "answered already: neither written nor anything given out"


def test_whether_raters_agree_is_looked_at_as_often_as_it_can_be_afforded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look that takes two seconds is not repeated for forty; of another project it is."""
    clock, looks = [0.0], list[tuple[float, str]]()

    def settle(_: object, project: str) -> None:
        looks.append((clock[0], project))
        clock[0] += 2.0

    monkeypatch.setattr("plaudit.studio.judging.quality.settle", settle)
    monkeypatch.setattr("plaudit.studio.judging.time", SimpleNamespace(monotonic=lambda: clock[0]))
    request: Any = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(settled={})))
    for moment, project in ((0.0, "a"), (30.0, "a"), (33.0, "b"), (39.9, "a"), (40.0, "a")):
        clock[0] = moment
        judging._settle(request, object(), project)  # type: ignore[arg-type]
    assert looks == [(0.0, "a"), (33.0, "b"), (40.0, "a")]


@pytest.mark.parametrize("workers", [1, 2, 8, 64])
def test_two_slips_keep_nobody_out_however_many_workers_there_are(app: Any, workers: int) -> None:
    guard = Guard(app.state.guard.accounts, app.state.guard.keys, workers)
    assert [guard.failures.take("address", 0.0) for _ in range(3)] == [0, 0, 0]
    assert guard.failures.take("address", 1e9) == 0
    refused = [guard.failures.take("other", 0.0) > 0 for _ in range(12)]
    assert refused.index(True) == max(3, 10 // workers)


def test_every_route_is_in_the_table() -> None:
    found = {
        (method, route.path)
        for room in (judging, owning, reviewing, computing, exchanging, watching, hooking, pages, people)
        for route in room.router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert found == TABLE.keys() | OPEN


@pytest.mark.parametrize("role", [None, *ROLES])
def test_wrong_roles_are_refused_on_every_route(app: Any, role: Any) -> None:
    """With a log-in and with an API key of all that the role may."""
    owner = client(app, "owner", "Olga")
    project = new_project(owner)
    asked = [client(app, role)]
    if role is not None:
        made = asked[0].post("/api/v1/keys", json={"scopes": sorted(ALLOWED[role])}).json()
        asked.append(
            TestClient(app, headers={"Authorization": f"Bearer {made['secret']}"}, base_url="http://studio")
        )
    for one in asked:
        for (method, path), needed in TABLE.items():
            if path == "/api/v1/log-out":
                continue
            place = re.sub(r"\{(job|id)\}", "1", path.replace("{project}", project))
            answer = one.request(method, re.sub(r"\{\w+\}", "x", place), json={}, follow_redirects=False)
            allowed = role is not None and (needed is None or needed in ALLOWED[role])
            if allowed:
                assert answer.status_code not in (401, 403, 303), (method, path, answer.text)
            elif role is None:
                assert answer.status_code == (401 if path.startswith("/api") else 303), (method, path)
            else:
                assert answer.status_code == 403, (method, path, answer.text)


def test_a_key_is_good_for_its_scopes_alone(app: Any) -> None:
    owner = client(app, "owner")
    secret = owner.post("/api/v1/keys", json={"scopes": ["judge"], "label": "bot"}).json()["secret"]
    bot = TestClient(app, headers={"Authorization": f"Bearer {secret}"}, base_url="http://studio")
    assert bot.get("/api/v1/projects").json() == []
    assert bot.post("/api/v1/projects", json={"name": "x", "task": {"kind": "edit"}}).status_code == 403
    assert bot.post("/api/v1/keys", json={"scopes": ["own"]}).status_code == 403, "it makes no stronger one"
    assert bot.get("/api/v1/me").json()["permissions"] == ["judge"]
    wrong = TestClient(app, headers={"Authorization": f"Bearer {secret}x"}, base_url="http://studio")
    assert wrong.get("/api/v1/me").status_code == 401


def test_another_site_cannot_act_for_somebody(app: Any) -> None:
    owner = client(app, "owner")
    del owner.headers[FORGERY]
    assert owner.get("/api/v1/projects").status_code == 200
    refused = owner.post("/api/v1/projects", json={"name": "x", "task": {"kind": "edit"}})
    assert refused.status_code == 403
    assert "does not come from a page of the studio" in refused.json()["what"]
    owner.headers[FORGERY] = "0" * 64
    assert owner.post("/api/v1/log-out").status_code == 403


def test_guessing_passwords_is_slow(app: Any) -> None:
    client(app, "rater", "Ann")
    guesser = client(app)
    answers = [
        guesser.post("/api/v1/log-in", json={"name": "Ann", "password": f"guess {i}"}) for i in range(12)
    ]
    assert [answer.status_code for answer in answers] == [400] * 10 + [429] * 2
    assert int(answers[-1].headers["retry-after"]) > 10


def test_a_new_password_ends_every_other_log_in(app: Any) -> None:
    here, there = client(app, "rater", "Ann"), client(app, "rater", "Ann")
    new = {"old": WORD, "new": "battery staple"}
    wrong = here.put("/api/v1/me/password", json=new | {"old": "wrong horse"})
    assert (wrong.status_code, wrong.json()["what"]) == (400, "name or password is wrong")
    assert here.put("/api/v1/me/password", json=new | {"new": "short"}).status_code == 400
    assert there.get("/api/v1/me").status_code == 200, "nothing has changed yet"
    begun = here.put("/api/v1/me/password", json=new)
    assert begun.status_code == 200
    assert there.get("/api/v1/me").status_code == 401
    here.headers[FORGERY] = begun.json()["csrf"]
    assert here.post("/api/v1/keys", json={"scopes": ["judge"]}).status_code == 201, (
        "one goes on where one was"
    )
    said = {"name": "Ann", "password": WORD}
    assert client(app).post("/api/v1/log-in", json=said).status_code == 400
    assert client(app).post("/api/v1/log-in", json=said | {"password": new["new"]}).status_code == 200


def test_a_key_cannot_change_the_password_nor_a_log_in_guess_it(app: Any) -> None:
    ann = client(app, "rater", "Ann")
    secret = ann.post("/api/v1/keys", json={"scopes": ["judge"]}).json()["secret"]
    bot = TestClient(app, headers={"Authorization": f"Bearer {secret}"}, base_url="http://studio")
    new = {"old": WORD, "new": "battery staple"}
    assert bot.put("/api/v1/me/password", json=new).status_code == 403
    guesses = [ann.put("/api/v1/me/password", json=new | {"old": f"guess {i}"}) for i in range(12)]
    assert [answer.status_code for answer in guesses] == [400] * 10 + [429] * 2
    assert ann.put("/api/v1/me/password", json=new).status_code == 429, "not even the right one, for a while"


def test_a_closed_account_is_gone_and_what_it_judged_stays(app: Any) -> None:
    owner, ann = client(app, "owner", "Olga"), client(app, "rater", "Ann")
    project = new_project(owner)
    owner.post(f"/api/v1/projects/{project}/items", json={"items": PAIRS})
    turn = ann.get(f"/api/v1/projects/{project}/next").json()["turns"][0]
    said = {"event": "e", "item": turn["item"], "assignment": turn["assignment"]}
    ann.post(f"/api/v1/projects/{project}/answers", json=said | {"payload": {"choice": 0, "strength": 1}})
    assert owner.delete("/api/v1/accounts/Ann").status_code == 200
    assert ann.get("/api/v1/me").status_code == 401
    assert [one["name"] for one in owner.get("/api/v1/accounts").json()] == ["Olga"]
    assert [event.rater for event in app.state.projects.store.current()] == ["Ann"]
    last = owner.delete("/api/v1/accounts/Olga")
    assert last.status_code == 400
    assert "is the last owner" in last.json()["what"]
    admin = client(app, "admin", "Ada")
    assert admin.delete("/api/v1/accounts/Olga").status_code == 403, "of those below oneself alone"


def test_what_cannot_be_logged_is_not_done(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, ann = client(app, "owner"), client(app, "rater", "Ann")
    project = new_project(owner)
    projects: Projects = app.state.projects

    def full(*_: Any, **__: Any) -> None:
        raise UserError("the log is full", where="audit")

    monkeypatch.setattr(audit, "note", full)
    line = '{"prompt": "p", "chosen": "a", "rejected": "b"}'
    asked = [
        owner.post("/api/v1/projects", json={"name": "Another", "task": {"kind": "edit"}}),
        owner.patch(f"/api/v1/projects/{project}", json={"name": "Renamed", "guideline": {"en": "Be fair."}}),
        owner.post(f"/api/v1/projects/{project}/copies"),
        owner.post(f"/api/v1/projects/{project}/items", json={"items": PAIRS}),
        owner.post(f"/api/v1/projects/{project}/records?format=trl", content=line),
        owner.post(f"/api/v1/projects/{project}/vectors", json={"model": "smollm2"}),
        owner.put("/api/v1/raters/Ann/retracted"),
        owner.delete("/api/v1/raters/Ann"),
        owner.delete("/api/v1/accounts/Ann"),
    ]
    assert [(answer.status_code, answer.json()["what"]) for answer in asked] == [(400, "the log is full")] * 9
    assert [(one.name, one.guideline) for one in projects.all()] == [("Pairs", 0)]
    assert projects.store.items() == {}
    assert Jobs(projects.store.engine).newest() == []
    assert projects.store.raters()["Ann"] == "active"
    assert ann.get("/api/v1/me").status_code == 200


def test_an_edited_log_shows(app: Any) -> None:
    owner = client(app, "owner")
    new_project(owner)
    assert owner.get("/api/v1/audit/check").json() == {"broken": None}
    with app.state.projects.store.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER audit_update")
        connection.exec_driver_sql("UPDATE audit SET actor = 'nobody' WHERE seq = 2")
    assert owner.get("/api/v1/audit/check").json() == {"broken": 2}


def test_pages_load_nothing_from_elsewhere_and_nobody_frames_them(app: Any) -> None:
    owner = client(app, "owner")
    project = new_project(owner)
    places = (
        "/log-in",
        "/projects",
        f"/projects/{project}",
        f"/projects/{project}/judge",
        "/people",
        "/runs",
        "/loops",
    )
    for path in (*places, "/playground", "/account", f"/projects/{project}/items/x"):
        page = owner.get(path)
        assert page.status_code == 200, path
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        for found in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert found.startswith(("/", "#")), found
        assert not re.search(r"<script(?![^>]*(src=|application/json))", page.text), (
            "no script stands in a page"
        )
        assert " style=" not in page.text


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "![x](http://e/x.png)",
     '"><svg onload=alert(1)>', "`</code><script>`", "<!-- -->", "http://evil.example"],
)  # fmt: skip
def test_what_a_model_wrote_stays_text(app: Any, text: str) -> None:
    owner = client(app, "owner", text[:0] + "Olga")
    project = new_project(owner)
    items = [{"prompt": text, "completions": [text, "fine"]}]
    assert owner.post(f"/api/v1/projects/{project}/items", json={"items": items}).status_code == 201
    turn = owner.get(f"/api/v1/projects/{project}/next").json()["turns"][0]
    for html in [turn["prompt"][0]["html"], *(one["html"] for one in turn["completions"])]:
        tags = set(re.findall(r"<(\w+)", html))
        assert tags <= {"p", "code", "pre", "strong", "em", "ul", "ol", "li", "br"}, html
        assert "javascript:" not in re.sub(r">[^<]*<", "><", html)


def test_a_page_speaks_the_reader_s_language(app: Any) -> None:
    anybody = client(app)
    assert '<html lang="en">' in anybody.get("/log-in").text
    chinese = anybody.get("/log-in", headers={"Accept-Language": "de;q=0.9, zh-CN, en;q=0.8"}).text
    assert '<html lang="zh">' in chinese
    assert "登录" in chinese
    anybody.get("/language/zh")
    assert '<html lang="zh">' in anybody.get("/log-in", headers={"Accept-Language": "en"}).text
    for back in ("https://evil.example", "//evil.example", "/\\evil.example"):
        answer = anybody.get("/language/en", params={"back": back}, follow_redirects=False)
        assert answer.headers["location"] == "/"


def test_faults_say_what_where_and_how_to_mend_it(app: Any) -> None:
    owner = client(app, "owner")
    missing = owner.get("/api/v1/projects/nope")
    assert missing.status_code == 404
    assert missing.json() == {"what": "there is no such project", "where": "project nope", "fix": ""}
    project = new_project(owner)
    items = [PAIRS[0], {"prompt": "x", "completions": ["one"]}]
    wrong = owner.post(f"/api/v1/projects/{project}/items", json={"items": items})
    assert wrong.status_code == 400
    assert wrong.json()["where"] == "item 2"
    invalid = owner.post("/api/v1/projects", json={"name": "x", "task": {"kind": "poem"}})
    assert invalid.status_code == 422
    assert invalid.json()["where"] == "body.task.kind"
    assert invalid.json()["what"].startswith("Input should be")
    assert owner.get("/api/v1/nothing").json()["what"] == "Not Found"


def test_training_items_are_practised_and_gold_looks_like_any(app: Any) -> None:
    owner = client(app, "owner")
    project = new_project(owner, gold_every=1)
    items = [
        {"prompt": "lesson", "completions": ["good", "bad"], "part": "training", "answer": {"choice": 0},
         "why": "Rude."},
        {"prompt": "gold", "completions": ["good", "bad"], "part": "gold", "answer": {"choice": 0}},
    ]  # fmt: skip
    assert owner.post(f"/api/v1/projects/{project}/items", json={"items": items}).status_code == 201
    turn = owner.get(f"/api/v1/projects/{project}/next").json()["turns"][0]
    assert turn["part"] == "training"
    lesson = owner.post(
        f"/api/v1/projects/{project}/practice",
        json={"item": turn["item"], "payload": {"choice": 1, "strength": 1}},
    )
    assert lesson.json() == {"right": False, "answer": {"choice": 0}, "why": "Rude."}
    (turn,) = owner.get(f"/api/v1/projects/{project}/next").json()["turns"]
    assert turn["part"] == "open"
    assert "gold" not in str({name: value for name, value in turn.items() if name != "prompt"})


def test_a_copy_a_change_and_the_log_of_both(app: Any) -> None:
    owner = client(app, "owner")
    project = new_project(owner)
    owner.post(f"/api/v1/projects/{project}/items", json={"items": PAIRS})
    copy = owner.post(f"/api/v1/projects/{project}/copies").json()
    assert copy["name"] == "Pairs (copy)"
    changed = owner.patch(
        f"/api/v1/projects/{project}", json={"archived": True, "guideline": {"en": "Be fair."}}
    )
    assert (changed.json()["archived"], changed.json()["guideline"]) == (True, 1)
    rater = client(app, "rater")
    assert [one["id"] for one in rater.get("/api/v1/projects").json()] == [copy["id"]]
    told = owner.get("/api/v1/audit").json()
    assert ("change", f"project {project}") in [(line["action"], line["target"]) for line in told]
    assert any(line["action"] == "duplicate" and line["detail"] == {"of": project} for line in told)
    assert all(line["actor"] == "A owner" for line in told if line["target"].startswith("project"))


def test_a_project_may_be_for_some_raters_alone(app: Any) -> None:
    owner, ann, bob = client(app, "owner"), client(app, "rater", "Ann"), client(app, "rater", "Bob")
    project = new_project(owner, raters=["Ann"])
    owner.post(f"/api/v1/projects/{project}/items", json={"items": PAIRS})
    assert [len(one.get("/api/v1/projects").json()) for one in (owner, ann, bob)] == [1, 1, 0]
    item = ann.get(f"/api/v1/projects/{project}/next").json()["turns"][0]["item"]
    said = {"event": "e", "item": item, "payload": {"choice": 0, "strength": 1}}
    for answer in (
        bob.get(f"/api/v1/projects/{project}/next"), bob.get(f"/api/v1/projects/{project}"),
        bob.get(f"/projects/{project}/judge"), bob.get(f"/api/v1/projects/{project}/own"),
        bob.post(f"/api/v1/projects/{project}/answers", json=said),
        bob.post(f"/api/v1/projects/{project}/practice", json={"item": item, "payload": {}}),
    ):  # fmt: skip
        assert answer.status_code == 404, answer.text
    link = owner.post("/api/v1/invitations", json={"role": "rater", "project": project}).json()["link"]
    cem = client(app)
    begun = cem.post(f"/api/v1/invitations/{link.rpartition('/')[2]}", json={"name": "Cem", "password": WORD})
    assert begun.status_code == 201
    assert cem.get(f"/api/v1/projects/{project}/next").json()["turns"]


def test_what_is_refused_is_said_in_the_reader_s_language(app: Any) -> None:
    nobody = client(app)
    wrong = {"name": "nobody", "password": "wrong horse"}
    english = nobody.post("/api/v1/log-in", json=wrong).json()
    assert (english["where"], english["what"]) == ("log-in", "name or password is wrong")
    chinese = nobody.post("/api/v1/log-in", json=wrong, headers={"accept-language": "zh-CN"}).json()
    assert (chinese["where"], chinese["what"]) == ("登录", "用户名或密码不对")


def test_a_change_names_what_changes_and_the_rest_stays(app: Any) -> None:
    owner, rater = client(app, "owner"), client(app, "rater", "Ann")
    project = new_project(owner, raters=["Ann"], most_judgements=9)
    place = f"/api/v1/projects/{project}"
    before = owner.get(place).json()["task"]
    changed = owner.patch(place, json={"task": {"blur": True, "most_judgements": None}})
    assert changed.json()["task"] == before | {"blur": True, "most_judgements": None}
    # Whoever is invited between two looks at the list of raters stays on it.
    app.state.projects.welcome(project, "Bob")
    raters = {"admit": ["Cy", "Cy", "Bob"], "dismiss": ["Ann", "Dee"]}
    assert owner.patch(place, json={"raters": raters}).json()["task"]["raters"] == ["Bob", "Cy"]
    assert rater.get(f"{place}/next").status_code == 404
    everybody = owner.patch(place, json={"raters": {"dismiss": ["Bob", "Cy"]}})
    assert (everybody.status_code, everybody.json()["what"]) == (
        400,
        "would name no rater, so that everybody might judge",
    )
    many = owner.patch(place, json={"raters": {"admit": [f"r{i}" for i in range(1000)]}})
    assert (many.status_code, many.json()["what"]) == (400, "names 2 raters, as many as it may")
    assert owner.patch(place, json={"task": {"raters": []}}).json()["task"]["raters"] == []
    assert rater.get(f"{place}/next").status_code == 200
    for task, status in (
        ({"kind": "edit"}, 400), ({"kind": "category"}, 400), ({"labels": ["a", "a"]}, 400), ({"overlap": None}, 422),
        ({"overlapp": 1}, 422),
    ):  # fmt: skip
        assert owner.patch(place, json={"task": task}).status_code == status, task
    shape = owner.get("/api/v1/openapi.json").json()["components"]["schemas"]["TaskChange"]
    assert "required" not in shape
    assert not [name for name, setting in shape["properties"].items() if "default" in setting]


def test_a_page_is_refused_in_words_and_the_api_in_json(app: Any) -> None:
    rater, browser = client(app, "rater"), {"accept": "text/html,*/*", "accept-language": "zh"}
    page = rater.get("/people", headers=browser)
    assert (page.status_code, page.headers["content-type"]) == (403, "text/html; charset=utf-8")
    assert '<html lang="zh">' in page.text
    assert "您无权查看此页面" in page.text
    markup = rater.get("/projects/<b>x/judge", headers=browser)
    assert (markup.status_code, "<b>x" in markup.text) == (404, False)
    assert rater.post("/projects", headers=browser).status_code == 405
    for path, accept in (
        ("/people", "*/*"),
        ("/api/v1/accounts", "text/html"),
        ("/api/v1/nothing", "text/html"),
    ):
        assert set(rater.get(path, headers={"accept": accept}).json()) == {"what", "where", "fix"}
