"""What a project's judgements are worth: agreement, each rater, and where they disagree most."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any

import sqlalchemy as sa

from plaudit.feedback import agreement, kappa, queries, schema
from plaudit.feedback.agreement import Level
from plaudit.feedback.assignments import RANDOM
from plaudit.feedback.dawid_skene import dawid_skene
from plaudit.feedback.events import Event, Item
from plaudit.feedback.judgements import ADJUDICATES, REPEATS
from plaudit.feedback.projects import Project, Projects
from plaudit.feedback.tasks import Task, agrees

LONGEST_PAUSE = 3600.0
"""Seconds; who took longer was away."""


def of_project(projects: Projects, id: str, seed: int = 0) -> dict[str, Any]:
    """All figures of a project, ready for JSON.

    {"judgements", "skips", "items", "flags": {flag: n}, "agreement" (as `agreement.of_events`), "kappa": {"fleiss",
    "fleiss_items", "cohen": [{"raters", "kappa", "items"}]}, "raters": {rater: figures}, "longer": {"n", "share",
    "interval"}, "slice": {"items", "alpha"} (of the random slice alone, as the stop rule has it), "disagreements":
    [{"item", "spread", "raters"}]}. A rater's: "judgements", "skips", "gold", "repeats" ({"n", "share", "interval"}),
    "accuracy" (Dawid and Skene's, of classes), "first" (how often the first shown was chosen), "longer" (the longer
    one), "seconds" (the median an item).
    """
    project = projects.get(id)
    events, items, parts = _read(projects, id)
    judged = [event for event in events if event.kind != "skip"]
    fresh = [
        event
        for event in judged
        if REPEATS not in items[event.item or ""].meta and not event.payload.get(ADJUDICATES)
    ]
    units = _units(fresh)
    classes = _classes(fresh, project.task)
    return {
        "judgements": len(judged),
        "skips": len(events) - len(judged),
        "items": len(units),
        "flags": _flags(events),
        "agreement": agreement.of_events(fresh, seed),
        "kappa": _kappas(classes),
        "longer": _longer(fresh, items),
        "slice": _on_slice(units, parts, project.task),
        "raters": _raters(project, events, items, parts, classes),
        "disagreements": disagreements(project.task, units),
    }


LEVELS: dict[str, Level] = {
    "comparison": "ordinal", "category": "nominal", "ranking": "nominal", "rating": "interval",
}  # fmt: skip


def settle(projects: Projects, id: str) -> int:
    """The stop rule `enough_alpha`: where alpha of the project has reached it, items on which two raters or more agree
    are given to nobody else; how many slots that closed."""
    task = projects.get(id).task
    if task.enough_alpha is None:
        return 0
    events, _, parts = _read(projects, id)
    fresh = [
        event
        for event in events
        if event.kind != "skip"
        and parts[event.item or ""][0] == "open"
        and not event.payload.get(ADJUDICATES)
    ]
    alpha = _alpha(_units(fresh), task)
    if alpha is None or alpha < task.enough_alpha:
        return 0
    agreed = [
        item for item, said in _units(fresh).items() if len(said) > 1 and _agree(task, list(said.values()))
    ]
    return projects.close(id, agreed)


def _alpha(units: dict[str, dict[str, Event]], task: Task) -> float | None:
    """The one that the rule is about: ordinal of comparisons, nominal of categories and of which is best, and of
    ratings the lowest of the criteria's, interval (scores to the nearest hundredth). None where it is not defined."""
    found = [
        agreement.alpha({item: _coded(said, task, name) for item, said in units.items()}, LEVELS[task.kind])[
            0
        ]
        for name in ([one.name for one in task.criteria] if task.kind == "rating" else [""])
        if task.kind in LEVELS
    ]
    known = [value for value in found if value is not None]
    return min(known) if known and len(known) == len(found) else None


def _on_slice(units: dict[str, dict[str, Event]], parts: dict[str, Any], task: Task) -> dict[str, Any]:
    """What is given out in order of worth is chosen for being hard: how far raters agree on items as they come."""
    drawn = {
        item: said
        for item, said in units.items()
        if len(said) > 1 and parts[item][0] == "open" and parts[item][2] == RANDOM
    }
    return {"items": len(drawn), "alpha": _alpha(drawn, task)}


