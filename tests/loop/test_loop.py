"""The loop: rounds as recorded transitions, sources of feedback, the gate, publishing, lineage and taking back."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plaudit import config as configs
from plaudit import files
from plaudit.feedback.events import comparison_event
from plaudit.feedback.projects import Projects
from plaudit.feedback.releases import Releases
from plaudit.feedback.served import Opinion, Response, Said, Served
from plaudit.feedback.store import Store
from plaudit.loop import collecting, contest, cycle, learning, lineage, publishing, retracting, status
from plaudit.loop.drawing import read_rows
from plaudit.loop.rounds import Journal
from plaudit.loop.settings import Config
from plaudit.studio import watching
from plaudit.types import Message, UserError

SMALL: dict[str, Any] = {
    "model": "tiny",
    "max_new_tokens": 8,
    "collect": {"enough": 24, "prompts": 12, "overlap": 2},
    "policy": {"steps": 1, "prompts_per_step": 4, "samples_per_prompt": 2, "kl_horizon": 20.0, "epochs": 1},
    "gate": {"prompts": 16},
    "stop": {"rounds": 2},
    "threads": 1,
}


def small(**more: Any) -> Config:
    return configs.parse(Config, SMALL | {"sources": {"panel": 1.0}} | more, "test")


@pytest.fixture
def likes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Judges at the gate who prefer the candidate so often."""

    def like(share: float) -> None:
        def judged(round: Any, rows: Any) -> list[dict[str, float]]:
            return [dict.fromkeys(contest.opponents(round), share) for _ in rows]

        monkeypatch.setattr(contest, "_by_panel", judged)

    return like


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A loop of two rounds with the panel; the gate lets the first candidate pass and keeps the second out."""
    patch = pytest.MonkeyPatch()

    def judged(round: Any, rows: Any) -> list[dict[str, float]]:
        return [dict.fromkeys(contest.opponents(round), 1.0 if round.number == 1 else 0.4) for _ in rows]

    patch.setattr(contest, "_by_panel", judged)
    config, out = small(), tmp_path_factory.mktemp("loop") / "run"
    cycle.command(config, out)
    patch.undo()
    return config, out


def bytes_of(out: Path) -> dict[str, str]:
    """What a run has come to, times and places apart."""
    names = ("samples.jsonl", "asked.jsonl", "contest.jsonl", "gate.jsonl", "events.jsonl")
    found = {
        str(path.relative_to(out)): files.digest(path)
        for path in out.rglob("*")
        if path.name in names or path.suffix == ".safetensors"
        if "checkpoints" not in path.parts
    }
    entries = json.loads((out / "loop.json").read_text())["transitions"]
    results = [{key: entry[key] for key in ("round", "step")} for entry in entries]
    return found | {"transitions": json.dumps(results)}


def test_a_loop_goes_round_and_publishes_what_the_gate_lets_pass(twice: tuple[Config, Path]) -> None:
    config, out = twice
    summary = json.loads((out / "summary.json").read_text())
    assert [one["published"] for one in summary["rounds"]] == [True, False]
    assert summary["champion"]["round"] == 1
    journal = Journal(out)
    assert [entry["step"] for entry in journal.entries] == [*cycle.TRANSITIONS] * 2
    with Store.open(out / "feedback.db") as store:
        history = Releases(store).history("policy")
        assert [release.arms[0].adapter is None for release in history] == [True, False]
        assert history[-1].arms[0].version == summary["champion"]["version"]
        assert history[-1].arms[0].adapter == str((out / "rounds/1/ppo/adapter").resolve())
    assert files.digest(out / "model" / "model.safetensors") == files.digest(
        out / "rounds/1/ppo/model/model.safetensors"
    )
    assert config.policy.kl_target * publishing.WIDER == pytest.approx(summary["rounds"][0]["kl_target"])
    # What is kept out is nobody's parent; and round 2 was held against the published one, too.
    assert [(journal.done(n, "publish") or {})["champion"] for n in (1, 2)] == [1, 1]
    assert set(summary["rounds"][0]["rates"]) == {"anchor"}
    assert set(summary["rounds"][1]["rates"]) == {"parent", "anchor"}


def test_its_report_and_status_say_how_it_went(twice: tuple[Config, Path]) -> None:
    _, out = twice
    page = (out / "report.html").read_text()
    assert "Gain by round" in page
    assert "kept out: not" in page
    told = status.lines(json.loads((out / "status.json").read_text()))
    assert any("round 1" in line and "100%" in line for line in told)
    assert told[-1].startswith("ended: 2 rounds")


def test_the_studio_shows_it(twice: tuple[Config, Path]) -> None:
    _, out = twice
    found = watching.loop_shown(out.parent, out)
    assert (found.run, found.champion.round, len(found.rounds)) == ("run", 1, 2)
    assert [gain.against for gain in found.rounds[1].gains] == ["parent", "anchor"]
    assert found.rounds[0].published
    assert found.ended == "2 rounds"
    assert found.waiting is None
    assert found.at is None


def test_a_model_names_all_that_it_was_made_from(twice: tuple[Config, Path]) -> None:
    _, out = twice
    first, second = (json.loads((out / f"rounds/{n}/lineage.json").read_text()) for n in (1, 2))
    assert second["parents"]["policy"] == {"version": first["version"], "round": 1}
    assert second["samples_of"] == sorted({first["version"], first["parents"]["anchor"]})
    rows = read_rows(out / "rounds/2/events.jsonl")
    assert second["judgements"]["sources"]["panel"]["judgements"] == len(rows)
    assert second["judgements"]["sources"]["panel"]["digest"] == lineage.digest(r["digest"] for r in rows)
    assert second["artifacts"]["adapter"] == files.digest(out / "rounds/2/ppo/adapter")
    assert second["queue_ordered_by"] == "1"
    card = (out / "rounds/2/ppo/model/README.md").read_text()
    assert second["version"] in card
    assert "kept out" in card
    assert "simulated" in card


def test_a_loop_that_is_killed_in_any_transition_ends_as_if_it_was_not(
    twice: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transition is done and then lost, so that all of them are taken twice."""

    def judged(round: Any, rows: Any) -> list[dict[str, float]]:
        return [dict.fromkeys(contest.opponents(round), 1.0 if round.number == 1 else 0.4) for _ in rows]

    monkeypatch.setattr(contest, "_by_panel", judged)
    lost = set[tuple[int, str]]()
    do = Journal.do

    def killed(self: Journal, round: int, step: str, work: Callable[[], Any]) -> Any:
        if self.done(round, step) is None and (round, step) not in lost:
            lost.add((round, step))
            work()
            raise KeyboardInterrupt
        return do(self, round, step, work)

    monkeypatch.setattr(Journal, "do", killed)
    config, out = small(), tmp_path / "run"
    for _ in range(17):
        try:
            cycle.command(config, out)
        except KeyboardInterrupt:
            continue
        break
    assert len(lost) == 16
    unbroken, broken = bytes_of(twice[1]), bytes_of(out)
    # Where the run stands is part of no model, but of its release's place.
    assert broken == unbroken


