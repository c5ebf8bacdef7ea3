"""The transition in which samples are judged: by the simulated panel, or by the person at the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from plaudit.feedback import panel, terminal
from plaudit.feedback.events import (
    Item,
    comparison_event,
    drawn_order,
    event_id,
    rating_event,
    skip_event,
)
from plaudit.feedback.panel import Impression, Rater
from plaudit.feedback.store import Store
from plaudit.loop.drawing import read_rows
from plaudit.loop.show import Bar
from plaudit.loop.stages import Result, Stage
from plaudit.types import UserError

LEAST_ANSWERS = 8
"""So many of a person's comparisons must prefer a side, or there is nothing to learn (fewer where fewer are asked)."""
LEASE = 3600.0
"""Seconds that a rater of the panel has for an item; none takes as long."""


def judge(stage: Stage) -> Result:
    """Pairs of completions become items; raters claim them and their judgements become events."""
    rows = read_rows(stage.place / "samples.jsonl")
    seen = impressions(rows, read_rows(stage.place / "looks.jsonl"))
    prompts, items, places = stage.prompts, [], {}
    for first, second in pairs_of(rows):
        item = Item(
            prompt=prompts[first // stage.config.completions],
            completions=(rows[first]["completion"], rows[second]["completion"]),
            policy_version=rows[first]["policy_version"],
            meta={"round": stage.number, "pair": [first, second]},
        )
        items.append(item)
        places[item.id] = (first, second)
    stage.store.add_items(items)
    if stage.config.raters == "me":
        _i_judge(stage, items)
    else:
        stage.say(f"seven simulated raters judge {len(items)} pairs, {stage.config.overlap} raters a pair")
        _panel_judges(stage, {item.id: item for item in items}, places, seen)
    seq = stage.store.last_seq()
    current = stage.store.current(seq)
    mine = [event for event in current if event.item in places and event.kind != "skip"]
    return {"items": len(items), "judgements": len(mine), "seq": seq}


def pairs_of(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[int, int]]:
    """Neighbouring samples of one prompt, two by two, where their texts differ."""
    for first in range(0, len(rows) - 1, 2):
        same_prompt = rows[first]["prompt"] == rows[first + 1]["prompt"]
        if same_prompt and rows[first]["completion"] != rows[first + 1]["completion"]:
            yield first, first + 1


def _spread_out(items: Sequence[Item], count: int) -> list[Item]:
    """So many items, of as many prompts as there are."""
    by_turn = sorted(
        range(len(items)), key=lambda i: (sum(items[i].prompt == x.prompt for x in items[:i]), i)
    )
    return [items[i] for i in by_turn[:count]]


def _i_judge(stage: Stage, items: Sequence[Item]) -> None:
    """The person compares pairs, as many as `answers` or until they stop. Where too few answers prefer a side,
    UserError; the run taken up goes on with the pairs that are left, or with new ones where none is."""
    order = [item.id for item in _spread_out(items, len(items))]
    answers = stage.config.answers

    def said() -> dict[str | None, Any]:
        mine = [e for e in stage.store.current() if e.rater == "me" and e.kind in ("comparison", "skip")]
        return {e.item: e.payload.get("choice") for e in mine if e.item in order}

    def preferring(choices: dict[str | None, Any]) -> int:
        return sum(choice in (0, 1) for choice in choices.values())

    before, offered, least = said(), answers, min(LEAST_ANSWERS, answers)
    while offered < len(order) and preferring(before) < least and before.keys() >= set(order[:offered]):
        offered += answers
    left = len(order[:offered]) - len(before)
    if left:
        stage.say(f"compare {left} pairs: what you prefer is what the model learns")
    key = (stage.config.seed, stage.number)
    terminal.compare_pairs(stage.store, order[:offered], "me", stage.ask, Console(), key=key)
    if (found := preferring(after := said())) < least:
        go_on = f"go on with `plaudit resume {stage.directory}` and compare more"
        raise UserError(
            f"too little to learn from: of {len(after)} answers, which are kept, {found} prefer a side, and at "
            f"least {least} must",
            where=f"round {stage.number}",
            fix=go_on if len(after) < len(order) else "start again with another --out and --seed",
        )


def _next_turn(store: Store, raters: Sequence[Rater]) -> int:
    """The rater after the one who answered last: whose turn it is depends on the log alone, so that a run killed
    between a claim and its answer goes on with that claim."""
    names = [rater.name for rater in raters]
    answered = [event.rater for event in store.log() if event.assignment is not None]
    return names.index(answered[-1]) + 1 if answered and answered[-1] in names else 0


def _panel_judges(
    stage: Stage, items: dict[str, Item], places: dict[str, tuple[int, int]], seen: Sequence[Impression]
) -> None:
    """Each rater in turn claims an item, compares its two completions and rates both."""
    raters = panel.training_raters(stage.config.seed)
    stage.store.assign(items, overlap=stage.config.overlap)
    turn = _next_turn(stage.store, raters)
    with Bar(stage.console, "judging", total=len(items) * stage.config.overlap) as bar:
        idle = 0
        while idle < len(raters):
            rater = raters[turn % len(raters)]
            turn += 1
            assignment = stage.store.claim(rater.name, now=time.time(), lease_seconds=LEASE)
            if assignment is None or assignment.item not in items:
                idle += 1
                continue
            idle = 0
            first, second = places[assignment.item]
            events = opinions(
                rater, items[assignment.item], (seen[first], seen[second]), stage.number, assignment.id
            )
            stage.store.extend(events)
            bar.step(None)


def opinions(
    rater: Rater, item: Item, pair: tuple[Impression, Impression], round: int, assignment: int | None
) -> list[Any]:
    """One rater's events on one item: a comparison and a rating of each side, or a skip."""
    key = (round, item.id)
    order = drawn_order(2, rater.seed, rater.name, *key)
    fields: dict[str, Any] = {"policy_version": item.policy_version, "presented": order}
    said = rater.compare(*pair, key=key, presented=order)
    ids = [event_id(rater.seed, rater.name, *key, part) for part in ("compare", "rate 0", "rate 1")]
    if said is None:
        return [skip_event(item.id, rater.name, id=ids[0], assignment=assignment, **fields)]
    events = [
        comparison_event(
            item.id,
            rater.name,
            said.choice,
            strength=said.strength,
            id=ids[0],
            assignment=assignment,
            **fields,
        )
    ]
    for side in (0, 1):
        scores = rater.rate(pair[side], key=(*key, side))
        if scores is not None:
            events.append(
                rating_event(item.id, rater.name, scores, completion=side, id=ids[1 + side], **fields)
            )
    return events


def impressions(rows: Sequence[dict[str, Any]], looks: Sequence[dict[str, float]]) -> list[Impression]:
    return [Impression(row["completion"], **seen) for row, seen in zip(rows, looks, strict=True)]
