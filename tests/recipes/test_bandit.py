"""The bandit recipe on the tiny model: a log learned from, choices made and logged here, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from plaudit.models.label_head import LabelHead
from plaudit.models.load import load_model
from plaudit.recipes import bandit
from plaudit.rollout.classify import classify, draw_label
from plaudit.tensors import Sample
from plaudit.types import UserError

GOOD = ("I love it", "so happy today", "a wonderful film", "great friend", "this is excellent", "we had fun")
BAD = ("I hate it", "so sad today", "an awful film", "terrible friend", "this is horrible", "we had pain")
TEXTS = [
    f"{text} {more}" for text in (*GOOD, *BAD) for more in ("now", "again", "with you", "at work", "in rain")
]
RIGHT = ["good" if number < 30 else "bad" for number in range(60)]


def rewarded(samples: Sequence[Sample]) -> list[float]:
    """1 for the right label: a rule, "test_bandit:rewarded"."""
    return [float(sample.text == RIGHT[sample.prompt]) for sample in samples]


def alike(samples: Sequence[Sample]) -> list[float]:
    """A rule that tells nothing apart."""
    return [0.5 for _ in samples]


def too_much(samples: Sequence[Sample]) -> list[float]:
    return [2.0 for _ in samples]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def logged(seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Each text once, labelled by a coin that says "good" three times in four."""
    draw = np.random.default_rng(seed)
    rows = []
    for text, right in zip(TEXTS, RIGHT, strict=True):
        label = "good" if draw.random() < 0.75 else "bad"
        row = {"prompt": text, "completion": label, "propensity": 0.75 if label == "good" else 0.25}
        rows.append(row | {"scores": {"overall": float(label == right)}} | more)
    return rows


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "log.jsonl", logged())


def config(**settings: Any) -> bandit.Config:
    tree: dict[str, Any] = {
        "model": "tiny", "data": [], "exit": 1.0, "heldout": 0.25, "epochs": 2, "batch_size": 16, "learning_rate": 1e-2,
        "precision": "float64", "threads": 1, "checkpoint_every": 2,
    }  # fmt: skip
    return bandit.Config.model_validate(tree | settings)


def online(tmp_path: Path, **settings: Any) -> bandit.Config:
    contexts = write(tmp_path / "contexts.jsonl", [{"prompt": text} for text in TEXTS])
    tree: dict[str, Any] = {
        "contexts": contexts, "reward": "test_bandit:rewarded", "labels": ["good", "bad"], "rounds": 3,
        "contexts_per_round": 20, "steps_per_round": 2,
    }  # fmt: skip
    return config(**(tree | settings))


