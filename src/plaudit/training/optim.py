"""Optimisers and schedules by name, and the step that they make.

Two kinds of decay go by one name. In `adam`, `adam_tf`, `sgd`, `rmsprop` and `adadelta` weight_decay is L2: it is
added to the gradient, and where gradients are scaled by their size so is it. In `adamw` it is decoupled (Loshchilov and
Hutter 2019, algorithm 2): weights shrink by rate * weight_decay whatever their gradients are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from plaudit.config import Config
from plaudit.phases import phase
from plaudit.types import UserError

OptimizerName = Literal["adamw", "adam", "adam_tf", "sgd", "rmsprop", "adadelta"]
ScheduleName = Literal["constant", "linear", "cosine", "exponential"]

OWN: dict[str, dict[str, float]] = {
    "adamw": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "adam": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "adam_tf": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "sgd": {"momentum": 0.0},
    "rmsprop": {"beta2": 0.99, "eps": 1e-8, "momentum": 0.0},
    "adadelta": {"beta2": 0.9, "eps": 1e-6},
}
"""The settings that each optimiser has, with the values that its users expect (torch's)."""


class OptimizerConfig(Config):
    """none: the optimiser's own (`OWN`). beta1: decay of the mean of gradients; beta2: of the mean of their squares
    (RMSprop's alpha, Adadelta's rho); eps: beside the root of that mean; momentum: sgd's and rmsprop's."""

    name: OptimizerName = "adamw"
    beta1: float | None = Field(default=None, ge=0, lt=1)
    beta2: float | None = Field(default=None, ge=0, lt=1)
    eps: float | None = Field(default=None, gt=0)
    momentum: float | None = Field(default=None, ge=0, lt=1)

    @model_validator(mode="after")
    def _settings_fit(self) -> OptimizerConfig:
        for name, value in self.model_dump(exclude={"name"}).items():
            if value is not None and name not in OWN[self.name]:
                raise ValueError(f"{self.name} has no {name}; it has {', '.join(OWN[self.name])}")
        return self


class AdamTF(torch.optim.Optimizer):
    """Adam as TensorFlow 1 computes it, which OpenAI's PPO was trained with (Huang et al. 2024, detail on Adam).

    p -= rate * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps): "epsilon hat" of Kingma and Ba 2015, the
    note at the end of section 2. torch adds eps to sqrt(v / (1 - beta2^t)) instead, so that at step 1 with beta2 0.999
    TensorFlow's eps weighs 31.6 times torch's, and less at every step.
    """

    def __init__(
        self, params: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step down the gradients that there are."""
        assert closure is None
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float64)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                taken = int(state["step"])
                gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
                state["exp_avg"].lerp_(gradient, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                rate = group["lr"] * math.sqrt(1 - beta2**taken) / (1 - beta1**taken)
                below = state["exp_avg_sq"].sqrt().add_(group["eps"])
                parameter.addcdiv_(state["exp_avg"], below, value=-rate)


OPTIMIZERS: dict[str, Callable[[Any, float, dict[str, float]], torch.optim.Optimizer]] = {
    "adamw": lambda groups, rate, own: torch.optim.AdamW(
        groups, lr=rate, betas=(own["beta1"], own["beta2"]), eps=own["eps"], fused=True
    ),
    "adam": lambda groups, rate, own: torch.optim.Adam(
        groups, lr=rate, betas=(own["beta1"], own["beta2"]), eps=own["eps"], fused=True
    ),
    "adam_tf": lambda groups, rate, own: AdamTF(
        groups, lr=rate, betas=(own["beta1"], own["beta2"]), eps=own["eps"]
    ),
    "sgd": lambda groups, rate, own: torch.optim.SGD(groups, lr=rate, momentum=own["momentum"], foreach=True),
    "rmsprop": lambda groups, rate, own: torch.optim.RMSprop(
        groups, lr=rate, alpha=own["beta2"], eps=own["eps"], momentum=own["momentum"], foreach=True
    ),
    "adadelta": lambda groups, rate, own: torch.optim.Adadelta(
        groups, lr=rate, rho=own["beta2"], eps=own["eps"], foreach=True
    ),
}


def make_optimizer(
    config: OptimizerConfig,
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """The optimiser of that name. weight_decay acts on matrices alone: norms' gains and biases are left as they
    are. Each group of parameters is told its decay, so no optimiser's own default for it is ever in force."""
    everything = list(parameters)
    decayed = matrices(everything)
    known = set(map(id, decayed))
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in everything if id(p) not in known], "weight_decay": 0.0},
    ]
    given = {name: value for name, value in config.model_dump().items() if value is not None}
    own = OWN[config.name] | {name: value for name, value in given.items() if name != "name"}
    return OPTIMIZERS[config.name]([group for group in groups if group["params"]], learning_rate, own)


def matrices(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """What L1 and weight decay act on: not the norms' gains and not the biases."""
    return [p for p in parameters if p.ndim >= 2]


def adam(
    parameters: Sequence[nn.Parameter], *, learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Adam:
    """Adam with eps 1e-5, as in PPO's published implementations (Huang et al. 2022, detail 3)."""
    return torch.optim.AdamW(parameters, lr=learning_rate, eps=1e-5, weight_decay=weight_decay, fused=True)


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda _left, _end: 1.0,
    "linear": lambda left, end: end + (1 - end) * left,
    "cosine": lambda left, end: end + (1 - end) * (1 - math.cos(math.pi * left)) / 2,
    "exponential": lambda left, end: end ** (1 - left),
}
"""left: the share of the way that is still to go, 1 after the warm-up and 0 at the end -> the factor, 1 to end."""


def scheduled(name: ScheduleName, step: int, total: int, *, warmup: int = 0, end: float = 0.0) -> float:
    """The factor of the learning rate at a step (0, 1, ..., total - 1): up to 1 in a line over `warmup` steps, then
    towards `end`, which would be reached at step `total`.

    constant stays at 1; linear; cosine (Loshchilov and Hutter 2017, equation 5, without restarts); exponential falls
    by the same factor at every step, so its end is above 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[name](linear_to_zero(step, total, warmup), end)


def linear_to_zero(step: int, total: int, warmup: int = 0) -> float:
    """The factor of the learning rate at a step (0, 1, ...): up to 1 over the warm-up, then straight to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


@torch.no_grad()
def add_l1(parameters: Iterable[nn.Parameter], l1: float) -> float:
    """Add the gradient of l1 * sum |p| over the matrices: l1 * sign(p), 0 where p is 0. Returns the sum |p|.

    It is a term of the loss, so it is added once a step, before the gradient's norm is clipped.
    """
    size = 0.0
    for parameter in matrices(parameters):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.sign(), alpha=l1)
            size += float(parameter.abs().sum())
    return size


@phase("optimiser")
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


def check_weights(parameters: Iterable[nn.Parameter], directory: Path) -> None:
    """UserError where a trained weight is no number: the last step's loss was taken before that step moved them."""
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise UserError(
            "a weight is not a number after the last step",
            where=str(directory),
            fix="lower the learning rate",
        )
