"""Scorers made of scorers: ensembles with uncertainty, weighted sums, transformed scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from plaudit.reward.model import RewardModel, shared_scores
from plaudit.reward.scores import Scores, deviation, scored
from plaudit.tensors import Sample, Scorer
from plaudit.types import UserError

Combine = Literal["mean", "worst", "mean_minus_std"]
Transform = Callable[[Sequence[float]], list[float]]


def combined(said: Sequence[float], how: Combine, k: float) -> float:
    """One number of what K members say of a sample: their mean, the lowest, or mean - k * deviation.

    Coste et al. 2023 ("Reward Model Ensembles Help Mitigate Overoptimization"), section 3; their third takes
    the variance, ours the standard deviation, so that k is a pure number. Eisenstein et al. 2023: ensembles mitigate
    over-optimisation, and do not end it, since members that were trained alike err alike.
    """
    if how == "worst":
        return min(said)
    mean = math.fsum(said) / len(said)
    return mean if how == "mean" else mean - k * deviation(said)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several scorers of the same samples. Members are taken in the unit that they have: none is normalised here.

    Reward models compute the blocks below their adapters once for all of them.
    """

    members: tuple[Scorer, ...]
    how: Combine = "mean"
    k: float = 1.0
    name: str = "ensemble"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return scored(self, samples).scores

    def detail(self, samples: Sequence[Sample]) -> Scores:
        """The combined scores, and what each member said. UserError as of any member."""
        learned = [member for member in self.members if isinstance(member, RewardModel)]
        together = iter(shared_scores(learned, samples))
        figures: dict[str, float] = {}
        said: list[list[float]] = []
        for member in self.members:
            if isinstance(member, RewardModel):
                said.append(next(together))
            else:
                detail = scored(member, samples)
                said.append(detail.scores)
                _add(figures, detail.figures)
        scores = [combined(each, self.how, self.k) for each in zip(*said, strict=True)]
        return Scores(scores, tuple(said), figures)


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """weight * score of each term, added up. At most one term is uncertain (`open_scorer` refuses more)."""

    terms: tuple[tuple[float, Scorer], ...]
    name: str = "sum"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return scored(self, samples).scores

    def detail(self, samples: Sequence[Sample]) -> Scores:
        """The sums; members are those of the uncertain term, with all others' scores added to each."""
        figures: dict[str, float] = {}
        total = fixed = [0.0] * len(samples)
        members: tuple[list[float], ...] = ()
        for weight, scorer in self.terms:
            said = scored(scorer, samples)
            _add(figures, said.figures)
            own = [weight * x for x in said.scores]
            total = _plus(total, own)
            if said.members and members:
                raise two_ensembles(self.name)
            if said.members:
                members = tuple([weight * x for x in member] for member in said.members)
            else:
                fixed = _plus(fixed, own)
        return Scores(total, tuple(_plus(member, fixed) for member in members), figures)


@dataclass(frozen=True, slots=True)
class Transformed:
    """A scorer whose scores, and whose members', go through transforms one after another."""

    scorer: Scorer
    steps: tuple[Transform, ...]
    name: str = "transform"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return scored(self, samples).scores

    def detail(self, samples: Sequence[Sample]) -> Scores:
        """UserError names this scorer where a transform refuses its scores."""
        said = scored(self.scorer, samples, largest=math.inf)
        return Scores(self._apply(said.scores), tuple(map(self._apply, said.members)), said.figures)

    def _apply(self, scores: list[float]) -> list[float]:
        for step in self.steps:
            try:
                scores = step(scores)
            except UserError as error:
                raise UserError(error.what, where=self.name, fix=error.fix) from None
        return scores


def uncertain(scorer: Scorer) -> bool:
    """Whether it says what each of several members does."""
    if isinstance(scorer, Transformed):
        return uncertain(scorer.scorer)
    if isinstance(scorer, WeightedSum):
        return any(uncertain(term) for _, term in scorer.terms)
    return isinstance(scorer, Ensemble)


def two_ensembles(where: str) -> UserError:
    """What is said of a sum with two uncertain terms."""
    return UserError(
        "adds up two ensembles, whose members do not go together",
        where=where,
        fix="make the sum a member of one ensemble",
    )


def _plus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _add(figures: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        figures[name] = figures.get(name, 0.0) + value
