"""The reward_model recipe where it is asked who judged, by which criterion, and in what order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plaudit.config import parse
from plaudit.data.formats import write_records
from plaudit.models.load import load_model
from plaudit.randomness import rng
from plaudit.recipes import reward_model
from plaudit.reward.model import load_reward_model
from plaudit.reward.raters import RaterEffects
from plaudit.reward.score import score
from plaudit.training import optim
from plaudit.training.metrics import Metrics
from plaudit.types import Preference, Ranking, Rating, Record, UserError

WORDS = ("morning", "tea", "coffee", "dog", "cat", "rain", "sun", "music")
RATERS = ("ada", "bo", "careless")


def text(seed: int, good: bool) -> str:
    words = [str(word) for word in rng("words", seed).choice(WORDS, 4)]
    return " ".join([*words[:3], "wonderful" if good else words[3]])


def comparisons(prompts: int) -> list[Record]:
    """Three raters a prompt; one of them tosses a coin."""
    found: list[Record] = []
    for prompt in range(prompts):
        first = bool(rng("side", prompt).random() < 0.5)
        texts = text(2 * prompt, first), text(2 * prompt + 1, not first)
        for place, rater in enumerate(RATERS):
            choice = int(rng("coin", prompt).integers(2)) if rater == "careless" else 0 if first else 1
            shown = (0, 1) if (prompt + place) % 2 else (1, 0)
            found.append(Preference(f"say {prompt}", texts, choice, 1 + prompt % 4, shown, rater))  # type: ignore[arg-type]
    return found


def ratings(prompts: int) -> list[Record]:
    return [
        Rating(
            f"say {prompt}",
            text(100 + 2 * prompt + good, bool(good)),
            {"joy": (0.75 if good else 0.25) - 0.25 * (rater == "ada"), "flow": prompt % 5 / 4},
            rater,
        )
        for prompt in range(prompts)
        for good in (0, 1)
        for rater in RATERS[:2]
    ]


def rankings(prompts: int) -> list[Record]:
    found: list[Record] = []
    for prompt in range(prompts):
        best = prompt % 4
        texts = tuple(text(200 + 4 * prompt + i, i == best) for i in range(4))
        ranking = (best, *sorted({0, 1, 2, 3} - {best}))
        found += [Ranking(f"say {prompt}", texts, ranking, rater) for rater in RATERS[:2]]
    return found


def write(path: Path, records: list[Record]) -> str:
    write_records(records, path)
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> reward_model.Config:
    records = [*comparisons(9), *ratings(8), *rankings(6)]
    return reward_model.Config(
        model="tiny",
        data=[write(tmp_path / "data.jsonl", records)],
        heldout=0.0,
        comparison="plackett_luce",
        margin=1.0,
        rating="ordinal",
        criteria={"joy": 0.7, "flow": -0.3},
        raters="aware",
        adapter=reward_model.AdapterConfig(rank=2, alpha=4.0, blocks=1),
        prompts_per_step=3,
        learning_rate=5e-3,
        precision="float64",
        threads=1,
        checkpoint_every=2,
    )


def changed(config: reward_model.Config, **settings: Any) -> reward_model.Config:
    return reward_model.Config.model_validate(config.model_dump() | settings)


def rows(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((directory / "model").glob("*.safetensors"))}


class Killed(BaseException):
    """What no handler of the recipe's may swallow."""


def test_a_killed_run_that_knows_its_raters_ends_with_the_same_bits(
    config: reward_model.Config, tmp_path: Path
) -> None:
    """With every kind of judgement, criteria, cut-points and habits in the checkpoint; habits learn slowly, so that it
    takes some steps until their moments tell."""
    config = changed(config, epochs=4)
    summary = reward_model.run(config, tmp_path / "unbroken")
    assert len(rows(tmp_path / "unbroken")) >= 8
    log = Metrics.log

    def killed(self: Metrics, step: int, *args: Any) -> None:
        log(self, step, *args)
        if step == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Metrics, "log", killed)
        with pytest.raises(Killed):
            reward_model.run(config, tmp_path / "broken")
    assert reward_model.run(config, tmp_path / "broken") == summary
    assert rows(tmp_path / "broken") == rows(tmp_path / "unbroken")
    assert weights(tmp_path / "broken") == weights(tmp_path / "unbroken")
    assert set(weights(tmp_path / "broken")) == {
        "adapter_model.safetensors", "head.safetensors", "criteria.safetensors"
    }  # fmt: skip
    assert set(summary["raters"]) == set(RATERS)
    assert summary["raters"]["ada"]["judgements"] == 9 + 2 * 16 + 6 * 6
    assert json.loads((tmp_path / "broken" / "summary.json").read_text()) == summary


