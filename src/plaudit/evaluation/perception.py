"""How the starting model sees a completion: does it answer its own prompt, does it read like language?

relevance: how much likelier the completion is under its own prompt than under somebody else's. fluency: a
two-sided band of perplexity, since text can be too surprising (noise) or too predictable (a stock phrase).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plaudit.algorithms.masking import masked_sum
from plaudit.data.collate import micro_batches, pack
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.llama import Llama
from plaudit.randomness import rng

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Band:
    """What counts as relevant and fluent, in nats a token, fixed from the starting model's own samples.

    relevance: (centre, width) of the gain of its own prompt over another's: a logistic. fluency: (low, high,
    width) of the mean surprise: 1 between low and high, falling off as a normal curve of that width outside.
    """

    gain_centre: float
    gain_width: float
    low: float
    high: float
    width: float

    @classmethod
    def of(cls, views: Views) -> Band:
        """From the starting model's samples: half of them are relevant beyond 0.5, the middle half is fully
        fluent, and fluency falls off as wide as that half is."""
        low, high = np.quantile(views.surprise, [0.25, 0.75])
        centre, spread = np.median(views.gain), views.gain.std()
        return cls(
            float(centre),
            float(max(spread, 1e-6)),
            float(low),
            float(high),
            float(max(high - low, 1e-6)),
        )


@dataclass(frozen=True, slots=True)
class Views:
    """Of n completions: surprise (mean -logprob a token under the own prompt) and gain (nats a token that the own
    prompt gives over another), both [n]; tokens [n]."""

    surprise: Floats
    gain: Floats
    tokens: Floats

    def relevance(self, band: Band) -> Floats:
        """[n] in 0 to 1."""
        out: Floats = 1 / (1 + np.exp(-(self.gain - band.gain_centre) / band.gain_width * 2))
        return out

    def fluency(self, band: Band) -> Floats:
        """[n] in 0 to 1."""
        outside = np.maximum(np.maximum(band.low - self.surprise, self.surprise - band.high), 0)
        out: Floats = np.exp(-0.5 * (outside / band.width) ** 2)
        return out


Progress = Callable[[Iterable[Tensor], int], Iterator[Tensor]]
"""Wraps an iterable of known length to show how far it is."""


def look_at(
    trunk: Llama,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    others: int = 1,
    seed: int = 0,
    budget: int = 4096,
    progress: Progress | None = None,
) -> Views:
    """completions[p]: the completions (ids) of prompt p. Views come in the order of prompts, then completions.

    others: under how many other prompts each is seen, whose mean is taken. ValueError for fewer than two prompts.
    """
    count = len(prompts)
    if count < 2:
        raise ValueError(f"relevance wants at least two prompts, not {count}")
    own = _mean_logprobs(trunk, prompts, completions, budget, progress)
    shifts = rng(seed, "others", count).permutation(np.arange(1, count))[:others]
    foreign = [
        _mean_logprobs(
            trunk, [prompts[(p + int(shift)) % count] for p in range(count)], completions, budget, progress
        )
        for shift in shifts
    ]
    tokens = np.array([float(len(c)) for group in completions for c in group])
    return Views(surprise=-own, gain=own - np.mean(foreign, axis=0), tokens=tokens)


@torch.no_grad()
def _mean_logprobs(
    trunk: Llama,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    budget: int,
    progress: Progress | None,
) -> Floats:
    flat = [completion for group in completions for completion in group]
    owners = [prompt for prompt, group in zip(prompts, completions, strict=True) for _ in group]
    packed = pack(owners, flat, device=trunk.device)
    sums = torch.zeros(len(flat), dtype=torch.float64)
    batches = micro_batches(packed, budget)
    for rows in batches if progress is None else progress(batches, len(batches)):
        part, index = packed.take(rows)
        logprobs = token_logprobs(Branch(trunk), part).logprobs
        sums[index.cpu()] = (masked_sum(logprobs, part.mask, dim=1)).double().cpu()
    return np.asarray(sums / packed.mask.sum(1).cpu())
