"""Rules that tests name as rewards."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from plaudit.tensors import Sample


def fourths(samples: Sequence[Sample]) -> list[float]:
    """The share of tokens whose id is divisible by four: a quarter by chance, 1 at best."""
    return [sum(i % 4 == 0 for i in s.completion_ids) / len(s.completion_ids) for s in samples]


def first_id(samples: Sequence[Sample]) -> list[float]:
    return [s.completion_ids[0] / 700 for s in samples]


def raises(samples: Sequence[Sample]) -> list[float]:
    raise KeyError(f"{len(samples)} samples")


def times_out(samples: Sequence[Sample]) -> list[float]:
    raise TimeoutError(f"a service did not answer for {len(samples)} samples")


def leaves(samples: Sequence[Sample]) -> list[float]:
    raise SystemExit(f"{len(samples)} samples")


def gives_nan(samples: Sequence[Sample]) -> list[float]:
    return [float("nan"), *(0.0 for _ in samples[1:])]


def gives_infinity(samples: Sequence[Sample]) -> list[float]:
    return [*(0.0 for _ in samples[1:]), float("inf")]


def one_too_few(samples: Sequence[Sample]) -> list[float]:
    return [0.0 for _ in samples[1:]]


def gives_none(samples: Sequence[Sample]) -> None:
    assert samples


def sleeps(samples: Sequence[Sample]) -> list[float]:
    time.sleep(5)
    return [0.0 for _ in samples]


NOT_A_FUNCTION = 3


def fine(samples: Sequence[Sample]) -> list[float]:
    return [1.0] * len(samples)


_CALLS = itertools.count()


def bad_and_fine(samples: Sequence[Sample]) -> list[float]:
    """0 for all of the first batch that is scored, 1 for the second, and so on."""
    return [float(next(_CALLS) % 2)] * len(samples)
