"""What somebody who means ill sends, and what it must not bring about."""

from __future__ import annotations

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from clients import client
from fastapi.testclient import TestClient

from plaudit.access import headers
from plaudit.feedback import answering
from plaudit.feedback.events import Item, comparison_event, event_id
from plaudit.feedback.jobs import Jobs
from plaudit.feedback.tasks import MOST_RATERS
from plaudit.studio.client import Studio
from plaudit.types import UserError

pytest_plugins = ["studio_fixtures"]
PAIR: Any = {"prompt": "p", "completions": ["a", "b"]}


def pairs(owner: TestClient, count: int = 2, **task: Any) -> str:
    given = {"kind": "comparison", "overlap": 1, "gold_every": 0, "random_share": 0.0, **task}
    made = owner.post("/api/v1/projects", json={"name": "Pairs", "task": given}).json()["id"]
    items = [PAIR | {"prompt": f"p{number}"} for number in range(count)]
    assert owner.post(f"/api/v1/projects/{made}/items", json={"items": items}).status_code == 201
    return str(made)


def given(rater: TestClient, project: str) -> dict[str, Any]:
    (turn,) = rater.get(f"/api/v1/projects/{project}/next", params={"count": 1}).json()["turns"]
    return dict(turn)


def said(turn: dict[str, Any], event: str = "e1", **payload: Any) -> dict[str, Any]:
    return {
        "event": event, "item": turn["item"], "assignment": turn["assignment"],
        "payload": {"choice": 0, "strength": 1} | payload,
    }  # fmt: skip


def test_a_project_that_names_as_many_raters_as_may_be_takes_no_more(app: Any) -> None:
    owner = client(app, "owner")
    project = pairs(owner, raters=[f"q{n}" for n in range(MOST_RATERS)])
    link = owner.post("/api/v1/invitations", json={"role": "rater", "project": project}).json()["link"]
    token = link.rpartition("/")[2]
    answer = client(app).post(
        f"/api/v1/invitations/{token}", json={"name": "Cay", "password": "correct horse"}
    )
    assert answer.status_code == 400
    assert "as many as it may" in answer.json()["what"]
    assert app.state.guard.accounts.get("Cay") is None
    assert owner.get("/api/v1/projects").status_code == 200


def nested(depth: int) -> list[Any]:
    return [] if depth == 1 else [nested(depth - 1)]


@pytest.mark.parametrize(
    "more", [{"x": nested(300)}, {"x": float("nan")}, {"x": "\ud800"}, {"x": "\0"}, {"\ud800": 1}]
)
def test_what_could_not_be_shown_again_is_not_taken(app: Any, more: dict[str, Any]) -> None:
    """Neither as an answer, nor as a draft or practice, nor as what is right of an item."""
    owner, rater = client(app, "owner"), client(app, "rater")
    project = pairs(owner)
    turn = given(rater, project)

    def send(who: TestClient, method: str, path: str, body: Any) -> int:
        content = json.dumps(body).encode()
        sent = who.request(method, path, content=content, headers={"content-type": "application/json"})
        return sent.status_code

    assert send(rater, "POST", f"/api/v1/projects/{project}/answers", said(turn, **more)) in (400, 422)
    assert send(rater, "PUT", f"/api/v1/drafts/{turn['item']}", {"draft": more}) in (400, 422)
    assert send(rater, "POST", f"/api/v1/projects/{project}/practice", {"item": turn["item"], "payload": more}) in (
        400, 422,
    )  # fmt: skip
    gold = PAIR | {"part": "gold", "answer": {"choice": 0} | more}
    assert send(owner, "POST", f"/api/v1/projects/{project}/items", {"items": [gold]}) in (400, 422)
    assert given(rater, project)["item"] == turn["item"]
    assert owner.get(f"/api/v1/projects/{project}/items/{turn['item']}").status_code == 200


