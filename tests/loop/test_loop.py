"""The loop: rounds as recorded transitions, sources of feedback, the gate, publishing, lineage and taking back."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from little_loops import SMALL, Person, longer, small
from plaudit import config as configs
from plaudit import files
from plaudit.feedback.events import Item, comparison_event
from plaudit.feedback.judgements import REPEATS
from plaudit.feedback.projects import Projects
from plaudit.feedback.releases import Releases
from plaudit.feedback.served import Opinion, Response, Said, Served
from plaudit.feedback.store import Store
from plaudit.loop import collecting, contest, cycle, learning, publishing, retracting, status
from plaudit.loop.drawing import openers, read_rows
from plaudit.loop.round import LOOP, SOURCE, Round, Standing, TakenBack, gathered
from plaudit.loop.rounds import Journal
from plaudit.loop.settings import Config
from plaudit.reward.judge import Compared
from plaudit.reward.rubric import as_text
from plaudit.studio import watching
from plaudit.types import Choice, Message, UserError


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
    kept = ("sample", "collect", "agree", "reward", "evaluate", "gate", "publish")
    results = [(entry["round"], entry["step"], entry["result"]) for entry in entries if entry["step"] in kept]
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
        assert history[-1].arms[0].adapter == str((out / "rounds/1/policy/adapter").resolve())
    assert files.digest(out / "model" / "model.safetensors") == files.digest(
        out / "rounds/1/policy/model/model.safetensors"
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
    whole = hashlib.sha256("".join(f"{row['digest']}\n" for row in rows).encode()).hexdigest()
    assert second["judgements"]["sources"]["panel"]["digest"] == whole
    assert second["artifacts"]["adapter"] == files.digest(out / "rounds/2/policy/adapter")
    assert second["queue_ordered_by"] == "1"
    card = (out / "rounds/2/policy/model/README.md").read_text()
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
        # Who decides at the gate may judge here, too: nothing is learned from it.
        assert Person(store, "dora", longer).judge("Loop assistant, round 1", 3) == 3
        for name in ("ann", "bo"):
            Person(store, name, longer).judge("Loop assistant, round 1")
    assert cycle.command(config, out, wait=False) is None
    assert json.loads((out / "waiting.json").read_text())["for"] == "judges at the gate (dora)"

    with Store.open(store_path) as store:
        gate = next(one for one in Projects(store).all() if one.name.startswith("Gate"))
        assert gate.task.raters == ("dora",)
        # Neither the order of the two nor what is kept with them says whose they are.
        items = list(store.items(Projects(store).items(gate.id)).values())
        assert items
        assert all(list(item.completions) == sorted(item.completions) for item in items)
        assert all(set(item.meta) == {"loop gate", "against", "project"} for item in items)
        assert {item.policy_version for item in items} == {None}
        candidate = {row["candidate"]["completion"] for row in read_rows(out / "rounds/1/contest.jsonl")}
        Person(store, "dora", lambda a, _: a in candidate).judge(gate.name)
    summary = cycle.command(config, out, wait=False)
    assert summary is not None
    assert summary["rounds"][0]["rates"]["anchor"] > 0.6
    rows = read_rows(out / "rounds/1/events.jsonl")
    assert {row["rater"] for row in rows if row["source"] == "gate"} == {"dora"}
    assert {row["rater"] for row in rows if row["source"] == "studio"} == {"ann", "bo"}
    about = json.loads((out / "rounds/1/lineage.json").read_text())
    assert list(about["judgements"]["sources"]) == ["studio"]
    assert about["gate"]["answers"] == len([row for row in rows if row["source"] == "gate"])


def test_a_retracted_raters_places_are_asked_of_others(tmp_path: Path) -> None:
    config, out = small(sources={"studio": 1.0}, stop={"rounds": 1}), tmp_path / "run"
    assert cycle.command(config, out, wait=False) is None
    with Store.open(out / "feedback.db") as store:
        for name in ("ann", "bo"):
            Person(store, name, longer).judge("Loop policy, round 1")
    assert cycle.command(config, out, wait=False) is not None  # the panel decides
    level = (Journal(out).done(1, "gate") or {})["level"]
    retracting.retract(out, "rater", "bo", by="test")
    assert cycle.resume(out, wait=False) is None
    want = json.loads((out / "waiting.json").read_text())
    assert want["have"] < want["want"]
    with Store.open(out / "feedback.db") as store:
        assert Person(store, "carl", longer).judge("Loop policy, round 1") > 0
    assert cycle.resume(out, wait=False) is not None
    assert {row["rater"] for row in read_rows(out / "rounds/1/events.jsonl")} == {"ann", "carl"}
    assert (Journal(out).done(1, "gate") or {})["level"] < level, "what was spent on the first test is spent"


def test_what_is_heard_and_what_is_not(tmp_path: Path) -> None:
    def item(name: str, **meta: Any) -> Item:
        return Item(name, (f"{name} a", f"{name} b"), "v1", {LOOP: "policy", SOURCE: "studio"} | meta)

    items = {
        "heard": item("heard"),
        "another loop's": item("another's", **{LOOP: "other"}),
        "asked again": item("again", **{REPEATS: "x"}),
        "held out": item("held out"),
        "of a suite": item("suite"),
        "taken back": item("back"),
        "of a source that was taken back": item("source", **{SOURCE: "judge"}),
        "of a policy that was taken back": replace(item("policy"), policy_version="v0"),
        "compares such a policy": item("compares", models=["v1", "v0"]),
    }
    with Store.open(tmp_path / "s.db") as store:
        store.add_items(items.values())
        for name, one in items.items():
            store.append(comparison_event(one.id, "ann", 0, id=name))
        store.append(comparison_event(items["heard"].id, "dora", 0, id="by who decides at the gate"))
        nothing: Any = None
        round = Round(
            config=small(sources={"studio": 1.0, "judge": 1.0}, judge="j", gate={"raters": ["dora"]}),
            directory=tmp_path, number=1, model=nothing, store=store, prompts=[], heldout=["held out"],
            suites={"safe": ["suite"]}, console=nothing, journal=nothing, start="s",
            standing=Standing(0, "s", 0.1, 1),
            taken_back=TakenBack(
                versions=frozenset({"v0"}), items=frozenset({items["taken back"].id}), sources=frozenset({"judge"})
            ),
        )  # fmt: skip
        assert [one.event.id for one in gathered(round)] == ["heard"]


def test_no_more_is_waited_for_than_can_be_said_and_somebody_may_say_that_it_is_enough(
    tmp_path: Path,
) -> None:
    settings = SMALL["collect"] | {"enough": 400, "prompts": 4, "overlap": 1}
    config, out = (
        small(sources={"studio": 1.0, "panel": 0.1}, collect=settings, stop={"rounds": 1}),
        tmp_path / "run",
    )
    assert cycle.command(config, out, wait=False) is None
    waiting = json.loads((out / "waiting.json").read_text())
    assert waiting["have"] == 0, "what the panel says is no person's word"
    assert 4 <= waiting["want"] <= 8
    with Store.open(out / "feedback.db") as store:
        Person(store, "ann", longer).judge("Loop policy, round 1", 3)
    assert cycle.command(config, out, wait=False) is None
    (out / collecting.GO_ON).write_text("")
    summary = cycle.command(config, out, wait=False)
    assert summary is not None
    assert summary["rounds"][0]["judgements"]["studio"] == 3
    assert not (out / collecting.GO_ON).exists()


def test_more_raters_are_wanted_only_where_there_are_more(tmp_path: Path) -> None:
    config, out = small(sources={"studio": 1.0}, stop={"rounds": 1}), tmp_path / "run"
    assert cycle.command(config, out, wait=False) is None
    with Store.open(out / "feedback.db") as store:
        Person(store, "ann", longer).judge("Loop policy, round 1")
        Person(store, "bo", lambda a, b: a < b).judge("Loop policy, round 1")
    assert cycle.command(config, out, wait=False) is not None
    assert (Journal(out).done(1, "agree") or {})["overlap"] == 2


def say(
    store: Store, number: int, score: float, *, name: str = "policy", text: str = "", question: str = ""
) -> str:
    """One answer of a served model, and what who asked makes of it."""
    served = Served(store)
    response = Response(
        id=f"chat-{name}-{number}",
        created_at=float(number),
        requester="user-1",
        conversation="",
        name=name,
        version="v",
        propensity=1.0,
        prompt=(Message("user", question or f"question {number // 2}"),),
        completions=(Said(text or f"answer {number} {'x' * (number % 3)}", "stop", None, None, ()),),
        sampling={},
        usage={},
        masked={},
        regenerates=None,
    )
    served.requester("user-1", None)
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
    rows.append({"prompt": "p", "completions": ["long " * 400, "short"], "choice": 1, "rater": "carl"})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small(
        sources={"panel": 1.0, "served": 0.5, "files": 0.25},
        data=[str(data)],
        store=str(tmp_path / "s.db"),
        collect=SMALL["collect"] | {"enough": 20},
    )
    held = as_text(openers()["heldout"][0])
    with Store.open(str(config.store)) as store:
        for number in range(20):
            say(store, number, float(number % 2))
        say(store, 21, 0.0, text="much too long " * 200)
        say(store, 22, 1.0, name="somebody else's")
        say(store, 23, 1.0, question=held)
    out = tmp_path / "run"
    assert cycle.command(config, out, wait=False) is None  # for the second round
    (one, _) = json.loads((out / "status.json").read_text())["rounds"]
    assert (one["judgements"]["files"], one["judgements"]["served"]) == (21, 21)
    learned = configs.read_yaml(out / "rounds/1/reward/config.yaml")
    assert learned["weights"]["files/carl"] == 0.25
    assert learned["weights"]["served/user-1"] == 0.5
    told = {
        source: read_rows(out / f"rounds/1/feedback-{source}.jsonl")
        for source in ("files", "panel", "served")
    }
    assert [Path(path).name for path in learned["samples"]] == ["samples.jsonl", "served.jsonl"]
    assert [Path(path).name for path in learned["reference"]] == ["samples.jsonl"]
    assert [Path(path).name for path in learned["data"]] == [f"feedback-{source}.jsonl" for source in told]
    assert (len(told["files"]), len(told["served"])) == (20, 20), "without what the context does not hold"
    assert set(one["by_source"]) == {"files", "panel", "served"}

    # A file that has grown brings what is new, and nothing twice.
    more = {"prompt": "p new", "completions": ["good", "bad"], "choice": 0, "rater": "carl"}
    data.write_text(data.read_text() + json.dumps(more) + "\n")
    with Store.open(str(config.store)) as store:
        for number in range(30, 50):
            say(store, number, float(number % 2))
    assert cycle.command(config, out, wait=False) is not None
    assert (Journal(out).done(2, "collect") or {})["by_source"]["files"] == 1


def test_what_teaches_nothing_is_said_and_the_round_collects_on(tmp_path: Path) -> None:
    data, out = tmp_path / "said.jsonl", tmp_path / "run"
    tie = {"prompt": "p", "completions": ["a", "b"], "choice": "tie", "rater": "carl"}
    data.write_text(json.dumps(tie) + "\n" + json.dumps({"prompt": "q", "completion": "shown"}) + "\n")
    config = small(sources={"files": 1.0}, data=[str(data)], stop={"rounds": 1})
    with pytest.raises(UserError, match=r"round 1: what was said so far"):
        cycle.command(config, out)
    rows = [
        {"prompt": f"p {n}", "completions": ["good", "bad"], "choice": 0, "rater": "carl"} for n in range(12)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cycle.command(config, out) is not None


def test_a_loop_is_alone_under_its_name(tmp_path: Path, likes: Callable[[float], None]) -> None:
    """A second run with the same settings learns nothing of what the first was told, and takes nothing from it."""
    likes(1.0)
    config = small(store=str(tmp_path / "s.db"), stop={"rounds": 1})
    assert cycle.command(config, tmp_path / "one") is not None
    with pytest.raises(UserError, match="which is no model of this loop"):
        cycle.command(config, tmp_path / "two")
    with Store.open(str(config.store)) as store:
        Releases(store).publish("policy", [publishing.arm_of(config, None)], by="ann")
    assert cycle.command(config, tmp_path / "two") is not None
    one, two = (
        {row["item"] for row in read_rows(tmp_path / run / "rounds/1/events.jsonl")} for run in ("one", "two")
    )
    assert one
    assert not one & two


def test_a_round_begins_with_what_somebody_has_gone_back_to(
    tmp_path: Path, likes: Callable[[float], None]
) -> None:
    likes(1.0)
    config, out = small(), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cycle, "ended", lambda *given: "stop" if given[2] == 1 else None)
        cycle.command(config, out)
    (out / "summary.json").unlink()
    with Store.open(out / "feedback.db") as store:
        Releases(store).roll_back("policy", by="ann")
    moved = tmp_path / "moved"
    out.rename(moved)
    summary = cycle.resume(moved)
    assert summary is not None
    assert set(summary["rounds"][1]["rates"]) == {"anchor"}
    lines = json.loads((moved / "rounds/2/lineage.json").read_text())
    assert lines["parents"]["policy"]["round"] == 0
    with Store.open(moved / "feedback.db") as store:
        adapter = Releases(store).newest()["policy"].arms[0].adapter
    assert adapter == str((moved / "rounds/2/policy/adapter").resolve())


def test_a_suite_keeps_out_what_is_worse_and_asks_nobody(
    tmp_path: Path, likes: Callable[[float], None]
) -> None:
    likes(1.0)
    prompts, few = tmp_path / "safe.jsonl", tmp_path / "few.jsonl"
    for path, count in ((prompts, 130), (few, 50)):
        path.write_text("".join(json.dumps({"prompt": f"case {n}"}) + "\n" for n in range(count)))
    suite = {"prompts": str(prompts), "scorer": "rules:fine", "margin": 0.05}
    with pytest.raises(UserError, match="has 50 cases, of which 124 are needed"):
        cycle.command(
            small(suites={"safe": suite | {"prompts": str(few)}}, stop={"rounds": 1}), tmp_path / "x"
        )

    for scorer, decision in (("rules:fine", "publish"), ("rules:bad_and_fine", "keep out")):
        out = tmp_path / decision.replace(" ", "-")
        summary = cycle.command(small(suites={"safe": suite | {"scorer": scorer}}, stop={"rounds": 1}), out)
        assert summary is not None
        assert summary["rounds"][0]["decision"] == decision
        assert (len(read_rows(out / "rounds/1/gate.jsonl")) > 0) == (decision == "publish")
        cases = read_rows(out / "rounds/1/suites.jsonl")
        assert any(case["candidate"] != case["parent"] for case in cases)
        assert "safe" in (out / "report.html").read_text()


def test_a_judge_model_is_a_source_or_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that prefers longer answers is learned from; another that prefers shorter ones decides."""

    class Longer:
        name = "judge:long"

        def __init__(self, sign: int) -> None:
            self.sign = sign

        def compare(self, pairs: Any) -> Any:
            for _, a, b in pairs:
                longer: Choice = 1 if self.sign * (len(b) - len(a)) > 0 else 0
                choice: Choice = "tie" if len(a) == len(b) else longer
                yield Compared(choice, (choice, choice), ())

    judges = {}
    for name, sign in (("long", 1), ("short", -1)):
        judges[str(tmp_path / f"{name}.yaml")] = Longer(sign)
        (tmp_path / f"{name}.yaml").write_text(f"kind: judge\nmodel: {name}\n")
    for room in (cycle, collecting, contest):
        monkeypatch.setattr(room, "judge_of", lambda path, *_: judges[path])
    long, short = judges
    with pytest.raises(UserError, match="is the judge that is learned from"):
        cycle.command(small(sources={"judge": 1.0}, judge=long, gate={"judges": long}), tmp_path / "same")
    config = small(
        sources={"judge": 1.0}, judge=long, gate={"judges": short, "prompts": 16}, stop={"rounds": 1}
    )
    out = tmp_path / "run"
    summary = cycle.command(config, out)
    assert summary is not None
    rows = read_rows(out / "rounds/1/feedback-judge.jsonl")
    assert {row["rater"] for row in rows} == {"judge/judge:long"}
    for row in rows:
        first, second = map(len, row["completions"])
        assert row["choice"] == ("tie" if first == second else int(second > first))
    contest_rows = read_rows(out / "rounds/1/contest.jsonl")
    for one in read_rows(out / "rounds/1/gate.jsonl"):
        ours, theirs = (
            len(contest_rows[one["place"]][name]["completion"]) for name in ("candidate", "anchor")
        )
        assert one["anchor"] == (0.5 if ours == theirs else float(ours < theirs))


