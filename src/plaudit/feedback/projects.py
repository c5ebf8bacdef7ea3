"""Projects: what is asked, of which items, and who is given what next.

An item belongs to one project; the same text in two of them is two items. Whatever is drawn (which items are the random
slice, which gold item comes when, the order on a rater's screen) is drawn from ids alone, so that a page that is loaded
again shows the same.
"""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import sqlalchemy as sa
from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy.engine import Connection

from plaudit import config as configs
from plaudit.feedback import giving, privacy, queries, schema, transfer
from plaudit.feedback.assignments import BY_PRIORITY, FOR_ONE, RANDOM
from plaudit.feedback.events import Event, Item, check
from plaudit.feedback.judgements import ADJUDICATES, PROJECT, REPEATS
from plaudit.feedback.store import Store, put_items
from plaudit.feedback.tasks import Flag, Task, agrees, kind_of
from plaudit.types import Demonstration, Prompt, Rating, Record, UserError, prompt_to_json

Part = Literal["open", "gold", "training", "repeat"]
FEWEST_SHARED = 5
"""Answers of others without which nothing is said of agreement."""


RESERVED = frozenset({PROJECT, REPEATS, "models"})
"""Names of an item's meta that mean something here."""
SAYS = frozenset({"flags", ADJUDICATES})
"""Names of a payload that are not the rater's to give."""


_NEWEST = sa.select(sa.func.max(schema.guidelines.c.version)).where(
    schema.guidelines.c.project == schema.projects.c.id
)
_PROJECTS = sa.select(schema.projects, sa.func.coalesce(_NEWEST.scalar_subquery(), 0).label("guideline"))
_PROJECT = _PROJECTS.where(schema.projects.c.id == sa.bindparam("of"))
_DONE = sa.select(sa.func.count(schema.assignments.c.id)).where(
    schema.assignments.c.project == sa.bindparam("of"),
    schema.assignments.c.rater == sa.bindparam("by"),
    schema.assignments.c.event.is_not(None),
)


@dataclass(frozen=True, slots=True)
class Project:
    """guideline: the newest version, 0 where none is written."""

    id: str
    name: str
    task: Task
    created_at: str
    archived: bool
    guideline: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be judged. answer: the payload that is right, of gold and training items; why: what a rater reads who
    answers otherwise."""

    prompt: Prompt
    completions: tuple[str, ...] = ()
    policy_version: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    part: Part = "open"
    answer: Mapping[str, Any] | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a rater is given. order: of the completions on their screen. assignment: a ticket that is handed in with the
    answer, sealed for this rater (its number would tell gold items apart); None of a training item. part: training, or
    open: gold and repeated items look like any."""

    item: Item
    order: tuple[int, ...]
    part: Literal["open", "training"]
    assignment: str | None


