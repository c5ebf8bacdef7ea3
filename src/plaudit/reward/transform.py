"""Transforms of scores into rewards: pure functions of a batch's scores, n numbers in and n out.

All but `rank` look at one score at a time. Wang et al. 2024, "Transforming and Combining Rewards for Aligning Large
Language Models", say why: a sum of scores rewards most what is good already; a bounded transform does not.
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from plaudit.types import UserError

Numbers = Sequence[float]


def linear(scores: Numbers, *, gain: float = 1.0, shift: float = 0.0) -> list[float]:
    """gain * score + shift."""
    return [gain * x + shift for x in scores]


def clip(scores: Numbers, *, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Nothing below low, nothing above high."""
    if low > high:
        raise UserError(f"clip from {low:g} to {high:g} leaves nothing", fix="give low <= high")
    return [min(max(x, low), high) for x in scores]


def sigmoid(scores: Numbers, *, centre: float = 0.0, width: float = 1.0) -> list[float]:
    """1 / (1 + exp(-(score - centre) / width)): 0 to 1, a half at the centre."""
    return [math.exp(-_softplus(-z)) for z in _scaled(scores, centre, width)]


def log_sigmoid(scores: Numbers, *, centre: float = 0.0, width: float = 1.0) -> list[float]:
    """log sigmoid((score - centre) / width), at most 0: each further improvement is worth less.

    With the centre at a reference answer's score it is Wang et al. 2024's transform.
    """
    return [-_softplus(-z) for z in _scaled(scores, centre, width)]


def tanh(scores: Numbers, *, centre: float = 0.0, width: float = 1.0) -> list[float]:
    """tanh((score - centre) / width): -1 to 1, 0 at the centre."""
    return [math.tanh(z) for z in _scaled(scores, centre, width)]


def log_odds(scores: Numbers, *, margin: float = 1e-3) -> list[float]:
    """log(p / (1 - p)) of scores in 0 to 1, each first kept `margin` away from 0 and 1. UserError outside 0 to 1."""
    if not 0 < margin < 0.5:
        raise UserError(f"log_odds with a margin of {margin:g}", fix="give one between 0 and 0.5")
    for x in scores:
        if not 0 <= x <= 1:
            raise UserError(f"log_odds of {x:g}, which is not within 0 to 1", fix="put a sigmoid before it")
    kept = [min(max(x, margin), 1 - margin) for x in scores]
    return [math.log(p) - math.log1p(-p) for p in kept]


def standardise(scores: Numbers, *, mean: float, std: float) -> list[float]:
    """(score - mean) / std, with the mean and deviation of reference samples: given, never the batch's own."""
    return _scaled(scores, mean, std)


def threshold(scores: Numbers, *, at: float) -> list[float]:
    """1 from `at` up, 0 below it."""
    return [float(x >= at) for x in scores]


def rank(scores: Numbers) -> list[float]:
    """Each score's place in its batch from 0 (the lowest) to 1, equals sharing their mean place; 0.5 alone.

    The batch is what is scored at once: a step's samples in a recipe, the whole file in `plaudit score`.
    """
    if len(scores) == 1:
        return [0.5]
    upward = sorted(scores)
    places = [(bisect_left(upward, x) + bisect_right(upward, x) - 1) / 2 for x in scores]
    return [place / (len(scores) - 1) for place in places]


TRANSFORMS: dict[str, Callable[..., list[float]]] = {
    "linear": linear, "clip": clip, "sigmoid": sigmoid, "log_sigmoid": log_sigmoid, "tanh": tanh,
    "log_odds": log_odds, "standardise": standardise, "threshold": threshold, "rank": rank,
}  # fmt: skip


def parameters(name: str) -> tuple[set[str], set[str]]:
    """What a transform takes, and what of it must be given."""
    found = [p for p in inspect.signature(TRANSFORMS[name]).parameters.values() if p.kind == p.KEYWORD_ONLY]
    return {p.name for p in found}, {p.name for p in found if p.default is p.empty}


def _scaled(scores: Numbers, centre: float, width: float) -> list[float]:
    if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
        raise UserError(f"a width or deviation of {width:g} around {centre:g}", fix="give one above 0")
    return [(x - centre) / width for x in scores]


def _softplus(z: float) -> float:
    """log(1 + exp(z)), whatever z."""
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))
