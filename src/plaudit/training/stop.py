"""A run stops by itself, and says why and what to try."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plaudit.types import UserError

Row = Mapping[str, float]
KL_GROWTH = 1.2
"""How many times the KL of a stretch of steps must be that of the stretch before to count as grown."""


def check_finite(step: int, directory: Path, *numbers: float) -> None:
    """UserError where a step (0, 1, ...) of a run that learns from given data came to what is no number."""
    if not all(math.isfinite(number) for number in numbers):
        raise UserError(
            f"the loss is not a number at step {step + 1}",
            where=str(directory),
            fix="lower the learning rate",
        )


def level_error(values: Sequence[float], width: int) -> float:
    """The standard error of the difference between two means over `width` steps each, from the noise that successive
    steps show: half the mean square of their differences is a step's variance (von Neumann et al. 1941)."""
    steps = [b - a for a, b in itertools.pairwise(values)]
    if not steps:
        return 0.0
    return math.sqrt(sum(d * d for d in steps) / (2 * len(steps))) * math.sqrt(2 / width)


def price(settings: Container[str]) -> str | None:
    """Which of a recipe's settings (dotted names) holds its policy to the reference; None where none does."""
    return next((name for name in ("kl.coef", "policy.kl_coef", "beta") if name in settings), None)


def closer(settings: Container[str]) -> str:
    """How a recipe is told to stay nearer to its reference."""
    return f"raise {price(settings)}" if price(settings) else "take fewer epochs"


def broader(settings: Container[str]) -> str:
    """How it is told to stay undecided."""
    known = [name for name in ("entropy_coef", "policy.entropy_coef") if name in settings]
    return f"raise {known[0]}" if known else closer(settings)


def reason_to_stop(
    history: Sequence[Row],
    *,
    max_kl: float,
    min_entropy: float,
    max_length_growth: float,
    patience: int,
    settings: Container[str] = (),
) -> str | None:
    """Why the run must stop after the newest row, None while all is well.

    Rows hold reward, kl (nats a token against the reference), entropy (nats a token), length (tokens).
    max_kl, min_entropy in nats a token; max_length_growth: times the first step's mean length; patience: how many
    steps a stretch has. A run stops where the mean reward of the newest stretch is under that of the one before by
    its standard error or more while the KL grew, or where all scores of a stretch are one number. reward_std, where a
    row has it: the deviation of its scores. settings: the recipe's, by dotted name, so that what is advised is there.
    """
    now = history[-1]
    for name in ("reward", "kl", "entropy", "length"):
        value = now[name]
        if value is None or not math.isfinite(value):
            return f"{name} is not a number: lower the learning rate, or look for a bad score"
    if now["kl"] > max_kl:
        return (
            f"KL {now['kl']:.3f} nats a token is over {max_kl}: {closer(settings)} or lower the learning rate"
        )
    if now["entropy"] < min_entropy:
        return (
            f"entropy {now['entropy']:.3f} nats a token is under {min_entropy}: {broader(settings)} or lower the "
            "learning rate"
        )
    if now["length"] > max_length_growth * history[0]["length"]:
        return (
            f"length {now['length']:.1f} is over {max_length_growth} times the start's: "
            "look at the reward's taste for length"
        )
    last = history[-patience:]
    constant = all(row.get("reward_std") == 0 and row["reward"] == now["reward"] for row in last)
    if constant and len(last) == patience:
        return (
            f"every sample of {patience} steps scored {now['reward']:g}, so there is nothing to learn: "
            "look at the reward"
        )
    if len(history) >= 2 * patience:
        before, newest = (
            {name: sum(row[name] for row in part) / patience for name in ("reward", "kl")}
            for part in (history[-2 * patience : -patience], last)
        )
        error = level_error([row["reward"] for row in history[-2 * patience :]], patience)
        grown = newest["kl"] > KL_GROWTH * max(before["kl"], 0.01)
        if newest["reward"] - before["reward"] <= -error and grown:
            return (
                f"reward has not risen for {patience} steps ({before['reward']:.3g}, then {newest['reward']:.3g}) "
                f"while KL grew from {before['kl']:.3f} to {newest['kl']:.3f}: refit the reward, or stop earlier"
            )
    return None


@dataclass(frozen=True, slots=True)
class Best:
    """The lowest held-out loss so far, after how many steps it was measured (0: before the first), and how many
    measurements have not been lower since."""

    step: int
    loss: float
    since: int = 0


def measured(best: Best, step: int, loss: float) -> Best:
    """What is best after one more measurement; an equal loss is no lower one."""
    return Best(step, loss) if loss < best.loss else replace(best, since=best.since + 1)
