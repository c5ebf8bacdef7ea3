"""A head fitted before anything is trained: few judgements are best spent on what the trunk already knows.

With some hundred judgements a random head and fresh adapters chase each other; fitting the head first, on the
frozen trunk's states, and tuning both from there keeps what pretraining learnt (Kumar et al. 2022, "Fine-tuning
can distort pretrained features": linear probing, then fine-tuning). The fit is convex, so it has one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.algorithms.reward_loss import bradley_terry, rating_regression
from plaudit.data.judged import Judged
from plaudit.models.branch import ScalarHead
from plaudit.randomness import rng

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""L2 penalties tried, on weights of standardised states."""
FEW = 10.0
"""The penalty where there are too few prompts to choose one by."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Standardised states [n, width] of all completions, the comparisons and ratings between them, by place."""

    states: Tensor
    first: Tensor
    second: Tensor
    target: Tensor
    rated: Tensor
    rating: Tensor

    @classmethod
    def of(cls, groups: Sequence[Judged], states: Sequence[Tensor]) -> Examples:
        """states: [completions, width] of each group."""
        pairs, ratings, start = [], [], 0
        for group in groups:
            pairs += [(start + pair.a, start + pair.b, pair.target) for pair in group.pairs]
            ratings += [(start + rated.place, rated.rating) for rated in group.ratings]
            start += len(group.completions)

        def column(rows: Sequence[tuple[float, ...]], at: int, dtype: torch.dtype) -> Tensor:
            return torch.tensor([row[at] for row in rows], dtype=dtype)

        return cls(
            torch.cat(list(states)),
            column(pairs, 0, torch.long),
            column(pairs, 1, torch.long),
            column(pairs, 2, torch.float64),
            column(ratings, 0, torch.long),
            column(ratings, 1, torch.float64),
        )

    def loss(self, weights: Tensor, rating_weight: float) -> Tensor:
        """Bradley-Terry over comparisons plus rating_weight times regression over ratings; weights [width + 1]."""
        scores = self.states @ weights[:-1] + weights[-1]
        loss = scores.sum() * 0
        if len(self.first):
            out = bradley_terry(scores[self.first], scores[self.second], self.target, total=len(self.first))
            loss = loss + out.loss
        if len(self.rated) and rating_weight > 0:
            out = rating_regression(scores[self.rated], self.rating, total=len(self.rated))
            loss = loss + rating_weight * out.loss
        return loss


def fit(examples: Examples, penalty: float, rating_weight: float) -> Tensor:
    """The weights [width + 1], bias last, that minimise the loss plus penalty * |w|^2 (not of the bias)."""
    weights = torch.zeros(examples.states.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = examples.loss(weights, rating_weight) + penalty * weights[:-1].square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()


def fit_head(
    head: ScalarHead, groups: Sequence[Judged], states: Sequence[Tensor], *, rating_weight: float, seed: int
) -> float:
    """Fit the head's centre, scale, weight and bias to the judgements; returns the penalty that was chosen.

    states: [completions, width] of each group, of the frozen trunk. The penalty is the one with the least loss on
    left-out prompts (five folds; with fewer than ten prompts, `FEW`).
    """
    every = torch.cat(list(states)).double().cpu()
    centre, scale = every.mean(0), every.std(0, correction=0).clamp(min=1e-6)
    even = [(s.double().cpu() - centre) / scale for s in states]
    penalty = _choose(groups, even, rating_weight, seed) if len(groups) >= 10 else FEW
    weights = fit(Examples.of(groups, even), penalty, rating_weight)
    with torch.no_grad():
        head.centre.copy_(centre)
        head.scale.copy_(scale)
        head.weight.copy_(weights[:-1])
        head.bias.copy_(weights[-1])
    return penalty


def _choose(groups: Sequence[Judged], states: Sequence[Tensor], rating_weight: float, seed: int) -> float:
    fold = [int(rng(seed, "fold", group.key).integers(5)) for group in groups]
    losses = dict.fromkeys(PENALTIES, 0.0)
    for left_out in range(5):
        inside = [i for i, f in enumerate(fold) if f != left_out]
        outside = [i for i, f in enumerate(fold) if f == left_out]
        if not inside or not outside:
            continue
        training = Examples.of([groups[i] for i in inside], [states[i] for i in inside])
        testing = Examples.of([groups[i] for i in outside], [states[i] for i in outside])
        for penalty in PENALTIES:
            losses[penalty] += float(testing.loss(fit(training, penalty, rating_weight), rating_weight))
    return min(PENALTIES, key=lambda penalty: (losses[penalty], penalty))