def test_the_split_into_micro_batches_changes_nothing(config: reward_model.Config, tmp_path: Path) -> None:
    found = []
    for budget in (100_000, 1):
        reward_model.run(changed(config, micro_batch_tokens=budget), tmp_path / str(budget))
        found.append(rows(tmp_path / str(budget)))
    for one, two in zip(*found, strict=True):
        assert one == pytest.approx(two, rel=1e-9, abs=1e-9, nan_ok=True)


def test_the_careless_one_is_told_and_the_reward_learns_from_the_others(
    config: reward_model.Config, tmp_path: Path
) -> None:
    data = [write(tmp_path / "pairs.jsonl", comparisons(60))]
    plain = {
        "comparison": "bradley_terry",
        "criteria": {},
        "rating": "regression",
        "margin": 0.0,
        "precision": "float32",
    }
    config = changed(config, data=data, heldout=0.3, probe=True, pool="mean", **plain)
    summary = reward_model.run(config, tmp_path / "run")
    told = summary["raters"]
    assert told["careless"]["careless"] > 0.5 > max(told[name]["careless"] for name in ("ada", "bo"))
    assert told["careless"]["label"] == "careless"
    assert {told[name]["label"] for name in ("ada", "bo")} <= {
        "like the crowd",
        "copies",
    }  # they never differ


