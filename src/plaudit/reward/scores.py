"""What a scorer says beside its numbers: what each member of an ensemble would have said, and counts to log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from plaudit.phases import phase
from plaudit.tensors import Sample, Scorer
from plaudit.types import LARGEST_SCORE, check_score


@dataclass(frozen=True, slots=True)
class Scores:
    """n scores in the samples' order, higher is better.

    members: [K][n], what each of an ensemble's K members says in the same unit; () where nothing is known of doubt.
    figures: counts of this call worth logging, such as a judge's "no_verdict".
    """

    scores: list[float]
    members: tuple[list[float], ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def uncertainty(self) -> list[float] | None:
        """Standard deviation over the members (population's: divided by K), one a sample; None without members."""
        if not self.members:
            return None
        return [deviation(said) for said in zip(*self.members, strict=True)]


@runtime_checkable
class Detailed(Protocol):
    """A scorer that can say more than its numbers."""

    def detail(self, samples: Sequence[Sample]) -> Scores:
        """The scores with members and figures, from one look at the samples."""
        ...


@phase("scoring")
def scored(scorer: Scorer, samples: Sequence[Sample], largest: float = LARGEST_SCORE) -> Scores:
    """All that the scorer says of the samples: what everyone calls who learns from it or writes it down.

    UserError names the scorer where a number, of its own or a member's, is not finite, or beyond the largest: lifted
    for what a transform may bring back.
    """
    said = scorer.detail(samples) if isinstance(scorer, Detailed) else Scores(scorer.score(samples))
    name = getattr(scorer, "name", "scorer")
    for numbers in (said.scores, *said.members):
        for number in numbers:
            check_score(number, f"score {number:g}", name, largest)
    return said


def figures_of(said: Scores) -> dict[str, float]:
    """What a step's row logs of its scores: the mean uncertainty where there is one, and the counts."""
    found = dict(said.figures)
    if (doubt := said.uncertainty) is not None:
        found["uncertainty"] = math.fsum(doubt) / len(doubt)
    return {f"reward_{name}": value for name, value in found.items()}


def deviation(numbers: Sequence[float]) -> float:
    """The population's standard deviation."""
    mean = math.fsum(numbers) / len(numbers)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / len(numbers))