def test_strangers_send_little_and_nobody_more_than_there_is_use_for(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = {"name": "x", "password": "y" * headers.STRANGERS}
    assert client(app).post("/api/v1/log-in", json=big).status_code == 401
    owner = client(app, "owner")
    project = pairs(owner)
    turn = given(owner, project)
    assert (
        owner.post(f"/api/v1/projects/{project}/answers", json=said(turn, x="y" * headers.SMALL)).status_code
        == 413
    )
    monkeypatch.setattr(headers, "LARGE", 3 * headers.SMALL)
    many = {"items": [PAIR | {"prompt": "p" * 100_000} for _ in range(15)]}
    assert owner.post(f"/api/v1/projects/{project}/items", json=many).status_code == 201
    assert (
        owner.post(f"/api/v1/projects/{project}/items", json={"items": many["items"] * 3}).status_code == 413
    )


def chat(app: Any, who: TestClient) -> int:
    """A chat that a worker has answered."""
    body = {
        "messages": [{"role": "user", "content": "my illness"}],
        "models": ["a", "b"],
        "max_new_tokens": 4,
    }
    job = int(who.post("/api/v1/playground", json=body).json()["job"])
    jobs = Jobs(app.state.projects.store.engine)
    found = jobs.claim("w", time.time(), 60.0)
    assert found is not None
    jobs.finish(found.id, "w", {"replies": ["yes", "no"]})
    return job


def test_a_private_chat_is_shown_to_nobody_whatever_becomes_of_its_author(app: Any) -> None:
    owner, admin, rater = client(app, "owner"), client(app, "admin", "Ada"), client(app, "rater")
    job = chat(app, admin)
    assert admin.post(f"/api/v1/playground/{job}/vote", json={"choice": 0}).status_code == 200
    (project,) = [one["id"] for one in owner.get("/api/v1/projects").json()]
    changed = {"task": {"kind": "comparison", "overlap": 2, "gold_every": 0}}
    assert owner.patch(f"/api/v1/projects/{project}", json=changed).status_code == 200
    assert rater.get(f"/api/v1/projects/{project}/next").json()["turns"] == []
    assert owner.put("/api/v1/raters/Ada/retracted").status_code == 200
    assert rater.get(f"/api/v1/projects/{project}/next").json()["turns"] == []
    assert owner.delete("/api/v1/raters/Ada").status_code == 200
    assert owner.get(f"/api/v1/projects/{project}/counts").json()["to_come"] == 0


def test_nobody_takes_the_ids_that_the_studio_makes(app: Any) -> None:
    owner, rater = client(app, "owner"), client(app, "rater")
    project = pairs(owner)
    turn = given(rater, project)
    for event in ("studio:playground-1", "studio:x"):
        assert rater.post(f"/api/v1/projects/{project}/answers", json=said(turn, event)).status_code == 422
    assert (
        rater.post(f"/api/v1/projects/{project}/answers", json=said(turn, "playground-1")).status_code == 200
    )
    assert owner.post(f"/api/v1/playground/{chat(app, owner)}/vote", json={"choice": 0}).status_code == 200


def test_votes_at_once_make_one_playground(app: Any) -> None:
    owner = client(app, "owner")
    jobs = [chat(app, owner) for _ in range(3)]
    with ThreadPoolExecutor(3) as at_once:
        found = list(
            at_once.map(
                lambda job: owner.post(f"/api/v1/playground/{job}/vote", json={"choice": 1}).status_code, jobs
            )
        )
    assert found == [200] * 3
    assert [one["name"] for one in owner.get("/api/v1/projects").json()] == ["Playground"]


def test_raters_that_no_address_could_name_do_not_come_in(app: Any) -> None:
    owner = client(app, "owner")
    project = pairs(owner)
    for rater in ("openai/gpt-4", "x" * 101, ".", ".."):
        line = f'{{"prompt": "p", "completions": ["a", "b"], "choice": 0, "rater": "{rater}"}}'
        answer = owner.post(f"/api/v1/projects/{project}/records", content=line.encode())
        assert answer.status_code == 400
        assert "none of them a slash" in answer.json()["fix"]
    assert owner.get(f"/api/v1/projects/{project}/counts").json()["judgements"] == 0


def test_a_damaged_run_is_left_out_and_the_others_are_shown(app: Any, tmp_path: Path) -> None:
    for name, config, metrics in (
        ("a", "recipe: ppo", "5"),
        ("b", "recipe: ppo", "[" * 200_000),
        ("c", "recipe: " + "[" * 3000, ""),
        ("d", "recipe: ppo", '{"step": 1, "x": ' + "9" * 400 + "}"),
    ):
        place = tmp_path / "runs" / name
        place.mkdir(parents=True)
        (place / "config.yaml").write_text(config)
        (place / "metrics.jsonl").write_text(metrics)
    found = {run["name"]: run["steps"] for run in client(app, "reviewer").get("/api/v1/runs").json()}
    assert found == {"a": 0, "b": 0, "d": 1}


def test_a_reviewer_s_word_stands_once(app: Any) -> None:
    owner, reviewer = client(app, "owner"), client(app, "reviewer")
    project = pairs(owner)
    turn = given(reviewer, project)
    decided = {"event": "d1", "item": turn["item"], "payload": {"choice": 0, "strength": None}}
    assert reviewer.post(f"/api/v1/projects/{project}/adjudications", json=decided).status_code == 200
    answer = reviewer.post(f"/api/v1/projects/{project}/answers", json=said(turn, "e1", choice=1))
    assert answer.status_code == 400
    assert answer.json()["what"] == "you have decided on it"
    assert len(app.state.projects.store.current()) == 1


def test_a_key_revokes_no_key_that_may_do_more(app: Any) -> None:
    owner = client(app, "owner")
    strong = owner.post("/api/v1/keys", json={"scopes": ["own", "manage"]}).json()["key"]["id"]
    weak = owner.post("/api/v1/keys", json={"scopes": ["judge"]}).json()
    by_key = TestClient(app, headers={"authorization": f"Bearer {weak['secret']}"})
    assert by_key.delete(f"/api/v1/keys/{strong}").status_code == 404
    assert by_key.delete(f"/api/v1/keys/{weak['key']['id']}").status_code == 200
    assert owner.delete(f"/api/v1/keys/{strong}").status_code == 200


def test_the_client_waits_where_it_comes_too_soon(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = client(app, "owner")
    key = owner.post("/api/v1/keys", json={"scopes": ["manage", "review", "judge"]}).json()["secret"]
    app.state.guard.requests.burst = 3.0
    slept = list[float]()
    now = time.monotonic

    monkeypatch.setattr("plaudit.studio.client.time.sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: now() + sum(slept))
    studio = Studio("http://studio", key)
    over: Any = TestClient(app, base_url="http://studio/api/v1/", headers=dict(studio.http.headers))
    studio.http = over
    for _ in range(6):
        assert studio.projects() == []
    assert slept
    monkeypatch.setattr("plaudit.studio.client.PATIENCE", 0)
    with pytest.raises(UserError, match="too many requests"):  # noqa: PT012
        for _ in range(10):
            studio.projects()


def test_nobody_takes_an_id_that_the_store_gives_next(app: Any) -> None:
    """Whoever knows what an id is made from would keep an owner from retracting, forgetting and importing."""
    owner, rater = client(app, "owner"), client(app, "rater", "Ann")
    project = pairs(owner)
    turn = given(rater, project)
    answers = f"/api/v1/projects/{project}/answers"
    taken = [event_id(kind, "Ann", number) for kind in ("retract_rater", "forget_rater") for number in (1, 2)]
    for event in [*taken, event_id("import", turn["item"], "human", "x", 1), event_id("retract", "e1")]:
        assert rater.post(answers, json=said(turn, event)).status_code == 422
        decided = {"event": event, "item": turn["item"], "payload": {"choice": 0, "strength": None}}
        assert owner.post(f"/api/v1/projects/{project}/adjudications", json=decided).status_code == 422
    assert rater.post(answers, json=said(turn, str(uuid.uuid4()))).status_code == 200


def test_a_rater_whose_next_ids_are_taken_is_retracted_and_forgotten(app: Any) -> None:
    """As a store may hold that was written before such ids were refused."""
    owner, rater = client(app, "owner"), client(app, "rater", "Ann")
    store, item = app.state.projects.store, Item("p", ("a", "b"))
    store.add_items([item])
    # The log has four then: retracting is the fifth event, forgetting the sixth.
    ids = [event_id(kind, "Ann", n) for kind in ("retract_rater", "forget_rater") for n in (5, 6)]
    store.extend([comparison_event(item.id, "Ann", 0, id=id) for id in ids])
    assert owner.put("/api/v1/raters/Ann/retracted").status_code == 200
    assert owner.delete("/api/v1/raters/Ann").status_code == 200
    assert rater.get("/api/v1/me").status_code == 401


def test_forgetting_ends_what_was_asked_of_a_worker(app: Any) -> None:
    """Neither what waits nor what is under way leaves a word behind, whatever its worker hands in later."""
    owner, admin = client(app, "owner"), client(app, "admin", "Ada")
    project, jobs = pairs(owner), Jobs(app.state.projects.store.engine)
    body = {"messages": [{"role": "user", "content": "my illness"}], "models": ["a", "b"]}
    chat = admin.post("/api/v1/playground", json=body).json()["job"]
    running = jobs.claim("w", time.time(), 60.0)
    assert running is not None
    asked = {"model": "m", "prompts": ["my illness"]}
    waiting = admin.post(f"/api/v1/projects/{project}/samples", json=asked).json()["id"]
    assert owner.delete("/api/v1/raters/Ada").status_code == 200
    assert not jobs.finish(chat, "w", {"replies": ["of your illness", "no"]})
    for id in (chat, waiting):
        job = jobs.get(id)
        assert (job.state, job.arguments, job.result) == ("cancelled", {}, None)
    assert jobs.claim("w", time.time(), 60.0) is None


def test_a_word_and_a_decision_of_one_reviewer_at_once_stand_once(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision is written when the answer has been let in, and before it is."""
    owner, reviewer = client(app, "owner"), client(app, "reviewer")
    project = pairs(owner)
    turn = given(reviewer, project)
    decided = {"event": "d1", "item": turn["item"], "payload": {"choice": 1, "strength": None}}
    judge = answering.judge

    def late(*told: Any, **more: Any) -> int:
        assert reviewer.post(f"/api/v1/projects/{project}/adjudications", json=decided).status_code == 200
        return judge(*told, **more)

    monkeypatch.setattr(answering, "judge", late)
    answer = reviewer.post(f"/api/v1/projects/{project}/answers", json=said(turn))
    assert answer.json()["what"] == "you have decided on it"
    assert len(app.state.projects.store.current()) == 1


def test_who_was_taken_out_of_a_project_keeps_nothing_and_what_they_sent_is_known(app: Any) -> None:
    owner, ann, bob = client(app, "owner"), client(app, "rater", "Ann"), client(app, "rater", "Bob")
    project = pairs(owner, 2, lease_minutes=0.001)
    sent, held = ann.get(f"/api/v1/projects/{project}/next", params={"count": 2}).json()["turns"]
    answers = f"/api/v1/projects/{project}/answers"
    first = ann.post(answers, json=said(sent))
    task = owner.get(f"/api/v1/projects/{project}").json()["task"]
    owner.patch(f"/api/v1/projects/{project}", json={"task": task | {"raters": ["Bob"]}})
    for ahead in (0, 2):
        again = ann.post(answers, json=said(sent) | {"ahead": ahead})
        assert (again.status_code, again.json()) == (200, {"seq": first.json()["seq"], "next": None})
    assert ann.post(answers, json=said(held, "e2")).status_code == 404
    assert bob.post(answers, json=said(sent)).status_code == 400, "somebody else's"
    assert ann.put(f"/api/v1/drafts/{held['item']}", json={"draft": {"x": 1}}).status_code == 404
    time.sleep(0.1)
    assert given(bob, project)["item"] == held["item"]


def test_whatever_makes_or_changes_a_project_is_in_the_log(app: Any) -> None:
    owner = client(app, "owner", "Olga")
    named, open_ = pairs(owner, raters=["Ann"]), pairs(owner)
    for name, project in (("Cay", named), ("Dee", open_)):
        asked = {"role": "rater", "project": project}
        link = owner.post("/api/v1/invitations", json=asked).json()["link"]
        body = {"name": name, "password": "correct horse"}
        token = link.rpartition("/")[2]
        assert client(app).post(f"/api/v1/invitations/{token}", json=body).status_code == 201
    assert owner.get(f"/api/v1/projects/{named}").json()["task"]["raters"] == ["Ann", "Cay"]
    for _ in range(2):
        assert (
            owner.post(f"/api/v1/playground/{chat(app, owner)}/vote", json={"choice": 0}).status_code == 200
        )
    (made,) = [one["id"] for one in owner.get("/api/v1/projects").json() if one["name"] == "Playground"]
    lines = [(line["actor"], line["action"], line["target"]) for line in owner.get("/api/v1/audit").json()]
    assert [line for line in lines if line[1] == "join"] == [("Cay", "join", f"project {named}")]
    assert [line for line in lines if line[2] == f"project {made}"] == [("Olga", "create", f"project {made}")]
