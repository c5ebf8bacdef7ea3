"""Projects: what is asked, and of which items.

An item belongs to one project; the same text in two of them is two items. Which items are the random slice is drawn
from their ids alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from plaudit import config as configs
from plaudit.feedback import assignments, giving, queries, schema, transfer
from plaudit.feedback.assignments import BY_PRIORITY, RANDOM
from plaudit.feedback.events import Event, Item, check, salted
from plaudit.feedback.judgements import PROJECT, REPEATS
from plaudit.feedback.store import Store, put_items
from plaudit.feedback.tasks import MOST_RATERS, Task, kind_of
from plaudit.types import Demonstration, Missing, Prompt, Ranking, Rating, Record, UserError

Part = Literal["open", "gold", "training", "repeat", "kept"]
"""kept: nobody is given it; what is said of it was said when it was made."""


LONGEST_RATER = 100
"""Characters of a rater's name that comes in with records: what the studio's addresses take."""
RESERVED = frozenset({PROJECT, REPEATS, "models"})
"""Names of an item's meta that mean something here."""


_NEWEST = sa.select(sa.func.max(schema.guidelines.c.version)).where(
    schema.guidelines.c.project == schema.projects.c.id
)
_PROJECTS = sa.select(schema.projects, sa.func.coalesce(_NEWEST.scalar_subquery(), 0).label("guideline"))
NAMED = _PROJECTS.where(schema.projects.c.id == sa.bindparam("of"))
"""A project and the number of its newest guideline, made once: it is read with every item."""


@dataclass(frozen=True, slots=True)
class Project:
    """guideline: the newest version, 0 where none is written. salt: of its items' ids, for nobody to see."""

    id: str
    name: str
    task: Task
    created_at: str
    archived: bool
    guideline: int = 0
    salt: str | None = field(default=None, repr=False)

    def item(self, entry: Entry, author: str | None = None) -> Item:
        """The entry as an item of this project."""
        meta = dict(entry.meta) | {PROJECT: self.id}
        return salted(Item(entry.prompt, entry.completions, entry.policy_version, meta, author), self.salt)


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