def test_prompts_of_the_gate_rotate(twice: tuple[Config, Path]) -> None:
    _, out = twice
    first, second = (
        {json.dumps(row["candidate"]["prompt"]) for row in read_rows(out / f"rounds/{n}/contest.jsonl")}
        for n in (1, 2)
    )
    assert len(first) == len(second) == 16
    assert not first & second
    train = {json.dumps(row["prompt"]) for row in read_rows(out / "rounds/1/samples.jsonl")}
    assert not train & (first | second)


def test_later_pairs_are_those_that_the_reward_is_least_sure_of_beside_a_random_slice(
    twice: tuple[Config, Path],
) -> None:
    _, out = twice
    first, second = (read_rows(out / f"rounds/{n}/asked.jsonl") for n in (1, 2))
    assert {row["chosen_by"] for row in first} == {"chance"}
    by = [row["chosen_by"] for row in second]
    assert by.count("chance") == len(by) / 2
    for asked in (first, second):
        rows = [row[side] for row in asked for side in ("first", "second")]
        assert len(set(rows)) == len(rows), "no completion is judged in two pairs"


# People ----------------------------------------------------------------------------------------------------


def judge_all(store: Store, title: str, raters: tuple[str, ...], prefer: Callable[[str, str], int]) -> int:
    """Every item of a project, by each of the raters, as the studio would have it written."""
    (project,) = [one for one in Projects(store).all() if one.name == title]
    count = 0
    for item in list(store.items().values()):
        if item.meta.get("project") == project.id:
            for rater in raters:
                said = {(e.item, e.rater) for e in store.current()}
                if (item.id, rater) not in said:
                    first, second = item.completions
                    store.append(
                        comparison_event(item.id, rater, 0 if prefer(first, second) else 1, presented=(0, 1))
                    )
                    count += 1
    return count