def _coded(said: Mapping[str, Event], task: Task, criterion: str) -> dict[str, float]:
    """What each rater said, as a number: a side, a label's place, which is best, a score."""
    sides = {0: -1.0, 1: 1.0, "tie": 0.0, "both_bad": 0.0}

    def number(payload: Mapping[str, Any]) -> float:
        if task.kind == "comparison":
            return sides[payload["choice"]]
        if task.kind == "category":  # a label that is no longer asked is none of them
            return float(task.labels.index(payload["label"])) if payload["label"] in task.labels else -1.0
        if task.kind == "ranking":
            return float(payload["ranking"][0])
        return round(float(payload["scores"].get(criterion, 0.0)), 2)

    return {rater: number(event.payload) for rater, event in said.items()}


def _agree(task: Task, events: Sequence[Event]) -> bool:
    return all(agrees(task, one.payload, other.payload) for one, other in combinations(events, 2))


def disagreements(task: Task, units: dict[str, dict[str, Event]], most: int = 200) -> list[dict[str, Any]]:
    """Items on which raters are furthest apart, the worst first; without those on which all agree.

    spread, 0 to 1: of classes and comparisons the share of pairs of raters that said something else; of ratings the
    largest standard deviation of a criterion over the most that is possible (0.5); of rankings the mean share of pairs
    of completions put the other way round. Edits have none.
    """
    found = list[dict[str, Any]]()
    for item, said in units.items():
        if len(said) > 1 and task.kind != "edit" and (spread := _spread(task, list(said.values()))) > 0:
            found.append({"item": item, "spread": spread, "raters": sorted(said)})
    return sorted(found, key=lambda row: (-row["spread"], row["item"]))[:most]


def _spread(task: Task, events: Sequence[Event]) -> float:
    payloads = [event.payload for event in events]
    if task.kind == "rating":
        names = set.intersection(*(set(payload["scores"]) for payload in payloads))
        return max((_deviation([p["scores"][name] for p in payloads]) / 0.5 for name in names), default=0.0)
    pairs = list(combinations(payloads, 2))
    if task.kind == "ranking":
        return fmean(_turned(one["ranking"], other["ranking"]) for one, other in pairs)
    name = "choice" if task.kind == "comparison" else "label"
    return fmean(one[name] != other[name] for one, other in pairs)


def _deviation(values: Sequence[float]) -> float:
    """Standard; of the values themselves, as `statistics.pstdev`, which is exact and takes ten times as long."""
    if min(values) == max(values):
        return 0.0  # to the last bit: who agree do not disagree
    mean = fmean(values)
    return math.sqrt(fmean((value - mean) ** 2 for value in values))


