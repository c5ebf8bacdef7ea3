"""The feedback store: an append-only log of what people said, with a current view.

Nothing is changed and nothing is deleted: a correction, a retraction and even forgetting are events. "Events up
to N" is the snapshot that a training run names; it says the same for ever, save that a rater who was forgotten
is gone from it too.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from plaudit.feedback import assignments, privacy, queries, schema
from plaudit.feedback.assignments import Assignment
from plaudit.feedback.events import (
    JUDGEMENTS,
    Event,
    Item,
    Kind,
    as_stored,
    check,
    event_id,
    same_content,
)
from plaudit.feedback.queries import Snapshot
from plaudit.types import Missing, UserError, prompt_to_json


class Store:
    """One database of feedback; safe to use from many threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, path_or_url: str | Path) -> Store:
        """Opens or makes a store: a SQLite file, or a database URL (postgresql+psycopg://...).

        Brings an older one up to date. UserError when it cannot be opened or a newer Plaudit wrote it.
        """
        return cls(schema.open_engine(path_or_url))

    def close(self) -> None:
        """Gives the connections back. The store opens new ones when it is used again."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Items

    def add_items(self, items: Iterable[Item]) -> list[str]:
        """Stores the items and returns their ids, in order; the same item again is harmless.

        UserError when an id is taken by another item, or the item or its author was forgotten.
        """
        items = list(items)
        with schema.writing(self.engine) as connection:
            put_items(connection, items)
        return [item.id for item in items]

    def enter(self, items: Sequence[Item], events: Sequence[Event]) -> tuple[int, int]:
        """Stores the items and the events, all or none; returns how many of each were new. As `add_items`, `append`."""
        with schema.writing(self.engine) as connection:
            before = queries.last_seq(connection)
            new = put_items(connection, items)
            log = _Log(connection, events)
            return new, sum(log.append(event) > before for event in events)

    def items(self, ids: Iterable[str] | None = None) -> dict[str, Item]:
        """The items by id, all of them or those asked for; what was forgotten or never there is left out."""
        with schema.reading(self.engine) as connection:
            found = queries.items(connection, None if ids is None else list(ids))
        return {key: item for key, item in found.items() if item is not None}

    # The log

    def append(self, event: Event) -> int:
        """Writes the event, and completes the assignment that it names. When this returns, it is on disk.

        Returns its seq: 1, 2, 3, ... without a gap, in order of commit. An event that is there already gives
        the seq that it has. UserError, and nothing written, when the id is taken by an event that says
        something else, or the event does not fit its item, its assignment, or what it supersedes.
        """
        return self.extend([event])[0]

    def extend(self, events: Sequence[Event]) -> list[int]:
        """Writes the events in order, all or none; one wait for the disk. As `append`."""
        with schema.writing(self.engine) as connection:
            log = _Log(connection, events)
            return [log.append(event) for event in events]

    def correct(self, event: str, new: Event) -> int:
        """Writes `new` in place of the rater's earlier event on the same item; a skip takes it back."""
        return self.append(replace(new, supersedes=event))

    def retract(self, event: str) -> int:
        """Takes one judgement back from here on; again is harmless. UserError when there is no such event."""
        with schema.writing(self.engine) as connection:
            old = queries.events(connection, [event]).get(event)
            if old is None or old.item is None:
                raise Missing("event", event)
            new = Event(event_id("retract", event), "retract", old.rater, old.item, supersedes=event)
            return _Log(connection, [new]).append(new)

    def current(self, up_to: int | None = None, *, after: int = 0) -> list[Event]:
        """The judgements that stand, in order of seq, as of event number `up_to` (None: now); of those from number
        `after` + 1 on.

        Without what was superseded, retracted or forgotten. A skip is among them.
        """
        with schema.reading(self.engine) as connection:
            query = queries.standing(up_to).where(schema.events.c.seq > after)
            rows = connection.execute(query.order_by(schema.events.c.seq))
            return [queries.event(row) for row in rows]

    def log(self, after: int = 0, limit: int | None = None) -> list[Event]:
        """The events as they were written, from seq `after` + 1 on; what is forgotten has an empty payload."""
        with schema.reading(self.engine) as connection:
            query = (
                queries.logged().where(schema.events.c.seq > after).order_by(schema.events.c.seq).limit(limit)
            )
            return [queries.event(row) for row in connection.execute(query)]

    def event(self, id: str) -> Event | None:
        """One event, whether it still stands or not."""
        with schema.reading(self.engine) as connection:
            return queries.events(connection, [id]).get(id)

    def last_seq(self) -> int:
        """The number of the last event, 0 before the first."""
        with schema.reading(self.engine) as connection:
            return queries.last_seq(connection)

    def as_of(self, up_to: int | None) -> int:
        """The number of the event that is meant, None being the last. UserError when there are not so many."""
        last = self.last_seq()
        if up_to is not None and not 0 <= up_to <= last:
            raise UserError(f"there are {last} events, not {up_to}", where=f"up to {up_to}")
        return last if up_to is None else up_to

    # Raters

    def raters(self) -> dict[str, Literal["active", "retracted", "forgotten"]]:
        """Every pseudonym in the store, and how its holder stands now."""
        with schema.reading(self.engine) as connection:
            return queries.raters(connection)

    def set_identity(self, rater: str, identity: Mapping[str, str]) -> None:
        """Keeps who is behind the pseudonym (name, e-mail, ...), sealed under the rater's own key."""
        with schema.writing(self.engine) as connection:
            privacy.set_identity(connection, rater, identity)

    def identity(self, rater: str) -> dict[str, str]:
        """Who is behind the pseudonym; empty when it is not known, or forgotten."""
        with schema.reading(self.engine) as connection:
            return privacy.identity(connection, rater)

    def retract_rater(self, rater: str) -> int:
        """Hides all that the rater said from the current view, from here on; returns the event's seq.

        Their further judgements are refused until `restore_rater`. Older snapshots show them as before.
        """
        return self._rule(rater, "retract_rater")

    def restore_rater(self, rater: str) -> int:
        """Undoes `retract_rater`: from here on the rater's judgements stand again."""
        return self._rule(rater, "restore_rater")

    def forget_rater(self, rater: str) -> int:
        """Destroys the rater's key and all that they said, in every snapshot; leaves tombstones. Final.

        Returns the event's seq; again is harmless. On SQLite the freed space is overwritten and the write-ahead
        log cut, as `cut_log`. Backups made before still hold the key: destroy them too.
        """
        seq = self.erase_rater(rater)
        self.cut_log()
        return seq

    def erase_rater(self, rater: str) -> int:
        """As `forget_rater`, of which this is the part that a transaction can hold; `cut_log` comes after it."""
        with schema.writing(self.engine) as connection:
            seq = self._rule_in(connection, rater, "forget_rater")
            assignments.pause(connection)
            privacy.erase(connection, rater, seq)
            return seq

    def cut_log(self) -> None:
        """Empties SQLite's write-ahead log, which holds what was erased since it was cut last; elsewhere nothing.

        UserError when readers kept it from being cut, so that it must be called again.
        """
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
            if busy:
                raise UserError(
                    "the rater was erased, but the write-ahead log still holds what they said, for somebody is reading",
                    where=str(self.engine.url.database),
                    fix="forget the rater again when the readers are gone",
                )

    # Snapshots

    def name_snapshot(self, name: str, seq: int, note: str = "") -> Snapshot:
        """Names "events up to seq", as the run that trains on them does; again is harmless.

        UserError when the name stands for another seq, or there are not so many events.
        """
        with schema.writing(self.engine) as connection:
            if not 0 <= seq <= (last := queries.last_seq(connection)):
                raise UserError(f"there are {last} events, not {seq}", where=f"snapshot {name}")
            known = {snapshot.name: snapshot for snapshot in queries.snapshots(connection)}
            if name not in known:
                known[name] = Snapshot(name, seq, note, _now())
                row = {"name": name, "seq": seq, "note": note, "created_at": known[name].created_at}
                connection.execute(schema.snapshots.insert(), row)
            if known[name].seq != seq:
                raise UserError(f"this name stands for event {known[name].seq}", where=f"snapshot {name}")
            return known[name]

    def snapshots(self) -> list[Snapshot]:
        """All of them, by seq and name."""
        with schema.reading(self.engine) as connection:
            return queries.snapshots(connection)

    def models_trained_on(self, rater: str) -> list[str]:
        """The named snapshots in which a judgement by the rater, or of the rater's words, stood.

        Forgetting the rater does not change the answer, so that the owner knows which models to train again.
        """
        theirs = sa.or_(schema.events.c.rater == rater, schema.items.c.author == rater)
        with schema.reading(self.engine) as connection:
            return [
                snapshot.name
                for snapshot in queries.snapshots(connection)
                if connection.execute(
                    queries.standing(snapshot.seq, before_forgetting=True)
                    .where(theirs, schema.events.c.kind != "skip")
                    .limit(1)
                ).first()
            ]

    # Assignments

    def assign(self, items: Iterable[str], overlap: int = 1) -> int:
        """Opens slots until each item has `overlap` standing or coming judgements; returns how many it opened.

        Asked again it opens what is missing: more overlap, or in place of judgements that were retracted.
        """
        with schema.writing(self.engine) as connection:
            return assignments.assign(connection, items, overlap, queries.judged(connection))

    def claim(self, rater: str, now: float, lease_seconds: float) -> Assignment | None:
        """The next item for this rater until now + lease_seconds, or None. Never one that they judged before.

        now: seconds on any clock that all claimants share. UserError for a rater who was forgotten.
        """
        with schema.writing(self.engine) as connection:
            queries.admit(connection, rater)
            return assignments.claim(connection, rater, now, lease_seconds)

    def _rule(self, rater: str, kind: Kind) -> int:
        with schema.writing(self.engine) as connection:
            return self._rule_in(connection, rater, kind)

    def _rule_in(self, connection: Connection, rater: str, kind: Kind) -> int:
        """Writes an event about a rater, unless the last such event already says so."""
        row = connection.execute(sa.select(schema.raters).where(schema.raters.c.id == rater)).first()
        if row is None:
            raise Missing("rater", rater)
        if row.forgotten is not None:
            return int(row.forgotten)
        last = queries.last_rule(connection, rater)
        if last is not None and last.kind == kind:
            return int(last.seq)
        return _insert(connection, Event(str(uuid.uuid4()), kind, rater))


