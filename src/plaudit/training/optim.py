"""Learning rates and the step that they scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def linear_to_zero(step: int, total: int, warmup: int = 0) -> float:
    """The factor of the learning rate at a step (0, 1, ...): up to 1 over the warm-up, then straight to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def adam(
    parameters: Sequence[nn.Parameter], *, learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Adam:
    """Adam with eps 1e-5, as in PPO's published implementations (Huang et al. 2022, detail 3)."""
    return torch.optim.AdamW(parameters, lr=learning_rate, eps=1e-5, weight_decay=weight_decay, foreach=True)


def take_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    *,
    learning_rate: float,
    max_grad_norm: float,
) -> float:
    """Clip the gradients' norm, step, clear them. Returns the norm before clipping."""
    norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