def rows(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def everything(directory: Path) -> dict[str, bytes]:
    """What must be the same bit for bit."""
    found = {name: (directory / name).read_bytes() for name in ("metrics.jsonl", "summary.json")}
    found |= {p.name: p.read_bytes() for p in (directory / "model").iterdir()}
    return found | (
        {"log": (directory / "log.jsonl").read_bytes()} if (directory / "log.jsonl").exists() else {}
    )


@pytest.mark.parametrize("rank", [0, 4])
def test_the_split_into_micro_batches_changes_nothing(data: str, tmp_path: Path, rank: int) -> None:
    found = []
    for budget in (1, 40, 10_000):
        where = tmp_path / str(budget)
        bandit.run(config(data=[data], micro_batch_tokens=budget, adapter={"rank": rank}), where)
        found.append([(row["loss"], row["grad_norm"]) for row in rows(where)])
    assert found[0][0][0] == pytest.approx(np.log(2), rel=1e-12)  # all Q are 0.5
    for other in found[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(found[0]), rtol=1e-9, atol=1e-9)


def test_the_head_alone_ends_where_logistic_regression_does(data: str) -> None:
    """The loss is least where numpy's Newton finds it, label by label, on the same states: cut to three dimensions,
    where the optimum is finite."""
    chosen = config(data=[data], heldout=0.0, weight_decay=0.0, batch_size=60, epochs=1)
    model = load_model("tiny", torch.float64)
    log, _ = bandit.offline_log(chosen, model)
    classifier = bandit.make_classifier(chosen, model, ("bad", "good"))
    states = classifier.states([c.ids for c in log])
    x = np.c_[((states - states.mean(0)) / states.std(0, correction=0))[:, :3].numpy(), np.ones(len(log))]
    head = LabelHead(3, 2, dtype=torch.float64)
    classifier.head = head
    classifier.head.even_out(states[:, :3])
    frozen = {tuple(c.ids): s[:3] for c, s in zip(log, states, strict=True)}
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        return bandit.train_on(log, classifier, frozen, chosen)["loss"]

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    for place, label in enumerate(("bad", "good")):
        own = np.array([c.label == label for c in log])
        a, r, w = x[own], np.array([c.reward for c in log])[own], np.zeros(4)
        for _ in range(50):
            p = 1 / (1 + np.exp(-a @ w))
            w -= np.linalg.solve(a.T @ (a * (p * (1 - p))[:, None]) + 1e-12 * np.eye(4), a.T @ (p - r))
        found = [*head.weight[place].tolist(), head.bias[place].item()]
        assert found == pytest.approx(w.tolist(), rel=1e-5, abs=1e-6)


def run_until(attribute: str, call: int, chosen: bandit.Config, directory: Path) -> None:
    """A run that dies when it calls what it knows as `attribute` for the call-th time (1, 2, ...)."""
    calls = 0
    owner, _, name = attribute.rpartition(".")
    place = getattr(bandit, owner) if owner else bandit
    real = getattr(place, name)

    def dying(*args: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return real(*args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, dying)
        with pytest.raises(KeyboardInterrupt):
            bandit.run(chosen, directory)


KILLS = [
    ("take_step", 1),
    ("take_step", 4),
    ("checkpoint.save", 1),
    ("checkpoint.save", 2),
    ("files.write_json", 1),
]


@pytest.mark.parametrize(("attribute", "call"), KILLS)
@pytest.mark.parametrize("rank", [0, 4])
def test_a_killed_run_ends_with_the_same_bits(
    data: str, tmp_path: Path, attribute: str, call: int, rank: int
) -> None:
    chosen = config(data=[data], adapter={"rank": rank})
    bandit.run(chosen, tmp_path / "whole")
    run_until(attribute, call, chosen, tmp_path / "cut")
    bandit.run(chosen, tmp_path / "cut")
    assert everything(tmp_path / "cut") == everything(tmp_path / "whole")


@pytest.mark.parametrize(("attribute", "call"), [*KILLS, ("train_on", 3), ("train_on", 5)])
def test_a_killed_run_that_chooses_ends_with_the_same_bits(tmp_path: Path, attribute: str, call: int) -> None:
    """Three rounds of two steps, saved every three: a kill also cuts off rows of the log, which come again."""
    chosen = online(tmp_path, checkpoint_every=3)
    bandit.run(chosen, tmp_path / "whole")
    assert len((tmp_path / "whole" / "log.jsonl").read_text().splitlines()) == 60
    run_until(attribute, call, chosen, tmp_path / "cut")
    bandit.run(chosen, tmp_path / "cut")
    assert everything(tmp_path / "cut") == everything(tmp_path / "whole")


@pytest.mark.proof
def test_a_log_of_a_blind_coin_teaches_the_right_labels(data: str, tmp_path: Path) -> None:
    """Three in four say "good" whatever the text; the classifier must know better, and its estimates say so."""
    summary = bandit.run(
        config(data=[data], epochs=60, adapter={"rank": 4}, learning_rate=3e-3), tmp_path / "run"
    )
    texts = write(tmp_path / "texts.jsonl", [{"prompt": text, "kept": i} for i, text in enumerate(TEXTS)])
    out = tmp_path / "out.jsonl"
    said = classify(tmp_path / "run" / "model", Path(texts), out, dtype=torch.float64)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    right = sum(row["completion"] == RIGHT[row["kept"]] for row in found) / len(found)
    assert right > 0.8  # a coin: 0.5
    assert said == {
        "rows": 60,
        "labels": {n: sum(r["completion"] == n for r in found) for n in ("bad", "good")},
    }
    assert all(row["propensity"] == 1.0 for row in found)
    value, error = summary["greedy"]["doubly_robust"]
    assert value - summary["logged_reward"][0] > error > 0
    assert set(summary["epsilon_greedy"]) == {"direct", "ips", "snips", "doubly_robust", "effective_rows"}


def test_texts_that_were_trained_on_are_not_measured_as_held_out(tmp_path: Path) -> None:
    summary = bandit.run(online(tmp_path, heldout=0.0), tmp_path / "run")
    assert (summary["contexts_measured"], summary["heldout_reward"]) == (0, None)


@pytest.mark.proof
def test_what_was_chosen_online_earns_more_and_can_be_learned_from_again(tmp_path: Path) -> None:
    chosen = online(
        tmp_path,
        rounds=12,
        contexts_per_round=45,
        steps_per_round=15,
        learning_rate=3e-3,
        adapter={"rank": 4},
    )
    summary = bandit.run(chosen, tmp_path / "run")
    earned = [row["round_reward"] for row in rows(tmp_path / "run") if "round_reward" in row]
    assert len(earned) == 12
    assert sum(earned[-3:]) / 3 > earned[0] + 0.2
    assert summary["heldout_reward"] > 0.7
    assert summary["contexts_measured"] > 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {round(row["propensity"], 9) for row in log} == {0.05, 0.95}  # epsilon 0.1 over two labels
    again = bandit.run(config(data=[str(tmp_path / "run" / "log.jsonl")]), tmp_path / "again")
    assert again["greedy"]["ips"][1] > 0


def test_every_round_asks_about_other_texts_and_never_about_those_held_out(tmp_path: Path) -> None:
    chosen = online(tmp_path)
    bandit.run(chosen, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rounds = [{row["context"] for row in log if row["policy_version"] == f"round-{r}"} for r in range(3)]
    assert [len(texts) for texts in rounds] == [20, 20, 20]
    assert rounds[0] != rounds[1] != rounds[2]
    held = set(bandit.make_chooser(chosen, load_model("tiny", torch.float64)).heldout)
    assert held
    assert not held & set.union(*rounds)


def test_unknown_propensities_leave_estimates_out_or_are_counted(tmp_path: Path) -> None:
    bare = [{k: v for k, v in row.items() if k != "propensity"} for row in logged(policy_version="coin")]
    data = write(tmp_path / "bare.jsonl", bare)
    assert set(bandit.run(config(data=[data]), tmp_path / "one")["greedy"]) == {"direct"}
    counted = config(data=[data], propensities="frequency")
    log, heldout = bandit.offline_log(counted, load_model("tiny", torch.float64))
    share = sum(row["completion"] == "good" for row in bare) / 60
    assert all(c.propensity == pytest.approx(share) for c in [*log, *heldout] if c.label == "good")
    assert "ips" in bandit.run(counted, tmp_path / "two")["greedy"]


def test_labels_are_drawn_with_the_policys_chances(data: str, tmp_path: Path) -> None:
    chances = torch.tensor([0.2, 0.0, 0.8], dtype=torch.float64)
    drawn = [draw_label(chances, 0, "test", i) for i in range(4000)]
    assert drawn.count(1) == 0
    assert drawn.count(0) / 4000 == pytest.approx(0.2, abs=0.02)
    bandit.run(config(data=[data]), tmp_path / "run")
    texts = Path(write(tmp_path / "texts.jsonl", [{"prompt": text} for text in TEXTS]))
    for policy in ("softmax", "epsilon_greedy"):
        classify(
            tmp_path / "run" / "model", texts, tmp_path / "out.jsonl", policy=policy, dtype=torch.float64
        )
        for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()):
            values = row["values"]
            best = max(values, key=values.__getitem__)
            soft = np.exp(values[row["completion"]] / 0.1) / sum(np.exp(v / 0.1) for v in values.values())
            greedy = 0.95 if row["completion"] == best else 0.05
            assert row["propensity"] == pytest.approx(soft if policy == "softmax" else greedy)


ROW = {"prompt": "a", "completion": "good", "reward": 1.0}


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([], r"log.jsonl: holds no records; check that it is the right file"),
        ([ROW | {"reward": 1.5}], r"log.jsonl:1: reward is 1.5, not within 0 to 1; scale it"),
        ([ROW | {"reward": float("nan")}], "reward is nan, not a number"),
        ([ROW | {"reward": "high"}], "reward is 'high', not a number"),
        ([{"prompt": "a", "completion": "good"}], 'lacks a reward; write "reward"'),
        ([ROW | {"propensity": 0}], "propensity is 0, not above 0 and up to 1; log the chance"),
        ([ROW | {"propensity": 1.2}], "propensity is 1.2, not above 0"),
        ([ROW | {"completion": " "}], "lacks a label as completion"),
        ([ROW | {"prompt": ""}], "prompt"),
        ([ROW | {"prompt": "b " * 300}], r"log.jsonl:1: has \d+ tokens, the model takes 255; shorten"),
        ([ROW, ROW | {"reward": 0.0}], "only 'good' was ever chosen, so that labels cannot be compared; log more"),
        ([ROW, ROW | {"completion": "bad"}], "all rewards are 1, so there is nothing to learn; log more varied"),
        ([ROW, ROW | {"completion": "bad", "reward": 0.0, "prompt": "b"}, ROW | {"completion": "odd"}],
         "'odd' was chosen, which is not in labels; known: good, bad"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(tmp_path: Path, records: list[dict[str, Any]], line: str) -> None:
    data = write(tmp_path / "log.jsonl", records)
    labels = ["good", "bad"] if "odd" in line else []
    with pytest.raises(UserError, match=line):
        bandit.run(config(data=[data], heldout=0.0, labels=labels), tmp_path / "run")


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for settings, line in (
        ({}, "data names no log"),
        ({"data": ["a"], "reward": "a:b"}, "reward and contexts go together"),
        ({"contexts": "a", "reward": "a:b", "labels": ["one"]}, "labels names at least two"),
        ({"data": ["a"], "labels": ["a", "a", "b"]}, "labels names 'a' twice; name each label once"),
        ({"data": ["a"], "labels": ["", "a", "b"]}, "labels holds an empty label; name each"),
        ({"data": ["a"], "labels": ["a", " "]}, "labels holds an empty label"),
    ):
        with pytest.raises(ValidationError, match=line):
            config(**settings)
    with pytest.raises(UserError, match="reward: gave 2, not within 0 to 1"):
        bandit.run(online(tmp_path, reward="test_bandit:too_much"), tmp_path / "run")
    with pytest.raises(UserError, match="all contexts are held out"):
        bandit.run(online(tmp_path, heldout=0.9999), tmp_path / "run2")


def test_a_rule_that_rewards_all_alike_is_refused_as_such_a_log_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After its last choices, for an early round may be so by chance; until then each round's line says it."""
    with pytest.raises(
        UserError, match=r"reward: all rewards are 0.5, so there is nothing to learn; give a rule"
    ):
        bandit.run(online(tmp_path, reward="test_bandit:alike"), tmp_path / "run")
    assert [row.get("round_reward") for row in rows(tmp_path / "run")] == [0.5, None, 0.5, None]
    assert capsys.readouterr().err.count("every reward is the same") == 2
    bandit.run(online(tmp_path), tmp_path / "varied")
    assert "every reward is the same" not in capsys.readouterr().err


def test_a_run_that_diverges_says_so(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a number at step \d; lower the learning rate"):
        bandit.run(config(data=[data], learning_rate=1e200, max_grad_norm=1e200), tmp_path)


def test_weights_that_the_last_step_broke_are_not_written(data: str, tmp_path: Path) -> None:
    """No later loss sees them."""
    with pytest.raises(
        UserError, match="a weight is not a number after the last step; lower the learning rate"
    ):
        bandit.run(config(data=[data], learning_rate=1e308, epochs=1, batch_size=100), tmp_path)
    assert len(rows(tmp_path)) == 1
    assert not (tmp_path / "model").exists()


def test_a_classifier_belongs_to_its_model(data: str, tmp_path: Path) -> None:
    bandit.run(config(data=[data]), tmp_path / "run")
    texts, out = Path(write(tmp_path / "texts.jsonl", [{"prompt": "a"}])), tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="holds no classifier; train one with the bandit recipe"):
        classify(tmp_path, texts, out)
    with pytest.raises(UserError, match="unknown policy 'best'; known: greedy"):
        classify(tmp_path / "run" / "model", texts, out, policy="best")
    about = tmp_path / "run" / "model" / "classifier.json"
    about.write_text(about.read_text().replace('"trunk": "', '"trunk": "x'))
    with pytest.raises(UserError, match="was trained on another model; use"):
        classify(tmp_path / "run" / "model", texts, out)


def test_the_command_line_trains_and_classifies(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from plaudit.cli import main

    (tmp_path / "bandit.yaml").write_text(
        "recipe: bandit\nmodel: tiny\nepochs: 1\nprecision: float32\nthreads: 1\n"
    )
    run, texts = str(tmp_path / "run"), write(tmp_path / "texts.jsonl", [{"prompt": t} for t in TEXTS[:4]])
    assert main(["train", str(tmp_path / "bandit.yaml"), f"data=[{data}]", "--out", run]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == ["bad", "good"]
    words = ["--input", texts, "--out", str(tmp_path / "out.jsonl"), "--policy", "softmax", "--threads", "1"]
    assert main(["classify", f"{run}/model", "--precision", "float32", *words]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 4
