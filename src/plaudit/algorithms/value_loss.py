"""PPO's clipped value loss, and how much of the returns the values explain."""

import torch
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.masking import check_same_shape, masked_mean, masked_var, zero_masked


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    total: float | Tensor,
    clip: float = 0.2,
) -> LossOutput:
    """Sum over counted tokens of max((v - R)^2, (clip(v, old -+ clip) - R)^2) / 2, divided by total.

    values: [B, T], the value head's now, with gradient. old_values: [B, T], when the batch was drawn.
    returns: [B, T], from `gae`. mask: [B, T]. clip: in units of value; math.inf turns it off.
    total: the whole batch's count of tokens (> 0): micro-batches and ranks then sum to the whole.

    metrics, detached scalars that sum over micro-batches to the whole batch's means over tokens:
    `clip_fraction` (the clipped square is the larger), `value_error` (mean (v - R)^2, without the clip).
    Explained variance is no sum of parts: see `explained_variance`.

    Raises ValueError where shapes differ. Source: lm-human-preferences (`PPOTrainer.loss`) and OpenAI
    baselines' ppo2; the paper has the square alone (Schulman et al. 2017, equation 9).
    """
    check_same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    values, old_values = zero_masked(values, mask), zero_masked(old_values, mask).detach()
    returns = zero_masked(returns, mask).detach()

    near_old = torch.clamp(values, old_values - clip, old_values + clip)
    plain = (values - returns).square()
    clipped = (near_old - returns).square()
    loss = 0.5 * masked_mean(torch.maximum(plain, clipped), mask, total=total)
    metrics = {
        "clip_fraction": masked_mean((clipped > plain).to(values.dtype), mask, total=total),
        "value_error": masked_mean(plain.detach(), mask, total=total),
    }
    return LossOutput(loss, metrics)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over counted tokens: 1 perfect, 0 no better than a constant.

    values, returns, mask: [B, T], the whole batch's (it does not sum over micro-batches). -> a scalar, NaN
    where the returns do not vary. Raises ValueError where shapes differ. Source: OpenAI baselines,
    `explained_variance`.
    """
    check_same_shape(values=values, returns=returns, mask=mask)
    variance = masked_var(returns, mask)
    residual = masked_var(zero_masked(returns, mask) - zero_masked(values, mask), mask)
    return torch.where(variance > 0, 1.0 - residual / variance, torch.nan)
