"""Who is given which item of a project next, and how many slots an item has.

Whatever is drawn is drawn from ids alone, so that a page that is loaded again shows the same.
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from plaudit.feedback import assignments, privacy, queries, schema
from plaudit.feedback.assignments import BY_PRIORITY, FOR_ONE, RANDOM, SURPLUS, Assignment
from plaudit.feedback.events import JUDGEMENTS, Item
from plaudit.feedback.judgements import ADJUDICATES, REPEATS
from plaudit.feedback.store import put_items
from plaudit.feedback.tasks import Task, agrees
from plaudit.randomness import rng

SOON = 10
"""An item comes again only after so many others."""
_MADE, _RATERS = 0x706C6177, 0x706C6178
"""Keys of PostgreSQL's advisory locks, in the order in which they are asked for, after `assignments.join`'s: of what is
made for one rater, and, with a number of each, of raters."""
_MAKING = sa.select(sa.func.pg_advisory_xact_lock(_MADE))
_IN_TURN = sa.select(
    sa.func.pg_advisory_xact_lock(_RATERS, sa.func.hashtext(sa.bindparam("by", type_=sa.Text)))
)
_SHOWN = tuple(schema.assignments.c[name] for name in ("id", "item", "slot", "rater", "expires", "given"))
"""What an `Assignment` holds. Statements that are asked for with every item are made once."""


def order_of(item: Item, rater: str) -> tuple[int, ...]:
    """The order of the completions on this rater's screen, drawn from the two ids alone."""
    keys = [number("order", item.id, rater, place) for place in range(len(item.completions))]
    return tuple(sorted(range(len(keys)), key=keys.__getitem__))


def number(*key: int | str) -> float:
    """Uniform on 0 to 1, drawn from the key."""
    return float(rng(*key).random())


def training(connection: Connection, id: str, rater: str, count: int) -> Sequence[str]:
    """Practice items that the rater has not tried, in the order in which they were added."""
    return connection.scalars(_training(), {"of": id, "by": rater, "count": count}).all()


@functools.cache
def _training() -> sa.Select[str]:
    table = schema.project_items
    return (
        sa.select(table.c.item)
        .where(_lesson(sa.bindparam("of"), sa.bindparam("by")))
        .order_by(table.c.number)
        .limit(sa.bindparam("count", type_=sa.Integer))
    )


def lessons_left(project: sa.ColumnElement[str], rater: sa.ColumnElement[str]) -> sa.Exists:
    """Whether there is a practice item that the rater has not tried."""
    return sa.exists(schema.project_items.c.item).where(_lesson(project, rater))


