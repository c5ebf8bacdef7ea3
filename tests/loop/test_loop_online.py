"""The online mode: a step for each judgement beside older ones, whenever the loop looks, however often it is killed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from little_loops import SMALL, Person, longer, small
from plaudit import config as configs
from plaudit import files
from plaudit.data.collate import pack
from plaudit.evaluation.run_report import GIVEN_CURVES
from plaudit.feedback.projects import Projects
from plaudit.feedback.served import SERVED, Response, Said, Served
from plaudit.feedback.store import Store
from plaudit.loop import contest, cycle, learning, retracting, streaming
from plaudit.loop.drawing import read_rows
from plaudit.loop.rounds import Journal
from plaudit.loop.settings import Config
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import load_model
from plaudit.recipes import kto
from plaudit.recipes.kto import take_gradients
from plaudit.training import metrics
from plaudit.training.policy import AdapterConfig, make_policy


def stepwise(**more: Any) -> Config:
    settings: dict[str, Any] = {
        "mode": "online",
        "online": {"replay": 3, "learning_rate": 1e-3},
        "collect": SMALL["collect"] | {"enough": 14, "prompts": 8},
        "gate": {"prompts": 10},
    }
    return small(**settings | more)


def first_kept_out(round: Any, rows: Any) -> list[dict[str, float]]:
    return [dict.fromkeys(contest.opponents(round), 0.3 if round.number == 1 else 1.0) for _ in rows]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judges keep the first candidate out and let the second pass."""
    monkeypatch.setattr(contest, "_by_panel", first_kept_out)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loop of two rounds with the panel, of which the first is kept out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest, "_by_panel", first_kept_out)
        out = tmp_path_factory.mktemp("online") / "run"
        cycle.command(stepwise(), out)
    return out


def adapter(out: Path, number: int) -> str:
    return files.digest(out / f"rounds/{number}/policy/adapter")


def test_each_judgement_that_says_something_is_a_step(twice: Path) -> None:
    rows = metrics.read(twice / "rounds/1/policy/metrics.jsonl")
    summary = json.loads((twice / "rounds/1/policy/summary.json").read_text())
    told = read_rows(twice / "rounds/1/feedback-panel.jsonl")
    ties = sum(row.get("choice") == "tie" for row in told)
    assert 0 < summary["judgements"] == summary["steps"] == len(rows) == len(told) - ties
    # Beside the first stands nothing, beside the second the first one, and then as many as are wanted.
    assert [row["replayed"] for row in rows[:5]] == [0, 1, 2, 3, 3]
    page, titles = (
        (twice / "rounds/1/policy/report.html").read_text(),
        {key: title for key, title, *_ in GIVEN_CURVES},
    )
    for figure in {key for row in rows for key in row} - {"step"}:
        assert f'<th scope="col">{titles[figure]}</th>' in page, figure


def test_what_a_candidate_learned_that_was_kept_out_comes_again(twice: Path) -> None:
    first, second = (json.loads((twice / f"rounds/{n}/policy/summary.json").read_text()) for n in (1, 2))
    collected = Journal(twice).done(2, "collect") or {}
    assert second["judgements"] > first["judgements"]
    tree = configs.read_yaml(twice / "rounds/2/policy/config.yaml")
    assert (tree["since"], tree["start"]) == (0, None)
    assert collected["judgements"] < second["judgements"] <= collected["judgements"] + first["judgements"] + 4


def test_its_lineage_and_card_say_how_it_was_made(twice: Path) -> None:
    card = (twice / "rounds/1/policy/model/README.md").read_text()
    assert "a step of KTO for each judgement" in card
    assert "kto" in card.splitlines()[2]
    about = json.loads((twice / "rounds/1/lineage.json").read_text())
    assert about["artifacts"]["adapter"] == adapter(twice, 1)