def test_what_people_do_is_learned_from_where_it_foretells_what_they_say(
    tmp_path: Path, likes: Callable[[float], None]
) -> None:
    likes(0.5)
    config = small(
        sources={"served": 1.0, "behaviour": 0.5},
        store=str(tmp_path / "s.db"),
        collect=SMALL["collect"] | {"enough": 60},
        stop={"rounds": 1},
    )
    held = as_text(openers()["heldout"][0])
    with Store.open(str(config.store)) as store:
        served = Served(store)
        for number in range(70):
            good = float(number % 2)
            token = say(store, number, good)
            served.notice(token, "copy", 1.0, 1.0) if good else served.notice(token, "abandon", 1.0, 1.0)
        for number in range(100, 106):
            question = held if number == 105 else f"other {number}"
            token = say(store, number, 1.0, question=question)
            served.take_back(token)
            served.notice(token, "copy", 1.0, 1.0)
    out = tmp_path / "run"
    assert cycle.command(config, out) is not None
    rows = read_rows(out / "rounds/1/feedback-behaviour.jsonl")
    assert {row["prompt"][0]["content"] for row in rows} == {f"other {number}" for number in range(100, 105)}
    assert all(row["scores"]["overall"] > 0.5 for row in rows)
    told = configs.read_yaml(out / "rounds/1/reward/config.yaml")["weights"]
    assert told["behaviour/user-1"] == 0.5
    found = retracting.retract(out, "source", "behaviour", by="test", dry=True)
    assert list(found["touched"]) == ["1"]


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