def test_a_round_waits_for_people_twice_and_goes_on(tmp_path: Path) -> None:
    store_path = str(tmp_path / "people.db")
    config = small(
        sources={"studio": 1.0},
        store=store_path,
        name="assistant",
        gate={"judges": "people", "raters": ["dora"], "prompts": 10},
        stop={"rounds": 1},
    )
    out = tmp_path / "run"
    assert cycle.command(config, out, wait=False) is None
    waiting = json.loads((out / "waiting.json").read_text())
    assert (waiting["for"], waiting["have"], waiting["want"]) == ("judgements", 0, 24)
    assert "waits for judgements: 0 of 24" in status.lines(json.loads((out / "status.json").read_text()))[-1]

    with Store.open(store_path) as store:
        (project,) = Projects(store).all()
        assert project.task.overlap == 2
        judge_all(store, "Loop assistant, round 1", ("ann", "bo"), lambda a, b: len(a) > len(b))
    assert cycle.command(config, out, wait=False) is None
    assert json.loads((out / "waiting.json").read_text())["for"] == "judges at the gate (dora)"

    with Store.open(store_path) as store:
        gate = next(one for one in Projects(store).all() if one.name.startswith("Gate"))
        assert gate.task.raters == ("dora",)
        # Neither the order of the two nor what is kept with them says whose they are.
        items = [item for item in store.items().values() if item.meta.get("project") == gate.id]
        assert all(list(item.completions) == sorted(item.completions) for item in items)
        assert all(set(item.meta) == {"loop gate", "against", "project"} for item in items)
        assert {item.policy_version for item in items} == {None}
        candidate = {row["candidate"]["completion"] for row in read_rows(out / "rounds/1/contest.jsonl")}
        judge_all(store, gate.name, ("dora",), lambda a, _: a in candidate)
    summary = cycle.command(config, out, wait=False)
    assert summary is not None
    assert summary["rounds"][0]["rates"]["anchor"] > 0.6
    rows = read_rows(out / "rounds/1/events.jsonl")
    assert {row["rater"] for row in rows if row["source"] == "gate"} == {"dora"}
    assert {row["rater"] for row in rows if row["source"] == "studio"} == {"ann", "bo"}
    with Store.open(store_path) as store:
        assert len([one for one in store.current() if one.rater == "dora"]) == len(items)


def test_who_judged_for_training_may_not_judge_at_the_gate(tmp_path: Path) -> None:
    config = small(
        sources={"studio": 1.0},
        gate={"judges": "people", "raters": ["ann"], "prompts": 10},
        stop={"rounds": 1},
    )
    out = tmp_path / "run"
    cycle.command(config, out, wait=False)
    with Store.open(out / "feedback.db") as store:
        judge_all(store, "Loop policy, round 1", ("ann", "bo"), lambda a, b: len(a) > len(b))
    with pytest.raises(UserError, match="ann judged what the model was trained on"):
        cycle.command(config, out, wait=False)


