"""How much each rater's comparisons are worth, from what others said of the same items."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from plaudit.feedback.dawid_skene import dawid_skene
from plaudit.feedback.events import Event
from plaudit.feedback.judgements import ADJUDICATES

PRIOR = 10.0
"""Shared answers that whoever is new is taken to have given, as rightly as the others did."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """shared: comparisons that somebody else judged too. accuracy: the share of them that are right, by Dawid and Skene
    (None where nothing is shared), drawn towards the others'. weight: from 0 to 1; what is right half of the time says
    nothing, and who is right less often than that is not believed the other way round."""

    shared: int
    accuracy: float | None
    weight: float


def of_events(events: Sequence[Event]) -> dict[str, Reliability]:
    """Every rater's. A tie, both bad, and whatever is no comparison tell nothing here."""
    said: dict[str, dict[str, int]] = defaultdict(dict)
    for event in events:
        if event.payload.get(ADJUDICATES):
            continue  # a decision is nobody's agreement
        if event.kind == "comparison" and event.payload["choice"] in (0, 1):
            said[event.item or ""][event.rater] = event.payload["choice"]
    answers = [
        (item, rater, choice)
        for item, by_rater in said.items()
        if len(by_rater) > 1
        for rater, choice in by_rater.items()
    ]
    raters = sorted({event.rater for event in events})
    if not answers:
        return {rater: Reliability(0, None, 1.0) for rater in raters}
    accuracy = dawid_skene(answers, smoothing=1.0).accuracy()
    shared = Counter(rater for _, rater, _ in answers)
    usual = median(accuracy.values())
    found = {}
    for rater in raters:
        n = shared.get(rater, 0)
        drawn = (n * accuracy.get(rater, usual) + PRIOR * usual) / (n + PRIOR)
        worth = (2 * drawn - 1) / (2 * usual - 1) if usual > 0.5 else 1.0
        found[rater] = Reliability(n, drawn if n else None, round(min(1.0, max(0.0, worth)), 4))
    return found


def raters_wanted(alpha: float, least: int, most: int, reliability: float = 0.8) -> int:
    """Raters an item whose mean is as reliable as wanted, where one's reliability is alpha (Spearman and Brown's
    formula); within least and most."""
    if alpha >= 1:
        return least
    if alpha <= 0:
        return most
    wanted = reliability * (1 - alpha) / (alpha * (1 - reliability))
    return max(least, min(most, -int(-(wanted - 1e-9) // 1)))
