"""Several tasks in one training run: how much of each, by rules with a source, and which example comes next.

A task is a file of examples; its weight is the probability that an example of a batch is one of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from plaudit.config import Config
from plaudit.randomness import rng
from plaudit.types import UserError

Rule = Literal["all", "fixed", "excess", "ratio"]
TINY = 1e-9
"""Nats a token: what has been learned by heart still has a ratio."""


class MixtureConfig(Config):
    """rule: `all` takes every example once an epoch; `fixed` draws by weights that stay; `excess` and `ratio` change
    them at every measurement. weights: to begin with, one a file; none given: by `temperature_weights`."""

    rule: Rule = "all"
    weights: list[float] = Field(default=[])
    temperature: float = Field(default=1.0, gt=0)
    limit: int | None = Field(default=None, ge=1)
    strength: float = Field(default=1.0, ge=0)
    floor: float = Field(default=0.001, ge=0, le=1)
    reference: str | None = None

    @model_validator(mode="after")
    def _settings_fit(self) -> MixtureConfig:
        if self.weights and self.rule == "all":
            raise ValueError("rule all takes every example once; weights want rule fixed, excess or ratio")
        if any(weight <= 0 for weight in self.weights):
            raise ValueError("weights must be above 0; leave a task's file out instead")
        if (self.rule == "excess") != (self.reference is not None):
            raise ValueError("reference names the run whose held-out losses rule excess compares with")
        return self


def task_names(paths: Sequence[str]) -> list[str]:
    """A short name of each file: what stands before its name's first dot, or the whole path where two share that."""
    short = [Path(path).name.partition(".")[0] for path in paths]
    return [name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]


def normalised(weights: Sequence[float], floor: float = 0.0) -> list[float]:
    """Weights that sum to 1, a share `floor` of the whole spread evenly, so that no task is forgotten (the smoothing
    of Xie et al. 2023, algorithm 1)."""
    total = math.fsum(weights)
    return [(1 - floor) * weight / total + floor / len(weights) for weight in weights]


def temperature_weights(counts: Sequence[int], *, temperature: float, limit: int | None) -> list[float]:
    """In proportion to min(count, limit) ** (1 / temperature): 1 weighs all examples the same, large ones all tasks.

    Raffel et al. 2020 (T5), section 3.5.2: examples-proportional mixing with an artificial limit, and
    temperature-scaled mixing.
    """
    sizes = [count if limit is None else min(count, limit) for count in counts]
    return normalised([size ** (1 / temperature) for size in sizes])


def excess_weights(
    weights: Sequence[float],
    losses: Sequence[float],
    reference: Sequence[float],
    *,
    strength: float,
    floor: float,
) -> list[float]:
    """weight * exp(strength * max(loss - reference, 0)), normalised: what is still to be learned weighs more.

    Xie et al. 2023 (DoReMi), algorithm 1, with held-out losses of the model itself at each measurement for the proxy's
    training losses at each step, as in Xia et al. 2024 (Sheared LLaMA), algorithm 1. Losses in nats a token.
    """
    excess = [strength * max(loss - goal, 0.0) for loss, goal in zip(losses, reference, strict=True)]
    most = max(excess)
    grown = [weight * math.exp(e - most) for weight, e in zip(weights, excess, strict=True)]
    return normalised(grown, floor)


def ratio_weights(
    begun: Sequence[float], losses: Sequence[float], first: Sequence[float], *, strength: float, floor: float
) -> list[float]:
    """The weights at the beginning * (loss / first loss) ** strength, normalised: tasks that learn slowly weigh more.

    loss / first loss, over its mean, is the relative inverse training rate of Chen et al. 2018 (GradNorm), section
    3.1, which scales tasks' gradients with it to the power alpha; here it scales how often they are drawn.
    """
    ratios = [max(loss, TINY) / max(before, TINY) for loss, before in zip(losses, first, strict=True)]
    return normalised([w * ratio**strength for w, ratio in zip(begun, ratios, strict=True)], floor)


def draw_batch(
    sizes: dict[str, int],
    weights: dict[str, float],
    taken: dict[str, int],
    *,
    count: int,
    seed: int,
    step: int,
) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """The task and the place in it of each example of a step, and how many of each task are taken after it.

    taken: how many examples of each task the steps before drew. A task's examples all come once before any comes
    again, in a keyed order; what is drawn depends on the arguments alone, not on the order in which tasks are named.
    """
    names = sorted(sizes)
    chance = normalised([weights[name] for name in names])
    drawn = rng(seed, "mixture", step).choice(len(names), size=count, p=chance)
    orders: dict[tuple[str, int], Any] = {}
    after = dict(taken)
    found = []
    for name in (names[int(which)] for which in drawn):
        turn, place = divmod(after[name], sizes[name])
        if (name, turn) not in orders:
            orders[name, turn] = rng(seed, "mixture order", name, turn).permutation(sizes[name])
        found.append((name, int(orders[name, turn][place])))
        after[name] += 1
    return found, after


def first_weights(mixture: MixtureConfig, names: Sequence[str], sizes: dict[str, int]) -> dict[str, float]:
    """Each task's weight to begin with: as given, one a name, or by how many examples it has; in the order of sizes."""
    if mixture.weights:
        found = normalised(mixture.weights)
    else:
        counts = [sizes[name] for name in names]
        found = temperature_weights(counts, temperature=mixture.temperature, limit=mixture.limit)
    given = dict(zip(names, found, strict=True))
    return {name: given[name] for name in sizes}


def next_weights(
    mixture: MixtureConfig,
    weights: dict[str, float],
    losses: dict[str, float],
    *,
    begun: dict[str, float],
    first: dict[str, float],
    goals: dict[str, float],
) -> dict[str, float]:
    """Each task's weight after a measurement of held-out losses, by the mixture's rule.

    begun, first: the weights and the losses before the first step; goals: the reference run's losses.
    """
    strength, floor, names = mixture.strength, mixture.floor, list(weights)
    now = [losses.get(name, 0.0) for name in names]
    if mixture.rule == "excess":
        reference = [goals[name] for name in names]
        found = excess_weights([*weights.values()], now, reference, strength=strength, floor=floor)
    elif mixture.rule == "ratio":
        at_first = [first[name] for name in names]
        found = ratio_weights([begun[name] for name in names], now, at_first, strength=strength, floor=floor)
    else:
        return weights
    return dict(zip(names, found, strict=True))


def reference_losses(mixture: MixtureConfig, names: Sequence[str]) -> dict[str, float]:
    """Each task's held-out loss in the finished run that rule excess compares with; nothing for other rules.
    UserError where the run does not say it."""
    if mixture.reference is None:
        return {}
    path = Path(mixture.reference).expanduser() / "summary.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["heldout_losses"]
        return {name: float(found[name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"does not say the held-out loss of every task ({type(error).__name__}: {error})",
            where=str(path),
            fix="name a finished sft run on the same data with the same seed and heldout",
        ) from None
