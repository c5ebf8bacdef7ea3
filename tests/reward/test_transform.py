"""Transforms by hand, and their laws."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.reward import transform as t
from plaudit.types import UserError

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


def test_by_hand() -> None:
    assert t.linear([1.0, -2.0], gain=3.0, shift=0.5) == [3.5, -5.5]
    assert t.clip([-5.0, 0.25, 5.0], low=-1.0, high=2.0) == [-1.0, 0.25, 2.0]
    assert t.clip([-5.0, 5.0], high=2.0) == [-5.0, 2.0]
    # 1/(1+e^-z): z = 0 -> 1/2, z = ln 3 -> 3/4, z = -ln 3 -> 1/4.
    assert t.sigmoid([4.0, 4 + 2 * math.log(3), 4 - 2 * math.log(3)], centre=4.0, width=2.0) == pytest.approx(
        [0.5, 0.75, 0.25], rel=1e-12
    )
    assert t.log_sigmoid([0.0, math.log(3)]) == pytest.approx([-0.6931471805599453, -0.2876820724517809])
    # tanh(ln 2) = (4 - 1) / (4 + 1)
    assert t.tanh([1.0, 1 + math.log(2)], centre=1.0) == pytest.approx([0.0, 0.6], rel=1e-12)
    assert t.log_odds([0.5, 0.75, 0.2]) == pytest.approx([0.0, math.log(3), -math.log(4)], rel=1e-12)
    assert t.log_odds([0.0, 1.0], margin=0.1) == pytest.approx([-math.log(9), math.log(9)], rel=1e-12)
    assert t.standardise([1.0, 4.0], mean=2.0, std=0.5) == [-2.0, 4.0]
    assert t.threshold([0.49, 0.5, 0.51], at=0.5) == [0.0, 1.0, 1.0]
    assert t.rank([3.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]
    assert t.rank([5.0, 1.0, 5.0, 7.0, 5.0]) == [0.5, 0.0, 0.5, 1.0, 0.5]
    assert t.rank([9.0]) == [0.5]


@pytest.mark.parametrize("x", [-1e300, -800.0, 800.0, 1e300])
def test_nothing_overflows(x: float) -> None:
    for name in ("sigmoid", "log_sigmoid", "tanh"):
        (found,) = t.TRANSFORMS[name]([x])
        assert math.isfinite(found)
    assert t.log_sigmoid([-800.0]) == [-800.0]


@given(numbers)
def test_order_is_kept_and_rank_looks_at_order_alone(scores: list[float]) -> None:
    for name, settings in {
        "linear": {"gain": 2.0}, "clip": {"low": -3.0}, "sigmoid": {"width": 9.0}, "tanh": {}, "log_sigmoid": {},
        "standardise": {"mean": 1.0, "std": 3.0}, "threshold": {"at": 0.0}, "rank": {},
    }.items():  # fmt: skip
        found = t.TRANSFORMS[name](scores, **settings)
        order = sorted(range(len(scores)), key=scores.__getitem__)
        assert all(found[a] <= found[b] for a, b in itertools.pairwise(order)), name
    assert t.rank(scores) == t.rank([4 * x for x in scores])
    assert math.fsum(t.rank(scores)) == pytest.approx(len(scores) / 2)


@pytest.mark.parametrize(
    ("name", "settings", "scores", "said"),
    [
        ("log_odds", {}, [1.5], "log_odds of 1.5"),
        ("log_odds", {"margin": 0.7}, [0.5], "margin of 0.7"),
        ("clip", {"low": 2.0, "high": 1.0}, [0.0], "leaves nothing"),
        ("standardise", {"mean": 0.0, "std": 0.0}, [0.0], "deviation of 0"),
        ("sigmoid", {"width": -1.0}, [0.0], "deviation of -1"),
    ],
)
def test_what_has_no_meaning_is_refused(
    name: str, settings: dict[str, float], scores: list[float], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        t.TRANSFORMS[name](scores, **settings)


def test_a_rank_is_found_by_sorting() -> None:
    """Not by comparing each with each: that is four million for two thousand scores."""
    compared = 0

    class Counted(float):
        def __lt__(self, other: float) -> bool:
            nonlocal compared
            compared += 1
            return float(self) < float(other)

        __hash__ = float.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return float(self) == other

    found = t.rank([Counted((7 * i) % 2000) for i in range(2000)])
    assert found[:3] == [0.0, 7 / 1999, 14 / 1999]
    assert compared < 200_000
