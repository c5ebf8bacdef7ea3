"""What the store reads: events, items and the current view, as SQL."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from plaudit.feedback import privacy, schema
from plaudit.feedback.events import JUDGEMENTS, Event, Item, prompt_from_json
from plaudit.types import UserError

_FEW = 500
"""Ids asked for in one query."""
_LAST_SEQ = sa.select(sa.func.max(schema.events.c.seq))
_ITEMS = sa.select(schema.items)
_SOME_ITEMS = _ITEMS.where(schema.items.c.id.in_(sa.bindparam("ids", expanding=True)))
_ONE_ITEM = _ITEMS.where(schema.items.c.id == sa.bindparam("ids"))
_LAST_RULE = (
    sa.select(schema.events)
    .where(schema.events.c.rater == sa.bindparam("rater"))
    .where(schema.events.c.kind.in_(("retract_rater", "restore_rater")))
    .order_by(schema.events.c.seq.desc())
    .limit(1)
)
RULE = _LAST_RULE.with_only_columns(schema.events.c.kind).scalar_subquery()
"""What was last said of the rater: retracted, restored, or nothing."""
_RATER = sa.select(schema.raters.c.forgotten, schema.raters.c.key, RULE.label("rule")).where(
    schema.raters.c.id == sa.bindparam("rater")
)


def _meeting() -> sa.Select[Any]:
    """What a judgement meets: told its id (known), rater, item and slot, one row with whether the id is known, how the
    rater stands, how many completions the item has and whether it can be read, whose slot it is, and the rater's answer
    to that slot."""
    events, raters, items, slots = schema.events, schema.raters, schema.items, schema.assignments
    known, answer = events.alias(), answer_to(slots, events.alias(), sa.bindparam("rater"))
    one = sa.select(sa.literal(1).label("one")).subquery()
    joined = one.outerjoin(known, known.c.id == sa.bindparam("known"))
    joined = joined.outerjoin(raters, raters.c.id == sa.bindparam("rater"))
    joined = joined.outerjoin(items, items.c.id == sa.bindparam("item"))
    joined = joined.outerjoin(slots, slots.c.id == sa.bindparam("slot", type_=sa.Integer))
    return sa.select(
        known.c.id.label("known"),
        raters.c.id.label("entered"), raters.c.forgotten, raters.c.key, RULE.label("rule"),
        items.c.id.label("item"), items.c.prompt.is_not(None).label("readable"),
        sa.func.json_array_length(items.c.completions, type_=sa.Integer).label("completions"),
        slots.c.item.label("slot_item"), answer.limit(1).scalar_subquery().label("answer"),
    ).select_from(joined)  # fmt: skip


def answer_to(
    slots: sa.FromClause, events: sa.FromClause, rater: sa.BindParameter[Any]
) -> sa.Select[tuple[str]]:
    """The rater's answer to a slot, or what stands of theirs on its item without one: it came in with a file, or they
    have decided on it."""
    later = schema.events.alias()
    superseded = sa.exists().where(later.c.supersedes == events.c.id)
    otherwise = sa.and_(events.c.assignment.is_(None), events.c.kind.in_(JUDGEMENTS), ~superseded)
    return sa.select(events.c.id).where(
        events.c.rater == rater,
        events.c.item == slots.c.item,
        sa.or_(events.c.assignment == slots.c.id, otherwise),
    )


def chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many at a time as one query may name."""
    return (ids[at : at + _FEW] for at in range(0, len(ids), _FEW))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A name, such as a model's, for "events up to seq"."""

    name: str
    seq: int
    note: str
    created_at: str