def _turned(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of pairs that stand the other way round (Kendall's distance, from 0 to 1)."""
    place = {index: rank for rank, index in enumerate(other)}
    pairs = list(combinations(one, 2))
    return sum(place[a] > place[b] for a, b in pairs) / len(pairs)


def _read(projects: Projects, id: str) -> tuple[list[Event], dict[str, Item], dict[str, Any]]:
    """The project's judgements that stand, their items, and {item: (part, right payload or None, queue)}."""
    table, events = schema.project_items, schema.events
    with schema.reading(projects.store.engine) as connection:
        query = queries.standing(None).join(table, table.c.item == events.c.item)
        rows = connection.execute(query.where(table.c.project == id).order_by(events.c.seq))
        found = [queries.event(row) for row in rows]
        known = connection.execute(sa.select(table).where(table.c.project == id))
        parts = {row.item: (row.part, (row.answer or {}).get("payload"), row.queue) for row in known}
        items = queries.items(connection, list({event.item or "" for event in found}))
    kept = {key: item for key, item in items.items() if item is not None}
    return [event for event in found if event.item in kept], kept, parts


def _units(events: Sequence[Event]) -> dict[str, dict[str, Event]]:
    """{item: {rater: what they said first of it}}."""
    found: dict[str, dict[str, Event]] = defaultdict(dict)
    for event in events:
        found[event.item or ""].setdefault(event.rater, event)
    return dict(found)


def _classes(events: Sequence[Event], task: Task) -> dict[str, dict[str, Any]]:
    """{item: {rater: class}} of what is a class: a choice, a label, or which of several is best."""
    names = {"comparison": "choice", "category": "label", "ranking": "ranking"}
    if task.kind not in names:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for item, said in _units(events).items():
        values = {rater: event.payload[names[task.kind]] for rater, event in said.items()}
        found[item] = {
            rater: value[0] if task.kind == "ranking" else value for rater, value in values.items()
        }
    return found


def _kappas(classes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    units = list(classes.values())
    value, items = kappa.fleiss(units)
    shared: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for said in units:
        for pair in combinations(sorted(said), 2):
            shared[pair].append(said)
    pairs = [
        {"raters": [*pair], "kappa": kappa.cohen(both, *pair)[0], "items": len(both)}
        for pair, both in sorted(shared.items())
    ]
    return {"fleiss": value, "fleiss_items": items, "cohen": pairs}


def _raters(
    project: Project,
    events: Sequence[Event],
    items: dict[str, Item],
    parts: dict[str, Any],
    classes: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    accuracy = _accuracy(classes)
    by_rater: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_rater[event.rater].append(event)
    found = {}
    for rater, own in sorted(by_rater.items()):
        judged = [event for event in own if event.kind != "skip"]
        gold = [
            (event, parts[event.item or ""][1]) for event in judged if parts[event.item or ""][0] == "gold"
        ]
        first = {event.item: event for event in judged}
        again = [
            (event, first[items[event.item or ""].meta[REPEATS]])
            for event in judged
            if items[event.item or ""].meta.get(REPEATS) in first
        ]
        found[rater] = {
            "judgements": len(judged),
            "skips": len(own) - len(judged),
            "gold": share([agrees(project.task, event.payload, right) for event, right in gold]),
            "repeats": share(
                [agrees(project.task, event.payload, before.payload) for event, before in again]
            ),
            "accuracy": accuracy.get(rater),
            "first": _first(judged),
            "longer": _longer(judged, items),
            "seconds": _seconds(judged),
        }
    return found


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """{"n", "share", "interval"}: Wilson's at 95 %; None without any."""
    bounds = agreement.wilson(sum(hits), len(hits))
    return {"n": len(hits), "share": fmean(hits) if hits else None, "interval": bounds and list(bounds)}


def _first(events: Sequence[Event]) -> dict[str, Any]:
    return share([
        event.payload["choice"] == event.presented[0]
        for event in events
        if event.kind == "comparison" and event.presented and event.payload["choice"] in (0, 1)
    ])  # fmt: skip


def _longer(events: Sequence[Event], items: dict[str, Item]) -> dict[str, Any]:
    """Of comparisons that chose one of two texts that are not of one length."""
    hits = []
    for event in events:
        if event.kind == "comparison" and event.payload["choice"] in (0, 1):
            lengths = [len(text) for text in items[event.item or ""].completions]
            if lengths[0] != lengths[1]:
                hits.append(lengths[event.payload["choice"]] == max(lengths))
    return share(hits)


def _seconds(events: Sequence[Event]) -> float | None:
    """As the page measured it: from when an item was shown to when it was sent."""
    took = [event.payload.get("seconds") for event in events]
    known = [float(s) for s in took if isinstance(s, int | float) and 0 <= s <= LONGEST_PAUSE]
    return median(known) if known else None


def _accuracy(classes: dict[str, dict[str, Any]]) -> dict[str, float]:
    """By Dawid and Skene, each answer class smoothed by one; nothing where no item has two raters."""
    if not any(len(said) > 1 for said in classes.values()):
        return {}
    answers = [(item, rater, str(value)) for item, said in classes.items() for rater, value in said.items()]
    return {str(rater): value for rater, value in dawid_skene(answers, smoothing=1.0).accuracy().items()}


def _flags(events: Sequence[Event]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for event in events:
        for flag in event.payload.get("flags") or ():
            found[flag] += 1
    return dict(found)
