"""Policies and off-policy estimates by hand, and against the truth of a bandit whose every reward is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from plaudit.algorithms.off_policy import (
    direct,
    doubly_robust,
    effective_sample_size,
    ips,
    policy_probabilities,
    snips,
)


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


Q = torch.stack([vec(0.1, 0.7, 0.7), vec(0.5, 0.2, 0.0)])


def test_policies_by_hand() -> None:
    assert policy_probabilities("greedy", Q).tolist() == [[0, 1, 0], [1, 0, 0]]  # of equals the first
    shares = policy_probabilities("epsilon_greedy", Q, epsilon=0.3)
    assert shares[0].tolist() == pytest.approx([0.1, 0.8, 0.1])
    # ln 2 apart at temperature 1/2: exp(2 ln 2) = 4 to 1
    soft = policy_probabilities("softmax", vec(math.log(2), 0.0)[None], temperature=0.5)
    assert soft[0].tolist() == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("ucb", {}), ("greedy", {"epsilon": 1.5}), ("softmax", {"temperature": 0.0})],
)
def test_policies_refuse_what_is_none(kind: str, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"unknown policy|not within"):
        policy_probabilities(kind, Q, **settings)


# Four rows: chances under the policy, propensities, rewards.
CHANCES, LOGGED, REWARDS = vec(1.0, 0.0, 0.5, 1.0), vec(0.5, 0.5, 0.25, 1.0), vec(1.0, 1.0, 0.5, 0.0)


def test_ips_by_hand() -> None:
    # weights 2, 0, 2, 1; products 2, 0, 1, 0: mean 0.75; squares about it 1.5625 + 0.5625 + 0.0625 + 0.5625 = 2.75
    found = ips(CHANCES, LOGGED, REWARDS)
    assert found.value == pytest.approx(0.75)
    assert found.error == pytest.approx(math.sqrt(2.75 / 3 / 4))


def test_snips_by_hand() -> None:
    # 3 / 5 = 0.6; weighted errors 2 * 0.4, 0, 2 * -0.1, -0.6: squares 0.64 + 0.04 + 0.36 = 1.04
    found = snips(CHANCES, LOGGED, REWARDS)
    assert found.value == pytest.approx(0.6)
    assert found.error == pytest.approx(math.sqrt(1.04) / 5)
    assert math.isnan(snips(vec(0.0, 0.0), vec(0.5, 0.5), vec(1.0, 0.0)).value)


def test_effective_rows_by_hand() -> None:
    assert effective_sample_size(CHANCES, LOGGED) == pytest.approx(25 / 9)  # 5^2 / (4 + 4 + 1)
    assert effective_sample_size(LOGGED, LOGGED) == pytest.approx(4.0)
    assert effective_sample_size(vec(0.0, 0.0), vec(0.5, 0.5)) == 0.0


@pytest.mark.parametrize("scale", [1e-3, 1e-300, 1e-307])
def test_however_small_propensities_are_weights_count_by_their_shares(scale: float) -> None:
    logged = scale * LOGGED
    assert effective_sample_size(CHANCES, logged) == pytest.approx(25 / 9, rel=1e-12)
    assert snips(CHANCES, logged, REWARDS) == pytest.approx((0.6, math.sqrt(1.04) / 5), rel=1e-12)


@pytest.mark.parametrize("least", [1e-200, 1e-300, 5e-324])
def test_one_row_of_hardly_any_propensity_is_all_that_counts(least: float) -> None:
    """Its weight is the sum of all, so the estimate is its reward, and certain; where the policy never takes it, it
    is as if it were not there."""
    logged = vec(0.5, 0.5, least, 1.0)
    assert effective_sample_size(CHANCES, logged) == pytest.approx(1.0)
    assert snips(CHANCES, logged, REWARDS) == pytest.approx((0.5, 0.0))
    chances = vec(1.0, 0.5, 0.0, 1.0)
    assert effective_sample_size(chances, logged) == pytest.approx(16 / 6)  # weights 2, 1, 0, 1
    assert snips(chances, logged, REWARDS).value == pytest.approx(3 / 4)


def test_direct_and_doubly_robust_by_hand() -> None:
    policy, q = torch.stack([vec(0.5, 0.5), vec(1.0, 0.0)]), torch.stack([vec(0.2, 0.4), vec(0.6, 0.1)])
    # direct: 0.3 and 0.6; corrections: 0.5 / 0.25 (1 - 0.4) = 1.2 and 0 / 0.5 (..) = 0: rows 1.5, 0.6
    assert direct(policy, q).value == pytest.approx(0.45)
    found = doubly_robust(policy, q, torch.tensor([1, 1]), vec(0.25, 0.5), vec(1.0, 0.9))
    assert found.value == pytest.approx(1.05)
    assert found.error == pytest.approx(0.45)  # deviation 0.9 / sqrt 2, over sqrt 2


@pytest.mark.parametrize(
    ("chances", "logged", "line"),
    [
        (vec(1, 1), vec(0, 0.5), "not > 0"),
        (vec(1, 1), vec(math.nan, 1), "not > 0"),
        (vec(1), vec(1), "1 rows have"),
    ],
)
def test_estimates_refuse_what_has_no_number(chances: Tensor, logged: Tensor, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        ips(chances, logged, torch.ones_like(chances))


def world(seed: int, count: int) -> tuple[Tensor, ...]:
    """Contexts of 6 kinds with 3 actions: true values, policy, actions, propensities and rewards of a skewed log."""
    draw = np.random.default_rng(seed)
    truth = np.random.default_rng(7).random((6, 3))
    kind = draw.integers(0, 6, count)
    logging = np.array([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])[kind % 2]
    actions = np.array([draw.choice(3, p=row) for row in logging])
    rewards = (draw.random(count) < truth[kind, actions]).astype(float)
    target = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])[(kind > 2).astype(int)]
    fields = (truth[kind], target, actions, logging[np.arange(count), actions], rewards)
    return tuple(torch.from_numpy(field) for field in fields)


def exact() -> float:
    truth = np.random.default_rng(7).random((6, 3))
    target = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])[(np.arange(6) > 2).astype(int)]
    return float((truth * target).sum(1).mean())


def test_estimates_meet_the_truth_with_errors_that_say_how_near() -> None:
    """300 logs of 400 rows: means within three of their own errors, and the stated error is the spread seen. Doubly
    robust with a wrong Q is right still; the direct method then is not."""
    found: dict[str, list[tuple[float, float]]] = {"ips": [], "snips": [], "dr": [], "dr, wrong q": []}
    wrong = []
    for seed in range(300):
        truth, target, actions, logged, rewards = world(seed, 400)
        chances = target.gather(1, actions[:, None])[:, 0]
        found["ips"].append(ips(chances, logged, rewards))
        found["snips"].append(snips(chances, logged, rewards))
        found["dr"].append(doubly_robust(target, truth, actions, logged, rewards))
        biased = 0.5 * truth + 0.4
        found["dr, wrong q"].append(doubly_robust(target, biased, actions, logged, rewards))
        wrong.append(direct(target, biased).value)
    spread = {}
    for name, estimates in found.items():
        values, errors = np.array(estimates).T
        spread[name] = values.std(ddof=1)
        assert abs(values.mean() - exact()) < 3 * spread[name] / math.sqrt(300) + 0.003, (
            name
        )  # snips: bias 1/n
        assert errors.mean() == pytest.approx(spread[name], rel=0.15), name
    assert spread["dr"] < spread["ips"]
    assert abs(np.mean(wrong) - exact()) > 0.05