def logged(*columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Events with their rater's key and item, or the given columns of them."""
    events, raters, items = schema.events, schema.raters, schema.items
    query = sa.select(*columns) if columns else sa.select(events, raters.c.key)
    return query.join_from(events, raters, raters.c.id == events.c.rater).outerjoin(
        items, items.c.id == events.c.item
    )


def standing(
    up_to: int | None, *columns: sa.ColumnElement[Any], before_forgetting: bool = False
) -> sa.Select[Any]:
    """The current view as of `up_to`; before_forgetting: as it was then, with those who were forgotten since."""
    events, raters, items = schema.events, schema.raters, schema.items
    later, rule, undo, author = events.alias(), events.alias(), events.alias(), raters.alias()

    def within(table: sa.FromClause) -> sa.ColumnElement[bool]:
        return sa.true() if up_to is None else table.c.seq <= up_to

    def known(people: sa.FromClause) -> sa.ColumnElement[bool]:
        unforgotten = people.c.forgotten.is_(None)
        return sa.or_(unforgotten, people.c.forgotten > (up_to or 0)) if before_forgetting else unforgotten

    superseded = sa.exists().where(later.c.supersedes == events.c.id, within(later))
    undone = sa.exists().where(
        undo.c.rater == rule.c.rater, undo.c.kind == "restore_rater", undo.c.seq > rule.c.seq, within(undo)
    )
    retracted = sa.select(rule.c.rater).where(rule.c.kind == "retract_rater", within(rule), ~undone)
    return (
        logged(*columns)
        .outerjoin(author, author.c.id == items.c.author)
        .where(events.c.kind.in_(JUDGEMENTS), within(events), ~superseded, events.c.rater.not_in(retracted))
        .where(known(raters), known(author))
    )


def judged(connection: Connection) -> dict[str, int]:
    """How many raters' judgements of each item stand; a skip is none."""
    events = schema.events
    count = sa.func.count(events.c.rater.distinct())
    query = standing(None, events.c.item, count).where(events.c.kind != "skip").group_by(events.c.item)
    return {item: int(number) for item, number in connection.execute(query)}


def event(row: sa.Row[Any]) -> Event:
    """A row of `logged()` as an event; the payload of a tombstone is empty."""
    values = dict(row._mapping)
    key = values.pop("key")
    values["payload"] = values["payload"] or {}
    return Event(**(values | {"comment": privacy.unseal(key, values["comment"])}))


def events(connection: Connection, ids: Sequence[str]) -> dict[str, Event]:
    """Those of the events that there are, by id."""
    return {
        row.id: event(row)
        for some in chunks(ids)
        for row in connection.execute(_some_events(), {"ids": some})
    }


@functools.cache
def _some_events() -> sa.Select[Any]:
    return logged().where(schema.events.c.id.in_(sa.bindparam("ids", expanding=True)))


def items(connection: Connection, ids: Sequence[str] | None) -> dict[str, Item | None]:
    """Items by id, None for a forgotten one."""
    found: dict[str, Item | None] = {}
    for some in [None] if ids is None else chunks(ids):
        if some is None:
            rows = connection.execute(_ITEMS)
        elif len(some) == 1:  # in a statement that is not made out for each number of ids
            rows = connection.execute(_ONE_ITEM, {"ids": some[0]})
        else:
            rows = connection.execute(_SOME_ITEMS, {"ids": some})
        for row in rows:
            found[row.id] = item(row)
    return found


def item(row: sa.Row[Any]) -> Item | None:
    """A row with an item's columns; None for one that was forgotten."""
    if row.prompt is None:
        return None
    values = {name: row._mapping[name] for name in schema.items.c.keys()}  # noqa: SIM118 (columns, no dictionary)
    return Item(**(values | {"prompt": prompt_from_json(row.prompt)}))


_MEETING = _meeting()


def meets(connection: Connection, event: Event) -> sa.Row[Any]:
    """What the judgement meets, as `_meeting` has it."""
    told = {"known": event.id, "rater": event.rater, "item": event.item, "slot": event.assignment}
    return connection.execute(_MEETING, told).one()


def last_seq(connection: Connection) -> int:
    """The number of the last event, 0 before the first."""
    return int(connection.scalar(_LAST_SEQ) or 0)


def last_rule(connection: Connection, rater: str) -> sa.Row[Any] | None:
    """The last event that retracted or restored the rater."""
    return connection.execute(_LAST_RULE, {"rater": rater}).first()


def raters(connection: Connection) -> dict[str, Literal["active", "retracted", "forgotten"]]:
    """Everybody, and how they stand."""
    events, people = schema.events, schema.raters
    kinds = ("retract_rater", "restore_rater")
    rules = sa.select(events.c.rater, events.c.kind).where(events.c.kind.in_(kinds)).order_by(events.c.seq)
    last = {row.rater: row.kind for row in connection.execute(rules)}
    return {
        row.id: "forgotten" if row.forgotten else "retracted" if last.get(row.id) == kinds[0] else "active"
        for row in connection.execute(sa.select(people.c.id, people.c.forgotten).order_by(people.c.id))
    }


def admit(connection: Connection, rater: str) -> bytes | None:
    """Enters the rater, where they are new; their key, where they have one. UserError for one who was forgotten, or
    stands retracted."""
    row = connection.execute(_RATER, {"rater": rater}).first()
    if row is None:
        schema.alone(connection)
        privacy.ensure(connection, rater)
        return None
    return standing_key(rater, row)


def standing_key(rater: str, row: Any) -> bytes | None:
    """The key in a row with `forgotten`, `key` and `rule`. UserError as `admit`."""
    if row.forgotten is not None:
        raise privacy.was_forgotten(rater)
    if row.rule == "retract_rater":
        raise UserError("this rater was retracted", where=f"rater {rater}", fix="restore the rater first")
    key: bytes | None = row.key
    return key


def snapshots(connection: Connection) -> list[Snapshot]:
    """All of them, by seq and name."""
    table = schema.snapshots
    rows = connection.execute(sa.select(table).order_by(table.c.seq, table.c.name))
    return [Snapshot(row.name, row.seq, row.note, row.created_at) for row in rows]