class _Log:
    """Appends to the log within one transaction; reads ahead what its checks need: of one plain judgement, which is by
    far the most frequent, all in one query."""

    def __init__(self, connection: Connection, events: Sequence[Event]) -> None:
        self.connection = connection
        self.met = _met(connection, events)
        if self.met is None:
            self.known = queries.events(connection, [event.id for event in events])
            self.items = queries.items(connection, [event.item for event in events if event.item is not None])
        else:
            self.known, self.items = {}, {}
        self.raters: set[str] = set()

    def append(self, event: Event) -> int:
        event = replace(event, payload=as_stored(event.payload))
        if event.id in self.known:
            return self._replay(event)
        if event.kind not in JUDGEMENTS and event.kind != "retract":
            raise UserError("is the store's own to write", where=f"event {event.id} ({event.kind})")
        if event.kind == "retract":
            privacy.ensure(self.connection, event.rater)
        else:
            self._check_judgement(event)
        if event.supersedes is not None or event.kind == "retract":
            self._check_superseded(event)
        if event.assignment is not None:
            if self.met is None:
                assignments.check_answer(self.connection, event)
            else:
                assignments.check_slot(event, self.met.slot_item, self.met.answer)
        seq = _insert(self.connection, event)
        if event.assignment is not None:
            assignments.complete(self.connection, event)
        self.known[event.id] = replace(event, seq=seq)
        return seq

    def _replay(self, event: Event) -> int:
        known = self.known[event.id]
        query = sa.select(schema.raters.c.forgotten).where(schema.raters.c.id == known.rater)
        forgotten = self.connection.scalar(query) is not None
        if event.rater != known.rater or not (forgotten or same_content(event, known)):
            raise UserError("this id belongs to an event that says something else", where=f"event {event.id}")
        return known.seq

    def _check_judgement(self, event: Event) -> None:
        if self.met is not None and self.met.entered is not None:
            queries.standing_key(event.rater, self.met)
        elif event.rater not in self.raters:
            queries.admit(self.connection, event.rater)
            self.raters.add(event.rater)
        there, completions = self._item(event.item or "")
        if not there:
            raise UserError(f"there is no item {event.item}", where=f"event {event.id}", fix="add it first")
        if completions is None:
            raise UserError(f"item {event.item} was forgotten", where=f"event {event.id}")
        check(event, completions)

    def _item(self, id: str) -> tuple[bool, int | None]:
        """Whether there is such an item, and how many completions it has, where it can be read."""
        if self.met is not None:
            return self.met.item is not None, self.met.completions if self.met.readable else None
        item = self.items.get(id)
        return id in self.items, None if item is None else len(item.completions)

    def _check_superseded(self, event: Event) -> None:
        where = f"event {event.id}"
        old = queries.events(self.connection, [event.supersedes or ""]).get(event.supersedes or "")
        if old is None:
            raise UserError(f"there is no event {event.supersedes} to supersede", where=where)
        if old.item is None:
            raise UserError(f"event {old.id} is of no item", where=where)
        if (old.rater, old.item) != (event.rater, event.item):
            raise UserError(f"event {old.id} is of another rater or item", where=where)
        taken = sa.select(schema.events.c.id).where(schema.events.c.supersedes == old.id)
        if (later := self.connection.scalar(taken)) is not None:
            raise UserError(f"event {old.id} is superseded by {later}", where=where, fix="supersede that one")


