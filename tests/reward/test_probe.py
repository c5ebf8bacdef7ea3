"""The head fitted before anything is tuned: a convex fit, held against its first-order condition in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from plaudit.data.judged import Judged, Pair, Rated
from plaudit.models.branch import ScalarHead
from plaudit.randomness import rng
from plaudit.reward.criteria import CriteriaHead
from plaudit.reward.judgements import Reading, begin
from plaudit.reward.probe import FEW, PENALTIES, Examples, fit, fit_head, leave_out, standardised
from plaudit.reward.raters import RaterEffects

WIDTH = 5


def judged(prompts: int, noise: float, seed: int = 0) -> tuple[list[Judged], list[torch.Tensor]]:
    """Prompts with three completions each, two comparisons and a rating apiece, by a linear taste and some noise."""
    draw = rng("probe", seed)
    taste = np.array([2.0, -1.0, 0.0, 0.5, 0.0])
    groups, states = [], []
    for number in range(prompts):
        x = draw.normal(3.0, [1.0, 2.0, 0.5, 1.0, 10.0], (3, WIDTH))
        liked = (x - 3.0) @ taste + draw.normal(0, noise, 3)
        pairs = [Pair(a, b, float(liked[a] > liked[b])) for a, b in ((0, 1), (1, 2))]
        ratings = [Rated(i, float(1 / (1 + np.exp(-liked[i])))) for i in range(3)]
        ids = [[i] for i in range(3)]
        groups.append(Judged(f"prompt {number}", [number], completions=ids, pairs=pairs, ratings=ratings))
        states.append(torch.from_numpy(x))
    return groups, states


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("rating_weight", [0.0, 1.0, 20.0])
def test_nothing_is_left_of_the_gradient(rating_weight: float) -> None:
    """Of mean cross-entropies of both kinds and the penalty, which is not on the bias; so it is the minimum."""
    groups, states = judged(8, noise=1.0)
    examples = Examples.of(groups, states, Reading(rating_weight=rating_weight), RaterEffects())
    penalty = 0.3
    weights = fit(examples, penalty).weights[0].numpy()
    x = np.concatenate([s.numpy() for s in states])
    score = x @ weights[:-1] + weights[-1]
    slope, at_bias, pairs, rated = np.zeros(WIDTH), 0.0, 0, 0
    for number, group in enumerate(groups):
        for pair in group.pairs:
            i, j = 3 * number + pair.a, 3 * number + pair.b
            slope += (sigmoid(score[i] - score[j]) - pair.target) * (x[i] - x[j]) / 16
            pairs += 1
        for place, rating, *_ in group.ratings:
            i = 3 * number + place
            slope += rating_weight * (sigmoid(score[i]) - rating) * x[i] / 24
            at_bias += rating_weight * (sigmoid(score[i]) - rating) / 24
            rated += 1
    assert (pairs, rated) == (16, 24)
    assert np.abs(slope + 2 * penalty * weights[:-1]).max() < 1e-5
    assert abs(at_bias) < 1e-5


def test_the_head_says_what_was_fitted() -> None:
    """Its number of a raw state is the fit's of the standardised one."""
    groups, states = judged(12, noise=1.0)
    head = ScalarHead(WIDTH, dtype=torch.float64)
    penalty = fit_head(head, groups, states, reading=Reading(), effects=RaterEffects(), seed=0)
    every = np.concatenate([s.numpy() for s in states])
    even = (every - every.mean(0)) / every.std(0)
    there = [torch.from_numpy(e) for e in np.split(even, 12)]
    weights = fit(Examples.of(groups, there, Reading(), RaterEffects()), penalty).weights[0].numpy()
    with torch.no_grad():
        found = head(torch.from_numpy(every)).numpy()
    assert found == pytest.approx(even @ weights[:-1] + weights[-1], abs=1e-9)


def test_the_penalty_is_the_one_that_does_best_on_left_out_prompts() -> None:
    """A clear taste wants little of it; judgements that follow no taste want all."""
    clear, states = judged(60, noise=0.1)
    head = ScalarHead(WIDTH, dtype=torch.float64)
    assert fit_head(head, clear, states, reading=Reading(), effects=RaterEffects(), seed=0) == PENALTIES[0]
    wide = ScalarHead(80, dtype=torch.float64)
    chance = [torch.from_numpy(rng("probe", "chance", i).normal(size=(3, 80))) for i in range(60)]
    assert fit_head(wide, clear, chance, reading=Reading(), effects=RaterEffects(), seed=0) == PENALTIES[-1]
    few, their_states = judged(9, noise=0.1)
    assert fit_head(head, few, their_states, reading=Reading(), effects=RaterEffects(), seed=0) == FEW


