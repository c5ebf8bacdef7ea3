"""Policy gradients: REINFORCE, PPO's clipped surrogate on tokens, and its kin on whole completions.

What each algorithm of the field takes from here (advantages are from `advantages.py`):

| algorithm | loss | mean over |
|---|---|---|
| REINFORCE; RLOO as shipped (`loss: plain`) | `reinforce_loss` | completions, summed over their tokens |
| PPO, REINFORCE++, DAPO | `ppo_policy_loss` | tokens; DAPO with clip_high above clip |
| GRPO | `ppo_policy_loss`, per_sequence | completions, each the mean over its own tokens |
| Dr. GRPO | `ppo_policy_loss`, scaled to a constant | completions times the longest possible |
| GSPO | `sequence_policy_loss`, ratio "mean" | completions |
| RLOO with `loss: clipped`, for several updates a batch | `sequence_policy_loss`, ratio "product" | completions |
"""

from typing import Literal

import torch
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.kl import k3
from plaudit.algorithms.masking import check_same_shape, masked_mean, masked_sum, sequence_mean, zero_masked


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    total: float | Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
    per_sequence: bool = False,
    sampled_logprobs: Tensor | None = None,
    importance_cap: float = 2.0,
) -> LossOutput:
    """- sum over counted tokens of w min(r A, clip(r, 1 - clip, 1 + clip) A), divided by total.

    logprobs: [B, T], nats, the policy's now, with gradient. old_logprobs: [B, T], the trainer's when the
    batch was drawn, so r = exp(logprobs - old_logprobs) is exactly 1 before the first update. advantages,
    mask: [B, T]. clip_high: the upper clip where it is another (DAPO's clip-higher), None: clip.

    total: the whole batch's count of tokens (> 0); with per_sequence (GRPO) each sample's sum is divided by its own
    count of tokens and total is the whole batch's count of samples. Micro-batches and ranks then sum to the whole.

    sampled_logprobs: [B, T], the engine's; given, each token is weighted by w = min(exp(old - sampled),
    importance_cap), without gradient, for the tokens were drawn from the sampler and not from the trainer's
    policy. Not given, w = 1.

    metrics, detached scalars. Summed over micro-batches they are the whole batch's means, divided as the loss is:
    `clip_fraction` (the clipped branch is the smaller), `approx_kl` (k3 of KL(old || new), nats),
    `ratio_mean`, and with sampled_logprobs `importance_mean`, `importance_capped` (share at the cap) and
    `sampler_difference` (|old - sampled|, nats). `ratio_max` is a maximum: combine it by maximum.

    Raises ValueError where shapes differ. Source: Schulman et al. 2017, equation 7; Shao et al. 2024
    (DeepSeekMath), equation 3, for per_sequence; Yu et al. 2025 (DAPO), equation 8, for clip_high and the mean over
    tokens; the truncated weight is Ionides 2008, for samplers that are not quite the trainer: Yao et al. 2025,
    "Your efficient RL framework secretly brings you off-policy RL training".
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    logprobs, advantages = zero_masked(logprobs, mask), zero_masked(advantages, mask).detach()
    old_logprobs = zero_masked(old_logprobs, mask).detach()
    mean = sequence_mean if per_sequence else masked_mean

    ratio = _ratio(logprobs - old_logprobs)
    surrogate, held = _clipped(ratio, advantages, clip, clip if clip_high is None else clip_high)

    with torch.no_grad():
        metrics = {
            "clip_fraction": mean(held, mask, total=total),
            "approx_kl": mean(k3(old_logprobs, logprobs), mask, total=total),
            "ratio_mean": mean(ratio, mask, total=total),
            "ratio_max": zero_masked(ratio, mask).max(),
        }
    if sampled_logprobs is not None:
        gap = _gap(old_logprobs, sampled_logprobs, mask)
        weight = gap.exp().clamp(max=importance_cap)
        surrogate = weight * surrogate
        metrics["importance_mean"] = mean(weight, mask, total=total)
        metrics["importance_capped"] = mean((weight >= importance_cap).to(gap.dtype), mask, total=total)
        metrics["sampler_difference"] = mean(gap.abs(), mask, total=total)
    return LossOutput(-mean(surrogate, mask, total=total), metrics)


def sequence_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    total: float | Tensor,
    ratio: Literal["mean", "product"],
    clip: float = 0.2,
    clip_high: float | None = None,
    sampled_logprobs: Tensor | None = None,
    importance_cap: float = 2.0,
) -> LossOutput:
    """- sum over completions of w min(s A, clip(s, 1 - clip, 1 + clip_high) A), divided by total.

    As `ppo_policy_loss`, but with one ratio and one advantage a completion: advantages: [B]; total: the whole batch's
    count of completions. ratio "mean": s = exp of the mean over tokens of logprobs - old_logprobs (GSPO: the geometric
    mean, whose clip is a few thousandths); "product": s = exp of the sum, the completion being one action (RLOO).
    w = min(exp of the same mean or sum of old - sampled, importance_cap).

    metrics as there, means over completions; approx_kl is of tokens, averaged within each completion.
    Raises ValueError where shapes differ or a row counts no token.
    Source: Zheng et al. 2025 (GSPO), equations 5 and 7; Ahmadian et al. 2024 (RLOO), section 3.3.
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, mask=mask)
    if advantages.shape != mask.shape[:1]:
        raise ValueError(f"advantages {tuple(advantages.shape)} do not fit a mask of {tuple(mask.shape)}")
    if not bool(mask.any(dim=1).all()):
        raise ValueError("a completion has no counted token for its ratio to be of")
    logprobs, advantages = zero_masked(logprobs, mask), advantages.detach()
    old_logprobs = zero_masked(old_logprobs, mask).detach()
    reduce = masked_mean if ratio == "mean" else masked_sum

    of_all = _ratio(reduce(logprobs - old_logprobs, mask, dim=1))
    surrogate, held = _clipped(of_all, advantages, clip, clip if clip_high is None else clip_high)
    with torch.no_grad():
        metrics = {
            "clip_fraction": held.sum() / total,
            "approx_kl": sequence_mean(k3(old_logprobs, logprobs), mask, total=total),
            "ratio_mean": of_all.sum() / total,
            "ratio_max": of_all.max(),
        }
    if sampled_logprobs is not None:
        gap = _gap(old_logprobs, sampled_logprobs, mask)
        weights = reduce(gap, mask, dim=1).exp().clamp(max=importance_cap)
        surrogate = weights * surrogate
        metrics["importance_mean"] = weights.sum() / total
        metrics["importance_capped"] = (weights >= importance_cap).to(gap.dtype).sum() / total
        metrics["sampler_difference"] = sequence_mean(gap.abs(), mask, total=total)
    return LossOutput(-surrogate.sum() / total, metrics)


