# mypy: disable-error-code="no-untyped-call"
"""KL estimators against exact divergences and Schulman's table; the controller by hand."""

import math

import pytest
import torch
from torch import Tensor

from plaudit.algorithms.kl import ESTIMATORS, adaptive_coefficient, k1, k2, k3

POLICY = [0.5, 0.25, 0.2, 0.05]
REFERENCE = [0.1, 0.3, 0.2, 0.4]
# KL(policy || reference) = 0.5 ln 5 + 0.25 ln(5/6) + 0 + 0.05 ln(1/8), by hand
EXACT = 0.5 * math.log(5) + 0.25 * math.log(5 / 6) - 0.05 * math.log(8)


def logs(probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_expectation_under_the_policy_is_the_exact_kl(estimator: str) -> None:
    per_token = ESTIMATORS[estimator](logs(POLICY), logs(REFERENCE))
    mean = (torch.tensor(POLICY, dtype=torch.float64) * per_token).sum().item()
    assert mean == pytest.approx(EXACT, rel=1e-12)


def test_one_token_by_hand() -> None:
    # policy 0.5, reference 0.25: ln 2; (ln 2)^2 / 2; 0.5 - 1 + ln 2
    logp, ref = logs([0.5]), logs([0.25])
    assert k1(logp, ref).item() == pytest.approx(0.6931471805599453, rel=1e-12)
    assert k2(logp, ref).item() == pytest.approx(0.2402265069591007, rel=1e-12)
    assert k3(logp, ref).item() == pytest.approx(0.1931471805599453, rel=1e-12)


# Schulman's table: mean of q, true KL, and (bias / true, stdev / true) of k1, k2, k3; p = N(0, 1), q = N(mean, 1).
TABLE = [
    (0.1, 0.005, {"k1": (0, 20), "k2": (0.002, 1.42), "k3": (0, 1.42)}),
    (1.0, 0.5, {"k1": (0, 2), "k2": (0.25, 1.73), "k3": (0, 1.7)}),
]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize(("mean", "true", "rows"), TABLE)
def test_bias_and_deviation_are_those_of_the_blog(
    estimator: str, mean: float, true: float, rows: dict[str, tuple[float, float]]
) -> None:
    x = torch.linspace(mean - 12, mean + 12, 200_001, dtype=torch.float64)
    q, p = torch.distributions.Normal(mean, 1.0), torch.distributions.Normal(0.0, 1.0)
    weight = torch.exp(q.log_prob(x)) * (x[1] - x[0])
    estimate = ESTIMATORS[estimator](q.log_prob(x), p.log_prob(x))
    first = (weight * estimate).sum()
    deviation = (weight * (estimate - first).square()).sum().sqrt()
    bias, spread = rows[estimator]
    # the table was sampled (10 million draws) and printed with two or three digits
    assert (first.item() - true) / true == pytest.approx(bias, abs=1e-3)
    assert deviation.item() / true == pytest.approx(spread, rel=0.01)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_no_distance_from_itself(estimator: str) -> None:
    assert ESTIMATORS[estimator](logs(POLICY), logs(POLICY)).tolist() == [0.0] * 4


def test_k3_is_exact_for_a_small_step() -> None:
    # x^2/2 + x^3/6: exp(x) - 1 - x in float32 by exp would lose half its digits at 1e-3
    step = torch.tensor([1e-3], dtype=torch.float32)
    assert k3(torch.zeros(1), step).item() == pytest.approx(1e-6 / 2 + 1e-9 / 6, rel=2e-4)


@pytest.mark.parametrize(
    ("observed", "after"),
    [
        (9.0, 0.202048),  # error +0.5, clipped to 0.2: 0.2 * (1 + 0.2 * 512 / 10,000)
        (6.6, 0.201024),  # error +0.1: 0.2 * (1 + 0.1 * 0.0512)
        (6.0, 0.2),
        (5.4, 0.198976),  # error -0.1
        (0.0, 0.197952),  # error -1, clipped to -0.2
        (-3.0, 0.197952),  # an estimate may be negative
    ],
)
def test_controller_by_hand(observed: float, after: float) -> None:
    assert adaptive_coefficient(0.2, observed=observed, target=6.0, episodes=512) == pytest.approx(
        after, rel=1e-12
    )


def test_controller_refuses_what_has_no_answer() -> None:
    for observed in (math.nan, math.inf):
        with pytest.raises(ValueError, match="observed"):
            adaptive_coefficient(0.2, observed=observed, target=6.0, episodes=8)
    with pytest.raises(ValueError, match="target 0"):
        adaptive_coefficient(0.2, observed=1.0, target=0.0, episodes=8)
    with pytest.raises(ValueError, match="raise horizon"):
        adaptive_coefficient(0.2, observed=1.0, target=6.0, episodes=50_000)