class Projects:
    """All projects of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # What is asked

    def create(self, name: str, task: Task) -> Project:
        """A new one, without items. UserError for an empty name."""
        if not name.strip():
            raise UserError("has no name", where="project")
        made = Project(
            secrets.token_hex(4), name.strip(), task, _now(), archived=False, salt=secrets.token_hex()
        )
        row = {"id": made.id, "name": made.name, "task": task.model_dump(mode="json"), "salt": made.salt}
        with schema.writing(self.store.engine) as connection:
            connection.execute(
                schema.projects.insert(), row | {"created_at": made.created_at, "archived": False}
            )
        return made

    def get(self, id: str) -> Project:
        """UserError where there is none."""
        with schema.reading(self.store.engine) as connection:
            return read(connection, id)

    def of_item(self, item: str) -> str | None:
        """The project that an item is in."""
        table = schema.project_items
        with schema.reading(self.store.engine) as connection:
            return connection.scalar(sa.select(table.c.project).where(table.c.item == item))

    def all(self) -> list[Project]:
        """In the order in which they were made."""
        with schema.reading(self.store.engine) as connection:
            in_order = _PROJECTS.order_by(schema.projects.c.created_at, schema.projects.c.id)
            return [project_of(row) for row in connection.execute(in_order)]

    def change(
        self,
        id: str,
        *,
        name: str | None = None,
        task: Task | None = None,
        settings: Mapping[str, Any] | None = None,
        admit: Sequence[str] = (),
        dismiss: Sequence[str] = (),
        archived: bool | None = None,
    ) -> Project:
        """task: another one; settings: those of its fields that change; admit, dismiss: whom its list of raters names
        from now on, and whom no more. UserError for a task of another kind, which would make what was judged mean
        something else, or whose last rater is dismissed, so that everybody might judge."""
        with schema.writing(self.store.engine) as connection:
            old, values = read(connection, id), dict[str, Any]()
            if name is not None:
                values["name"] = name.strip() or old.name
            task = _changed(task or old.task, settings or {}, admit, dismiss, id)
            if task != old.task:
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
            if task.overlap != old.task.overlap:
                giving.reconcile(connection, id, task)
            return read(connection, id)

    def welcome(self, id: str, rater: str) -> bool:
        """Names the rater among those who may judge, where some are named; whether that was needed."""
        with schema.writing(self.store.engine) as connection:
            if read(connection, id).task.admits(rater):
                return False
            self.change(id, admit=[rater])
            return True

    def check_room(self, id: str) -> None:
        """UserError where raters are named, and no more may be."""
        check_room(self.get(id).task, id)

    def duplicate(self, id: str, name: str) -> Project:
        """The same task, guidelines and items, and no judgement. What was gold or training when other labels or
        criteria were asked for is asked openly in the copy: its item is not lost, and its answer stands in the old one.
        """
        old = self.get(id)
        made = self.create(name, old.task)
        if old.guideline:
            self.write_guideline(made.id, self.guideline(id)[1])
        with schema.reading(self.store.engine) as connection:
            rows = _entries(connection, id)
        self.add(made.id, [_still_right(old.task, row) for row in rows])
        return self.get(made.id)

    def write_guideline(self, id: str, texts: Mapping[str, str]) -> int:
        """A new version, in one language or several ({"en": ..., "zh": ...}); its number. The same again is none."""
        with schema.writing(self.store.engine) as connection:
            read(connection, id)
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
            project, made = read(connection, id), list[tuple[Item, Entry]]()
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
                item = project.item(entry)
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
        with schema.writing(self.store.engine) as connection:
            project = read(connection, id)
            labels = project.task.kind == "category"  # a demonstration's completion is a label
            for number, record in enumerate(records, 1):
                _check_record(project.task, record, f"record {number}")
            counts = transfer.import_records(
                self.store, records, meta={PROJECT: id}, labels=labels, salt=project.salt
            )
            items = [item for item in self.store.items().values() if item.meta.get(PROJECT) == id]
            entries = [Entry(item.prompt, item.completions, item.policy_version, item.meta) for item in items]
            _put(connection, project, list(zip(items, entries, strict=True)), slots=False)
            giving.reconcile(connection, id, project.task)
            return counts

    def reconcile(self, id: str) -> None:
        """Opens as many slots of each item as judgements are still wanted of it, and closes what is too many."""
        with schema.writing(self.store.engine) as connection:
            giving.reconcile(connection, id, read(connection, id).task)

    def items(self, id: str) -> list[str]:
        """Ids, in the order in which they came in."""
        table = schema.project_items
        with schema.reading(self.store.engine) as connection:
            query = sa.select(table.c.item).where(table.c.project == id).order_by(table.c.number)
            return list(connection.scalars(query))

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
                    giving.reconcile(connection, project, read(connection, project).task, some)

    def enter(self, id: str, entry: Entry, author: str) -> str:
        """One item that nobody is given: what is said of it is said at once. Its id. author: whose words it holds."""
        with schema.writing(self.store.engine) as connection:
            project = read(connection, id)
            project.task.check_item(len(entry.completions), "item")
            item = project.item(entry, author)
            _put(connection, project, [(item, replace(entry, part="kept"))], slots=False)
            return item.id

    def prioritise(self, id: str, worth: Mapping[str, float]) -> None:
        """From now on items are given out in the order of their worth, the highest first; those not named stay."""
        slots = schema.assignments
        # Asked plainly whose it is, SQLite would walk the project's whole queue for each item.
        project = sa.func.coalesce(slots.c.project, "") == id
        # What is answered is ordered, too: a slot that is opened later is worth what the item's others are.
        mine = (slots.c.item == sa.bindparam("of"), project)
        by_worth = slots.c.queue == BY_PRIORITY  # the random slice is in no order of worth
        change = slots.update().where(*mine, by_worth).values(priority=sa.bindparam("worth"))
        if worth:
            with schema.writing(self.store.engine) as connection:
                assignments.pause(connection)
                connection.execute(change, [{"of": item, "worth": value} for item, value in worth.items()])


def _changed(
    task: Task, settings: Mapping[str, Any], admit: Sequence[str], dismiss: Sequence[str], id: str
) -> Task:
    tree = task.model_dump() | dict(settings)
    named = [name for name in dict.fromkeys((*tree["raters"], *admit)) if name not in dismiss]
    if tree["raters"] and not named:
        raise UserError(
            "would name no rater, so that everybody might judge", where=f"project {id}",
            fix="name somebody, or send an empty list of raters",
        )  # fmt: skip
    check_room(task, id, len(named) - len(task.raters))
    return configs.parse(Task, tree | {"raters": named}, f"project {id}")


def _still_right(task: Task, entry: Entry) -> Entry:
    if entry.answer is not None:
        try:
            task.check_answer(entry.answer, len(entry.completions), "")
        except UserError:
            return replace(entry, part="open", answer=None, why="")
    return entry


def check_room(task: Task, project: str, more: int = 1) -> None:
    if len(task.raters) + more > MOST_RATERS:
        raise UserError(
            f"names {len(task.raters)} raters, as many as it may", where=f"project {project}",
            fix="take some out, or name none, so that everybody may judge",
        )  # fmt: skip


def _check_record(task: Task, record: Record, where: str) -> None:
    labels = task.kind == "category"
    rater = record.rater or ""
    if len(rater) > LONGEST_RATER or "/" in rater or rater in (".", ".."):
        raise UserError(
            f"a rater is called {rater[:40]!r}", where=where,
            fix=f"name raters by {LONGEST_RATER} characters at most, none of them a slash, and not . or ..",
        )  # fmt: skip
    if isinstance(record, Ranking):
        task.check_item(len(record.completions), where)
    kind, wanted = transfer.kind_of(record), "demonstration" if labels else kind_of(task)
    if kind != wanted:
        raise UserError(f"is a {kind}, where the project asks for a {task.kind}", where=where)
    if isinstance(record, Rating):
        task.check_answer({"scores": record.scores}, 1, where)
    elif isinstance(record, Demonstration) and labels:
        task.check_answer({"label": record.completion}, 0, where)
    elif isinstance(record, Demonstration):
        raise UserError("is a demonstration without a text to mend", where=where, fix="train on it as it is")


def read(connection: Connection, id: str) -> Project:
    """UserError where there is none."""
    row = connection.execute(NAMED, {"of": id}).first()
    if row is None:
        raise Missing("project", id)
    return project_of(row)


def project_of(row: sa.Row[Any]) -> Project:
    """A row of `NAMED`."""
    task = task_of(row.task, row.id)
    return Project(row.id, row.name, task, row.created_at, row.archived, row.guideline, row.salt)


def task_of(stored: Any, id: str) -> Task:
    """What is asked, as the project keeps it."""
    return configs.parse(Task, stored, f"project {id}")


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


def given(connection: Connection, id: str) -> int:
    """Judgements that stand, skips not among them."""
    table, events = schema.project_items, schema.events
    query = queries.standing(None, sa.func.count(events.c.seq)).join(table, table.c.item == events.c.item)
    return int(connection.scalar(query.where(table.c.project == id, events.c.kind != "skip")) or 0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