def reinforce_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    total: float | Tensor,
    sampled_logprobs: Tensor | None = None,
    importance_cap: float = 2.0,
) -> LossOutput:
    """- sum over counted tokens of w A log p, divided by total: its slope is the policy gradient.

    logprobs: [B, T], nats, with gradient. advantages, mask: [B, T]. total: the whole batch's count of completions,
    so that the slope is that of the expected score (or of tokens, which only changes the step's size).
    sampled_logprobs: [B, T], nats, of the policy that drew the tokens, where that is another (a logged one, the
    engine's): w = min(exp(logprobs - sampled_logprobs), importance_cap), without gradient. Not given, w = 1. Each
    token's w mends how that token was drawn and not how its predecessors were: exact for completions of one token,
    near to it while the two policies are near; the whole product, which is exact, varies too much to be of use.

    metrics, divided as the loss is: with sampled_logprobs the last three of `ppo_policy_loss`, else none.
    Raises ValueError where shapes differ. Source: Williams 1992 (REINFORCE), equation 11.
    """
    check_same_shape(logprobs=logprobs, advantages=advantages, mask=mask)
    logprobs = zero_masked(logprobs, mask)
    surrogate = logprobs * zero_masked(advantages, mask).detach()
    metrics: dict[str, Tensor] = {}
    if sampled_logprobs is not None:
        apart = _gap(logprobs, sampled_logprobs, mask)
        weight = apart.exp().clamp(max=importance_cap)
        surrogate = weight * surrogate
        metrics["importance_mean"] = masked_mean(weight, mask, total=total)
        capped = (weight >= importance_cap).to(apart.dtype)
        metrics["importance_capped"] = masked_mean(capped, mask, total=total)
        metrics["sampler_difference"] = masked_mean(apart.abs(), mask, total=total)
    return LossOutput(-masked_mean(surrogate, mask, total=total), metrics)


def _ratio(log_ratio: Tensor) -> Tensor:
    """exp, held at e^80: float32 ends at e^88, and the slope of a clipped infinity is 0 * inf = NaN, not 0."""
    return torch.exp(log_ratio.clamp(max=80.0))


def _clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r, 1 - low, 1 + high) A), and 1 where the clipped one is the smaller, 0 elsewhere."""
    plain = ratio * advantages
    clipped = ratio.clamp(1.0 - low, 1.0 + high) * advantages
    return torch.minimum(plain, clipped), (clipped < plain).to(ratio.dtype)


@torch.no_grad()
def _gap(logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor) -> Tensor:
    """How much likelier the learner finds each token than the policy that drew it, nats; 0 where mask is False."""
    check_same_shape(sampled_logprobs=sampled_logprobs, mask=mask)
    return logprobs.detach() - zero_masked(sampled_logprobs, mask)