class Projects:
    """All projects of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # What is asked

    def create(self, name: str, task: Task) -> Project:
        """A new one, without items. UserError for an empty name."""
        if not name.strip():
            raise UserError("has no name", where="project")
        made = Project(secrets.token_hex(4), name.strip(), task, _now(), archived=False)
        row = {"id": made.id, "name": made.name, "task": task.model_dump(mode="json")}
        with schema.writing(self.store.engine) as connection:
            connection.execute(
                schema.projects.insert(), row | {"created_at": made.created_at, "archived": False}
            )
        return made

    def get(self, id: str) -> Project:
        """UserError where there is none."""
        with schema.reading(self.store.engine) as connection:
            return _get(connection, id)

    def all(self) -> list[Project]:
        """In the order in which they were made."""
        with schema.reading(self.store.engine) as connection:
            in_order = _PROJECTS.order_by(schema.projects.c.created_at, schema.projects.c.id)
            return [_project(row) for row in connection.execute(in_order)]

    def change(
        self, id: str, *, name: str | None = None, task: Task | None = None, archived: bool | None = None
    ) -> Project:
        """UserError for a task of another kind, which would make what was judged mean something else."""
        with schema.writing(self.store.engine) as connection:
            old, values = _get(connection, id), dict[str, Any]()
            if name is not None:
                values["name"] = name.strip() or old.name
            if task is not None:
                if task.kind != old.task.kind:
                    raise UserError(
                        f"asks for a {old.task.kind}, not a {task.kind}", where=f"project {id}",
                        fix="make another project",
                    )  # fmt: skip
                values["task"] = task.model_dump(mode="json")
            if archived is not None:
                values["archived"] = archived
            if values:
                connection.execute(
                    schema.projects.update().where(schema.projects.c.id == id).values(**values)
                )
            if task is not None and task.overlap != old.task.overlap:
                giving.reconcile(connection, id, task)
            return _get(connection, id)

    def welcome(self, id: str, rater: str) -> None:
        """Names the rater among those who may judge, where some are named."""
        with schema.writing(self.store.engine) as connection:
            task = _get(connection, id).task
            if not task.admits(rater):
                named = task.model_copy(update={"raters": (*task.raters, rater)}).model_dump(mode="json")
                connection.execute(
                    schema.projects.update().where(schema.projects.c.id == id).values(task=named)
                )

    def duplicate(self, id: str, name: str) -> Project:
        """The same task, guidelines and items, and no judgement."""
        old = self.get(id)
        made = self.create(name, old.task)
        if old.guideline:
            self.write_guideline(made.id, self.guideline(id)[1])
        with schema.reading(self.store.engine) as connection:
            rows = _entries(connection, id)
        self.add(made.id, rows)
        return self.get(made.id)

    def write_guideline(self, id: str, texts: Mapping[str, str]) -> int:
        """A new version, in one language or several ({"en": ..., "zh": ...}); its number. The same again is none."""
        with schema.writing(self.store.engine) as connection:
            _get(connection, id)
            version, before = _guideline(connection, id)
            if version and before == dict(texts):
                return version
            row = {"project": id, "version": version + 1, "texts": dict(texts), "created_at": _now()}
            connection.execute(schema.guidelines.insert(), row)
            return version + 1

    def guideline(self, id: str, version: int | None = None) -> tuple[int, dict[str, str]]:
        """The newest version, or that one, with its texts; 0 and nothing where there is none."""
        with schema.reading(self.store.engine) as connection:
            return _guideline(connection, id, version)

    # Of what

    def add(self, id: str, entries: Sequence[Entry]) -> int:
        """Puts items in, and opens as many slots of each as raters are wanted; how many items were new.

        All or none. UserError for one that the task does not take, or gold without an answer that fits it.
        """
        with schema.writing(self.store.engine) as connection:
            project, made = _get(connection, id), list[tuple[Item, Entry]]()
            for number, entry in enumerate(entries, 1):
                where = f"item {number}"
                project.task.check_item(len(entry.completions), where)
                if (entry.answer is None) == (entry.part in ("gold", "training")):
                    none, some = f"is {entry.part} and has no answer", f"is {entry.part} and has an answer"
                    raise UserError(none if entry.answer is None else some, where=where)
                if taken := sorted(RESERVED & entry.meta.keys()):
                    raise UserError(
                        f"its meta holds {', '.join(taken)}, which the store uses itself", where=where
                    )
                meta = dict(entry.meta) | {PROJECT: id}
                item = Item(entry.prompt, entry.completions, entry.policy_version, meta)
                if entry.answer is not None:
                    project.task.check_answer(entry.answer, len(item.completions), where)
                    check(
                        Event("x", kind_of(project.task), "x", item.id, dict(entry.answer)),
                        len(item.completions),
                    )
                made.append((item, entry))
            return _put(connection, project, made)

    def take_in(self, id: str, records: Sequence[Record]) -> dict[str, int]:
        """Judgements that were made elsewhere, with their raters, as items and events of the project; counts as
        `transfer.import_records`. Items that come in with judgements are given to as many raters more as the overlap
        leaves. UserError for a record that is of another kind than the project's."""
        project = self.get(id)
        labels = project.task.kind == "category"  # a demonstration's completion is a label
        wanted = "demonstration" if labels else kind_of(project.task)
        for number, record in enumerate(records, 1):
            where = f"record {number}"
            if (kind := transfer.kind_of(record)) != wanted:
                raise UserError(f"is a {kind}, where the project asks for a {project.task.kind}", where=where)
            if isinstance(record, Rating):
                project.task.check_answer({"scores": record.scores}, 1, where)
            elif isinstance(record, Demonstration) and labels:
                project.task.check_answer({"label": record.completion}, 0, where)
            elif isinstance(record, Demonstration):
                raise UserError(
                    "is a demonstration without a text to mend", where=where, fix="train on it as it is"
                )
        counts = transfer.import_records(self.store, records, meta={PROJECT: id}, labels=labels)
        items = [item for item in self.store.items().values() if item.meta.get(PROJECT) == id]
        with schema.writing(self.store.engine) as connection:
            entries = [Entry(item.prompt, item.completions, item.policy_version, item.meta) for item in items]
            _put(connection, project, list(zip(items, entries, strict=True)), slots=False)
            giving.reconcile(connection, id, project.task)
        return counts

    def close(self, id: str, items: Sequence[str]) -> int:
        """Takes back the slots of these items that nobody holds or has answered; how many."""
        with schema.writing(self.store.engine) as connection:
            return giving.close(connection, id, items)

    def reopen(self, rater: str) -> None:
        """Asks somebody else for what a rater said who no longer counts."""
        table, events = schema.project_items, schema.events
        with schema.writing(self.store.engine) as connection:
            rows = connection.execute(
                sa.select(table.c.project, table.c.item)
                .join(events, events.c.item == table.c.item)
                .where(events.c.rater == rater, table.c.part == "open")
                .distinct()
            )
            items: dict[str, list[str]] = {}
            for row in rows:
                items.setdefault(row.project, []).append(row.item)
            for project, mine in items.items():
                for some in queries.chunks(mine):
                    giving.reconcile(connection, project, _get(connection, project).task, some)

    def enter(self, id: str, entry: Entry, author: str) -> str:
        """One item that nobody is given: what is said of it is said at once. Its id. author: whose words it holds."""
        with schema.writing(self.store.engine) as connection:
            project = _get(connection, id)
            project.task.check_item(len(entry.completions), "item")
            item = Item(
                entry.prompt,
                entry.completions,
                entry.policy_version,
                dict(entry.meta) | {PROJECT: id},
                author,
            )
            _put(connection, project, [(item, entry)], slots=False)
            return item.id

    def prompts(self, id: str) -> list[Prompt]:
        """Those of its items, each once, in the order in which they came in."""
        found = {schema.to_json(prompt_to_json(item.prompt)): item.prompt for item in self._items(id)}
        return list(found.values())

    def by_prompt(self, id: str) -> dict[str, tuple[Item, list[tuple[str, str, str]]]]:
        """{the prompt as JSON: (an item of it, [(the model that said it, item, completion)])}."""
        found: dict[str, tuple[Item, list[tuple[str, str, str]]]] = {}
        for item in self._items(id):
            models = item.meta.get("models") or [item.policy_version or ""] * len(item.completions)
            _, said = found.setdefault(schema.to_json(prompt_to_json(item.prompt)), (item, []))
            said += [
                (str(model), item.id, text) for model, text in zip(models, item.completions, strict=False)
            ]
        return found

    def counts(self, id: str) -> dict[str, int]:
        """{"open", "gold", "training": items; "judgements": that stand; "to_come": slots without one; "raters"}."""
        table, slots, events = schema.project_items, schema.assignments, schema.events
        with schema.reading(self.store.engine) as connection:
            _get(connection, id)
            rows = connection.execute(
                sa.select(table.c.part, sa.func.count()).where(table.c.project == id).group_by(table.c.part)
            )
            parts = {part: int(count) for part, count in rows}
            open_ = (slots.c.project == id, slots.c.event.is_(None), slots.c.queue != FOR_ONE)
            to_come = connection.scalar(sa.select(sa.func.count()).select_from(slots).where(*open_))
            people = queries.standing(None, sa.func.count(sa.distinct(events.c.rater)))
            people = people.join(table, table.c.item == events.c.item).where(table.c.project == id)
            return {
                **{part: parts.get(part, 0) for part in ("open", "gold", "training")},
                "judgements": _given(connection, id),
                "to_come": int(to_come or 0),
                "raters": int(connection.scalar(people) or 0),
            }

    def own(self, id: str, rater: str, since: str) -> dict[str, Any]:
        """A rater's own work: {"done", "skipped", "today": since that moment, "agreement": how often others who judged
        the same said the same (as gold would count it), None where fewer than five others have}."""
        table, events = schema.project_items, schema.events
        with schema.reading(self.store.engine) as connection:
            project = _get(connection, id)
            query = (
                queries.standing(None).join(table, table.c.item == events.c.item).where(table.c.project == id)
            )
            said = [queries.event(row) for row in connection.execute(query.where(events.c.rater == rater))]
            judged = {str(event.item): event for event in said if event.kind != "skip"}
            others = list[Event]()
            for some in queries.chunks(list(judged)):
                rows = connection.execute(query.where(events.c.item.in_(some), events.c.rater != rater))
                others += [queries.event(row) for row in rows]
        same = [
            agrees(project.task, judged[str(event.item)].payload, event.payload)
            for event in others
            if event.kind != "skip" and not event.payload.get(ADJUDICATES)
        ]
        return {
            "done": len(judged),
            "skipped": len(said) - len(judged),
            "today": sum(event.created_at >= since for event in judged.values()),
            "agreement": sum(same) / len(same) if len(same) >= FEWEST_SHARED else None,
        }

    def _items(self, id: str) -> list[Item]:
        """All that can be read, in the order in which they came in; what is asked twice once."""
        table = schema.project_items
        with schema.reading(self.store.engine) as connection:
            _get(connection, id)
            query = sa.select(table.c.item).where(table.c.project == id, table.c.part != "repeat")
            ids = connection.scalars(query.order_by(table.c.number)).all()
            found = queries.items(connection, ids)
        return [item for key in ids if (item := found.get(key)) is not None]

    def prioritise(self, id: str, worth: Mapping[str, float]) -> None:
        """From now on items are given out in the order of their worth, the highest first; those not named stay."""
        slots = schema.assignments
        with schema.writing(self.store.engine) as connection:
            for item, value in worth.items():
                mine = (slots.c.project == id, slots.c.item == item, slots.c.event.is_(None))
                by_worth = slots.c.queue == BY_PRIORITY  # the random slice is in no order of worth
                connection.execute(slots.update().where(*mine, by_worth).values(priority=value))

    # Who is given what

    def next(self, id: str, rater: str, now: float, count: int = 1) -> list[Turn]:
        """What this rater judges next, and what after that, `count` in all; fewer where no more is left for them, or
        the project has what it wants.

        Training items come first. Then what they hold already, now and then a gold item or one they have judged
        before, and else what teaches most, or, as often as the task says, what comes next of the random slice.
        """
        with schema.writing(self.store.engine, at_once=False) as connection:
            project = _get(connection, id)
            key = queries.admit(connection, rater)
            if project.archived:
                return []
            if lessons := giving.training(connection, id, rater, count):
                return _turns(connection, rater, "training", lessons, None)
            most = project.task.most_judgements
            if most is not None and _given(connection, id) >= most:
                return []
            done = _done(connection, id, rater)
            doubt = giving.doubt(connection, id, project.task, rater)
            schema.alone(connection)
            if key is None:
                key = privacy.key_of(connection, rater)
            held = giving.held(connection, id, project.task, rater, now)[:count]
            while len(held) < count:
                more = giving.claim(connection, id, project.task, rater, done + len(held), doubt, now)
                if more is None:
                    break
                held.append(more)
        with schema.reading(self.store.engine) as connection:
            tickets = {slot.item: Fernet(key).encrypt(str(slot.id).encode()).decode() for slot in held}
            return _turns(connection, rater, "open", list(tickets), tickets)

    def practise(
        self, id: str, rater: str, item: str, payload: Mapping[str, Any]
    ) -> tuple[bool, Mapping[str, Any], str]:
        """A training item's answer: whether it is right, the right one, and why. The first answer is kept."""
        with schema.writing(self.store.engine) as connection:
            project = _get(connection, id)
            table = schema.project_items
            row = connection.execute(
                sa.select(table).where(
                    table.c.project == id, table.c.item == item, table.c.part == "training"
                )
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
        self, id: str, rater: str, item: str, payload: Mapping[str, Any] | None, *, event: str,
        assignment: str | None = None, guideline: int = 0, comment: str | None = None, flags: Sequence[str] = (),
        supersedes: str | None = None,
    ) -> int:  # fmt: skip
        """Writes an answer, or, of None, that the rater passes the item over; the event's seq. The draft goes with it.

        event: an id that the client has made; the same again is harmless. assignment: the turn's. flags: what is wrong
        with the item. supersedes: the rater's answer that this one takes the place of.
        UserError for an answer of another kind than the project asks for, or one that leaves something out; and for an
        item that was not given to this rater.
        """
        if assignment is None:
            raise _not_given(item)
        return self._say(
            id, rater, item, payload, event, guideline, comment, flags, supersedes, ticket=assignment
        )

    def decide(
        self, id: str, reviewer: str, item: str, payload: Mapping[str, Any], *, event: str, guideline: int = 0,
        comment: str | None = None, flags: Sequence[str] = (), adjudicates: bool = True,
    ) -> int:  # fmt: skip
        """A judgement of an item that nobody was given: of a reviewer who decides where raters disagree (their earlier
        one is replaced), or of who has just made the item. The completions stood in their own order."""
        events = schema.events
        with schema.reading(self.store.engine) as connection:
            mine = queries.standing(None, events.c.id).where(
                events.c.rater == reviewer, events.c.item == item
            )
            earlier = connection.scalar(mine.limit(1))
        if (known := self.store.event(event)) is not None:  # sent again
            earlier = known.supersedes
        return self._say(
            id, reviewer, item, payload, event, guideline, comment, flags, earlier,
            adjudicates=adjudicates, in_order=True,
        )  # fmt: skip

    def _say(
        self, id: str, rater: str, item: str, payload: Mapping[str, Any] | None, event: str, guideline: int,
        comment: str | None, flags: Sequence[str], supersedes: str | None, *, ticket: str | None = None,
        adjudicates: bool = False, in_order: bool = False,
    ) -> int:  # fmt: skip
        where = f"item {item}"
        with schema.writing(self.store.engine, at_once=False) as connection:
            slot = None if ticket is None else _slot_of(connection, rater, ticket, item)
            row = connection.execute(_asked(), {"of": id, "item": item, "by": rater}).first()
            project = _get(connection, id) if row is None else _project(row)
            found = queries.items(connection, [item]).get(item)
            if row is None or found is None:
                raise UserError("is none of the project's", where=where)
            if unknown := [flag for flag in flags if flag not in get_args(Flag)]:
                raise UserError(f"flags are {unknown}, not some of {', '.join(get_args(Flag))}", where=where)
            if payload is not None:
                project.task.check_answer(payload, len(found.completions), where)
            said = {name: value for name, value in (payload or {}).items() if name not in SAYS}
            said |= {"flags": sorted(set(flags))} if flags else {}
            said |= {ADJUDICATES: True} if adjudicates else {}
            order = tuple(range(len(found.completions))) if in_order else giving.order_of(found, rater)
            seq = self.store.append(
                Event(
                    event,
                    "skip" if payload is None else kind_of(project.task),
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
                _drop_draft(connection, rater, item)
            if supersedes is not None:  # an answer became a skip, or a skip an answer
                giving.reconcile(connection, id, project.task, [item])
            return seq

    # Drafts

    def save_draft(self, rater: str, item: str, draft: Mapping[str, Any], now: float | None = None) -> None:
        """Keeps what is not sent yet, sealed under the rater's key. An empty one takes it away. now: what the rater
        holds of the item is kept for them from then on. UserError where there is no such item."""
        table = schema.drafts
        with schema.writing(self.store.engine) as connection:
            if connection.scalar(sa.select(schema.items.c.id).where(schema.items.c.id == item)) is None:
                raise UserError("there is no such item", where=f"item {item}")
            privacy.ensure(connection, rater)
            _drop_draft(connection, rater, item)
            if draft:
                sealed = privacy.seal(connection, rater, json.dumps(draft))
                connection.execute(table.insert(), {"rater": rater, "item": item, "sealed": sealed})
            of = schema.project_items
            project = connection.scalar(sa.select(of.c.project).where(of.c.item == item))
            if now is not None and project is not None:
                giving.keep(connection, _get(connection, project).task, rater, item, now)

    def draft(self, rater: str, item: str) -> dict[str, Any]:
        """What was kept; empty where nothing was."""
        return self.drafts(rater, [item]).get(item, {})

    def drafts(self, rater: str, items: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What was kept of these items, of those of which something was."""
        table = schema.drafts
        query = (
            sa.select(table.c.item, table.c.sealed, schema.raters.c.key)
            .join_from(table, schema.raters, schema.raters.c.id == table.c.rater)
            .where(table.c.rater == rater, table.c.item.in_(items))
        )
        with schema.reading(self.store.engine) as connection:
            rows = connection.execute(query).all()
        texts = {row.item: privacy.unseal(row.key, row.sealed) for row in rows}
        return {item: dict(json.loads(text)) for item, text in texts.items() if text is not None}


def _turns(
    connection: Connection,
    rater: str,
    part: Literal["open", "training"],
    items: Sequence[str],
    tickets: Mapping[str, str] | None,
) -> list[Turn]:
    found, turns = queries.items(connection, items), list[Turn]()
    for id in items:
        if (item := found[id]) is not None:  # None: forgotten just now
            turns.append(Turn(item, giving.order_of(item, rater), part, tickets[id] if tickets else None))
    return turns


def _slot_of(connection: Connection, rater: str, ticket: str, item: str) -> int:
    """The slot that a ticket stands for. UserError for one that was not this rater's."""
    try:
        return int(privacy.unseal(privacy.known_key(connection, rater), ticket.encode()) or "")
    except (ValueError, InvalidToken):
        raise _not_given(item) from None


def _not_given(item: str) -> UserError:
    return UserError("was not given to this rater", where=f"item {item}", fix="ask for what comes next")


@functools.cache
def _asked() -> sa.Select[Any]:
    """The project (of), where the item is one of its, and whether the rater (by) has a draft of it."""
    table, drafts = schema.project_items, schema.drafts
    mine = sa.exists().where(drafts.c.rater == sa.bindparam("by"), drafts.c.item == table.c.item)
    query = _PROJECT.add_columns(mine.label("drafted")).join(table, table.c.project == schema.projects.c.id)
    return query.where(table.c.item == sa.bindparam("item"))


def _drop_draft(connection: Connection, rater: str, item: str) -> None:
    drafts = schema.drafts
    connection.execute(drafts.delete().where(drafts.c.rater == rater, drafts.c.item == item))


def _get(connection: Connection, id: str) -> Project:
    row = connection.execute(_PROJECT, {"of": id}).first()
    if row is None:
        raise UserError("there is no such project", where=f"project {id}")
    return _project(row)


def _project(row: sa.Row[Any]) -> Project:
    task = configs.parse(Task, row.task, f"project {row.id}")
    return Project(row.id, row.name, task, row.created_at, row.archived, row.guideline)


def _guideline(connection: Connection, id: str, version: int | None = None) -> tuple[int, dict[str, str]]:
    table = schema.guidelines
    query = sa.select(table).where(table.c.project == id).order_by(table.c.version.desc()).limit(1)
    if version is not None:
        query = query.where(table.c.version == version)
    row = connection.execute(query).first()
    return (0, {}) if row is None else (row.version, dict(row.texts))


def _entries(connection: Connection, id: str) -> list[Entry]:
    table = schema.project_items
    rows = connection.execute(
        sa.select(table).where(table.c.project == id, table.c.part != "repeat").order_by(table.c.number)
    ).all()
    items = queries.items(connection, [row.item for row in rows])
    found = []
    for row in rows:
        if (item := items[row.item]) is not None and item.author is None:
            answer, why = (row.answer or {}).get("payload"), (row.answer or {}).get("why", "")
            meta = {name: value for name, value in item.meta.items() if name != PROJECT}
            found.append(
                Entry(item.prompt, item.completions, item.policy_version, meta, row.part, answer, why)
            )
    return found


def _put(
    connection: Connection, project: Project, made: Sequence[tuple[Item, Entry]], *, slots: bool = True
) -> int:
    """How many items were new. slots: whether each is given out to as many raters as the task asks for."""
    table, wanted = schema.project_items, dict[str, int]()
    known = set(connection.scalars(sa.select(table.c.item).where(table.c.project == project.id)))
    first = len(known)
    put_items(connection, [item for item, _ in made])
    for item, entry in made:
        if item.id in known:
            continue
        known.add(item.id)
        queue = RANDOM if giving.number("slice", item.id) < project.task.random_share else BY_PRIORITY
        answer = None if entry.answer is None else {"payload": dict(entry.answer), "why": entry.why}
        row = {"item": item.id, "project": project.id, "part": entry.part, "answer": answer}
        connection.execute(table.insert(), row | {"queue": queue, "number": len(known)})
        if entry.part == "open":
            wanted[item.id] = queue
    if slots:
        giving.open_slots(connection, project.id, wanted, dict.fromkeys(wanted, project.task.overlap))
    return len(known) - first


def _done(connection: Connection, id: str, rater: str) -> int:
    return int(connection.scalar(_DONE, {"of": id, "by": rater}) or 0)


def _given(connection: Connection, id: str) -> int:
    """Judgements that stand, skips not among them."""
    table, events = schema.project_items, schema.events
    query = queries.standing(None, sa.func.count(events.c.seq)).join(table, table.c.item == events.c.item)
    return int(connection.scalar(query.where(table.c.project == id, events.c.kind != "skip")) or 0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
