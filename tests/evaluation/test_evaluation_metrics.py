"""Measures against hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit.evaluation.metrics import bootstrap, distinct_2, outcomes, win_rate


def test_distinct_2_by_hand() -> None:
    # 1-2, 2-1, 1-2 and 1-2, 2-3: three of five are distinct.
    assert distinct_2([[1, 2, 1, 2], [1, 2, 3]]) == 3 / 5


def test_distinct_2_does_not_cross_completions() -> None:
    assert distinct_2([[1, 2], [2, 1], [1, 2]]) == 2 / 3  # 2-2 and 1-1 would come across


def test_distinct_2_reads_only_the_first_tokens() -> None:
    assert distinct_2([[1, 2, 1, 2], [1, 2, 3]], tokens=6) == 2 / 4  # 1-2, 2-1, 1-2 and 1-2
    assert distinct_2([[1, 2, 1, 2], [1, 2, 3]], tokens=3) == 1.0


def test_distinct_2_of_what_has_no_bigram() -> None:
    assert distinct_2([[1], [2], []]) == 0.0
    with pytest.raises(ValueError, match="4 tokens are asked for, there are 3"):
        distinct_2([[1, 2, 3]], tokens=4)


def test_win_rate_by_hand() -> None:
    # one win, one loss, one tie: (1 + 0.5) / 3
    assert outcomes([2, 1, 3], [1, 2, 3]) == [1, 0, 0.5]
    assert win_rate([2, 1, 3], [1, 2, 3]) == 0.5
    assert win_rate([2, 1, 3], [1.75, 2, 3], tie_below=0.5) == pytest.approx(1 / 3)
    assert win_rate([2.0], [1.5], tie_below=0.5) == 1.0  # the bound itself is no tie


def test_win_rate_refuses_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError):
        win_rate([1, 2], [1])
    with pytest.raises(ValueError):
        win_rate([], [])


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap(values.tolist(), seed=1, repetitions=4000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_of_two_values_by_hand() -> None:
    # Means are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: the outer 2.5 % are 0 and 1.
    assert bootstrap([0.0, 1.0], seed=0) == (0.0, 1.0)
    assert bootstrap([5.0], seed=0) == (5.0, 5.0)


def test_bootstrap_is_keyed_and_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    first = bootstrap(values, seed=3, repetitions=100)
    monkeypatch.setattr("plaudit.evaluation.metrics._CHUNK", 40)
    assert bootstrap(values, seed=3, repetitions=100) == first
    assert bootstrap(values, seed=4, repetitions=100) != first


def test_bootstrap_refuses_nothing() -> None:
    with pytest.raises(ValueError):
        bootstrap([], seed=0)
