"""PPO's clipped surrogate."""

import torch
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.kl import k3
from plaudit.algorithms.masking import check_same_shape, masked_mean, zero_masked


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    total: float | Tensor,
    clip: float = 0.2,
    sampled_logprobs: Tensor | None = None,
    importance_cap: float = 2.0,
) -> LossOutput:
    """- sum over counted tokens of w min(r A, clip(r, 1 - clip, 1 + clip) A), divided by total.

    logprobs: [B, T], nats, the policy's now, with gradient. old_logprobs: [B, T], the trainer's when the
    batch was drawn, so r = exp(logprobs - old_logprobs) is exactly 1 before the first update. advantages,
    mask: [B, T]. total: the whole batch's count of tokens (> 0): micro-batches and ranks then sum to the
    whole.

    sampled_logprobs: [B, T], the engine's; given, each token is weighted by w = min(exp(old - sampled),
    importance_cap), without gradient, for the tokens were drawn from the sampler and not from the trainer's
    policy. Not given, w = 1.

    metrics, detached scalars. Summed over micro-batches they are the whole batch's means over tokens, as the
    loss is: `clip_fraction` (the clipped branch is the smaller), `approx_kl` (k3 of KL(old || new), nats),
    `ratio_mean`, and with sampled_logprobs `importance_mean`, `importance_capped` (share at the cap) and
    `sampler_difference` (|old - sampled|, nats). `ratio_max` is a maximum: combine it by maximum.

    Raises ValueError where shapes differ. Source: Schulman et al. 2017, equation 7; the truncated weight is
    Ionides 2008, for samplers that are not quite the trainer: Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training".
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    logprobs, advantages = zero_masked(logprobs, mask), zero_masked(advantages, mask).detach()
    old_logprobs = zero_masked(old_logprobs, mask).detach()

    ratio = torch.exp(logprobs - old_logprobs)
    plain = ratio * advantages
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip) * advantages
    surrogate = torch.minimum(plain, clipped)

    with torch.no_grad():
        metrics = {
            "clip_fraction": masked_mean((clipped < plain).to(ratio.dtype), mask, total=total),
            "approx_kl": masked_mean(k3(old_logprobs, logprobs), mask, total=total),
            "ratio_mean": masked_mean(ratio, mask, total=total),
            "ratio_max": zero_masked(ratio, mask).max(),
        }
    if sampled_logprobs is not None:
        check_same_shape(sampled_logprobs=sampled_logprobs, mask=mask)
        gap = old_logprobs - zero_masked(sampled_logprobs, mask).detach()
        weight = torch.exp(gap).clamp(max=importance_cap)
        surrogate = weight * surrogate
        metrics["importance_mean"] = masked_mean(weight, mask, total=total)
        metrics["importance_capped"] = masked_mean(
            (weight >= importance_cap).to(gap.dtype), mask, total=total
        )
        metrics["sampler_difference"] = masked_mean(gap.abs(), mask, total=total)
    return LossOutput(-masked_mean(surrogate, mask, total=total), metrics)