@pytest.mark.usefixtures("gate")
def test_a_run_that_is_killed_at_any_step_ends_with_the_same_bytes(
    twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, left = (
        streaming.Stream._count,
        {(1, 5), (1, 24), (2, 30)},
    )  # within, and after, the first checkpoint

    def killed(stream: streaming.Stream, *given: Any) -> None:
        count(stream, *given)
        if (at := (stream.round.number, stream.state["step"])) in left:
            left.remove(at)
            raise KeyboardInterrupt

    monkeypatch.setattr(streaming.Stream, "_count", killed)
    out = tmp_path / "run"
    for _ in range(4):
        try:
            cycle.command(stepwise(), out)
        except KeyboardInterrupt:
            continue
        break
    assert (out / "summary.json").exists()
    assert not left
    assert [adapter(out, n) for n in (1, 2)] == [adapter(twice, n) for n in (1, 2)]
    assert metrics.read(out / "rounds/2/policy/metrics.jsonl") == metrics.read(
        twice / "rounds/2/policy/metrics.jsonl"
    )


@pytest.mark.parametrize("per_step", [1, 3])
def test_steps_are_taken_while_people_judge_and_when_makes_no_difference(
    tmp_path: Path, per_step: int
) -> None:
    settings = {"replay": 3, "learning_rate": 1e-3, "judgements_per_step": per_step}
    config = stepwise(sources={"studio": 1.0}, stop={"rounds": 1}, online=settings)
    often, once = tmp_path / "often" / "run", tmp_path / "once" / "run"
    assert cycle.command(config, often, wait=False) is None
    once.parent.mkdir()
    shutil.copytree(often, once)
    for out, looks in ((often, True), (once, False)):
        with Store.open(out / "feedback.db") as store:
            assert Person(store, "ann", longer).judge("Loop policy, round 1", 5) == 5
        if looks:
            assert cycle.resume(out, wait=False) is None
            waiting = json.loads((out / "waiting.json").read_text())
            assert waiting["have"] == 5
            assert len(metrics.read(out / "rounds/1/policy/metrics.jsonl")) == 5 // per_step
        with Store.open(out / "feedback.db") as store:
            for name in ("ann", "bo"):
                Person(store, name, longer).judge("Loop policy, round 1")
        assert cycle.resume(out, wait=False) is not None
    assert adapter(often, 1) == adapter(once, 1)
    summary = json.loads((once / "rounds/1/policy/summary.json").read_text())
    assert summary["judgements"] % 3 == 1, "so that something is left over"
    assert summary["steps"] == math.ceil(summary["judgements"] / per_step)


def test_what_was_taken_back_after_its_step_stays_in_the_lineage(tmp_path: Path) -> None:
    config, out = stepwise(sources={"studio": 1.0}, stop={"rounds": 1}), tmp_path / "run"
    assert cycle.command(config, out, wait=False) is None
    with Store.open(out / "feedback.db") as store:
        Person(store, "carl", longer).judge("Loop policy, round 1", 4)
    assert cycle.resume(out, wait=False) is None
    with Store.open(out / "feedback.db") as store:
        store.retract_rater("carl")
        (project,) = Projects(store).all()
        Projects(store).reconcile(project.id)
        for name in ("ann", "bo"):
            Person(store, name, longer).judge("Loop policy, round 1")
    assert cycle.resume(out, wait=False) is not None
    rows = read_rows(out / "rounds/1/events.jsonl")
    assert sum(row["rater"] == "carl" for row in rows) == 4
    with Store.open(out / "feedback.db") as store:
        named = store.models_trained_on("carl")
    assert named
    assert all(name.startswith("policy/round-1/event-") for name in named)

    # What was taken back is not learned again, though it stood in its day.
    found = retracting.retract(out, "rater", "carl", by="test")
    assert list(found["touched"]) == ["1"]
    assert cycle.resume(out, wait=False) is not None
    assert {row["rater"] for row in read_rows(out / "rounds/1/events.jsonl")} == {"ann", "bo"}
    summary = json.loads((out / "rounds/1/policy/summary.json").read_text())
    assert summary["judgements"] == len(read_rows(out / "rounds/1/events.jsonl"))


@pytest.mark.usefixtures("gate")
@pytest.mark.parametrize("per_step", [1, 4])
def test_replay_keeps_what_was_learned_first(tmp_path: Path, per_step: int) -> None:
    """Answers to one kind of prompt should be short, then those to another kind long: without replay the first is
    unlearned."""
    data = tmp_path / "said.jsonl"
    short, long = "yes", "no no no"

    def row(kind: str, n: int, chosen: int) -> str:
        said = {"prompt": f"{kind} {n}", "completions": [short, long], "choice": chosen, "rater": "ann"}
        return json.dumps(said) + "\n"

    data.write_text(
        "".join(row("Apples?", n, 0) for n in range(16)) + "".join(row("Pears?", n, 1) for n in range(32))
    )
    model = load_model("tiny", torch.float32)
    tokens = model.tokenizer

    def margin(trunk: Any) -> float:
        """How much likelier the short answer is than at the start, beside the long one, of new apples; nats."""
        prompts = [tokens.render(f"Apples? {n}") for n in range(30, 40) for _ in (0, 1)]
        packed = pack(prompts, [tokens.complete(text) for _ in range(10) for text in (short, long)])
        with torch.no_grad():
            said, start = (
                token_logprobs(Branch(one), packed).logprobs.sum(1).double() for one in (trunk, model.trunk)
            )
        gap = (said - start).reshape(10, 2)
        return float((gap[:, 0] - gap[:, 1]).mean())

    found = {}
    for replay in (0, 7):
        config = stepwise(
            sources={"files": 1.0},
            data=[str(data)],
            stop={"rounds": 1},
            online={"replay": replay, "learning_rate": 1e-3, "judgements_per_step": per_step},
        )
        out = tmp_path / f"replay-{replay}"
        cycle.command(config, out)
        learned = load_model(str(out / "rounds/1/policy/model"), torch.float32)
        found[replay] = margin(learned.trunk)
    assert found[7] > found[0] + 0.1
    assert found[7] > 0


@pytest.mark.usefixtures("gate")
def test_it_learns_no_more_beyond_the_kl_limit(tmp_path: Path) -> None:
    config = stepwise(
        online={"replay": 3, "learning_rate": 2e-2},
        policy=SMALL["policy"] | {"max_kl": 0.01},
        stop={"rounds": 1},
    )
    out = tmp_path / "run"
    cycle.command(config, out)
    summary = json.loads((out / "rounds/1/policy/summary.json").read_text())
    assert summary["steps"] == 20
    assert "above max_kl 0.010" in summary["stopped"]


@pytest.mark.usefixtures("gate")
def test_what_counts_less_is_drawn_less_and_moves_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed = list[float]()

    def seen(batch: Any, *given: Any) -> dict[str, float]:
        weighed.extend(said.weight for said in batch)
        return take_gradients(batch, *given)

    monkeypatch.setattr("plaudit.recipes.kto.take_gradients", seen)
    monkeypatch.setattr(streaming, "reliability_before", lambda _: {"panel/panel-0": 0.25})
    out = tmp_path / "run"
    cycle.command(stepwise(stop={"rounds": 1}), out)
    rows = read_rows(out / "rounds/1/events.jsonl")
    assert any(row["rater"] == "panel-0" for row in rows)
    assert set(weighed) == {0.25, 1.0}


def test_what_counts_for_nothing_makes_no_step(tmp_path: Path) -> None:
    config = stepwise(sources={"files": 1.0}, data=[str(tmp_path / "said.jsonl")], stop={"rounds": 2})
    rows = [
        {"prompt": f"p {n}", "completions": ["good", "bad"], "choice": 0, "rater": "carl"} for n in range(12)
    ]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            contest,
            "_by_panel",
            lambda round, rows: [dict.fromkeys(contest.opponents(round), 1.0) for _ in rows],
        )
        patch.setattr(streaming, "reliability_before", lambda _: {"files/carl": 0.0})
        cycle.command(config, out)
    assert json.loads((out / "rounds/1/policy/summary.json").read_text())["steps"] == 0
    verdict = Journal(out).done(1, "gate") or {}
    assert (verdict["decision"], verdict["why"]) == ("keep out", "the policy has taken no step")
    assert read_rows(out / "rounds/1/gate.jsonl") == []


