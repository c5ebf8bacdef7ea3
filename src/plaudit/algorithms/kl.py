"""How far the policy has moved from its reference: estimators per token, and the controller of their price.

Each estimator takes log-probabilities (nats) of tokens that were drawn from the policy and estimates
KL(policy || reference) at that position. Source: J. Schulman, "Approximating KL Divergence" (2020),
http://joschu.net/blog/kl-approx.html, where his log r is `ref_logprobs - logprobs`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """logp - ref, per token. Unbiased, may be negative; what the reward is charged with (LHP).

    logprobs, ref_logprobs and the result: [B, T] (any one shape), nats. Nothing is reduced.
    """
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(logp - ref)^2 / 2, per token. Never negative, little variance, biased at second order.

    logprobs, ref_logprobs and the result: [B, T] (any one shape), nats. Nothing is reduced.
    """
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(ref - logp) - 1 - (ref - logp), per token. Unbiased and never negative.

    logprobs, ref_logprobs and the result: [B, T] (any one shape), nats. Nothing is reduced.
    """
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def adaptive_coefficient(
    coef: float,
    *,
    observed: float,
    target: float,
    episodes: int,
    horizon: float = 10_000,
    clip: float = 0.2,
) -> float:
    """The KL coefficient for the next batch: raised where the policy is too far off, lowered where too near.

    observed, target: nats per episode (the KL summed over a completion's tokens, averaged over episodes), so
    a target depends on the length: LHP's 6 was for 24 tokens. episodes: how many this batch had. horizon:
    episodes over which a steady full error (clip) would change the coefficient by about clip itself.

    Source: Ziegler et al. 2019, section 2.2: e = clip(observed / target - 1, -0.2, 0.2), coef * (1 + K e)
    with K = 0.1 there and episodes / horizon in their code (lm-human-preferences, AdaptiveKLController).

    Raises ValueError where observed is not finite, target, horizon or episodes is not above 0, clip is
    negative, or episodes * clip reaches horizon (one update could then turn the price to 0 or below).
    """
    if not math.isfinite(observed):
        raise ValueError(f"observed KL is {observed}")
    if target <= 0 or horizon <= 0 or episodes <= 0 or clip < 0:
        raise ValueError(
            f"target {target}, horizon {horizon}, episodes {episodes} must be > 0, clip {clip} >= 0"
        )
    if episodes * clip >= horizon:
        raise ValueError(
            f"{episodes} episodes with clip {clip} reach the horizon of {horizon}; raise horizon"
        )
    error = min(max(observed / target - 1.0, -clip), clip)
    return coef * (1.0 + error * episodes / horizon)
