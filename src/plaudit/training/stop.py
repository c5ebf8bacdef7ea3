"""A run stops by itself, and says why and what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plaudit.types import UserError

Row = Mapping[str, float]


def check_finite(step: int, directory: Path, *numbers: float) -> None:
    """UserError where a step (0, 1, ...) of a run that learns from given data came to what is no number."""
    if not all(math.isfinite(number) for number in numbers):
        raise UserError(
            f"the loss is not a number at step {step + 1}",
            where=str(directory),
            fix="lower the learning rate",
        )


def reason_to_stop(
    history: Sequence[Row], *, max_kl: float, min_entropy: float, max_length_growth: float, patience: int
) -> str | None:
    """Why the run must stop after the newest row, None while all is well.

    Rows hold reward, kl (nats a token against the reference), entropy (nats a token), length (tokens).
    max_kl, min_entropy in nats a token; max_length_growth: times the first step's mean length; patience: over how
    many steps the reward may stay flat while the KL grows, or all scores be one number. reward_std, where a row has
    it: the deviation of its scores.
    """
    now = history[-1]
    for name in ("reward", "kl", "entropy", "length"):
        value = now[name]
        if value is None or not math.isfinite(value):
            return f"{name} is not a number: lower the learning rate, or look for a bad score"
    if now["kl"] > max_kl:
        return f"KL {now['kl']:.3f} nats a token is over {max_kl}: raise the KL coefficient or lower the learning rate"
    if now["entropy"] < min_entropy:
        return (
            f"entropy {now['entropy']:.3f} nats a token is under {min_entropy}: raise the entropy coefficient"
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
    if len(history) > patience:
        then = history[-1 - patience]
        spread = max(row["reward"] for row in history) - min(row["reward"] for row in history)
        flat = now["reward"] - then["reward"] <= 0.02 * max(spread, 1e-9)
        if flat and now["kl"] > 1.5 * max(then["kl"], 0.01):
            return (
                f"reward has not risen for {patience} steps while KL grew from {then['kl']:.3f} to "
                f"{now['kl']:.3f}: refit the reward, or stop earlier"
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