def test_an_item_and_a_source_are_heard_no_more(
    twice: tuple[Config, Path], tmp_path: Path, likes: Callable[[float], None]
) -> None:
    likes(0.5)
    out = tmp_path / "run"
    shutil.copytree(twice[1], out)
    item = read_rows(out / "rounds/1/events.jsonl")[0]["item"]
    found = retracting.retract(out, "item", item, by="ann")
    assert found["judgements"] > 0
    assert cycle.resume(out) is not None
    assert item not in {row["item"] for row in read_rows(out / "rounds/2/events.jsonl")}
    with pytest.raises(UserError, match="no source is called mars"):
        retracting.retract(out, "source", "mars", by="ann")
    retracting.retract(out, "source", "panel", by="ann")
    with pytest.raises(UserError, match="what was said so far: holds no comparisons"):
        cycle.resume(out)


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
    with pytest.raises(UserError, match="heldout: 12 prompts are learned from, too"):
        cycle.command(small(prompts=str(one), heldout=str(one)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("before", [1.0, 0.01])
def test_taste_that_flips_is_noticed_and_what_was_said_before_counts_less(
    twice: tuple[Config, Path],
    tmp_path: Path,
    likes: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    before: float,
) -> None:
    """The reward of round 1 is asked of what the second round's pairs by chance were called; how right it was before is
    written down by hand."""
    likes(0.5)
    monkeypatch.setattr(learning, "FEWEST", 5)
    out = tmp_path / "run"
    shutil.copytree(twice[1], out)
    journal = Journal(out)
    kept = [entry for entry in journal.entries if entry["round"] == 1]
    for entry in kept:
        if entry["step"] == "reward":
            entry["result"] |= {"accuracy": before, "pairs": 400}
    files.write_json(journal.path, {"transitions": kept})
    files.remove(out / "rounds" / "2")
    (out / "summary.json").unlink()
    cycle.resume(out)
    found = (Journal(out).done(2, "agree") or {})["drift"]
    asked = read_rows(out / "rounds/2/asked.jsonl")
    assert 5 <= found["pairs"] <= sum(row["chosen_by"] == "chance" for row in asked)
    assert found["before"] == before
    assert found["changed"] is (before == 1.0)
    weights = configs.read_yaml(out / "rounds/2/reward/config.yaml")["weights"]
    stale = {name: weight for name, weight in weights.items() if name.startswith("stale/")}
    assert bool(stale) is (before == 1.0)
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


def test_waiting_is_over_when_enough_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting:
        directory, config, number, wait = tmp_path, None, 1, False
        store = SimpleNamespace(last_seq=lambda: 1)

        @staticmethod
        def say(_: str) -> None: ...

    round: Any = Counting()
    monkeypatch.setattr(status, "write", lambda *_: None)
    with pytest.raises(collecting.Waiting, match="2 of 3"):
        collecting.wait_for(round, "judgements", lambda: (Counter(studio=2), 3))
    assert json.loads((tmp_path / "waiting.json").read_text())["have"] == 2
    collecting.wait_for(round, "judgements", lambda: (Counter(studio=2), 2))
    assert not (tmp_path / "waiting.json").exists()