def _met(connection: Connection, events: Sequence[Event]) -> sa.Row[Any] | None:
    """What the only event meets (`queries.meets`); None of several, of what is no plain judgement, or is known."""
    if len(events) != 1 or events[0].kind not in JUDGEMENTS or events[0].supersedes is not None:
        return None
    met = queries.meets(connection, events[0])
    return met if met.known is None else None


def put_items(connection: Connection, items: Sequence[Item]) -> int:
    """Stores the items, as `Store.add_items`, within a transaction that writes; how many were new."""
    stored = queries.items(connection, [item.id for item in items])
    before = len(stored)
    for item in items:
        meta = as_stored(item.meta)
        if item.id in stored:
            if stored[item.id] is None:
                raise UserError("this item was forgotten", where=f"item {item.id}")
            if stored[item.id] != replace(item, meta=meta):
                raise UserError("this id belongs to another item", where=f"item {item.id}")
            continue
        if item.author is not None:
            privacy.ensure(connection, item.author)
        row = {"id": item.id, "prompt": prompt_to_json(item.prompt), "completions": list(item.completions)}
        row |= {"policy_version": item.policy_version, "meta": meta, "author": item.author}
        connection.execute(schema.items.insert(), row)
        stored[item.id] = replace(item, meta=meta)
    return len(stored) - before


_NUMBER = sa.select(sa.func.coalesce(sa.func.max(schema.events.c.seq), 0) + 1).scalar_subquery()
_EVENT = schema.events.insert().values(seq=_NUMBER).returning(schema.events.c.seq)


def _insert(connection: Connection, event: Event) -> int:
    """Writes it as the last one; its number."""
    sealed = None if event.comment is None else privacy.seal(connection, event.rater, event.comment)
    seq = connection.execute(
        _EVENT,
        {
            "id": event.id,
            "kind": event.kind,
            "item": event.item,
            "rater": event.rater,
            "payload": dict(event.payload),
            "comment": sealed,
            "presented": None if event.presented is None else list(event.presented),
            "policy_version": event.policy_version,
            "guideline_version": event.guideline_version,
            "supersedes": event.supersedes,
            "assignment": event.assignment,
            "created_at": _now(),
        },
    ).scalar_one()
    return int(seq)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