def _lesson(project: sa.ColumnElement[str], rater: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    table, tried = schema.project_items, schema.practice
    known = sa.exists().where(tried.c.rater == rater, tried.c.item == table.c.item)
    return sa.and_(table.c.project == project, table.c.part == "training", ~known)


def held(connection: Connection, project: str, task: Task, rater: str, now: float) -> list[Assignment]:
    """What the rater holds and has not judged otherwise, in the order in which they were given it, kept for them anew:
    a page that is loaded again shows the same."""
    told = {"of": project, "by": rater, "until": now + 60 * task.lease_minutes}
    rows = connection.execute(_holding(), told).all()
    if not rows and connection.dialect.name == "postgresql":
        # Whoever holds something keeps their other pages waiting by that; who holds nothing, by this.
        connection.execute(_IN_TURN, {"by": rater})
        rows = connection.execute(_holding(), told).all()
    return sorted((Assignment(*row) for row in rows), key=lambda slot: (slot.given, slot.id))


@functools.cache
def _holding() -> sa.Executable:
    slots, events = schema.assignments, schema.events
    said = (events.c.rater == slots.c.rater, events.c.item == slots.c.item, events.c.kind.in_(JUDGEMENTS))
    mine = (
        slots.c.project == sa.bindparam("of"),
        slots.c.event.is_(None),
        slots.c.rater == sa.bindparam("by"),
        ~sa.exists().where(*said),
    )
    held = slots.update().where(*mine).values(expires=sa.bindparam("until", type_=sa.Double))
    return held.returning(*_SHOWN)


def keep(connection: Connection, task: Task, rater: str, item: str, now: float) -> None:
    """Who writes is at work: their lease begins anew."""
    slots = schema.assignments
    mine = (slots.c.item == item, slots.c.rater == rater, slots.c.event.is_(None))
    connection.execute(slots.update().where(*mine).values(expires=now + 60 * task.lease_minutes))


def claim(
    connection: Connection, project: str, task: Task, rater: str, place: int, doubt: float, now: float, given: int
) -> Assignment | None:  # fmt: skip
    """A new slot for this rater, until its lease runs out. place: how many they were given before it; doubt: how often
    they are given what is worth least; given: the slot's place in the order of what they hold."""
    until = now + 60 * task.lease_minutes
    for every, choose in ((task.gold_every, gold), (task.repeat_every, again)):
        if due(every, choose.__name__, project, rater, place) and (
            item := choose(connection, project, rater)
        ):
            return assignments.give(
                connection, item, rater, until, project=project, queue=FOR_ONE, given=given
            )
    doubted = number("doubt", project, rater, place) < doubt
    first = RANDOM if number("queue", project, rater, place) < task.random_share else BY_PRIORITY
    told = {"of": project, "by": rater, "moment": now, "until": until, "given": given}
    for queue in (first, RANDOM + BY_PRIORITY - first):
        row = connection.execute(_claiming(queue, doubted), told).first()
        if row is not None:
            return Assignment(*row)
    return None


@functools.cache
def _claiming(queue: int, worst_first: bool) -> sa.Executable:
    """One atomic update that takes the first free slot of a queue. Told: of (the project), by (the rater), moment,
    until and given."""
    slots = schema.assignments
    own = slots.alias()
    by: sa.BindParameter[str] = sa.bindparam("by", type_=sa.Text)
    moment: sa.BindParameter[float] = sa.bindparam("moment", type_=sa.Double)
    given = sa.select(own.c.item).where(own.c.rater == by)
    # All of the random slice are worth the same; named in the order all the same, it is the index's.
    worth = slots.c.priority.asc() if worst_first and queue == BY_PRIORITY else slots.c.priority.desc()
    free = (
        sa.select(slots.c.id)
        .where(slots.c.project == sa.bindparam("of"), slots.c.event.is_(None), slots.c.queue == queue)
        .where(assignments.fit_for(by, moment), slots.c.item.not_in(given))
        .order_by(worth, slots.c.slot, slots.c.id)
        .limit(1)
        .with_for_update(of=slots, skip_locked=True)  # what another is just given
    )
    return (
        slots.update()
        .where(slots.c.id == free.scalar_subquery())
        .values(rater=by, expires=sa.bindparam("until", type_=sa.Double), given=sa.bindparam("given"))
        .returning(*_SHOWN)
    )


def doubt(connection: Connection, project: str, task: Task, rater: str) -> float:
    """How often this rater is given what is worth least instead of most: the share of gold items that they had wrong,
    as if they had had ten more right."""
    rows = connection.execute(_on_gold(), {"of": project, "by": rater})
    said = {row.item: row for row in rows}  # the last of each
    judged = [
        agrees(task, row.payload, row.answer["payload"])
        for row in said.values()
        if row.kind != "skip" and row.payload is not None
    ]
    return judged.count(False) / (len(judged) + 10)


@functools.cache
def _on_gold() -> sa.Select[Any]:
    """What the rater (by) has said of the gold items of a project (of), beside what is right."""
    table, events = schema.project_items, schema.events
    return (
        sa.select(events.c.item, events.c.kind, events.c.payload, table.c.answer)
        .join(table, table.c.item == events.c.item)
        .where(table.c.project == sa.bindparam("of"), table.c.part == "gold")
        .where(events.c.rater == sa.bindparam("by"), events.c.kind != "retract")
        .order_by(events.c.seq)
    )


def gold(connection: Connection, id: str, rater: str) -> str | None:
    """One of those that the rater was not given, drawn from the ids."""
    table, slots = schema.project_items, schema.assignments
    had = sa.exists().where(slots.c.rater == rater, slots.c.item == table.c.item)
    query = sa.select(table.c.item).where(table.c.project == id, table.c.part == "gold", ~had)
    return min(connection.scalars(query), key=lambda item: number("gold", item, rater), default=None)


def again(connection: Connection, id: str, rater: str) -> str | None:
    """An item that the rater judged some time ago, as a new one that says which it repeats."""
    table, slots = schema.project_items, schema.assignments
    query = (
        sa.select(slots.c.item)
        .join_from(slots, table, table.c.item == slots.c.item)
        .join(schema.events, schema.events.c.id == slots.c.event)
        .where(slots.c.project == id, slots.c.rater == rater, table.c.part == "open")
        .where(schema.events.c.kind != "skip")
        .order_by(schema.events.c.seq)
    )
    judged = list(connection.scalars(query))[:-SOON]
    key = privacy.key_of(connection, rater)  # an id that the rater cannot make out
    twins = {item: hmac.new(key, f"repeat {item}".encode(), "sha256").hexdigest()[:32] for item in judged}
    known = set(connection.scalars(sa.select(table.c.item).where(table.c.item.in_(twins.values()))))
    left = [item for item in judged if twins[item] not in known]
    if not left:
        return None
    chosen = min(left, key=lambda item: number("repeat", item, rater))
    item = queries.items(connection, [chosen])[chosen]
    if item is None:
        return None
    twin = replace(item, id=twins[chosen], meta=item.meta | {REPEATS: chosen})
    put_items(connection, [twin])
    place = 1 + int(
        connection.scalar(sa.select(sa.func.count()).select_from(table).where(table.c.project == id)) or 0
    )
    row = {
        "item": twin.id,
        "project": id,
        "part": "repeat",
        "answer": None,
        "queue": FOR_ONE,
        "number": place,
    }
    connection.execute(table.insert(), row)
    return twin.id


def makes(connection: Connection, project: str, task: Task, rater: str, places: Iterable[int]) -> None:
    """Where anything is made for this rater alone at one of these places, nobody else's is until the transaction ends:
    it is numbered among theirs. SQLite has seen to that."""
    kinds = ((task.gold_every, gold), (task.repeat_every, again))
    if connection.dialect.name == "postgresql" and any(
        due(every, choose.__name__, project, rater, place) for place in places for every, choose in kinds
    ):
        connection.execute(_MAKING)


def due(every: int, what: str, project: str, rater: str, place: int) -> bool:
    """Once in so many places, at one that is drawn for each rater, so that nobody can count; never where every is 0."""
    return every > 0 and int(number(what, project, rater, place // every) * every) == place % every


def open_slots(
    connection: Connection, project: str, items: Mapping[str, int], counts: Mapping[str, int]
) -> None:
    """New free slots: {item: its queue} and {item: how many}; worth what the item's others are."""
    slots, rows = schema.assignments, list[dict[str, object]]()
    for chunk in queries.chunks(list(counts)):
        last = sa.select(slots.c.item, sa.func.max(slots.c.slot), sa.func.max(slots.c.priority))
        known = {
            item: (slot + 1, worth)
            for item, slot, worth in connection.execute(
                last.where(slots.c.item.in_(chunk)).group_by(slots.c.item)
            )
        }
        for item in chunk:
            first, worth = known.get(item, (0, 0.0))
            of = {"item": item, "project": project, "queue": items[item], "priority": worth}
            rows += [of | {"slot": first + more} for more in range(counts[item])]
    if rows:
        connection.execute(slots.insert(), rows)


def reconcile(connection: Connection, project: str, task: Task, only: Sequence[str] | None = None) -> None:
    """As many slots of each open item (or of those named) as judgements are still wanted of it: missing ones are
    opened, free ones too many are taken back; those that somebody holds stay theirs, and nobody else is asked for what
    is too many of them, whose time runs out first."""
    assignments.pause(connection)
    table, slots, events = schema.project_items, schema.assignments, schema.events
    query = sa.select(table.c.item, table.c.queue).where(table.c.project == project, table.c.part == "open")
    chosen = query if only is None else query.where(table.c.item.in_(only))
    items = {row.item: int(row.queue) for row in connection.execute(chosen)}
    missing = dict[str, int]()
    for chunk in queries.chunks(list(items)):
        judged: dict[str, set[str]] = {item: set() for item in chunk}
        standing = queries.standing(None, events.c.item, events.c.rater, events.c.payload)
        for row in connection.execute(standing.where(events.c.item.in_(chunk), events.c.kind != "skip")):
            if not (row.payload or {}).get(ADJUDICATES):
                judged[row.item].add(row.rater)
        to_come: dict[str, list[tuple[int, bool]]] = {item: [] for item in chunk}
        surplus: dict[str, list[int]] = {item: [] for item in chunk}
        answers = sa.exists().where(events.c.assignment == slots.c.id)
        free_ = sa.and_(slots.c.rater.is_(None), ~answers).label("free")
        open_ = sa.select(slots.c.item, slots.c.id, slots.c.queue, free_).order_by(
            slots.c.expires, slots.c.id
        )
        for row in connection.execute(
            open_.where(slots.c.item.in_(chunk), slots.c.event.is_(None), slots.c.queue != FOR_ONE)
        ):
            if row.queue == SURPLUS:
                surplus[row.item].append(row.id)
            else:
                to_come[row.item].append((row.id, bool(row.free)))
        for item in chunk:
            wanted = task.overlap - len(judged[item]) - len(to_come[item])
            if wanted > 0:
                back = surplus[item][-wanted:]
                if back:
                    connection.execute(slots.update().where(slots.c.id.in_(back)).values(queue=items[item]))
                missing[item] = wanted - len(back)
            elif wanted < 0:
                free = [id for id, is_free in to_come[item] if is_free]
                connection.execute(slots.delete().where(slots.c.id.in_(free[wanted:])))
                held = [id for id, is_free in to_come[item] if not is_free][: max(0, -wanted - len(free))]
                if held:
                    connection.execute(slots.update().where(slots.c.id.in_(held)).values(queue=SURPLUS))
    open_slots(connection, project, items, missing)


def close(connection: Connection, project: str, items: Sequence[str]) -> int:
    """Takes back the slots of these items that nobody holds or has answered; how many."""
    assignments.pause(connection)
    slots, events, closed = schema.assignments, schema.events, 0
    answers = sa.exists().where(events.c.assignment == slots.c.id)
    free = (slots.c.project == project, slots.c.event.is_(None), slots.c.rater.is_(None), ~answers)
    for chunk in queries.chunks(items):
        closed += connection.execute(slots.delete().where(slots.c.item.in_(chunk), *free)).rowcount
    return closed
