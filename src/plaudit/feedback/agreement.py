"""How far raters agree with each other, and what each of them is like.

Units of agreement are items. Where raters judged an item more than once, each one's first judgement of it is
compared with the others' first, the second with the second, and so on. Skips are not judgements.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean, pstdev
from typing import Any, Literal, TypeVar

import krippendorff
import numpy as np
from numpy.typing import NDArray

from plaudit.feedback.events import Event
from plaudit.feedback.store import Store
from plaudit.randomness import rng

Level = Literal["nominal", "ordinal", "interval"]
LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval")
T = TypeVar("T", bound=Hashable)
Table = Mapping[Any, Mapping[str, T]]
"""Units: what each rater said of each, {unit: {rater: value}}."""
RESAMPLES = 1000
_CELLS = 20_000_000
"""How large a table krippendorff may make (units x values x values), in numbers of 8 bytes."""


def alpha(table: Table[float], level: Level) -> tuple[float | None, str | None]:
    """Krippendorff's alpha: 1 is full agreement, 0 what chance gives; or None and the reason in words.

    Klaus Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011); computed by the package of that
    name. Units that fewer than two raters judged do not count.
    """
    units = [list(said.values()) for said in table.values() if len(said) > 1]
    if len({rater for said in table.values() for rater in said}) < 2:
        return None, "needs two raters"
    if not units:
        return None, "no item was judged by two raters"
    values, codes = np.unique(np.array([value for unit in units for value in unit]), return_inverse=True)
    if len(values) < 2:
        return None, "all judgements are the same, so that there is nothing to disagree on"
    counts = np.zeros((len(units), len(values)), np.int64)
    np.add.at(counts, (np.repeat(np.arange(len(units)), [len(unit) for unit in units]), codes), 1)
    found = krippendorff.alpha(value_counts=counts, value_domain=values, level_of_measurement=level)
    return float(found), None


def pairwise(table: Table[T], seed: int = 0) -> dict[str, Any]:
    """The share of pairs of judgements of one item that are equal, with its 95 % interval.

    The interval is the percentile bootstrap over items, keyed by the seed. None without a pair.
    """
    pairs = [list(combinations(said.values(), 2)) for said in table.values() if len(said) > 1]
    equal = np.array([sum(a == b for a, b in unit) for unit in pairs], float)
    return share_of(equal, np.array([len(unit) for unit in pairs], float), seed)


def share_of(part: NDArray[np.float64], whole: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """{"pairs", "share", "interval", "reason"}: the sum of the parts of the sum of the wholes, of n units [n], with the
    95 % interval of the percentile bootstrap over units, keyed by the seed. share is None where there is a reason."""
    if not len(part):
        return {"pairs": 0, "share": None, "interval": None, "reason": "no item was judged by two raters"}
    # Units that count the same are drawn together: how often each kind comes is multinomial.
    kinds, times = np.unique(np.stack([part, whole]), axis=1, return_counts=True)
    drawn = rng(seed, "agreement", "bootstrap").multinomial(len(part), times / len(part), RESAMPLES) @ kinds.T
    interval = [float(bound) for bound in np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))]
    return {
        "pairs": int(whole.sum()),
        "share": float(part.sum() / whole.sum()),
        "interval": interval,
        "reason": None,
    }


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float] | None:
    """The 95 % interval of a share (E. B. Wilson, JASA 22, 1927); None for n = 0."""
    if n == 0:
        return None
    share, square = successes / n, z * z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def report(store: Store, up_to: int | None = None, seed: int = 0) -> dict[str, Any]:
    """All figures of agreement as of event `up_to`, ready for JSON.

    {"up_to", "items", "comparisons": {"judgements", "overlapping_items", "alpha": {level: figure}, "agreement",
    "pairs": [{"raters", "agreement" (its interval is Wilson's)}]}, "categories": {..., "labels": {label: n}},
    "ratings": {criterion: {..., "alpha", "difference", "step"}},
    "raters": {rater: {...}}}. A figure of alpha is {"value", "reason"}: value is None where there is a reason.
    Comparisons count as three ordered values for the ordinal and interval levels (0 better, neither, 1 better)
    and as four names for the nominal (a tie is not "both bad"). Scores are taken to the nearest "step".
    UserError when there are not so many events.
    """
    up_to = store.as_of(up_to)
    return {"up_to": up_to, **of_events(store.current(up_to), seed)}


def of_events(events: Sequence[Event], seed: int = 0) -> dict[str, Any]:
    """As `report`, of these events alone, without "up_to"."""
    judged = [event for event in events if event.kind != "skip"]
    return {
        "items": len({event.item for event in judged}),
        "comparisons": _comparisons([event for event in events if event.kind == "comparison"], seed),
        "categories": _categories([event for event in events if event.kind == "category"], seed),
        "ratings": _ratings([event for event in events if event.kind == "rating"]),
        "raters": _raters(events),
    }


def _categories(events: Sequence[Event], seed: int) -> dict[str, Any]:
    labels = dict(sorted(Counter(event.payload["label"] for event in events).items()))
    codes = {name: float(number) for number, name in enumerate(labels)}
    table = _table((event.item, event.rater, event.payload["label"]) for event in events)
    coded = {unit: {rater: codes[x] for rater, x in said.items()} for unit, said in table.items()}
    return {
        "judgements": len(events),
        "overlapping_items": len({item for item, _ in _overlapping(table)}),
        "labels": labels,
        "alpha": {"nominal": _figure(coded, "nominal")},
        "agreement": pairwise(table, seed),
    }


def _comparisons(events: Sequence[Event], seed: int) -> dict[str, Any]:
    table = _table((event.item, event.rater, event.payload["choice"]) for event in events)
    order: dict[Any, float] = {0: -1.0, 1: 1.0, "tie": 0.0, "both_bad": 0.0}
    names: dict[Any, float] = {0: 0.0, 1: 1.0, "tie": 2.0, "both_bad": 3.0}
    alphas = {}
    for level in LEVELS:
        codes = names if level == "nominal" else order
        coded = {unit: {rater: codes[c] for rater, c in said.items()} for unit, said in table.items()}
        alphas[level] = _figure(coded, level)
    equal: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for said in table.values():
        for one, other in combinations(sorted(said), 2):
            equal[one, other].append(said[one] == said[other])
    pairs = [{"raters": [*pair], "agreement": _of_two(same)} for pair, same in sorted(equal.items())]
    return {
        "judgements": len(events),
        "overlapping_items": len({item for item, _ in _overlapping(table)}),
        "alpha": alphas,
        "agreement": pairwise(table, seed),
        "pairs": pairs,
    }


def _of_two(same: Sequence[bool]) -> dict[str, Any]:
    """As `share_of`, of two raters, where a unit is one pair: Wilson's interval."""
    return {
        "pairs": len(same),
        "share": fmean(same),
        "interval": _pair(wilson(sum(same), len(same))),
        "reason": None,
    }


def _ratings(events: Sequence[Event]) -> dict[str, Any]:
    figures = {}
    for criterion in sorted({criterion for event in events for criterion in event.payload["scores"]}):
        given = [event for event in events if criterion in event.payload["scores"]]
        exact = _table(
            (
                (event.item, event.payload.get("completion", 0)),
                event.rater,
                event.payload["scores"][criterion],
            )
            for event in given
        )
        overlapping = _overlapping(exact)
        step = 0.01 if len(overlapping) * 101**2 <= _CELLS else 0.05
        table = {
            unit: {rater: round(score / step) * step for rater, score in said.items()}
            for unit, said in exact.items()
        }
        gaps = [abs(a - b) for said in exact.values() for a, b in combinations(said.values(), 2)]
        figures[criterion] = {
            "judgements": len(given),
            "overlapping_items": len({item for (item, _), _ in overlapping}),
            "step": step,
            "alpha": {level: _figure(table, level) for level in LEVELS},
            "difference": fmean(gaps) if gaps else None,
        }
    return figures


def _raters(events: Sequence[Event]) -> dict[str, Any]:
    choices = _table(
        (event.item, event.rater, event.payload["choice"]) for event in events if event.kind == "comparison"
    )
    by_rater: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_rater[event.rater].append(event)
    agreed: dict[str, list[bool]] = defaultdict(list)
    for said in choices.values():
        for rater, choice in said.items():
            if (majority := _majority([v for r, v in said.items() if r != rater])) is not None:
                agreed[rater].append(choice == majority)
    return {rater: _rater(own, agreed[rater]) for rater, own in sorted(by_rater.items())}


def _rater(events: Sequence[Event], agreed: Sequence[bool]) -> dict[str, Any]:
    """agreed: whether they said what most of the others did, of each comparison where most did."""
    skips = sum(event.kind == "skip" for event in events)
    decided = [
        event.payload["choice"] == event.presented[0]
        for event in events
        if event.kind == "comparison" and event.presented is not None and event.payload["choice"] in (0, 1)
    ]
    scores: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.kind == "rating":
            for criterion, score in event.payload["scores"].items():
                scores[criterion].append(score)
    return {
        "judgements": len(events) - skips,
        "skips": skips,
        "skip_share": skips / len(events),
        "majority": {"items": len(agreed), "agreement": fmean(agreed) if agreed else None},
        "first": {
            "comparisons": len(decided),
            "share": fmean(decided) if decided else None,
            "interval": _pair(wilson(sum(decided), len(decided))),
        },
        "scores": {
            criterion: {"n": len(values), "mean": fmean(values), "sd": pstdev(values)}
            for criterion, values in sorted(scores.items())
        },
    }


def _table(said: Iterable[tuple[Hashable, str, T]]) -> dict[Any, dict[str, T]]:
    table: dict[Any, dict[str, T]] = defaultdict(dict)
    times: Counter[Hashable] = Counter()
    for item, rater, value in said:
        times[item, rater] += 1
        table[item, times[item, rater]][rater] = value
    return dict(table)


def _majority(values: Sequence[Any]) -> Any:
    """The value that most gave, None when there is none or two share the lead."""
    leaders = Counter(values).most_common(2)
    if not leaders or (len(leaders) == 2 and leaders[0][1] == leaders[1][1]):
        return None
    return leaders[0][0]


def _figure(table: Table[float], level: Level) -> dict[str, Any]:
    value, reason = alpha(table, level)
    return {"value": value, "reason": reason}


def _overlapping(table: Table[Any]) -> list[Any]:
    """The units that several raters judged."""
    return [unit for unit, said in table.items() if len(said) > 1]


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
