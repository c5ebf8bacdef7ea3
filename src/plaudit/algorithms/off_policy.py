"""Contextual bandits: policies out of action values, and what a policy would have earned, from another's log.

A context x, one action a of K, a reward. The log holds what somebody chose, the chance with which they chose it
(propensity), and what came of it; of what was not chosen it says nothing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.algorithms.masking import check_same_shape


class Estimate(NamedTuple):
    """A policy's mean reward and the standard error of it."""

    value: float
    error: float


def policy_probabilities(kind: str, q: Tensor, *, epsilon: float = 0.1, temperature: float = 0.1) -> Tensor:
    """pi(a | x) of each action. [N, K] -> [N, K]; rows sum to 1.

    kind: "greedy" takes the action of the largest q (of equals the first); "epsilon_greedy" that, and with
    probability epsilon any of the K; "softmax" each in proportion to exp(q / temperature), temperature in q's unit.
    Raises ValueError for another kind, an epsilon beyond 0 to 1 or a temperature that is not > 0.

    Source: Sutton & Barto 2018, sections 2.2 and 2.8.
    """
    if not 0 <= epsilon <= 1 or not temperature > 0:
        raise ValueError(f"epsilon {epsilon} is not within 0 to 1, or temperature {temperature} not > 0")
    if kind == "softmax":
        return torch.softmax(q / temperature, -1)
    if kind not in ("greedy", "epsilon_greedy"):
        raise ValueError(f"unknown policy {kind!r}")
    best = F.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)
    share = epsilon if kind == "epsilon_greedy" else 0.0
    return (1.0 - share) * best + share / q.shape[-1]


def ips(chances: Tensor, propensities: Tensor, rewards: Tensor) -> Estimate:
    """Inverse propensity score: the mean of w_i r_i, w_i = pi(a_i | x_i) / p_i. Unbiased where p is right and > 0
    wherever pi is; its error is the sample's standard deviation over sqrt(n).

    chances: [N], pi(a_i | x_i); propensities: [N], p_i > 0; rewards: [N].
    Raises ValueError where shapes differ, there are fewer than two rows or a propensity is not > 0.
    Source: Horvitz & Thompson 1952; Dudik et al. 2011, equation 2.
    """
    return _mean(_weights(chances, propensities, rewards) * rewards)


def snips(chances: Tensor, propensities: Tensor, rewards: Tensor) -> Estimate:
    """Self-normalised: sum of w_i r_i over sum of w_i. A little biased, less noisy, and never beyond the rewards seen.

    Arguments and errors as `ips`; where no logged action is one that pi takes, both are not a number. The error is
    the delta method's, sqrt(sum of w_i^2 (r_i - value)^2) / sum of w_i.
    Source: Swaminathan & Joachims 2015, equation 7; Owen 2013, equation 9.8, for the error.
    """
    weights = _shares(chances, propensities, rewards)
    value = (weights * rewards).sum() / weights.sum()
    error = (weights * (rewards - value)).square().sum().sqrt() / weights.sum()
    return Estimate(float(value), float(error))


def direct(policy: Tensor, q: Tensor) -> Estimate:
    """Direct method: the mean of sum over a of pi(a | x_i) q(x_i, a). Only as right as q is, and its error says
    nothing of that. policy, q: [N, K]. Raises ValueError where shapes differ or there are fewer than two rows.
    Source: Dudik et al. 2011, section 2.
    """
    check_same_shape(policy=policy, q=q)
    return _mean((policy * q).sum(-1))


def doubly_robust(
    policy: Tensor, q: Tensor, actions: Tensor, propensities: Tensor, rewards: Tensor
) -> Estimate:
    """The mean of sum over a of pi(a | x_i) q(x_i, a) + w_i (r_i - q(x_i, a_i)): right where q or p is.

    policy, q: [N, K], q learned from other rows; actions: [N] int64; propensities, rewards as in `ips`.
    Raises ValueError as `ips`. Source: Dudik et al. 2011, equation 3.
    """
    check_same_shape(policy=policy, q=q)
    taken = actions[:, None]
    weights = _weights(policy.gather(1, taken)[:, 0], propensities, rewards)
    return _mean((policy * q).sum(-1) + weights * (rewards - q.gather(1, taken)[:, 0]))


def effective_sample_size(chances: Tensor, propensities: Tensor) -> float:
    """(sum of w)^2 / sum of w^2: how many rows of pi's own the log is worth. 0 where no row has weight.
    Raises ValueError as `ips`. Source: Kish 1965; Owen 2013, equation 9.13.
    """
    weights = _shares(chances, propensities, propensities)
    squares = float(weights.square().sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def _weights(chances: Tensor, propensities: Tensor, rewards: Tensor) -> Tensor:
    """w, of any size: infinite where a propensity is small enough."""
    _check(chances, propensities, rewards)
    return chances / propensities


def _shares(chances: Tensor, propensities: Tensor, rewards: Tensor) -> Tensor:
    """w over the largest w, which no propensity can make overflow; all 0 where every w is."""
    _check(chances, propensities, rewards)
    if not bool((chances > 0).any()):
        return torch.zeros_like(chances)
    least = propensities[chances > 0].min()
    shares = chances * (least / propensities).clamp(max=1.0)  # beyond 1 only where the chance is 0
    return shares / shares.max()


def _check(chances: Tensor, propensities: Tensor, rewards: Tensor) -> None:
    check_same_shape(chances=chances, propensities=propensities, rewards=rewards)
    if not bool((propensities > 0).all()):
        raise ValueError("a propensity is not > 0")


def _mean(rows: Tensor) -> Estimate:
    if rows.shape[0] < 2:
        raise ValueError(f"{rows.shape[0]} rows have no standard error")
    return Estimate(float(rows.mean()), float(rows.std(correction=1)) / rows.shape[0] ** 0.5)
