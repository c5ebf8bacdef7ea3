"""What the curves of a run that learned from given data say: whether it learned, and whether it learned by heart.

Demonstrations, judgements and logs have no samples of the model's own, so nothing is said of any.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

from plaudit.evaluation.diagnosis import ENOUGH, SURE, Curve, Finding, Row, steps_too_large, worst_first
from plaudit.evaluation.page import number

ROSE = 0.01
"""By which share of its lowest a held-out loss must have risen to be spoken of: it is of the same data each time."""
MOVES = ("q_loss", "round_reward")
"""Who logs one of these learns towards targets that move, so that its loss need not fall."""


def diagnose_fit(
    rows: Sequence[Row], summary: Mapping[str, Any], settings: Collection[str] = ()
) -> list[Finding]:
    """What is wrong with a run that learned from given data, the worst first; what is fine comes last.

    rows: of its metrics.jsonl; summary: what summary.json holds; settings: of the run, by dotted name.
    """
    stopped = summary.get("stopped")
    found = [Finding("fine", f"Training stopped early, as asked: {stopped}.")] if stopped else []
    held = heldout_curve(rows, summary)
    for look in (_by_heart(rows, held, summary, settings), _learned(rows, held), _beside_rules(summary)):
        found += look
    measured = any(number(value) is not None for name, value in summary.items() if _is_measured(name))
    if not held.values and not measured and (not settings or "heldout" in settings):
        what = "Nothing was measured on held-out data, so nobody would see it if this were learned by heart."
        found.append(Finding("warning", what, "Raise heldout, or give more data."))
    return worst_first([*found, *steps_too_large(rows)])


def heldout_curve(rows: Sequence[Row], summary: Mapping[str, Any]) -> Curve:
    """The held-out loss by step, with what it was before the first where that is known."""
    held = Curve.of(rows, "heldout_loss")
    before = number(summary.get("heldout_loss_before"))
    return held if before is None or not held.values else Curve([0, *held.steps], [before, *held.values])


def _is_measured(name: str) -> bool:
    """Counts of what was held out are no measurement; they end in an s (but a loss does, too)."""
    return name in ("rating_correlation", "heldout_loss") or (
        name.startswith("heldout_") and not name.endswith("s")
    )


def _by_heart(
    rows: Sequence[Row], held: Curve, summary: Mapping[str, Any], settings: Container[str]
) -> list[Finding]:
    """Overfitting: the held-out loss rises while the training loss falls."""
    if len(held.values) < 2:
        return []
    first, last, lowest = held.values[0], held.values[-1], min(held.values)
    at = held.steps[held.values.index(lowest)]
    if last <= lowest + ROSE * abs(lowest):
        fell = first - last > ROSE * abs(first)
        moved = f"from {first:.4g} to {last:.4g}"
        if fell:
            return [Finding("fine", f"The held-out loss fell {moved}.")]
        return [
            Finding("warning", f"The held-out loss has not clearly fallen ({moved}).",
                    "Give more data or more epochs, or raise the learning rate.")
        ]  # fmt: skip
    when = f"at step {at}" if at else "before the first step"
    rose = f"the held-out loss rose from {lowest:.4g} {when} to {last:.4g}"
    loss = Curve.of(rows, "loss")
    fell = bool(loss.values) and loss.last < loss.level(max(1, loss.until(at)))
    kept = summary.get("kept_step")
    if kept is not None and kept != held.steps[-1]:
        return [Finding("fine", f"From there on {rose}; the model that was kept is that of step {kept}.")]
    words = ["take fewer epochs", "lower the learning rate"]
    words += ["set keep: best"] if "keep" in settings else []
    words += [f"raise {name}" for name in ("dropout", "weight_decay") if name in settings][:1]
    what = (
        f"Overfitting: {rose} while the training loss fell on." if fell else f"{rose[0].upper()}{rose[1:]}."
    )
    advice = "; ".join(words)
    return [Finding("alarm" if last > first else "warning", what, f"{advice[0].upper()}{advice[1:]}.")]


def _learned(rows: Sequence[Row], held: Curve) -> list[Finding]:
    """Whether the training loss fell, where nothing held out can say it better."""
    loss = Curve.of(rows, "loss")
    if len(loss.values) < ENOUGH or any(name in row for row in rows for name in MOVES):
        return []
    moved = f"from {loss.first:.4g} to {loss.last:.4g}"
    if loss.first - loss.last > SURE * loss.error:
        return [Finding("fine", f"The training loss fell {moved}.")]
    if len(held.values) > 1 and held.values[0] - held.values[-1] > ROSE * abs(held.values[0]):
        return []
    return [
        Finding("warning", f"Nothing learned that could be seen: the training loss went {moved}, within its noise.",
                "Raise the learning rate or the epochs; see whether the data contradicts itself.")
    ]  # fmt: skip


def _beside_rules(summary: Mapping[str, Any]) -> list[Finding]:
    """A reward beside the rule that knows the length alone; values beside the rewards' mean."""
    own, rule = number(summary.get("heldout_accuracy")), number(summary.get("length_only_accuracy"))
    if own is not None and rule is not None:
        beside = (
            f"{own:.1%} of the held-out comparisons are put right, by the longer-or-shorter rule {rule:.1%}"
        )
        if own <= rule:
            return [Finding("alarm", f"The reward is no better than its length: {beside}.",
                            "Collect more judgements; set probe: true; judge answers of like length.")]  # fmt: skip
        return [Finding("fine", f"{beside[0].upper()}{beside[1:]}.")]
    if own is not None and own <= 0.5:
        return [Finding("warning", f"{own:.1%} of the held-out judgements are put right; a coin has half.",
                        "Collect more judgements, or raise the learning rate or the epochs.")]  # fmt: skip
    error, constant = (number(summary.get(f"heldout_{name}_error")) for name in ("reward", "constant"))
    if error is not None and constant is not None:
        beside = f"off by {error:.3g} from held-out rewards, their mean alone by {constant:.3g}"
        if error >= constant:
            return [Finding("warning", f"The values say no more than the rewards' mean: {beside}.",
                            "Give more data or more epochs.")]  # fmt: skip
        return [Finding("fine", f"The values are {beside}.")]
    return []
