"""What a rater is given next, and what they say of it.

The order on a rater's screen is drawn from ids alone, so that a page that is loaded again shows the same.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import sqlalchemy as sa
from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy.engine import Connection

from plaudit.feedback import assignments, drafts, giving, privacy, queries, schema
from plaudit.feedback.events import Event, Item, check
from plaudit.feedback.judgements import ADJUDICATES
from plaudit.feedback.projects import Project, Projects, given, read, task_of
from plaudit.feedback.tasks import Flag, agrees, kind_of
from plaudit.types import Unavailable, UserError

SAYS = frozenset({"flags", ADJUDICATES})
"""Names of a payload that are not the rater's to give."""
_DONE = sa.select(sa.func.count(schema.assignments.c.id)).where(
    schema.assignments.c.project == sa.bindparam("of"),
    schema.assignments.c.rater == sa.bindparam("by"),
    schema.assignments.c.event.is_not(None),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a rater is given. order: of the completions on their screen. assignment: a ticket that is handed in with the
    answer, sealed for this rater (its number would tell gold items apart); None of a training item. part: training, or
    open: gold and repeated items look like any. draft: what the rater has begun of it."""

    item: Item
    order: tuple[int, ...]
    part: Literal["open", "training"]
    assignment: str | None
    draft: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Seat:
    """What decides what a rater is given, read before anything is written. most: turns at once; none where the project
    has what it wants. doubt: how often they are given what is worth least. drafting: whether they have begun any. have:
    items whose turns they have."""

    project: Project
    rater: str
    key: bytes | None
    lessons: Sequence[str]
    most: int
    doubt: float
    drafting: bool
    have: Collection[str]


def upcoming(
    projects: Projects, project: Project, rater: str, now: float, count: int = 1, have: Collection[str] = ()
) -> list[Turn]:
    """What this rater judges next, and what after that, `count` in all; fewer where no more is left for them, or
    the project has what it wants. have: items whose turns they have already, which count and are not given again.

    Training items come first. Then what they hold already, now and then a gold item or one they have judged
    before, and else what teaches most, or, as often as the task says, what comes next of the random slice.
    """
    with schema.writing(projects.store.engine, at_once=False) as connection:
        seat = _seat(connection, project, rater, count, have)
        tickets = _hold(connection, seat, now)
    return _turns(projects, seat, tickets)


def judge_on(
    projects: Projects, project: Project, rater: str, item: str, payload: Mapping[str, Any] | None, *, now: float,
    count: int, have: Collection[str] = (), **said: Any,
) -> tuple[int, list[Turn]]:  # fmt: skip
    """As `judge`, and then as `upcoming`. On SQLite in one transaction; on PostgreSQL nobody waits for the latter, and
    an answer that was stored while what comes after it was not is sent again, harmlessly."""
    more = payload is not None and said.get("supersedes") is None
    with schema.at_one_go(projects.store.engine):
        with schema.writing(projects.store.engine, at_once=False) as connection:
            try:
                seat = _seat(connection, project, rater, count, have, judged=int(more))
            except Unavailable:
                raise
            except UserError:
                # Who was retracted since is given nothing, and what they sent before is known all the same.
                if (known := projects.store.event(said["event"])) is None or known.item is None:
                    raise
                return judge(projects, project.id, rater, item, payload, **said), []
            seq = judge(projects, project.id, rater, item, payload, **said)
        with schema.writing(projects.store.engine, at_once=False) as connection:
            tickets = _hold(connection, seat, now)
    return seq, _turns(projects, seat, tickets)


def _seat(
    connection: Connection, project: Project, rater: str, count: int, have: Collection[str], judged: int = 0
) -> _Seat:
    """judged: judgements that will have been given when the seat is used."""
    told = {"of": project.id, "rater": rater}
    row = connection.execute(_seated(), told).first()
    if row is None:
        queries.admit(connection, rater)
        row = connection.execute(_seated(), told).one()
    key, most = queries.standing_key(rater, row), project.task.most_judgements
    lessons = (
        giving.training(connection, project.id, rater, count) if row.lessons and not project.archived else ()
    )
    if project.archived or lessons or (most is not None and given(connection, project.id) + judged >= most):
        return _Seat(project, rater, key, lessons, 0, 0.0, row.drafting, have)
    doubt = giving.doubt(connection, project.id, project.task, rater)
    return _Seat(project, rater, key, (), count, doubt, row.drafting, have)


@functools.cache
def _seated() -> sa.Select[Any]:
    """How a rater stands, whether they have begun anything, and have still to learn in a project (of)."""
    raters, begun = schema.raters, schema.drafts
    by, of = (sa.bindparam(name, type_=sa.Text) for name in ("rater", "of"))
    return sa.select(
        raters.c.forgotten, raters.c.key, queries.RULE.label("rule"),
        giving.lessons_left(of, by).label("lessons"), sa.exists().where(begun.c.rater == by).label("drafting"),
    ).where(raters.c.id == by)  # fmt: skip


def _hold(connection: Connection, seat: _Seat, now: float) -> dict[str, str]:
    """What the rater holds from now on: items in their order, each with its ticket."""
    if seat.most == 0:
        return {}
    project, rater = seat.project, seat.rater
    key = seat.key or privacy.key_of(connection, rater)
    assignments.join(connection)
    done = int(connection.scalar(_DONE, {"of": project.id, "by": rater}) or 0)
    giving.makes(connection, project.id, project.task, rater, range(done, done + seat.most))
    held = giving.held(connection, project.id, project.task, rater, now)[: seat.most]
    while len(held) < seat.most:
        given = 1 + (held[-1].given if held else 0)
        more = giving.claim(
            connection, project.id, project.task, rater, done + len(held), seat.doubt, now, given
        )
        if more is None:
            break
        held.append(more)
    new = [slot for slot in held if slot.item not in seat.have]
    return {slot.item: Fernet(key).encrypt(str(slot.id).encode()).decode() for slot in new}


def _turns(projects: Projects, seat: _Seat, tickets: Mapping[str, str]) -> list[Turn]:
    """Lessons, or what is held; read when the others may write again."""
    ids = [id for id in seat.lessons if id not in seat.have] or list(tickets)
    part: Literal["open", "training"] = "training" if seat.lessons else "open"
    with schema.reading(projects.store.engine) as connection:
        found = queries.items(connection, ids)
    there = [item for id in ids if (item := found[id]) is not None]  # None: forgotten just now
    begun = drafts.of(projects.store, seat.rater, ids) if seat.drafting and ids else {}
    return [
        Turn(item, giving.order_of(item, seat.rater), part, tickets.get(item.id), begun.get(item.id, {}))
        for item in there
    ]


def practise(
    projects: Projects, id: str, rater: str, item: str, payload: Mapping[str, Any]
) -> tuple[bool, Mapping[str, Any], str]:
    """A training item's answer: whether it is right, the right one, and why. The first answer is kept."""
    with schema.writing(projects.store.engine) as connection:
        project = read(connection, id)
        table = schema.project_items
        row = connection.execute(
            sa.select(table).where(table.c.project == id, table.c.item == item, table.c.part == "training")
        ).first()
        if row is None:
            raise UserError("is no training item", where=f"item {item}")
        known = queries.items(connection, [item])[item]
        assert known is not None
        project.task.check_answer(payload, len(known.completions), f"item {item}")
        check(Event("x", kind_of(project.task), rater, item, dict(payload)), len(known.completions))
        privacy.ensure(connection, rater)
        mine = (schema.practice.c.rater == rater, schema.practice.c.item == item)
        if connection.execute(sa.select(schema.practice).where(*mine)).first() is None:
            connection.execute(
                schema.practice.insert(), {"rater": rater, "item": item, "payload": dict(payload)}
            )
        right = row.answer["payload"]
        return agrees(project.task, payload, right), right, row.answer["why"]


def judge(
    projects: Projects, id: str, rater: str, item: str, payload: Mapping[str, Any] | None, *, event: str,
    assignment: str | None = None, guideline: int = 0, comment: str | None = None, flags: Sequence[str] = (),
    supersedes: str | None = None, reviews: bool = False,
) -> int:  # fmt: skip
    """Writes an answer, or, of None, that the rater passes the item over; the event's seq. The draft goes with it.

    event: an id that the client has made; the same again is harmless. assignment: the turn's. flags: what is wrong
    with the item. supersedes: the rater's answer that this one takes the place of. reviews: they may decide, too.
    UserError for an answer of another kind than the project asks for, or one that leaves something out; for an item
    that was not given to this rater, or that they have decided on as a reviewer: their word stands once.
    """
    if assignment is None:
        raise _not_given(item)
    with schema.writing(projects.store.engine, at_once=reviews) as connection:
        if reviews and projects.store.event(event) is None:
            _refuse_decided(connection, rater, item)
        return _say(
            projects, id, rater, item, payload, event, guideline, comment, flags, supersedes, ticket=assignment
        )  # fmt: skip


def decide(
    projects: Projects, id: str, reviewer: str, item: str, payload: Mapping[str, Any], *, event: str,
    guideline: int = 0, comment: str | None = None, flags: Sequence[str] = (), adjudicates: bool = True,
) -> int:  # fmt: skip
    """A judgement of an item that nobody was given: of a reviewer who decides where raters disagree (their earlier
    one is replaced), or of who has just made the item. The completions stood in their own order."""
    events = schema.events
    with schema.writing(projects.store.engine) as connection:
        mine = queries.standing(None, events.c.id).where(events.c.rater == reviewer, events.c.item == item)
        earlier = connection.scalar(mine.limit(1))
        if (known := projects.store.event(event)) is not None:  # sent again
            earlier = known.supersedes
        return _say(
            projects, id, reviewer, item, payload, event, guideline, comment, flags, earlier,
            adjudicates=adjudicates, in_order=True,
        )  # fmt: skip


def _refuse_decided(connection: Connection, reviewer: str, item: str) -> None:
    events = schema.events
    mine = queries.standing(None, events.c.payload).where(events.c.rater == reviewer, events.c.item == item)
    if any((row.payload or {}).get(ADJUDICATES) for row in connection.execute(mine)):
        raise UserError("you have decided on it", where=f"item {item}", fix="decide again, as a reviewer")


def _say(
    projects: Projects, id: str, rater: str, item: str, payload: Mapping[str, Any] | None, event: str, guideline: int,
    comment: str | None, flags: Sequence[str], supersedes: str | None, *, ticket: str | None = None,
    adjudicates: bool = False, in_order: bool = False,
) -> int:  # fmt: skip
    where = f"item {item}"
    with schema.writing(projects.store.engine, at_once=False) as connection:
        if supersedes is not None:  # what else is asked may change
            schema.alone(connection)
            assignments.pause(connection)
        row = connection.execute(_asked(), {"of": id, "item": item, "by": rater}).first()
        found = None if row is None else queries.item(row)
        if row is None or found is None:
            read(connection, id)  # which says so where there is no such project
            raise UserError("is none of the project's", where=where)
        task = task_of(row.task, id)
        slot = None if ticket is None else _slot_of(row.key, ticket, item)
        if unknown := [flag for flag in flags if flag not in get_args(Flag)]:
            raise UserError(f"flags are {unknown}, not some of {', '.join(get_args(Flag))}", where=where)
        if payload is not None:
            task.check_answer(payload, len(found.completions), where)
        said = {name: value for name, value in (payload or {}).items() if name not in SAYS}
        said |= {"flags": sorted(set(flags))} if flags else {}
        said |= {ADJUDICATES: True} if adjudicates else {}
        order = tuple(range(len(found.completions))) if in_order else giving.order_of(found, rater)
        seq = projects.store.append(
            Event(
                event,
                "skip" if payload is None else kind_of(task),
                rater,
                item,
                said,
                presented=order if found.completions else None,
                policy_version=found.policy_version,
                guideline_version=f"{id}/{guideline}" if guideline else None,
                supersedes=supersedes,
                assignment=slot,
                comment=comment or None,
            )
        )
        if row.drafted:
            drafts.drop(connection, rater, item)
        if supersedes is not None:  # an answer became a skip, or a skip an answer
            giving.reconcile(connection, id, task, [item])
        return seq


def _slot_of(key: bytes | None, ticket: str, item: str) -> int:
    """The slot that a ticket stands for. UserError for one that was not of this rater, whose key it is."""
    try:
        return int(privacy.unseal(key, ticket.encode()) or "")
    except (ValueError, InvalidToken):
        raise _not_given(item) from None


def _not_given(item: str) -> UserError:
    return UserError("was not given to this rater", where=f"item {item}", fix="ask for what comes next")


@functools.cache
def _asked() -> sa.Select[Any]:
    """An item of a project (of), what is asked there, the rater's (by) key, and whether they have a draft of it."""
    table, begun, raters = schema.project_items, schema.drafts, schema.raters
    mine = sa.exists().where(begun.c.rater == sa.bindparam("by"), begun.c.item == table.c.item)
    key = sa.select(raters.c.key).where(raters.c.id == sa.bindparam("by")).scalar_subquery()
    query = sa.select(schema.items, schema.projects.c.task, mine.label("drafted"), key.label("key"))
    query = query.join(table, table.c.item == schema.items.c.id)
    query = query.join(schema.projects, schema.projects.c.id == table.c.project)
    return query.where(table.c.project == sa.bindparam("of"), table.c.item == sa.bindparam("item"))
