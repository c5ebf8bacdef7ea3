"""How good a reward model is on prompts that it never saw, beside a rule that knows only the length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.data.judged import Judged, Pair
from plaudit.reward.model import RewardModel


def measure(reward: RewardModel, training: Sequence[Judged], heldout: Sequence[Judged]) -> dict[str, Any]:
    """Accuracy on held-out comparisons that are no ties, the length rule's, and calibration.

    The length rule prefers the longer or the shorter completion, whichever was right more often in training.
    Calibration: by tenths of the predicted probability that the first is preferred, how often it was; its error
    is the mean distance weighted by count (expected calibration error, Guo et al. 2017). None where nothing is
    held out. The figures are of the reward before its normalisation, whose differences are log-odds.
    """
    scored = _scored(reward, heldout)
    margins, lengths, targets = [], [], []
    for group, scores in scored:
        for pair in _decided(group):
            margins.append(scores[pair.a] - scores[pair.b])
            lengths.append(len(group.completions[pair.a]) - len(group.completions[pair.b]))
            targets.append(pair.target)
    figures: dict[str, Any] = {
        "heldout_comparisons": len(targets),
        "heldout_accuracy": None,
        "length_only_accuracy": None,
        "calibration_error": None,
        "calibration": [],
        "rating_correlation": _rating_correlation(scored),
    }
    if not targets:
        return figures
    wanted = np.array(targets)
    longer = 1.0 if _longer_wins(training) else -1.0
    figures["heldout_accuracy"] = _accuracy(np.array(margins), wanted)
    figures["length_only_accuracy"] = _accuracy(longer * np.array(lengths), wanted)
    predicted = 1 / (1 + np.exp(-np.array(margins)))
    bins = np.minimum((predicted * 10).astype(int), 9)
    rows = [
        {
            "predicted": float(predicted[bins == b].mean()),
            "observed": float(wanted[bins == b].mean()),
            "count": int((bins == b).sum()),
        }
        for b in range(10)
        if (bins == b).any()
    ]
    figures["calibration"] = rows
    distance = sum(abs(row["predicted"] - row["observed"]) * row["count"] for row in rows)
    figures["calibration_error"] = distance / len(targets)
    return figures


def _scored(reward: RewardModel, groups: Sequence[Judged]) -> list[tuple[Judged, list[float]]]:
    """Each group with its completions' scores, all computed together."""
    scores = iter(
        reward.score_ids(
            [g.prompt for g in groups for _ in g.completions], [c for g in groups for c in g.completions]
        )
    )
    return [(group, [next(scores) for _ in group.completions]) for group in groups]


def _decided(group: Judged) -> list[Pair]:
    return [pair for pair in group.pairs if pair.target != 0.5]


def _accuracy(margin: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Share of comparisons where the margin's sign is right; no difference is half right."""
    return float(np.where(margin == 0, 0.5, (margin > 0) == (wanted > 0.5)).mean())


def _longer_wins(training: Sequence[Judged]) -> bool:
    balance = 0.0
    for group in training:
        for pair in _decided(group):
            longer = np.sign(len(group.completions[pair.a]) - len(group.completions[pair.b]))
            balance += longer * (pair.target - 0.5)
    return balance >= 0


def _rating_correlation(scored: Sequence[tuple[Judged, list[float]]]) -> float | None:
    """Pearson's correlation of the score with the mean overall rating of each held-out completion."""
    pairs = []
    for group, scores in scored:
        by_place: dict[int, list[float]] = {}
        for rated in group.ratings:
            by_place.setdefault(rated.place, []).append(rated.rating)
        pairs += [(scores[place], float(np.mean(ratings))) for place, ratings in by_place.items()]
    if len(pairs) < 3:
        return None
    found = np.array(pairs)
    if found.std(0).min() < 1e-9:
        return None
    return float(np.corrcoef(found.T)[0, 1])
