"""Feedback from files, to files, and in figures: what `plaudit feedback import|export|stats` call.

(`plaudit feedback agreement` calls `plaudit.feedback.agreement.report`.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from plaudit.data.formats import read_records, write_records
from plaudit.feedback import schema
from plaudit.feedback.events import (
    Event,
    Item,
    as_stored,
    category_event,
    comparison_event,
    demonstration_event,
    event_id,
    ranking_event,
    rating_event,
    salted,
)
from plaudit.feedback.judgements import everything
from plaudit.feedback.schema import to_json
from plaudit.feedback.store import Store
from plaudit.files import refuse_inputs
from plaudit.types import Demonstration, Preference, Ranking, Rating, Record, UserError

ANONYMOUS = "anonymous"
"""The rater of records that name none."""


def import_file(
    store: Store, path: str | Path, format: str = "auto", *, policy_version: str | None = None
) -> dict[str, int]:
    """As `import_records`, of a file. UserError for one that cannot be read."""
    return import_records(store, read_records(path, format), policy_version=policy_version)


def import_records(
    store: Store,
    records: Sequence[Record],
    *,
    policy_version: str | None = None,
    meta: Mapping[str, Any] | None = None,
    labels: bool = False,
    salt: str | None = None,
) -> dict[str, int]:
    """Enters records as items and events, all or none.

    Ids come from the content, so importing them again adds nothing; a record that stands among them twice counts
    twice. policy_version: the model that wrote the completions, where one did. meta: of all items. labels:
    demonstrations are the labels of their prompts. salt: of the items' ids. Returns the counts:
    records, items and events that are new, events that were there already ("known"), and records left out
    because their rater is retracted or forgotten ("left_out").
    """
    barred = {rater for rater, state in store.raters().items() if state != "active"}
    welcome = [record for record in records if _rater(record) not in barred]
    plain = [replace(_item(record, policy_version), meta=dict(meta or {}), id="") for record in welcome]
    items = [salted(item, salt) for item in plain]
    times: Counter[str] = Counter()
    events = []
    for item, record in zip(items, welcome, strict=True):
        event = _event(item.id, record)
        if labels and isinstance(record, Demonstration):
            event = category_event(item.id, event.rater, record.completion)
        said = to_json(as_stored(event.payload)) + str(event.presented)
        times[item.id + event.rater + said] += 1
        events.append(
            replace(
                event, id=event_id("import", item.id, event.rater, said, times[item.id + event.rater + said])
            )
        )
    new_items, new = store.enter(items, events)
    return {
        "records": len(records),
        "items": new_items,
        "events": new,
        "known": len(events) - new,
        "left_out": len(records) - len(welcome),
    }


def export_file(
    store: Store,
    path: str | Path,
    format: str = "plaudit",
    up_to: int | None = None,
    *,
    project: str | None = None,
    skip_unrepresentable: bool = False,
) -> dict[str, int]:
    """Writes the judgements that stand as of event `up_to` (None: now), in order, of one project or all; skips are not
    among them.

    Returns the counts: records written, and records that the format cannot hold and that were left out, which
    is a UserError unless `skip_unrepresentable` is set. UserError when there is nothing to write, or there are not
    so many events.
    """
    if store.engine.dialect.name == "sqlite":
        refuse_inputs(Path(path), str(store.engine.url.database))
    up_to = store.as_of(up_to)
    in_order = everything(store, up_to, project)
    if not in_order:
        raise UserError("there is no feedback to export", where=str(path))
    records = [_unnamed(judged.record) for judged in in_order]
    left_out = write_records(records, Path(path), format, skip_unrepresentable=skip_unrepresentable)
    return {"records": len(records) - left_out, "left_out": left_out}


def stats(store: Store) -> dict[str, Any]:
    """What the store holds, ready for JSON.

    {"events", "items", "written": {kind: n}, "standing": {kind: n}, "raters": {rater: {"state", "judgements",
    "skips"}}, "overlap": {number of raters: number of items}, "superseded", "hidden": {"retracted",
    "forgotten"}, "assignments": {"open", "held", "answered"}, "snapshots": {name: seq}}.
    "superseded" and "hidden" count judgements that were written and do not stand.
    """
    log, standing = store.log(), store.current()
    states = store.raters()
    judgements = [event for event in log if event.item is not None and event.kind != "retract"]
    superseded = {event.supersedes for event in log if event.supersedes is not None}
    latest = [event for event in judgements if event.id not in superseded]
    judges: dict[str, set[str]] = {}
    for event in standing:
        if event.kind != "skip":
            judges.setdefault(str(event.item), set()).add(event.rater)
    return {
        "events": len(log),
        "items": len(store.items()),
        "written": dict(sorted(Counter(event.kind for event in log).items())),
        "standing": dict(sorted(Counter(event.kind for event in standing).items())),
        "raters": {rater: _tally(rater, state, standing) for rater, state in sorted(states.items())},
        "overlap": {str(n): count for n, count in sorted(Counter(map(len, judges.values())).items())},
        "superseded": len(judgements) - len(latest),
        "hidden": {
            state: sum(states[event.rater] == state for event in latest)
            for state in ("retracted", "forgotten")
        },
        "assignments": _assignments(store),
        "snapshots": {snapshot.name: snapshot.seq for snapshot in store.snapshots()},
    }


def _tally(rater: str, state: str, standing: list[Event]) -> dict[str, Any]:
    kinds = Counter(
        "skips" if event.kind == "skip" else "judgements" for event in standing if event.rater == rater
    )
    return {"state": state, "judgements": kinds["judgements"], "skips": kinds["skips"]}


def _assignments(store: Store) -> dict[str, int]:
    slots = schema.assignments
    answered, held = slots.c.event.is_not(None), slots.c.rater.is_not(None)
    query = sa.select(
        sa.func.count().filter(~answered, ~held),
        sa.func.count().filter(~answered, held),
        sa.func.count().filter(answered),
    ).select_from(slots)
    with schema.reading(store.engine) as connection:
        row = connection.execute(query).one()
    return dict(zip(("open", "held", "answered"), (int(n) for n in row), strict=True))


def _rater(record: Record) -> str:
    return record.rater or ANONYMOUS


def _unnamed(record: Record) -> Record:
    return replace(record, rater=None) if record.rater == ANONYMOUS else record


def _item(record: Record, policy_version: str | None) -> Item:
    match record:
        case Demonstration():
            return Item(record.prompt, ())
        case Rating():
            return Item(record.prompt, (record.completion,), policy_version)
        case _:
            return Item(record.prompt, record.completions, policy_version)


def kind_of(record: Record) -> str:
    """The kind of event that it becomes."""
    return _event("", record).kind


def _event(item: str, record: Record) -> Event:
    rater = _rater(record)
    match record:
        case Demonstration():
            return demonstration_event(item, rater, record.completion)
        case Rating():
            # The id comes from the content: 1, 1.0 and another order of criteria are the same (and -0.0 is 0.0).
            return rating_event(
                item, rater, {name: record.scores[name] + 0.0 for name in sorted(record.scores)}
            )
        case Ranking():
            return ranking_event(item, rater, record.ranking)
        case Preference():
            return comparison_event(
                item, rater, record.choice, strength=record.strength, presented=record.presented
            )
