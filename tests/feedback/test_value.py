"""The light head: what it learns, how sure it is, what the next judgements bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from plaudit.feedback import value
from plaudit.randomness import rng


def test_the_head_is_where_the_gradient_is_none() -> None:
    random = rng(0, "head")
    x = random.normal(size=(200, 5))
    better = (random.random(200) < 1 / (1 + np.exp(-x @ np.array([1.0, -2.0, 0.0, 0.5, 0.0])))).astype(float)
    better[:20] = 0.5
    head = value.fit(x, better, prior=2.0)

    def loss(weights: value.Floats) -> float:
        gap = x @ weights
        return float(
            (np.logaddexp(0, -gap) * better + np.logaddexp(0, gap) * (1 - better)).sum() + weights @ weights
        )

    at, step = head.weights, 1e-5
    for place in range(5):
        move = np.eye(5)[place] * step
        slope = (loss(at + move) - loss(at - move)) / (2 * step)
        assert slope == pytest.approx(0.0, abs=1e-4)
    # Laplace's covariance is the inverse of the second derivative.
    curve = np.array([[_second(loss, at, i, j) for j in range(5)] for i in range(5)])
    assert np.allclose(np.linalg.inv(curve), head.covariance, atol=1e-4)


def _second(
    loss: Callable[[value.Floats], float], at: value.Floats, i: int, j: int, step: float = 1e-3
) -> float:
    """The second derivative by the differences of four points."""
    e, f = np.eye(len(at))[i] * step, np.eye(len(at))[j] * step
    return float((loss(at + e + f) - loss(at + e - f) - loss(at - e + f) + loss(at - e - f)) / (4 * step**2))


def test_information_is_none_where_nothing_is_unknown() -> None:
    assert value.information(0.0, 0.0) == pytest.approx(0.0, abs=1e-12)
    assert value.information(5.0, 0.0) == pytest.approx(0.0, abs=1e-12)
    assert value.information(0.0, 4.0) > value.information(3.0, 4.0) > value.information(8.0, 4.0)
    assert value.information(0.0, 4.0) > value.information(0.0, 1.0) > 0
    assert value.information(0.0, 1e6) < np.log(2)
    # Against drawing: H[E p] - E H[p].
    p = 1 / (1 + np.exp(-(1.0 + 2.0 * rng(2, "information").normal(size=400_000))))
    each = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    q = p.mean()
    drawn = -(q * np.log(q) + (1 - q) * np.log1p(-q)) - each.mean()
    assert value.information(1.0, 4.0) == pytest.approx(drawn, abs=2e-3)


def test_a_power_law_is_found_again() -> None:
    n = np.array([8.0, 16, 32, 64, 128, 256])
    a, b, c = value.power_law(n, 0.9 - 0.8 * n**-0.5)
    assert a == pytest.approx(0.9, abs=1e-3)
    assert b == pytest.approx(0.8, abs=5e-3)
    assert c == pytest.approx(0.5)
    worse = value.power_law(n, 0.9 + 0.1 * n**-0.5)
    assert worse[1] == 0.0, "more judgements never make it worse"


def test_a_forecast_is_the_power_law_s_step_with_an_interval() -> None:
    sizes = np.array([8, 16, 32, 64, 128, 256])
    mean = 0.9 - 0.8 * sizes**-0.5
    noise = rng(3, "forecast").normal(size=(4000, 6))

    def curve(table: Any, error: float = 0.0) -> value.Curve:
        return value.Curve(sizes[: table.shape[1]], table, np.full((len(table), table.shape[1] - 1), error))

    said = value.forecast(curve(mean + 0.02 * noise), 300)
    assert said is not None
    gain = 0.8 * (300**-0.5 - 400**-0.5)
    assert said["gain"] == pytest.approx(gain, abs=0.002)
    # by hand: steps have the variance 2 * 0.02^2; 1/n falls by 1/16, ..., 1/256 in them, and by 1/1200 in the next
    half = 1.645 * (2 * 0.02**2 * (16 + 32 + 64 + 128 + 256) / 5 / 1200) ** 0.5
    assert (said["high"] - said["low"]) / 2 == pytest.approx(half, rel=0.05)
    # where all is due to the prompts that it was measured by, three in four of which a split shares: nothing is left
    known = value.forecast(curve(mean + 0.02 * noise, 2 * 0.02**2 / 0.75), 300)
    assert known is not None
    assert known["high"] - known["low"] < half / 3
    assert value.forecast(curve(mean[None, :3]), 300) is None
    steady = value.forecast(curve(np.repeat(mean[None], 40, 0)), 300)
    assert steady is not None
    assert steady["high"] - steady["low"] < 1e-9


def test_the_error_of_a_mean_counts_prompts_not_judgements() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0])
    assert value.error(values, np.arange(4)) == pytest.approx(0.25 / 4)
    assert value.error(values, np.array([0, 0, 1, 1])) == pytest.approx(0.25 / 2)


def test_held_out_prompts_are_not_learned_from() -> None:
    """Where what was said is drawn by lot, the head is right half of the time on prompts that it has not seen."""
    random = rng(4, "lot")
    features = random.normal(size=(400, 20))
    pairs = value.Pairs(
        np.arange(0, 400, 2), np.arange(1, 400, 2), (random.random(200) < 0.5).astype(float), np.arange(200),
        np.arange(1, 201),
    )  # fmt: skip
    assert abs(value.learning_curve(pairs, features).accuracy[:, -1].mean() - 0.5) < 0.06


@pytest.mark.parametrize(("turned", "accuracy"), [(False, 1.0), (True, 0.0)])
def test_what_is_said_of_the_random_slice_is_not_learned_from(turned: bool, accuracy: float) -> None:
    """One feature tells which is better; on the slice people say the opposite, or the same."""
    random = rng(5, "slice")
    features = random.normal(size=(200, 1))
    first, second = np.arange(0, 200, 2), np.arange(1, 200, 2)
    better = (features[first] > features[second])[:, 0].astype(float)
    better[:60] = np.abs(better[:60] - turned)  # of the slice, and more than all others
    better[60:64] = 0.5  # of the slice, and not decided
    pairs = value.Pairs(first, second, better, np.arange(100), np.arange(1, 101))
    places = [(f"i{number // 2}", number % 2) for number in range(200)]
    found = value.Read(pairs, features, places, {}, frozenset(f"i{number}" for number in range(64)))
    assert value.on_slice(found) == {"n": 60, "accuracy": accuracy, "low": accuracy, "high": accuracy}
    few = value.Read(pairs, features, places, {}, frozenset(f"i{number}" for number in range(23)))
    assert value.on_slice(few) is None


def test_too_few_judgements_give_no_curve() -> None:
    pairs = value.Pairs(*(np.zeros(10, dtype=np.int64),) * 2, np.ones(10), np.arange(10), np.arange(10))
    assert len(value.learning_curve(pairs, np.zeros((1, 2))).sizes) == 0