def say(store: Store, number: int, score: float, *, by: str = "user-1") -> str:
    """One answer of a served model, and what who asked makes of it."""
    served = Served(store)
    response = Response(
        id=f"chat-{number}",
        created_at=float(number),
        requester=by,
        conversation="",
        name="policy",
        version="v",
        propensity=1.0,
        prompt=(Message("user", f"question {number // 2}"),),
        completions=(Said(f"answer {number} {'x' * (number % 3)}", "stop", None, None, ()),),
        sampling={},
        usage={},
        masked={},
        regenerates=None,
    )
    served.requester(by, None)
    token = served.keep(response)
    served.judge(token, Opinion(score=score))
    return token


def test_sources_are_mixed_by_weight_and_kept_apart_in_figures(
    tmp_path: Path, likes: Callable[[float], None]
) -> None:
    likes(0.5)
    data = tmp_path / "said.jsonl"
    rows = [
        {"prompt": f"p {n}", "completions": [f"good {n}", f"bad {n}"], "choice": n % 2, "rater": "carl"}
        for n in range(20)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small(
        sources={"panel": 1.0, "served": 0.5, "files": 0.25},
        data=[str(data)],
        store=str(tmp_path / "s.db"),
        stop={"rounds": 1},
    )
    with Store.open(str(config.store)) as store:
        for number in range(20):
            say(store, number, float(number % 2))
    summary = cycle.command(config, tmp_path / "run")
    assert summary is not None
    said = summary["rounds"][0]["judgements"]
    assert said["files"] == said["served"] == 20
    assert said["panel"] > 20
    learned = configs.read_yaml(tmp_path / "run/rounds/1/reward/config.yaml")
    assert learned["weights"]["files/carl"] == 0.25
    assert learned["weights"]["served/user-1"] == 0.5
    assert {Path(path).name for path in learned["data"]} == {
        "feedback-files.jsonl", "feedback-panel.jsonl", "feedback-served.jsonl",
    }  # fmt: skip
    assert set(summary["rounds"][0]["by_source"]) == {"files", "panel", "served"}
    # A file that has grown brings what is new, and nothing twice.
    with Store.open(str(config.store)) as store:
        assert sum(event.rater == "carl" for event in store.current()) == 20


# Taking back -----------------------------------------------------------------------------------------------


def test_what_is_taken_back_takes_its_models_with_it_and_they_are_made_anew(
    twice: tuple[Config, Path], tmp_path: Path, likes: Callable[[float], None]
) -> None:
    config, out = twice[0], tmp_path / "run"
    shutil.copytree(twice[1], out)
    rows = read_rows(out / "rounds/2/events.jsonl")
    first = {row["event"] for row in read_rows(out / "rounds/1/events.jsonl")}
    late = next(row["item"] for row in rows if row["event"] not in first)

    # An item of the second round touches that round alone, whose model answers nobody.
    found = retracting.retract(out, "item", late, by="ann", dry=True)
    assert list(found["touched"]) == ["2"]
    assert found["goes_back_to"] == 1
    assert not (out / "retractions.json").exists()

    # A rater of both touches both, the second in more ways than one.
    found = retracting.retract(out, "rater", "panel-3", by="ann")
    assert list(found["touched"]) == ["1", "2"]
    told = " ".join(found["touched"]["2"])
    for why in ("learned from", "began with", "samples by", "queue was ordered", "settings follow"):
        assert why in told
    with Store.open(out / "feedback.db") as store:
        newest = Releases(store).newest()["policy"]
        assert newest.arms[0].adapter is None
        assert newest.made_by == "ann"
        assert "panel-3" not in {event.rater for event in store.current()}
    assert Journal(out).entries == []
    assert not (out / "summary.json").exists()
    assert not (out / "model").exists()
    assert (out / "retracted/1/2/lineage.json").exists()

    likes(1.0)
    summary = cycle.resume(out)
    assert summary is not None
    assert [one["published"] for one in summary["rounds"]] == [True, True]
    for number in (1, 2):
        again = read_rows(out / f"rounds/{number}/events.jsonl")
        assert "panel-3" not in {row["rater"] for row in again}
        barred = set(found["barred"])
        assert not barred & {version for row in again for version in row["versions"]}
    # What others said of samples that stand is learned from again.
    others = {
        row["event"] for row in read_rows(twice[1] / "rounds/1/events.jsonl") if row["rater"] != "panel-3"
    }
    assert others <= {row["event"] for row in read_rows(out / "rounds/1/events.jsonl")}
    assert config.stop.rounds == 2


def test_a_retraction_that_was_killed_is_finished_by_the_next_command(
    twice: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(twice[1], out)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(retracting, "_release", killed)
    with pytest.raises(KeyboardInterrupt):
        retracting.retract(out, "rater", "panel-3", by="ann")
    monkeypatch.undo()
    assert retracting.read(out)[0]["finished"] is False
    retracting.finish(out, twice[0])
    assert retracting.read(out)[0]["finished"] is True
    assert Journal(out).entries == []
    with Store.open(out / "feedback.db") as store:
        assert Releases(store).newest()["policy"].arms[0].adapter is None


def test_a_round_that_is_not_over_begins_anew_without_what_is_taken_back(
    twice: tuple[Config, Path], tmp_path: Path
) -> None:
    """The snapshot that it had named holds what was said, as snapshots do."""
    out = tmp_path / "run"
    shutil.copytree(twice[1], out)
    journal = Journal(out)
    steps = {"sample", "collect", "agree"}
    kept = [e for e in journal.entries if e["round"] == 2 and e["step"] in steps]
    files.write_json(journal.path, {"transitions": kept})
    shutil.rmtree(out / "rounds" / "1")
    (out / "summary.json").unlink()
    found = retracting.retract(out, "rater", "panel-3", by="ann")
    assert found["touched"] == {}
    assert found["goes_back_to"] == 0
    assert Journal(out).entries == []
    assert not (out / "rounds" / "2").exists()


def test_nobody_is_taken_back_who_is_not_there(twice: tuple[Config, Path]) -> None:
    with pytest.raises(UserError, match="no rater nobody is in this loop"):
        retracting.retract(twice[1], "rater", "nobody", by="ann")


# What follows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "published", "wanted"), [(0.7, True, 0.15), (0.55, False, 0.1), (0.4, False, 0.067)]
)
def test_the_kl_target_follows_the_gain(rate: float, published: bool, wanted: float) -> None:
    assert publishing.next_target(0.1, 0.1, rate=rate, published=published) == pytest.approx(wanted)


def test_the_kl_target_stays_within_bounds() -> None:
    target = 0.1
    for _ in range(10):
        target = publishing.next_target(target, 0.1, rate=0.9, published=True)
    assert target == pytest.approx(0.4)
    for _ in range(20):
        target = publishing.next_target(target, 0.1, rate=0.1, published=False)
    assert target == pytest.approx(0.025)


def journal_of(tmp_path: Path, *rounds: tuple[bool, float, int]) -> Journal:
    """published, bound over the start, judgements; each round took an hour."""
    journal = Journal(tmp_path)
    for number, (published, bound, judgements) in enumerate(rounds, 1):
        for step, result in (
            ("collect", {"judgements": judgements}),
            ("gate", {"bounds": {"anchor": bound}}),
            ("publish", {"published": published}),
        ):
            seconds = 3600.0 if step == "publish" else 0.0
            journal.entries.append({"round": number, "step": step, "seconds": seconds, "result": result})
    return journal


@pytest.mark.parametrize(
    ("stop", "rounds", "why"),
    [
        ({"target": 0.6}, [(True, 0.61, 9)], "the target is reached"),
        ({"target": 0.6}, [(True, 0.59, 9)], None),
        ({"target": 0.6}, [(False, 0.7, 9)], None),
        ({"patience": 2}, [(True, 0.5, 9), (False, 0.4, 9), (False, 0.4, 9)], "2 candidates in a row"),
        ({"patience": 2}, [(False, 0.5, 9), (True, 0.4, 9), (False, 0.4, 9)], None),
        ({"judgements": 20}, [(True, 0.5, 9), (True, 0.5, 11)], "the budget of 20 judgements"),
        ({"hours": 2.5}, [(True, 0.5, 9)] * 3, "the budget of 2.5 hours"),
        ({}, [(True, 0.5, 0)], "nobody had anything new"),
    ],
)
def test_a_loop_ends_for_a_reason(
    tmp_path: Path, stop: dict[str, Any], rounds: list[tuple[bool, float, int]], why: str | None
) -> None:
    found = cycle.ended(small(stop=stop), journal_of(tmp_path, *rounds), len(rounds))
    assert (found is None) == (why is None)
    assert found is None or found.startswith(str(why))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"sources": {"panel": 0.0}}, "nobody judges"),
        ({"sources": {"behaviour": 1.0}}, "give served a weight"),
        ({"sources": {"files": 1.0}}, "wants data"),
        ({"sources": {"judge": 1.0}}, "wants judge"),
        ({"sources": {"judge": 1.0}, "judge": "j.yaml", "gate": {"judges": "j.yaml"}}, "may not decide"),
        ({"gate": {"judges": "people"}}, "wants raters"),
        ({"prompts": "p.jsonl"}, "given together"),
        ({"collect": {"overlap": 4, "most_overlap": 2}}, "most_overlap is below overlap"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        small(**settings)


def test_prompts_that_are_trained_on_may_not_decide(tmp_path: Path) -> None:
    one = tmp_path / "p.jsonl"
    one.write_text("".join(json.dumps({"prompt": f"p {n}"}) + "\n" for n in range(12)))
    with pytest.raises(UserError, match="12 prompts are in both"):
        cycle.command(small(prompts=str(one), heldout=str(one)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_taste_that_flips_is_noticed_and_what_was_said_before_counts_less(
    twice: tuple[Config, Path],
    tmp_path: Path,
    likes: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    likes(0.5)
    monkeypatch.setattr(learning, "changed", lambda *_: True)
    out = tmp_path / "run"
    shutil.copytree(twice[1], out)
    journal = Journal(out)
    kept = [entry for entry in journal.entries if entry["round"] == 1]
    files.write_json(journal.path, {"transitions": kept})
    files.remove(out / "rounds" / "2")
    (out / "summary.json").unlink()
    cycle.resume(out)
    assert json.loads((out / "status.json").read_text())["rounds"][1]["drift"] is True
    weights = configs.read_yaml(out / "rounds/2/reward/config.yaml")["weights"]
    stale = {name: weight for name, weight in weights.items() if name.startswith("stale/")}
    assert stale
    assert all(weight <= 0.1 for weight in stale.values())
    assert any(weight > 0.5 for name, weight in weights.items() if name not in stale)


@pytest.mark.parametrize(
    ("before", "now", "wanted"),
    [
        ((0.75, 100), (0.3, 100), True),
        ((0.75, 100), (0.65, 100), False),  # Wilson: 0.657 to 0.825 and 0.553 to 0.736
        ((0.75, 1000), (0.65, 1000), True),  # 0.722 to 0.776 and 0.620 to 0.679
        ((0.75, 1000), (0.3, 29), False),
        ((0.5, 1000), (0.9, 1000), False),
        ((None, 0), (0.1, 1000), False),
    ],
)
def test_taste_has_changed_where_a_reward_is_right_less_often_beyond_chance(
    before: tuple[float | None, int], now: tuple[float | None, int], wanted: bool
) -> None:
    assert learning.changed(before, now) is wanted


def test_waiting_is_over_when_enough_is_there(tmp_path: Path) -> None:
    class Counting:
        directory, number, wait = tmp_path, 1, False

        class store:
            @staticmethod
            def last_seq() -> int:
                return 1

        @staticmethod
        def say(_: str) -> None: ...

    with pytest.raises(collecting.Waiting, match="2 of 3"):
        collecting.wait_for(Counting(), 3, "judgements", lambda: Counter(studio=2))  # type: ignore[arg-type]
    assert json.loads((tmp_path / "waiting.json").read_text())["have"] == 2
    collecting.wait_for(Counting(), 2, "judgements", lambda: Counter(studio=2))  # type: ignore[arg-type]
    assert not (tmp_path / "waiting.json").exists()
