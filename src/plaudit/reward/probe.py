"""A head fitted before anything is trained: few judgements are best spent on what the trunk already knows.

With some hundred judgements a random head and fresh adapters chase each other; fitting the head first, on the
frozen trunk's states, and tuning both from there keeps what pretraining learnt (Kumar et al. 2022, "Fine-tuning
can distort pretrained features": linear probing, then fine-tuning). By the crowd the fit is convex, so it has one
answer; with habits given (`raters: aware`) it begins at none and ends at the same one every time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from plaudit.data.collate import micro_batches, pack
from plaudit.data.judged import Judged
from plaudit.models.branch import Branch, ScalarHead, pooled_states
from plaudit.randomness import rng
from plaudit.reward.criteria import CriteriaHead
from plaudit.reward.judgements import Judgements, Reading, starts_of
from plaudit.reward.raters import CUT_SD, RaterEffects

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""L2 penalties tried, on weights of standardised states."""
FEW = 10.0
"""The penalty where there are too few prompts to choose one by."""
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Examples:
    """Standardised states [n, width] of all completions and what was said of them; shares: [C], of each criterion in
    the score (one of 1 without criteria)."""

    states: Tensor
    judgements: Judgements
    reading: Reading
    effects: RaterEffects
    shares: Tensor

    @classmethod
    def of(
        cls,
        groups: Sequence[Judged],
        states: Sequence[Tensor],
        reading: Reading,
        effects: RaterEffects,
        shares: Sequence[float] = (1.0,),
    ) -> Examples:
        """states: [completions, width] of each group."""
        judgements = Judgements.of(groups, starts_of(groups), reading, effects)
        weights = torch.tensor(list(shares), dtype=torch.float64)
        return cls(torch.cat(list(states)), judgements, reading, effects, weights)

    def scores(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """[n] and by criterion [n, C]; weights [C, width + 1], the bias last."""
        each = self.states @ weights[:, :-1].T + weights[:, -1]
        return each @ self.shares, each

    def loss(self, weights: Tensor, effects: RaterEffects | None = None) -> Tensor:
        """What the judgements cost, a mean by kind."""
        scores, each = self.scores(weights)
        by_criterion = each if self.reading.criteria else None
        totals = self.judgements.totals()
        return self.judgements.loss(scores, by_criterion, self.reading, effects or self.effects, totals).loss


def minimise(
    learned: Sequence[Tensor],
    cost: Callable[[], Tensor],
    price: Callable[[], Tensor],
    possible: Callable[[], bool],
    *,
    most: int,
    tolerances: tuple[float, float],
) -> None:
    """Bring what is learned, in place, to where cost + price is least, in at most so many steps of L-BFGS (tolerances:
    of the gradient and of the change). A line search that looks too far would meet an overflow, and take it for
    progress or fail: where it is not `possible` to be, the cost is the beginning's, which with the price of being
    there is more than the least can be."""
    gradient, change = tolerances
    optimizer = torch.optim.LBFGS(
        learned,
        max_iter=most,
        tolerance_grad=gradient,
        tolerance_change=change,
        line_search_fn="strong_wolfe",
    )
    begin = cost().detach()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = price() + (cost() if possible() else begin)
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    optimizer.zero_grad()


class Fit(NamedTuple):
    """weights [C, width + 1], bias last; gaps: the logarithms of the gaps between cut-points."""

    weights: Tensor
    gaps: Tensor


def fit(examples: Examples, penalty: float) -> Fit:
    """What minimises the loss plus penalty * |weights|^2 (not of the biases); the raters' habits stay as they are."""
    width = examples.states.shape[1]
    weights = torch.zeros(len(examples.shares), width + 1, dtype=torch.float64, requires_grad=True)
    effects = copy.deepcopy(examples.effects).requires_grad_(False)
    effects.gaps.requires_grad_(examples.reading.rating == "ordinal")
    nat = examples.reading.rating_weight / examples.judgements.totals().ratings  # as the ratings' own
    minimise(
        [weights, *(p for p in effects.parameters() if p.requires_grad)],
        lambda: examples.loss(weights, effects),
        lambda: penalty * weights[:, :-1].square().sum() + nat * (effects.gaps / CUT_SD).square().sum() / 2,
        effects.bounded,
        most=200,
        tolerances=(1e-9, 1e-12),
    )
    return Fit(weights.detach(), effects.gaps.detach())


class LeftOut(NamedTuple):
    """The penalty that does best on left-out prompts, and all scores, [n] and [n, C], by fits that never saw them."""

    penalty: float
    scores: Tensor
    each: Tensor


def leave_out(
    groups: Sequence[Judged],
    states: Sequence[Tensor],
    reading: Reading,
    effects: RaterEffects,
    shares: Sequence[float],
    seed: int,
    penalties: Sequence[float] = PENALTIES,
) -> LeftOut:
    """Five folds by prompt; states are standardised. With fewer than ten prompts the penalty is `FEW` and the scores
    are 0: nothing could be said of prompts left out."""
    count = sum(len(group.completions) for group in groups)
    if len(groups) < 2 * FOLDS:
        return LeftOut(FEW, torch.zeros(count).double(), torch.zeros(count, len(shares), dtype=torch.float64))
    fold = [int(rng(seed, "fold", group.key).integers(FOLDS)) for group in groups]
    starts = starts_of(groups)
    losses = dict.fromkeys(penalties, 0.0)
    found = {penalty: torch.zeros(count, len(shares), dtype=torch.float64) for penalty in penalties}
    for left_out in range(FOLDS):
        inside = [i for i, f in enumerate(fold) if f != left_out]
        outside = [i for i, f in enumerate(fold) if f == left_out]
        if not inside or not outside:
            continue
        training, testing = (
            Examples.of([groups[i] for i in chosen], [states[i] for i in chosen], reading, effects, shares)
            for chosen in (inside, outside)
        )
        places = [starts[i] + k for i in outside for k in range(len(groups[i].completions))]
        for penalty in penalties:
            weights, gaps = fit(training, penalty)
            then = copy.deepcopy(effects).requires_grad_(False)
            then.gaps.copy_(gaps)
            with torch.no_grad():
                losses[penalty] += float(testing.loss(weights, then))
                found[penalty][places] = testing.scores(weights)[1]
    best = min(penalties, key=lambda penalty: (losses[penalty], penalty))
    return LeftOut(best, found[best] @ torch.tensor(list(shares), dtype=torch.float64), found[best])


@torch.no_grad()
def states_of(branch: Branch, groups: Sequence[Judged], budget: int) -> list[Tensor]:
    """[completions, width] of each prompt: what the head reads of its completions."""
    completions = [c for g in groups for c in g.completions]
    packed = pack([g.prompt for g in groups for _ in g.completions], completions, device=branch.trunk.device)
    out = torch.zeros(len(completions), branch.trunk.shape.width, dtype=branch.trunk.wide)
    for micro in micro_batches(packed, budget):
        part, index = packed.take(micro)
        out[index.cpu()] = pooled_states(branch, part).cpu()
    return list(torch.split(out, [len(g.completions) for g in groups]))


def standardised(states: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    """States of mean 0 and standard deviation 1 in every dimension that moves, in float64; and centre and scale."""
    every = torch.cat(list(states)).double().cpu()
    centre, scale = every.mean(0), every.std(0, correction=0).clamp(min=1e-6)
    return [(s.double().cpu() - centre) / scale for s in states], centre, scale


def fit_head(
    head: ScalarHead,
    groups: Sequence[Judged],
    states: Sequence[Tensor],
    *,
    reading: Reading,
    effects: RaterEffects,
    seed: int,
) -> float:
    """Fit the head's centre, scale, weight and bias, and the cut-points, to the judgements; returns the penalty that
    was chosen.

    states: [completions, width] of each group, of the frozen trunk. The penalty is the one with the least loss on
    left-out prompts (five folds; with fewer than ten prompts, `FEW`).
    """
    even, centre, scale = standardised(states)
    shares = head.shares.tolist() if isinstance(head, CriteriaHead) else [1.0]
    penalty = leave_out(groups, even, reading, effects, shares, seed).penalty
    weights, gaps = fit(Examples.of(groups, even, reading, effects, shares), penalty)
    if not isinstance(head, CriteriaHead):
        weights = weights[0]
    with torch.no_grad():
        head.centre.copy_(centre)
        head.scale.copy_(scale)
        head.weight.copy_(weights[..., :-1])
        head.bias.copy_(weights[..., -1])
        effects.gaps.copy_(gaps)
    return penalty
