"""Measures of completions and of scores: numbers in, numbers out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from plaudit.randomness import rng

_CHUNK = 4_000_000
"""Numbers that one step of the bootstrap holds at a time."""


def bootstrap(values: Sequence[float], *, seed: int, repetitions: int = 2000) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, (low, high) in the values' unit.

    values: one number an independent unit (a prompt, not a sample of it: samples of one prompt are alike, and the
    interval would come out too narrow). The resampling depends on the seed and the count of values alone, so that
    two models on the same prompts are resampled alike. ValueError for no values or repetitions < 1.

    Source: Efron & Tibshirani 1993, chapter 13.
    """
    if len(values) == 0 or repetitions < 1:
        raise ValueError(f"a bootstrap of {len(values)} values, {repetitions} times")
    found = np.asarray(values, dtype=np.float64)
    generator = rng(seed, "bootstrap", len(found))
    rows = max(1, _CHUNK // len(found))
    means = [
        found[generator.integers(0, len(found), (min(rows, repetitions - start), len(found)))].mean(1)
        for start in range(0, repetitions, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def distinct_2(completions: Sequence[Sequence[int]], tokens: int | None = None) -> float:
    """The share of bigrams that are distinct, 0 to 1, over all completions together; 0 where there is no bigram.

    completions: token ids. A bigram lies within one completion. tokens: read the first so many tokens in all, in
    order, cutting the last completion. The share falls as text grows, so compare at an equal count of tokens;
    ValueError where there are fewer.

    Source: Li et al. 2016 (arXiv:1510.03055), section 5.3, with bigrams as the denominator.
    """
    total = sum(map(len, completions))
    if tokens is not None and not 0 <= tokens <= total:
        raise ValueError(f"{tokens} tokens are asked for, there are {total}")
    left = total if tokens is None else tokens
    bigrams: list[tuple[int, int]] = []
    for completion in completions:
        read = list(completion[:left])
        left -= len(read)
        bigrams += itertools.pairwise(read)
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def outcomes(a: Sequence[float], b: Sequence[float], tie_below: float = 0.0) -> list[float]:
    """For each pair of scores: 1 where a is better, 0 where b is, 0.5 for a tie.

    tie_below: differences under it are ties, in the scores' unit; equal scores always are. ValueError where the
    lengths differ.
    """
    return [0.5 if x == y or abs(x - y) < tie_below else float(x > y) for x, y in zip(a, b, strict=True)]


def win_rate(a: Sequence[float], b: Sequence[float], tie_below: float = 0.0) -> float:
    """(wins of a + ties / 2) / pairs, 0 to 1; see `outcomes`. ValueError for no pairs or unequal lengths."""
    if len(a) == 0:
        raise ValueError("a win rate of no pairs")
    return float(np.mean(outcomes(a, b, tie_below)))
