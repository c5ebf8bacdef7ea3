"""Ensembles, sums and transforms of scorers: arithmetic by hand, sharing of the trunk, and what uncertainty is for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plaudit.reward.model as reward_model
from plaudit.models.load import load_model
from plaudit.randomness import rng
from plaudit.reward.combine import Ensemble, Transformed, WeightedSum, combined
from plaudit.reward.model import RewardModel
from plaudit.reward.open import open_for_texts, open_scorer, reward_models
from plaudit.reward.rules import RuleScorer
from plaudit.reward.score import score
from plaudit.reward.scores import figures_of, scored
from plaudit.reward.transform import clip, linear, rank
from plaudit.tensors import Sample
from plaudit.types import UserError
from tiny_models import as_samples, random_branch, random_ids

THREE = as_samples([[1]] * 3, [[2], [3], [4]])


def says(*numbers: float) -> RuleScorer:
    return RuleScorer(lambda _: numbers, "says")


def test_an_ensemble_by_hand() -> None:
    """Members say 1, 2, 6 of the first: mean 3, squared distances 4 + 1 + 9, so the deviation is sqrt(14/3)."""
    members = (says(1, 0, 5), says(2, 0, 5), says(6, 3, 5))
    assert Ensemble(members).score(THREE) == [3.0, 1.0, 5.0]
    assert Ensemble(members, "worst").score(THREE) == [1.0, 0.0, 5.0]
    spread = [math.sqrt(14 / 3), math.sqrt(2), 0.0]
    found = Ensemble(members, "mean_minus_std", 2.0).detail(THREE)
    assert found.scores == pytest.approx([3 - 2 * spread[0], 1 - 2 * spread[1], 5.0], rel=1e-12)
    assert found.uncertainty == pytest.approx(spread, rel=1e-12)
    assert figures_of(found)["reward_uncertainty"] == pytest.approx(sum(spread) / 3)
    assert combined([1.0, 2.0, 6.0], "mean_minus_std", 0.0) == 3.0


def test_a_sum_by_hand_and_its_uncertainty() -> None:
    doubtful = Ensemble((says(1, 2, 3), says(3, 2, 5)))
    found = WeightedSum(((2.0, doubtful), (-0.5, says(4, 4, 2)))).detail(THREE)
    assert found.scores == [2.0, 2.0, 7.0]
    assert found.uncertainty == [2.0, 0.0, 2.0]  # twice the members' deviation of 1, 0, 1
    assert WeightedSum(((1.0, says(1, 2, 3)),)).detail(THREE).uncertainty is None
    with pytest.raises(UserError, match="adds up two ensembles"):
        WeightedSum(((1.0, doubtful), (1.0, doubtful))).detail(THREE)


def test_members_go_through_the_transforms_too() -> None:
    scorer = Transformed(Ensemble((says(1, 2, 3), says(3, 2, 5))), (lambda x: linear(x, gain=-3, shift=1),))
    found = scorer.detail(THREE)
    assert found.scores == [-5.0, -5.0, -11.0]
    assert found.uncertainty == [3.0, 0.0, 3.0]
    assert Transformed(says(8, 1, 5), (rank, lambda x: linear(x, gain=2))).score(THREE) == [2.0, 0.0, 1.0]


TIMES = 1e300
"""Twice this many times more is no number that a float holds."""


@pytest.mark.parametrize(
    "scorer",
    [
        Transformed(says(TIMES, 1, 1), (lambda x: linear(x, gain=TIMES),), "mine.yaml"),
        WeightedSum(((TIMES, says(1e9, 1, 1)),), "mine.yaml"),
        WeightedSum(((math.nan, says(1, 1, 1)),), "mine.yaml"),
        Ensemble((says(1, 2, 3), says(-1e9, 2, 3)), "mean_minus_std", TIMES, "mine.yaml"),
        WeightedSum(((1.0, Ensemble((says(1, 1, 1), says(1, 1, 1)))), (TIMES, says(1e9, 1, 1))), "mine.yaml"),
    ],
    ids=["transform", "sum", "no weight", "ensemble", "members"],
)
def test_what_is_made_of_scores_is_finite(scorer: Transformed | WeightedSum | Ensemble) -> None:
    for what in (scorer, Transformed(scorer, (lambda x: clip(x, low=-1, high=1),), "clipped.yaml")):
        with pytest.raises(
            UserError, match=r"^mine\.yaml: gave the score (-?inf|nan), which is not a finite number$"
        ):
            what.score(THREE)


def test_a_score_beyond_what_a_loss_can_square_is_refused_unless_a_transform_scales_it() -> None:
    assert scored(says(1e9, -1e9, 0), THREE).scores == [1e9, -1e9, 0.0]
    line = (
        r"^says: gave the score -1e\+30, which is beyond 1e\+09; scale it \(a scorer takes a `transform`\)$"
    )
    huge = says(0, -1e30, 1)
    for scorer in (huge, WeightedSum(((1.0, huge),)), Ensemble((says(1, 1, 1), huge))):
        with pytest.raises(UserError, match=line):
            scored(scorer, THREE)
    assert Transformed(huge, (lambda x: linear(x, gain=1e-30),)).score(THREE) == [0.0, -1.0, 1e-30]
    with pytest.raises(UserError, match=r"^mine\.yaml: gave the score 1e\+12"):
        Transformed(says(1, 1, 1), (lambda x: linear(x, gain=1e12),), "mine.yaml").score(THREE)


def models(count: int) -> list[RewardModel]:
    model = load_model("tiny", torch.float64)
    return [
        RewardModel(random_branch(model.trunk, blocks=blocks, seed=seed), model, budget=40)
        for seed, blocks in zip(range(count), (1, 3, 2), strict=False)
    ]


def samples_of(model: RewardModel, seed: int = 0) -> list[Sample]:
    return as_samples(random_ids(seed, 7, 1, 6), random_ids(seed + 1, 7, 1, 9), model.model.tokenizer)


def test_reward_models_share_the_trunk_and_say_what_each_says_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    members = models(3)
    samples = samples_of(members[0])
    alone = [member.score(samples) for member in members]
    runs: list[int] = []
    trunk, real = members[0].branch.trunk, members[0].branch.trunk.run

    def run(stream: Any, context: Any, adapter: Any = None, start: int = 0, stop: int | None = None) -> Any:
        if adapter is None:
            runs.append((trunk.shape.depth if stop is None else stop) - start)
        return real(stream, context, adapter, start, stop)

    monkeypatch.setattr(trunk, "run", run)
    said = Ensemble((members[0], says(*range(7)), members[1], members[2])).detail(samples).members
    for found, wanted in zip((said[0], said[2], said[3]), alone, strict=True):
        assert found == pytest.approx(wanted, abs=1e-12)
    assert said[1] == list(map(float, range(7)))
    batches = len(runs) // 3
    assert sum(runs) == batches * max(member.branch.first for member in members), "common blocks run once"


def test_uncertainty_is_largest_where_no_judgement_was() -> None:
    """Members learn a line from their own resample of noisy judgements of answers of 1 to 10 tokens; of answers of 100
    they know nothing, and disagree."""
    draw = rng("ensemble", 0)
    x = draw.integers(1, 11, 60).astype(float)
    y = 0.1 * x + draw.normal(0, 0.3, 60)

    def member(seed: int) -> RuleScorer:
        which = rng("bootstrap", seed).integers(0, 60, 60)
        slope, shift = np.polyfit(x[which], y[which], 1)
        return RuleScorer(lambda samples: [slope * len(s.completion_ids) + shift for s in samples], "line")

    asked = as_samples([[1]] * 4, [[2] * n for n in (5, 10, 30, 100)])
    pessimist = Ensemble(tuple(map(member, range(20))), "mean_minus_std", 2.0)
    near, edge, far, furthest = pessimist.detail(asked).uncertainty or []
    assert max(near, edge) < far < furthest
    assert furthest > 10 * near
    assert pessimist.score(asked)[3] < Ensemble(pessimist.members).score(asked)[3]


def save(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_config_may_name_an_ensemble_of_directories(tmp_path: Path) -> None:
    members = models(3)
    for number, member in enumerate(members):
        member.save(tmp_path / f"m{number}", {})
    listed = ", ".join(str(tmp_path / f"m{number}") for number in range(3))
    spec = save(tmp_path / "e.yaml", f"kind: ensemble\nmembers: [{listed}]\ncombine: worst\n")
    assert [path.name for path in reward_models(spec)] == ["m0", "m1", "m2"]
    model = members[0].model
    opened = open_scorer(spec, model)
    samples = samples_of(members[0])
    wanted = [min(row) for row in zip(*(m.score(samples) for m in members), strict=True)]
    assert opened.score(samples) == pytest.approx(wanted, abs=1e-12)
    assert all(member.branch.trunk is model.trunk for member in opened.members)  # type: ignore[attr-defined]

    texts = [{"prompt": "how are you", "completion": " fine"}, {"prompt": "a", "completion": ""}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    summary = score(spec, tmp_path / "in.jsonl", tmp_path / "out.jsonl", dtype=torch.float64)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    said = [
        m.score_ids([model.tokenizer.render("how are you")], [model.tokenizer.complete(" fine")])[0]
        for m in members
    ]
    assert lines[0]["score"] == pytest.approx(min(said), abs=1e-12)
    assert lines[0]["uncertainty"] == pytest.approx(float(np.std(said)), abs=1e-12)
    assert summary["uncertainty"] == pytest.approx(sum(line["uncertainty"] for line in lines) / 2)


def test_a_rule_scores_a_file_without_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "a", "completion": text} for text in ("yes", "")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(reward_model, "load_adapter", None)
    found = score("plaudit.reward.rules:length", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert found == {"rows": 2, "mean": 1.5, "std": 1.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("members: [a]\n", "names no kind"),
        ("kind: ensemle\n", "unknown kind 'ensemle'; set `kind` to one of ensemble, sum"),
        ("kind: ensemble\nmembers: [rules:fourths]\n", "members: "),
        ("kind: ensemble\nmembers: [a, b]\ncombin: worst\n", "did you mean 'combine'"),
        ("kind: ensemble\nmembers: [SELF, rules:fourths]\n", "is made of itself"),
        ("kind: sum\nterms: [{scorer: SELF}]\n", "is made of itself"),
        ("kind: sum\nterms: []\n", "terms: "),
        ("kind: sum\nterms: [{scorer: e.yaml}, {scorer: t.yaml}]\n", "SELF: adds up two ensembles"),
        ("kind: sum\nterms: [{scorer: e.yaml}, {scorer: one.yaml}]\n", "SELF: adds up two ensembles"),
        ("kind: transform\nscorer: rules:fourths\n", "transform: field required"),
        ("kind: transform\nscorer: rules:fourths\ntransform: [{name: linear, at: 1.0}]\n",
         "linear takes gain, shift, not at"),
        ("kind: transform\nscorer: rules:fourths\ntransform: [{name: standardise, mean: 1.0}]\n",
         "standardise needs std"),
        ("kind: transform\nscorer: rules:fourths\ntransform: [{name: linear, gian: 1.0}]\n", "gian"),
        ("kind: transform\nscorer: rules:fourths\ntransform: [{name: cube}]\n", "transform.0.name"),
        ("kind: sum\nterms: [{scorer: rules:fourths, options: {no: 1}}]\n", "failed .TypeError"),
        ("kind: rule\nrule: rules:sleeps\nseconds: 0.1\n", "rules:sleeps: took longer than 0.1 s"),
        ("kind: rule\nrule: rules:gives_nan\n", "rules:gives_nan: gave the score nan, which is not a finite number"),
        ("kind: transform\nscorer: rules:fourths\ntransform: [{name: log_odds, margin: 2.0}]\n", "SELF: log_odds with"),
    ],
)  # fmt: skip
def test_a_description_at_fault_is_named_in_one_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "s.yaml", text.replace("SELF", "s.yaml"))
    save(tmp_path / "e.yaml", "kind: ensemble\nmembers: [rules:fourths, rules:fourths]\n")
    save(tmp_path / "t.yaml", "kind: transform\nscorer: e.yaml\ntransform: [{name: tanh}]\n")
    save(tmp_path / "one.yaml", "kind: sum\nterms: [{scorer: t.yaml}, {scorer: rules:fourths}]\n")
    with pytest.raises(UserError, match=said.replace("SELF", "s.yaml")) as caught:
        open_for_texts("s.yaml").scorer.score(as_samples([[1]], [[4]]))
    assert "\n" not in str(caught.value)


def test_scored_takes_a_plain_scorer_as_it_is() -> None:
    class Plain:
        def score(self, samples: Sequence[Sample]) -> list[float]:
            return [7.0 for _ in samples]

    assert scored(Plain(), THREE).scores == [7.0, 7.0, 7.0]
    assert figures_of(scored(Plain(), THREE)) == {}


def test_a_description_of_a_sum_by_hand(tmp_path: Path) -> None:
    """Three tokens with ids 4, 5 and 8: two thirds are divisible by four; the price is a tenth a token."""
    save(
        tmp_path / "t.yaml",
        "kind: transform\nscorer: rules:fourths\ntransform: [{name: linear, gain: 6.0}]\n",
    )
    price = "{scorer: 'plaudit.reward.rules:length', weight: -0.1, options: {unit: tokens}}"
    spec = save(
        tmp_path / "s.yaml", f"kind: sum\nterms: [{{scorer: {tmp_path / 't.yaml'}, weight: 0.5}}, {price}]\n"
    )
    opened = open_for_texts(spec)
    assert opened.base is None
    assert opened.scorer.score(as_samples([[1]], [[4, 5, 8]])) == pytest.approx([0.5 * 6 * 2 / 3 - 0.3])


def test_a_sum_that_could_not_be_scored_is_refused_before_anything_is(tmp_path: Path) -> None:
    ensemble = save(tmp_path / "e.yaml", "kind: ensemble\nmembers: [rules:fourths, rules:fourths]\n")
    two = save(tmp_path / "s.yaml", f"kind: sum\nterms: [{{scorer: {ensemble}}}, {{scorer: {ensemble}}}]\n")
    with pytest.raises(UserError, match=r"s\.yaml: adds up two ensembles"):
        open_for_texts(two)
    one = save(
        tmp_path / "o.yaml", f"kind: sum\nterms: [{{scorer: {ensemble}}}, {{scorer: rules:fourths}}]\n"
    )
    assert open_for_texts(one).scorer.score(as_samples([[1]], [[4]])) == [2.0]