def test_a_judgement_that_counts_a_quarter_pulls_a_quarter_as_much() -> None:
    model = load_model("tiny", torch.float64)
    policy = make_policy(model, AdapterConfig(rank=4), seed=1)
    tokens, config = model.tokenizer, kto.Config(model="tiny", data=["-"])

    def said(text: str, weight: float) -> kto.Labelled:
        return kto.Labelled("p", tuple(tokens.encode("p")), tuple(tokens.complete(text)), True, weight)

    def pull(*batch: kto.Labelled) -> torch.Tensor:
        texts = [(one.prompt, one.completion) for one in batch]
        start = kto.sums_of(texts, Branch(model.trunk), config)
        kto.take_gradients(batch, [], policy, dict(zip(texts, start, strict=True)), config)
        found = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]).double()
        for parameter in policy.parameters():
            parameter.grad = None
        return found

    good, other = pull(said("good", 1.0)), pull(said("quite other", 1.0))
    both = pull(said("good", 1.0), said("quite other", 0.25))
    torch.testing.assert_close(both, (good + 0.25 * other) / 1.25, rtol=1e-9, atol=1e-12)


def test_what_counts_more_is_drawn_more_often() -> None:
    weights = [0.1] * 5 + [1.0] * 5
    drawn = [streaming.drawn(weights, 1, ("test", n))[0] for n in range(400)]
    assert sum(place < 5 for place in drawn) / 400 == pytest.approx(
        0.5 / 5.5, abs=0.045
    )  # three standard errors
    assert streaming.drawn(weights, 30, ("test",)) == list(range(10))
    assert streaming.drawn([], 3, ("test",)) == []


