"""What owners do with a project: samples by a worker, value, exchange, playground, runs, forgetting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from plaudit.feedback import value, vectors
from plaudit.loop.worker import Worker
from plaudit.randomness import rng
from plaudit.studio.client import Studio
from plaudit.types import UserError

pytest_plugins = ["studio_fixtures"]
Somebody = Callable[..., TestClient]


def project_of(owner: TestClient, kind: str = "comparison", **task: Any) -> str:
    settings = {"kind": kind, "random_share": 0.0, "gold_every": 0} | task
    return str(owner.post("/api/v1/projects", json={"name": "P", "task": settings}).json()["id"])


def work(app: Any) -> int:
    return Worker(app.state.projects.store).run(once=True)


@pytest.mark.parametrize(
    ("kind", "n", "items"), [("comparison", 4, 4), ("ranking", 3, 2), ("rating", 2, 4), ("edit", 1, 2)]
)
def test_a_worker_draws_what_a_project_judges(
    app: Any, somebody: Somebody, kind: str, n: int, items: int
) -> None:
    owner = somebody("owner")
    project = project_of(owner, kind)
    asked = {
        "model": "tiny",
        "n": n,
        "max_new_tokens": 4,
        "prompts": ["one", [{"role": "user", "content": "two"}]],
    }
    job = owner.post(f"/api/v1/projects/{project}/samples", json=asked).json()
    assert (job["state"], job["kind"]) == ("queued", "sample")
    assert work(app) == 1
    done = owner.get(f"/api/v1/jobs/{job['id']}").json()
    assert (done["state"], done["message"]) == ("done", "")
    assert done["result"] == {"samples": 2 * n, "items": items, "added": items}
    turn = owner.get(f"/api/v1/projects/{project}/next").json()["turns"][0]
    assert len(turn["completions"]) == {"comparison": 2, "ranking": 3}.get(kind, 1)
    # The same again draws the same, which is there already.
    again = owner.post(f"/api/v1/projects/{project}/samples", json=asked).json()
    work(app)
    assert owner.get(f"/api/v1/jobs/{again['id']}").json()["result"]["added"] == 0


def test_a_job_that_cannot_be_done_says_why(app: Any, somebody: Somebody) -> None:
    owner = somebody("owner")
    project = project_of(owner)
    nothing = owner.post(f"/api/v1/projects/{project}/samples", json={"model": "tiny"})
    assert (nothing.status_code, nothing.json()["where"]) == (400, "prompts")
    asked = {"model": "/nowhere", "prompts": ["x"]}
    job = owner.post(f"/api/v1/projects/{project}/samples", json=asked).json()["id"]
    work(app)
    failed = owner.get(f"/api/v1/jobs/{job}").json()
    assert failed["state"] == "failed"
    assert "/nowhere" in failed["message"]
    waiting = owner.post(f"/api/v1/projects/{project}/samples", json=asked).json()["id"]
    assert owner.delete(f"/api/v1/jobs/{waiting}").json()["state"] == "cancelled"
    assert work(app) == 0


def judged_project(app: Any, owner: TestClient, count: int = 60) -> str:
    """Pairs whose better side is the one whose vector points one way, judged without a fault."""
    project = project_of(owner, overlap=1)
    items = [{"prompt": f"p{i}", "completions": [f"a{i}", f"b{i}"]} for i in range(count)]
    owner.post(f"/api/v1/projects/{project}/items", json={"items": items})
    app.state.guard.requests.rate = app.state.guard.requests.burst = 1e9
    random = rng(0, "value")
    direction = random.normal(size=8)
    found: dict[tuple[str, int], Any] = {}
    number = 0
    while turns := owner.get(f"/api/v1/projects/{project}/next").json()["turns"]:
        item = turns[0]["item"]
        states = [random.normal(size=8) for _ in range(2)]
        found |= {(item, place): state for place, state in enumerate(states)}
        number += 1
        said = {"choice": int(states[1] @ direction > states[0] @ direction), "strength": None}
        body = {"event": f"e{number}", "item": item, "assignment": turns[0]["assignment"], "payload": said}
        assert owner.post(f"/api/v1/projects/{project}/answers", json=body).status_code == 200
    vectors.put(app.state.projects.store.engine, "made", found)
    return project


def test_value_grows_with_judgements_and_is_forecast(app: Any, somebody: Somebody) -> None:
    owner = somebody("owner")
    empty = project_of(owner)
    said = owner.get(f"/api/v1/projects/{empty}/value").json()
    assert "no completion has a vector" in said["reason"]
    project = judged_project(app, owner, 120)
    found = owner.get(f"/api/v1/projects/{project}/value").json()
    assert found["reason"] is None
    assert found["judgements"] == 120
    curve = [point["accuracy"] for point in found["curve"]]
    assert curve[-1] > 0.85 > curve[0], curve
    assert all(point["low"] <= point["accuracy"] <= point["high"] for point in found["curve"])
    forecast = found["forecast"]
    assert forecast["more"] == 100
    assert forecast["low"] < forecast["gain"] < forecast["high"]
    assert 0 <= forecast["gain"] < 0.2


def test_what_teaches_most_comes_first(app: Any, somebody: Somebody) -> None:
    owner = somebody("owner")
    project = judged_project(app, owner, 60)
    more = [{"prompt": f"q{i}", "completions": [f"c{i}", f"d{i}"]} for i in range(4)]
    owner.post(f"/api/v1/projects/{project}/items", json={"items": more})
    engine = app.state.projects.store.engine
    ids = {item.prompt: id for id, item in app.state.projects.store.items().items()}
    random = rng(1, "value")
    same = random.normal(size=8)
    # Of three pairs nothing could be learned: both sides are the same; of one something can.
    found = {(ids[f"q{i}"], place): same for i in range(3) for place in range(2)}
    found |= {(ids["q3"], 0): same, (ids["q3"], 1): -same}
    vectors.put(engine, "made", found)
    ordered = owner.post(f"/api/v1/projects/{project}/priorities").json()["ordered"]
    assert ordered == 64
    turn = owner.get(f"/api/v1/projects/{project}/next").json()["turns"][0]
    assert turn["item"] == ids["q3"]


def test_an_ensemble_s_doubt_orders_what_comes_next(app: Any, somebody: Somebody, tmp_path: Path) -> None:
    owner = somebody("owner")
    project = project_of(owner, overlap=1)
    texts = [("a" * n, "b" * m) for n, m in ((3, 40), (20, 21), (5, 30))]
    items = [{"prompt": f"p{i}", "completions": list(pair)} for i, pair in enumerate(texts)]
    owner.post(f"/api/v1/projects/{project}/items", json={"items": items})
    scorer = tmp_path / "two.yaml"
    scorer.write_text(
        "kind: ensemble\nmembers: ['plaudit.reward.rules:length', 'plaudit.reward.rules:repetition']\n"
    )
    code = owner.post(f"/api/v1/projects/{project}/scores", json={"reward": "plaudit.reward.rules:length"})
    assert (code.status_code, code.json()["where"]) == (400, "reward")
    job = owner.post(f"/api/v1/projects/{project}/scores", json={"reward": str(scorer)}).json()["id"]
    work(app)
    done = owner.get(f"/api/v1/jobs/{job}").json()
    assert (done["state"], done["result"]) == ("done", {"scores": 6}), done["message"]
    assert owner.post(f"/api/v1/projects/{project}/priorities").json()["ordered"] == 3
    turn = owner.get(f"/api/v1/projects/{project}/next").json()["turns"][0]
    scores = vectors.scores_of(app.state.projects.store.engine, project)
    worth = {}
    for item in {item for item, _ in scores}:
        (first, one), (second, other) = scores[item, 0], scores[item, 1]
        assert one is not None
        assert other is not None
        worth[item] = value.information(first - second, one**2 + other**2)
    assert turn["item"] == max(worth, key=worth.__getitem__)


def test_a_vote_shows_whose_rank_it_changed(app: Any, somebody: Somebody) -> None:
    owner = somebody("owner")
    project = judged_project(app, owner, 40)
    found = owner.get(f"/api/v1/projects/{project}/standings", params={"since": 0}).json()
    assert found["seq"] == 40
    chosen = {event.item: event.payload["choice"] for event in app.state.projects.store.current()}
    best = [prompt["answers"][0] for prompt in found["prompts"]]
    assert sum(chosen[one["item"]] == one["completion"] for one in best) > 36, "who was chosen stands first"
    first = found["prompts"][0]["answers"]
    assert [one["rank"] for one in first] == [1, 2]
    # Nothing was known before the first vote: the first-named stood first.
    changed = [p for p in found["prompts"] if any(a["rank"] != a["before"] for a in p["answers"])]
    assert 5 < len(changed) < 35


def test_judgements_leave_and_come_in_by_every_shape(somebody: Somebody) -> None:
    owner = somebody("owner")
    project = project_of(owner, overlap=3)
    lines = [
        {"instruction": "Add.", "input": "", "response1": "2", "response2": "3", "annotator1": 1, "annotator2": 2,
         "annotator3": 0},
    ]  # fmt: skip
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    send: dict[str, Any] = {"content": body, "headers": {"Content-Type": "application/octet-stream"}}
    taken = owner.post(f"/api/v1/projects/{project}/records", **send)
    assert taken.json() == {"records": 3, "items": 1, "events": 3, "known": 0, "left_out": 0}, taken.text
    assert owner.post(f"/api/v1/projects/{project}/records", **send).json()["known"] == 3
    counts = owner.get(f"/api/v1/projects/{project}/counts").json()
    assert (counts["open"], counts["judgements"], counts["to_come"], counts["raters"]) == (1, 3, 0, 3)
    ours = owner.get(f"/api/v1/projects/{project}/records")
    assert (ours.headers["x-plaudit-records"], ours.headers["x-plaudit-left-out"]) == ("3", "0")
    assert [json.loads(line)["choice"] for line in ours.text.splitlines()] == [0, 1, "tie"]
    trl = owner.get(f"/api/v1/projects/{project}/records", params={"format": "trl", "kind": "csv"})
    assert trl.headers["x-plaudit-left-out"] == "1", "a tie has no better side"
    assert trl.text.splitlines()[0] == "prompt,chosen,rejected"
    wrong = owner.post(
        f"/api/v1/projects/{project}/records", content=b'{"prompt": "x"}\n', headers=send["headers"]
    )
    assert wrong.status_code == 400
    assert wrong.json()["where"] == "the file:1"
    other = owner.post(
        f"/api/v1/projects/{project}/records",
        content=b'{"prompt": "x", "completion": "y"}\n',
        headers=send["headers"],
    )
    assert "is a demonstration" in other.json()["what"]


def test_a_playground_is_blind_until_the_vote(app: Any, somebody: Somebody) -> None:
    owner, other = somebody("owner"), somebody("admin")
    body = {"messages": [{"role": "user", "content": "Hi"}], "models": ["tiny", "tiny"], "max_new_tokens": 4}
    chat = owner.post("/api/v1/playground", json=body).json()
    assert (chat["state"], chat["models"], chat["replies"]) == ("queued", None, [])
    place = f"/api/v1/playground/{chat['job']}"
    assert owner.post(f"{place}/vote", json={"choice": 0}).status_code == 400
    work(app)
    done = owner.get(place).json()
    assert (done["state"], len(done["replies"]), done["models"]) == ("done", 2, None)
    assert other.get(place).status_code == 404, "another's chat"
    told = owner.post(f"{place}/vote", json={"choice": 1}).json()
    assert told["models"] == ["tiny", "tiny"]
    assert owner.post(f"{place}/vote", json={"choice": 1}).status_code == 200, "sent again, counted once"
    (event,) = app.state.projects.store.current()
    assert (event.payload["choice"], event.rater) == (1, "A owner")
    assert [p["name"] for p in owner.get("/api/v1/projects").json()] == ["Playground"]


def test_runs_are_listed_with_their_curves(somebody: Somebody, tmp_path: Path) -> None:
    reviewer = somebody("reviewer")
    assert reviewer.get("/api/v1/runs").json() == []
    place = tmp_path / "runs" / "a" / "ppo"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("recipe: ppo\nsteps: 3\n")
    (place / "metrics.jsonl").write_text(
        '{"step": 1, "reward": 0.5}\n{"step": 2, "reward": NaN, "note": "x"}\n{"ste'
    )
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / "config.yaml").write_text("- no run\n")
    (run,) = reviewer.get("/api/v1/runs").json()
    assert (run["name"], run["recipe"], run["state"], run["steps"]) == ("a/ppo", "ppo", "running", 2)
    found = reviewer.get("/api/v1/metrics", params={"run": "a/ppo", "after": 1}).json()
    assert found["rows"] == [{"step": 2.0, "reward": None}]
    (place / "summary.json").write_text("{}")
    assert reviewer.get("/api/v1/metrics", params={"run": "a/ppo"}).json()["state"] == "ended"
    for outside in ("../secret", "/etc", "b"):
        assert reviewer.get("/api/v1/metrics", params={"run": outside}).status_code == 404


LOOP = {
    "name": "assistant",
    "rounds": [
        {"round": 1, "steps": {"sample": 30.0, "gate": 60.0}, "judgements": {"studio": 40, "served": 2},
         "accuracy": 0.7, "published": True, "why": "preferred to anchor", "rates": {"anchor": 0.66},
         "intervals": {"anchor": [0.58, 0.74]}},
        {"round": 2, "steps": {}, "judgements": {}, "accuracy": None, "published": False, "why": None, "rates": {},
         "intervals": {}},
    ],
    "champion": {"round": 1, "version": "assistant-1234"},
    "target": 0.7,
    "judgements": 42,
    "seconds": {"total": 90.0},
    "waiting": {"round": 2, "for": "judgements", "have": 3, "want": 40},
    "at": {"round": 2, "step": "collect"},
    "ended": None,
}  # fmt: skip


def test_loops_are_shown_with_their_rounds(somebody: Somebody, tmp_path: Path) -> None:
    reviewer = somebody("reviewer")
    place = tmp_path / "runs" / "loop"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("recipe: loop\n")
    (place / "status.json").write_text("{")  # half written by somebody else
    assert reviewer.get("/api/v1/loops").json() == []
    (place / "status.json").write_text(json.dumps(LOOP))
    (loop,) = reviewer.get("/api/v1/loops").json()
    assert loop["rounds"][0]["gains"] == [{"against": "anchor", "rate": 0.66, "low": 0.58, "high": 0.74}]
    assert loop["waiting"] == {"round": 2, "gate": False, "have": 3, "want": 40}
    assert loop["rounds"][0]["seconds"] == 90.0


def test_a_rater_is_shown_left_out_and_forgotten(app: Any, somebody: Somebody) -> None:
    owner, rater = somebody("owner"), somebody("rater", "Ann")
    project = project_of(owner, overlap=1)
    owner.post(
        f"/api/v1/projects/{project}/items", json={"items": [{"prompt": "p", "completions": ["a", "b"]}]}
    )
    turn = rater.get(f"/api/v1/projects/{project}/next").json()["turns"][0]
    body = {"event": "e", "item": turn["item"], "assignment": turn["assignment"],
            "payload": {"choice": 0, "strength": 1}, "comment": "private words"}  # fmt: skip
    assert rater.post(f"/api/v1/projects/{project}/answers", json=body).status_code == 200
    store = app.state.projects.store
    store.name_snapshot("model-1", 1)
    shown = owner.get("/api/v1/raters/Ann").json()
    assert (shown["state"], shown["models"]) == ("active", ["model-1"])
    assert shown["events"][0]["comment"] == "private words"
    assert owner.put("/api/v1/raters/Ann/retracted").status_code == 200
    assert store.current() == []
    assert owner.put("/api/v1/raters/Ann/retracted", params={"retracted": False}).status_code == 200
    assert len(store.current()) == 1
    assert owner.delete("/api/v1/raters/A owner").status_code == 400, "not oneself"
    gone = owner.delete("/api/v1/raters/Ann").json()
    assert gone == {"rater": "Ann", "models": ["model-1"]}
    assert "private words" not in str(owner.get("/api/v1/raters/Ann").json())
    assert rater.get("/api/v1/me").status_code == 401, "their log-in has ended"
    assert owner.get("/api/v1/raters/Nobody").status_code == 404


def test_agreement_enough_spends_what_is_left_where_people_differ(somebody: Somebody) -> None:
    owner = somebody("owner")
    project = project_of(owner, overlap=3, enough_alpha=0.5)
    items = [{"prompt": f"p{i}", "completions": [f"a{i}", f"b{i}"]} for i in range(14)]
    owner.post(f"/api/v1/projects/{project}/items", json={"items": items})
    for name in ("Ann", "Bob"):
        rater = somebody("rater", name)
        for number in range(14):
            turns = rater.get(f"/api/v1/projects/{project}/next").json()["turns"]
            text = next(one["text"] for one in turns[0]["completions"] if one["index"] == 0)
            choice = int(text[1:]) % 2 if text != "a0" or name == "Ann" else 1
            body = {"event": f"{name}{number}", "item": turns[0]["item"], "assignment": turns[0]["assignment"],
                    "payload": {"choice": choice, "strength": None}}  # fmt: skip
            assert rater.post(f"/api/v1/projects/{project}/answers", json=body).status_code == 200
    # After 25 events twelve items at least were alike; the one on which they differ goes on.
    left = owner.get(f"/api/v1/projects/{project}/counts").json()["to_come"]
    assert 1 <= left <= 4, left


def test_the_client_does_an_owner_s_day(app: Any, somebody: Somebody) -> None:
    owner = somebody("owner")
    secret = owner.post("/api/v1/keys", json={"scopes": ["judge", "review", "manage"]}).json()["secret"]
    studio = Studio("http://studio", secret, transport=None)
    studio.http = cast(Any, TestClient)(
        app, base_url="http://studio/api/v1/", headers={"Authorization": f"Bearer {secret}"}
    )
    project = studio.create_project(
        "Pairs", kind="comparison", overlap=1, gold_every=0, guideline={"en": "Be fair."}
    )
    assert studio.add_items(project, [{"prompt": "p", "completions": ["a", "b"]}]) == 1
    turn = studio.next(project)["turns"][0]
    payload = {"choice": 0, "strength": None}
    assert studio.answer(project, turn["item"], payload, event="1", assignment=turn["assignment"]) == 1
    assert studio.records(project) == [
        {"prompt": "p", "completions": ["a", "b"], "choice": 0, "presented": [turn["completions"][0]["index"],
         turn["completions"][1]["index"]], "rater": "A owner"}
    ]  # fmt: skip
    assert studio.counts(project)["judgements"] == 1
    assert studio.quality(project)["judgements"] == 1
    job = studio.sample(project, model="tiny", prompts=["x"], max_new_tokens=2)
    work(app)
    assert studio.wait(job["id"])["result"]["added"] == 1
    with pytest.raises(UserError, match="there is no such project"):
        studio.counts("nope")