def test_cut_points_that_cannot_be_are_no_better_than_those_at_the_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A line search may try any: gaps that vanish beside others, or overflow, are neither an error nor progress."""
    groups, states = judged(8, noise=1.0)
    reading, effects = begin(groups, Reading(rating="ordinal"))
    assert effects.levels > 4
    examples = Examples.of(groups, states, reading, effects)
    losses = []

    class Searching(torch.optim.LBFGS):
        def step(self, closure: Any) -> Any:  # type: ignore[override]
            weights, gaps = self.param_groups[0]["params"]
            others = torch.tensor([1.0, -1.0]).repeat(len(gaps))[: len(gaps)]
            for far in (
                gaps.detach().clone(),
                20 * others,
                torch.tensor(31.0),
                torch.tensor(-1e3),
                torch.tensor(1e4),
            ):
                with torch.no_grad():
                    gaps.copy_(far)
                losses.append(float(closure().detach()))
                assert bool(weights.grad.isfinite().all() and gaps.grad.isfinite().all())

    monkeypatch.setattr(torch.optim, "LBFGS", Searching)
    fit(examples, 1.0)
    assert losses == sorted(losses)
    assert math.isfinite(losses[-1])


@pytest.mark.parametrize("rating_weight", [1.0, 20.0])
def test_cut_points_are_held_in_nats_of_the_ratings(rating_weight: float) -> None:
    """At the end nothing is left of the slope of the mean surprise of the ratings and the prior's, by differences; in
    numpy, with the chances of the graded response model."""
    groups, states = judged(8, noise=1.0)
    reading, effects = begin(groups, Reading(rating="ordinal", rating_weight=rating_weight))
    weights, gaps = fit(Examples.of(groups, states, reading, effects), 0.3)
    scores = np.concatenate([s.numpy() for s in states]) @ weights[0, :-1].numpy() + float(weights[0, -1])
    given = [(3 * n + one.place, one.rating) for n, group in enumerate(groups) for one in group.ratings]

    def cost(logs: Any) -> float:
        cuts = np.concatenate([[0.0], np.exp(logs).cumsum()])
        cuts -= cuts.mean()
        spent = 0.0
        for place, rating in given:
            reached = np.concatenate([[1.0], 1 / (1 + np.exp(cuts - scores[place])), [0.0]])
            level = int(np.abs(np.array(reading.levels) - rating).argmin())
            spent -= math.log(reached[level] - reached[level + 1])
        return spent / len(given) + float(((logs / 2) ** 2).sum()) / 2 / len(given)

    for place in range(len(gaps)):
        step = 1e-5 * np.eye(len(gaps))[place]
        slope = (cost(gaps.numpy() + step) - cost(gaps.numpy() - step)) / 2e-5
        assert slope == pytest.approx(0, abs=1e-5)


def test_a_dimension_that_never_moves_harms_nothing() -> None:
    groups, states = judged(12, noise=0.5)
    for state in states:
        state[:, 4] = 7.0
    head = ScalarHead(WIDTH, dtype=torch.float64)
    fit_head(head, groups, states, reading=Reading(), effects=RaterEffects(), seed=0)
    assert bool(torch.isfinite(head.weight).all())
    with torch.no_grad():
        assert bool(torch.isfinite(head(states[0])).all())


def test_scores_of_left_out_prompts_never_saw_them() -> None:
    """Turning one prompt's judgements round changes the fits of the other folds alone: its own scores stay."""
    groups, states = judged(20, noise=0.5)
    even, _, _ = standardised(states)
    reading, effects = Reading(), RaterEffects()
    before = leave_out(groups, even, reading, effects, (1.0,), 0, (1.0,))
    turned = groups.copy()
    pairs = [pair._replace(target=1 - pair.target) for pair in groups[7].pairs]
    turned[7] = Judged(groups[7].key, [7], completions=groups[7].completions, pairs=pairs)
    after = leave_out(turned, even, reading, effects, (1.0,), 0, (1.0,))
    assert torch.equal(after.scores[21:24], before.scores[21:24])
    assert not torch.equal(after.scores, before.scores)
    few = leave_out(groups[:9], even[:9], reading, effects, (1.0,), 0)
    assert few.penalty == FEW
    assert not few.scores.any()


def test_each_criterion_has_its_head_and_the_sum_is_one_head() -> None:
    """Each criterion is learned from its own ratings; the merged head gives the same number as the weighted sum."""
    draw = rng("probe", "criteria")
    groups, states = [], []
    for number in range(60):
        x = draw.normal(size=(3, 4))
        sure = 1 / (1 + np.exp(-4 * x))
        ratings = [Rated(i, 0.5, {"style": float(sure[i, 0]), "truth": float(sure[i, 1])}) for i in range(3)]
        groups.append(Judged(f"p{number}", [number], completions=[[0]] * 3, ratings=ratings))
        states.append(torch.from_numpy(x))
    head = CriteriaHead(4, {"style": 0.25, "truth": -2.0}, dtype=torch.float64)
    reading = Reading(criteria=("style", "truth"))
    assert fit_head(head, groups, states, reading=reading, effects=RaterEffects(), seed=0) == PENALTIES[0]
    every = torch.cat(states)
    with torch.no_grad():
        each, whole = head.each(every), head(every)
    assert torch.corrcoef(torch.stack([each[:, 0], every[:, 0]]))[0, 1] > 0.97
    assert torch.corrcoef(torch.stack([each[:, 1], every[:, 1]]))[0, 1] > 0.97
    head.gain.fill_(3.0)
    head.shift.fill_(-1.0)
    with torch.no_grad():
        assert head.merged()(every).tolist() == pytest.approx((3 * whole - 1).tolist())
    assert whole.tolist() == pytest.approx((0.25 * each[:, 0] - 2 * each[:, 1]).tolist())