def test_an_answer_is_learned_by_the_tokens_that_were_drawn(tmp_path: Path) -> None:
    model = load_model("tiny", torch.float32)
    tokens = model.tokenizer
    drawn = tokens.encode("cut off in the")
    told = {
        "drawn": Said("cut off in the", "length", None, tuple(drawn)),
        "masked, cut off": Said("call [phone] or", "length"),
        "masked": Said("call [phone].", "stop"),
        "another's": Said("of another model", "stop", None, (1, 2, 3)),
    }
    with Store.open(tmp_path / "s.db") as store:
        served = Served(store)
        served.requester("user-1", None)
        for name, said in told.items():
            served.keep(
                Response(
                    id=name, created_at=0.0, requester="user-1", conversation="", name="policy", version="v",
                    propensity=1.0, prompt="q", completions=(said,), sampling={}, usage={}, masked={}, regenerates=None,
                )
            )  # fmt: skip
        round: Any = SimpleNamespace(model=model, store=store)
        heard: list[Any] = [SimpleNamespace(item=SimpleNamespace(meta={SERVED: list(told)}))]
        found = {text: ids for (_, text), ids in learning.served_ids(round, heard).items()}
    eos = tokens.complete("")[-1]
    assert found["cut off in the"] == drawn
    assert found["call [phone] or"][-1] != eos
    assert found["call [phone]."][-1] == eos
    assert found["of another model"] == [*tokens.encode("of another model"), eos]


def test_reliability_is_that_of_the_round_before(tmp_path: Path) -> None:
    class First:
        directory, number = tmp_path, 1

    class Second:
        directory, number = tmp_path, 2

    first: Any = First()
    second: Any = Second()
    assert streaming.reliability_before(first) == {}
    files.write_json(tmp_path / "rounds/1/agreement.json", {"raters": {"studio/ann": {"weight": 0.5}}})
    assert streaming.reliability_before(second) == {"studio/ann": 0.5}