def test_a_prior_weighs_beside_a_judgement_as_one_nat_beside_another(
    config: reward_model.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nat a unit of reliability, or none: the difference is the share that one ranking has in the loss."""
    pulls = []
    trained, step = reward_model.train_on, optim.take_step
    for slope in (1.0, 0.0):
        found: list[torch.Tensor] = []

        def train_on(*given: Any, slope: float = slope) -> Any:
            monkeypatch.setattr(RaterEffects, "prior", lambda effects: slope * effects.reliability.sum())
            return trained(*given)

        def take_step(optimizer: Any, parameters: Any, found: list[torch.Tensor] = found, **rest: Any) -> Any:
            found += [p.grad.clone() for p in parameters if p.shape == (2,) and p.grad is not None]
            return step(optimizer, parameters, **rest)

        with monkeypatch.context() as patched:
            patched.setattr(reward_model, "train_on", train_on)
            patched.setattr(reward_model, "take_step", take_step)
            patched.setattr(RaterEffects, "prior", RaterEffects.prior)  # put back before the next run
            apart = rankings(12)[::3]  # by turns, of other prompts: nobody copies anybody
            data = [write(tmp_path / "rankings.jsonl", apart)]
            one = {"data": data, "prompts_per_step": 12, "rating": "regression", "criteria": {}}
            reward_model.run(changed(config, **one), tmp_path / f"run {slope}")
        pulls.append(found[0])
    assert (pulls[0] - pulls[1]).tolist() == pytest.approx([1 / 8] * 2, rel=1e-9)


def test_criteria_are_written_and_add_up_to_the_score(config: reward_model.Config, tmp_path: Path) -> None:
    reward_model.run(changed(config, probe=True, raters="crowd"), tmp_path / "run")
    source = tmp_path / "in.jsonl"
    source.write_text(
        "".join(
            json.dumps({"prompt": f"say {i}", "completion": text(i, i % 2 == 0)}) + "\n" for i in range(6)
        )
    )
    score(tmp_path / "run" / "model", source, tmp_path / "out.jsonl", criteria=True, dtype=torch.float64)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert set(lines[0]["criteria"]) == {"joy", "flow"}
    mixed = np.array([0.7 * line["criteria"]["joy"] - 0.3 * line["criteria"]["flow"] for line in lines])
    scores = np.array([line["score"] for line in lines])
    slope, level = np.polyfit(mixed, scores, 1)
    assert slope > 0
    assert scores == pytest.approx(slope * mixed + level, abs=1e-9)
    reward = load_reward_model(tmp_path / "run" / "model", load_model("tiny", torch.float64))
    assert float(reward.branch.head.gain) == pytest.approx(slope)  # type: ignore[union-attr]


def test_a_reward_without_criteria_says_so(config: reward_model.Config, tmp_path: Path) -> None:
    reward_model.run(changed(config, criteria={}, raters="crowd", rating="regression"), tmp_path / "run")
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(UserError, match="was trained without criteria; train it with `criteria`"):
        score(tmp_path / "run" / "model", source, tmp_path / "out.jsonl", criteria=True)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("who", ["one", "nobody"])
def test_fewer_than_two_raters_are_the_crowd_and_it_is_said(
    config: reward_model.Config, tmp_path: Path, who: str
) -> None:
    """And the result is the plain one, to the bit."""
    name = "ada" if who == "one" else None
    records: list[Record] = [
        Preference(r.prompt, r.completions, r.choice, rater=name)
        for r in comparisons(10)
        if isinstance(r, Preference)
    ]
    settings = {
        "data": [write(tmp_path / "alone.jsonl", records)],
        "criteria": {},
        "comparison": "bradley_terry",
    }
    summary = reward_model.run(changed(config, **settings), tmp_path / "aware")
    assert summary["raters"] == "crowd: fewer than two raters are named"
    reward_model.run(changed(config, **settings, raters="crowd"), tmp_path / "crowd")
    assert weights(tmp_path / "aware") == weights(tmp_path / "crowd")


def test_gold_items_are_learned_from_and_raters_held_against_them(
    config: reward_model.Config, tmp_path: Path
) -> None:
    known: list[Record] = [
        Preference(r.prompt, r.completions, 0 if "wonderful" in r.completions[0] else 1)
        for r in comparisons(6)
        if isinstance(r, Preference) and r.rater == "ada"
    ]
    summary = reward_model.run(
        changed(config, gold=[write(tmp_path / "gold.jsonl", known)]), tmp_path / "run"
    )
    told = summary["raters"]
    assert (told["ada"]["gold"], told["ada"]["gold_right"]) == (6, 6)
    assert told["careless"]["gold"] == 6
    assert set(told) == set(RATERS)  # gold is no rater


@pytest.mark.parametrize(
    ("lines", "settings", "said"),
    [
        ([{"prompt": "a", "completion": "x", "scores": {"joy": 1.2}, "rater": "r"}], {},
         "score of 'joy' is 1.2, not within 0 to 1"),
        ([{"prompt": "a", "completions": ["x", "y", "z"], "ranking": [0, 2]}], {},
         "does not name each of 3 completions once"),
        ([{"prompt": "a", "completions": ["x", "y"], "choice": "tie", "rater": r} for r in "ab"], {"criteria": {}},
         "all 2 comparisons are ties"),
        ([{"prompt": "a", "completions": ["x", "y"], "choice": 0, "rater": r} for r in "ab"], {},
         "criteria: nobody scored 'joy'; there are no ratings"),
        ([*({"prompt": p, "completion": "x", "scores": {"joy": 0.5}} for p in "ab"),
          {"prompt": "a", "completions": ["x", "y"], "choice": 0}],
         {"criteria": {"joy": 1.0}}, "all ratings are 0.5, which makes no levels"),
        ([{"prompt": "a", "completions": ["x", "y"], "choice": 0, "rater": r} for r in ("ada", "<gold>")], {},
         "has a rater named <gold>; give known answers in a file of their own, as `gold`, or rename the rater"),
    ],
    ids=["rating out of range", "a missing place", "all ties", "a criterion nobody scored", "one level", "false gold"],
)  # fmt: skip
def test_bad_input_is_one_line(
    config: reward_model.Config,
    tmp_path: Path,
    lines: list[dict[str, Any]],
    settings: dict[str, Any],
    said: str,
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=said) as caught:
        reward_model.run(changed(config, data=[str(path)], **settings), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    "settings",
    [{"criteria": {"joy": 0.0}}, {"criteria": {"joy": float("inf")}}, {"raters": "all"}, {"margin": -1.0},
     {"rating": "stars"}],
    ids=str,
)  # fmt: skip
def test_a_setting_without_meaning_is_refused(config: reward_model.Config, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        parse(reward_model.Config, config.model_dump() | settings, "a.yaml")
