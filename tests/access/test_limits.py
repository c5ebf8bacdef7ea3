"""Token buckets, by hand."""

from __future__ import annotations

import pytest

from plaudit.access import limits
from plaudit.access.limits import Limit


def test_a_burst_and_then_as_often_as_the_rate_says() -> None:
    limit = Limit(rate=0.5, burst=3)
    assert [limit.take("ann", 10.0) for _ in range(3)] == [0, 0, 0]
    assert limit.take("ann", 10.0) == pytest.approx(2.0)
    assert limit.take("ann", 11.0) == pytest.approx(1.0), "what is refused is not counted"
    assert limit.take("ann", 12.0) == 0
    assert limit.take("ann", 12.0) == pytest.approx(2.0)


def test_each_key_has_its_own() -> None:
    limit = Limit(rate=1, burst=1)
    assert limit.take("ann", 0) == 0
    assert limit.take("bob", 0) == 0
    assert limit.take("ann", 0) == pytest.approx(1.0)


def test_no_more_than_a_burst_is_saved_up_and_a_clock_that_goes_back_gives_nothing() -> None:
    limit = Limit(rate=1, burst=2)
    assert limit.take("ann", 0) == 0
    assert [limit.take("ann", 1000) for _ in range(2)] == [0, 0]
    assert limit.take("ann", 1000) == pytest.approx(1.0)
    assert limit.take("ann", 5) == pytest.approx(1.0)


def test_some_take_more_and_none_takes_more_than_ever_fits() -> None:
    limit = Limit(rate=10, burst=100)
    assert limit.take("ann", 0, 90) == 0
    assert limit.take("ann", 0, 30) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="101 at once, where 100 fit"):
        limit.take("ann", 0, 101)


def test_keys_without_number_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are full again are forgotten first; of the others the oldest."""
    monkeypatch.setattr(limits, "MOST_KEYS", 3)
    limit = Limit(rate=1, burst=10)
    limit.take("old", 0, 10)
    for name in ("a", "b", "c", "d"):
        limit.take(name, 5, 10)
    assert len(limit._left) == 3
    assert limit.take("d", 5, 10) == pytest.approx(10.0), "the newest is still known"
    limit.take("late", 100, 1)
    assert set(limit._left) <= {"b", "c", "d", "late"}


def test_what_was_spent_beyond_the_burst_is_made_up_for_first() -> None:
    limit = Limit(rate=2.0, burst=10)
    limit.spend("ann", 0.0, 25)
    assert limit.wait("ann", 0.0) == pytest.approx(
        8.0
    )  # 15 below, and the 1 that is asked for, at 2 a second
    assert limit.take("ann", 7.0) > 0
    assert limit.take("ann", 8.0) == 0
    assert limit.wait("bob", 0.0) == 0
