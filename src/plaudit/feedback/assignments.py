"""Who judges what next: rows made ahead, claimed by one atomic update, completed by the event that answers them.

An item has as many slots as judgements are wanted of it; a rater gets at most one of them. `Store` calls these
with a connection that writes alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from plaudit.feedback import queries, schema
from plaudit.feedback.events import JUDGEMENTS, Event
from plaudit.types import Missing, UserError

BY_PRIORITY, RANDOM, FOR_ONE, SURPLUS = 0, 1, 2, 3
"""Queues: what is worth most first; what is given out in no order of worth; what one rater alone is given; what whoever
has it may answer, and nobody else is asked for: there are as many judgements as are wanted without it."""


_GIVING = 0x706C6176
"""The key of PostgreSQL's advisory lock of what is given out; asked for after `schema.alone`'s, where both are."""


def pause(connection: Connection) -> None:
    """Nobody is given an item of a project until this transaction ends: for whoever changes the order or the slots of
    many, which would be skipped meanwhile. The transaction writes alone. On SQLite that is enough."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_GIVING)))


def join(connection: Connection) -> None:
    """Waits for whoever has paused, and beside others who are given something does not."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(_GIVING)))


@dataclass(frozen=True, slots=True)
class Assignment:
    """One slot of an item, held by a rater until `expires` (seconds, on the claimant's clock). given: its place in the
    order in which they were given what they hold."""

    id: int
    item: str
    slot: int
    rater: str
    expires: float
    given: int = 0


def assign(connection: Connection, items: Iterable[str], overlap: int, judged: Mapping[str, int]) -> int:
    """Opens slots until `overlap` judgements of each item are given or to come; returns how many were opened.

    judged: how many raters' judgements of an item stand, with a slot or without.
    """
    slots = schema.assignments
    opened = 0
    for item in dict.fromkeys(items):
        if connection.scalar(sa.select(schema.items.c.id).where(schema.items.c.id == item)) is None:
            raise Missing("item", item, fix="add it first")
        to_come = connection.scalar(
            sa.select(sa.func.count()).where(slots.c.item == item, slots.c.event.is_(None))
        )
        for _ in range(overlap - judged.get(item, 0) - int(to_come or 0)):
            connection.execute(slots.insert(), {"item": item, "slot": _next_slot(connection, item)})
            opened += 1
    return opened


def claim(connection: Connection, rater: str, now: float, lease_seconds: float) -> Assignment | None:
    """The next item for the rater, or None when nothing is left for them.

    What the rater already holds comes first (a page loaded again shows the same item), then items with the
    fewest judgements, in the order in which they were assigned. Never an item that the rater has judged or
    skipped. A slot whose time has run out is free again.
    """
    slots = schema.assignments
    first = (
        sa.select(slots.c.id)
        .where(slots.c.project.is_(None), slots.c.event.is_(None), fit_for(rater, now))
        .order_by(sa.case((slots.c.rater == rater, 0), else_=1), slots.c.slot, slots.c.id)
        .limit(1)
    )
    return take(connection, first, rater, now + lease_seconds)


def fit_for(
    rater: str | sa.ColumnElement[str], now: float | sa.ColumnElement[float]
) -> sa.ColumnElement[bool]:
    """Slots that the rater may be given: free, run out or their own, of an item that can be read and that they have
    not judged.

    Subqueries that PostgreSQL cannot turn into joins: it is to walk the queue's index and stop at the first that fits.
    """
    slots, events, items = schema.assignments, schema.events, schema.items
    free = sa.or_(slots.c.rater.is_(None), slots.c.rater == rater, slots.c.expires <= now)
    judged = sa.select(events.c.item).where(events.c.rater == rater, events.c.kind.in_(JUDGEMENTS))
    readable = sa.select(items.c.prompt.is_not(None)).where(items.c.id == slots.c.item)
    return sa.and_(free, slots.c.item.not_in(judged), readable.scalar_subquery())


def take(
    connection: Connection, chosen: sa.Select[tuple[int]], rater: str, until: float
) -> Assignment | None:
    """The chosen slot, held by the rater; None where none was chosen. One atomic update."""
    slots = schema.assignments
    row = connection.execute(
        slots.update()
        .where(slots.c.id == chosen.scalar_subquery())
        .values(rater=rater, expires=until)
        .returning(slots.c.id, slots.c.item, slots.c.slot, slots.c.rater, slots.c.expires)
    ).first()
    return None if row is None else Assignment(row.id, row.item, row.slot, row.rater, row.expires)


def give(
    connection: Connection, item: str, rater: str, until: float, *, project: str, queue: int, given: int = 0
) -> Assignment:
    """A new slot of the item that is this rater's from the start."""
    slot = _next_slot(connection, item)
    row = {"item": item, "slot": slot, "rater": rater, "expires": until, "project": project, "queue": queue}
    row["given"] = given
    id = connection.execute(schema.assignments.insert(), row).inserted_primary_key
    assert id is not None
    return Assignment(int(id[0]), item, slot, rater, until, given)


def check_answer(connection: Connection, event: Event) -> None:
    """UserError when the event's assignment is unknown, of another item, or answered by this rater already, or a
    judgement of theirs came in otherwise.

    An answer may take the place of the rater's earlier one: by superseding it, or once it was taken back.
    """
    told = {"slot_id": event.assignment, "by": event.rater}
    superseding = event.supersedes is not None
    row = connection.execute(
        _answered(superseding), told | ({"old": event.supersedes} if superseding else {})
    ).first()
    check_slot(event, *((None, None) if row is None else (row.item, row.answer)))


def check_slot(event: Event, item: str | None, answer: str | None) -> None:
    """As `check_answer`, of a slot whose item (None: there is no such slot) and rater's answer are known."""
    where = f"event {event.id}"
    if item is None:
        raise UserError(f"there is no assignment {event.assignment}", where=where)
    if item != event.item:
        raise UserError(f"assignment {event.assignment} is of item {item}, not {event.item}", where=where)
    if answer is not None:
        raise UserError(f"already answered by event {answer}", where=where, fix="correct that event")


@functools.cache
def _answered(superseding: bool) -> sa.Select[Any]:
    """A slot's item, and the rater's (by) answer to it; superseding: one that stands, and is not the old one."""
    slots, events, later = schema.assignments, schema.events, schema.events.alias()
    answer = queries.answer_to(slots, events, sa.bindparam("by"))
    if superseding:
        superseded = sa.exists().where(later.c.supersedes == events.c.id)
        of_slot = events.c.assignment == slots.c.id
        answer = answer.where(of_slot, events.c.id != sa.bindparam("old"), ~superseded)
    return sa.select(slots.c.item, answer.limit(1).scalar_subquery().label("answer")).where(
        slots.c.id == sa.bindparam("slot_id")
    )


def complete(connection: Connection, event: Event) -> None:
    """Closes the assignment that the stored event answers; after a skip, opens a slot for somebody else.

    When the rater's time ran out and somebody else holds the slot, the judgement is kept all the same, and
    the slot stays with its new holder, who is the last to be asked for it.
    """
    told = {"slot_id": event.assignment, "by": event.rater, "answer": event.id}
    closed = connection.execute(_complete(), told).rowcount
    if closed and event.kind == "skip":
        _open_slot(connection, event)
    elif not closed and event.kind != "skip":
        slots = schema.assignments
        late = slots.update().where(slots.c.id == event.assignment, slots.c.event.is_(None))
        connection.execute(late.values(queue=SURPLUS))


@functools.cache
def _complete() -> sa.Update:
    slots = schema.assignments
    held = (slots.c.rater == sa.bindparam("by"), slots.c.event.is_(None))
    mine = slots.update().where(slots.c.id == sa.bindparam("slot_id"), *held)
    return mine.values(event=sa.bindparam("answer"), expires=None)


def _open_slot(connection: Connection, skip: Event) -> None:
    """Like the one that was passed over; none where that was one rater's own, or nobody else is asked for it."""
    slots = schema.assignments
    like = connection.execute(sa.select(slots).where(slots.c.id == skip.assignment)).one()
    if like.queue not in (FOR_ONE, SURPLUS):
        row = {"item": like.item, "slot": _next_slot(connection, like.item), "project": like.project}
        connection.execute(slots.insert(), row | {"queue": like.queue, "priority": like.priority})


def _next_slot(connection: Connection, item: str) -> int:
    slots = schema.assignments
    last = connection.scalar(sa.select(sa.func.max(slots.c.slot)).where(slots.c.item == item))
    return 0 if last is None else last + 1
