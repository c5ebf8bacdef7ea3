"""The tables of the feedback store, how it is opened, and its migrations."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from plaudit.files import writable
from plaudit.types import Unavailable, UserError

HEAD = "0008"
"""The newest migration; a test holds it to what `migrations/versions` says."""
BUSY_SECONDS = 30.0
_LOCK = 0x706C6175
"""The key of PostgreSQL's advisory lock: one writer at a time, so that `seq` is gapless and in order of commit."""

_ALONE = sa.select(sa.func.pg_advisory_xact_lock(_LOCK))
metadata = sa.MetaData()
_json = sa.JSON(none_as_null=True)

raters = sa.Table(
    "raters",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("key", sa.LargeBinary),  # seals identity and free text; destroyed by forgetting
    sa.Column("identity", sa.LargeBinary),  # sealed JSON: name, e-mail
    sa.Column("forgotten", sa.Integer),  # seq of the event that forgot the rater
)
items = sa.Table(
    "items",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("prompt", _json),
    sa.Column("completions", _json),
    sa.Column("policy_version", sa.Text),
    sa.Column("meta", _json),
    sa.Column("author", sa.Text, sa.ForeignKey("raters.id")),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("item", sa.Text, sa.ForeignKey("items.id")),
    sa.Column("rater", sa.Text, sa.ForeignKey("raters.id"), nullable=False),
    sa.Column("payload", _json),  # null: forgotten
    sa.Column("comment", sa.LargeBinary),  # free text, sealed under the rater's key
    sa.Column("presented", _json),
    sa.Column("policy_version", sa.Text),
    sa.Column("guideline_version", sa.Text),
    sa.Column("supersedes", sa.Text, sa.ForeignKey("events.id"), unique=True),
    sa.Column("assignment", sa.Integer, sa.ForeignKey("assignments.id")),
    sa.Column("created_at", sa.Text, nullable=False),
)
assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("item", sa.Text, sa.ForeignKey("items.id"), nullable=False),
    sa.Column("slot", sa.Integer, nullable=False),
    sa.Column("rater", sa.Text, sa.ForeignKey("raters.id")),
    sa.Column("expires", sa.Double),  # seconds, on the clock of whoever claims
    sa.Column("event", sa.Text),  # id of the event that answered it
    sa.Column("project", sa.Text),
    sa.Column(
        "queue", sa.Integer, nullable=False, default=0
    ),  # 0: by priority; 1: the random slice; 2: for one rater; 3: wanted no more
    sa.Column("priority", sa.Double, nullable=False, default=0.0),  # the highest first
    sa.Column("given", sa.Integer, nullable=False, default=0),  # its place among what its rater was given
)
projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("task", _json, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("archived", sa.Boolean, nullable=False),
    sa.Column("salt", sa.Text),  # of its items' ids; null: made before there were any
)
guidelines = sa.Table(
    "guidelines",
    metadata,
    sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("texts", _json, nullable=False),  # by language
    sa.Column("created_at", sa.Text, nullable=False),
)
project_items = sa.Table(
    "project_items",
    metadata,
    sa.Column("item", sa.Text, sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("part", sa.Text, nullable=False),  # open, gold, training or repeat
    sa.Column("answer", _json),  # of gold and training: the payload that is right, and why
    sa.Column("queue", sa.Integer, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # in the order in which they were added
)
practice = sa.Table(
    "practice",
    metadata,
    sa.Column("rater", sa.Text, sa.ForeignKey("raters.id"), primary_key=True),
    sa.Column("item", sa.Text, sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("payload", _json, nullable=False),
)
drafts = sa.Table(
    "drafts",
    metadata,
    sa.Column("rater", sa.Text, sa.ForeignKey("raters.id"), primary_key=True),
    sa.Column("item", sa.Text, sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)
snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
)
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("arguments", _json, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # queued, running, done, failed or cancelled
    sa.Column("asked_by", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("worker", sa.Text),
    sa.Column("lease", sa.Double),  # seconds since 1970; a worker that is silent for longer has died
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("progress", sa.Double, nullable=False),  # 0 to 1
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("result", _json),
)
scores = sa.Table(
    "scores",
    metadata,
    sa.Column("item", sa.Text, sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("completion", sa.Integer, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("mean", sa.Double, nullable=False),
    sa.Column("deviation", sa.Double),  # of an ensemble's members
)
vectors = sa.Table(
    "vectors",
    metadata,
    sa.Column("item", sa.Text, sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("completion", sa.Integer, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("floats", sa.LargeBinary, nullable=False),  # float16, little-endian
)
hooks = sa.Table(
    "hooks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("kinds", _json, nullable=False),  # answers, changes
    sa.Column("secret", sa.Text, nullable=False),  # signs what is sent
    sa.Column("made_by", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column(
        "answers_seen", sa.Integer, nullable=False
    ),  # the last event, and the last audit line, that it was told
    sa.Column("changes_seen", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),  # in a row
    sa.Column("due", sa.Double, nullable=False),  # not before then, seconds since 1970
    sa.Column("fault", sa.Text, nullable=False),  # why the last one failed
)
accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("name", sa.Text, sa.ForeignKey("raters.id"), primary_key=True),  # a pseudonym, and what logs in
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("password", sa.Text, nullable=False),  # argon2id
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("disabled", sa.Boolean, nullable=False),
)
sign_ins = sa.Table(
    "sign_ins",
    metadata,
    sa.Column("token", sa.Text, primary_key=True),  # its digest
    sa.Column("account", sa.Text, sa.ForeignKey("accounts.name", ondelete="CASCADE"), nullable=False),
    sa.Column("seen", sa.Double, nullable=False),  # seconds since 1970, as all that follows
    sa.Column("ends", sa.Double, nullable=False),  # whatever is done until then
)
invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("token", sa.Text, primary_key=True),  # its digest
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("project", sa.Text),
    sa.Column("invited_by", sa.Text),
    sa.Column("ends", sa.Double, nullable=False),
    sa.Column("used_by", sa.Text),
)
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account", sa.Text, sa.ForeignKey("accounts.name", ondelete="CASCADE"), nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("secret", sa.Text, nullable=False),  # its digest
    sa.Column("scopes", _json, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("ends", sa.Double),  # null: never
)
responses = sa.Table(
    "responses",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("created_at", sa.Double, nullable=False),  # seconds since 1970
    sa.Column("requester", sa.Text, sa.ForeignKey("raters.id"), nullable=False, index=True),
    sa.Column("conversation", sa.Text, nullable=False, index=True),
    sa.Column("regenerates", sa.Text),  # id of the answer that this one was asked for instead of
    sa.Column("name", sa.Text, nullable=False),  # what was asked for
    sa.Column("version", sa.Text, nullable=False),  # which model answered
    sa.Column("propensity", sa.Double, nullable=False),  # with which probability it was the one
    sa.Column("prompt", _json),  # null: forgotten, or kept long enough
    sa.Column("completions", _json),  # text, finish, logprobs and ids of each
    sa.Column("sampling", _json, nullable=False),
    sa.Column("usage", _json, nullable=False),
    sa.Column("masked", _json, nullable=False),  # how many of each kind
)
opinions = sa.Table(
    "opinions",
    metadata,
    sa.Column("response", sa.Text, sa.ForeignKey("responses.id"), primary_key=True),
    sa.Column("event", sa.Text, sa.ForeignKey("events.id"), primary_key=True),
    sa.Column("part", sa.Text, nullable=False),  # what of an opinion the event says
)
signals = sa.Table(
    "signals",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column(
        "response", sa.Text, sa.ForeignKey("responses.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    sa.Column("kind", sa.Text, nullable=False),  # dwell, copy, regenerate, abandon
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)
releases = sa.Table(
    "releases",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False, index=True),
    sa.Column("arms", _json, nullable=False),  # model, version and weight of each
    sa.Column("made_by", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("restores", sa.Integer),  # number of the release that this one goes back to
)
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("detail", _json, nullable=False),
    sa.Column("chain", sa.Text, nullable=False),  # digest of this line and of the chain before it
)


def url_of(path_or_url: str | Path) -> URL:
    """The database's address; a path means a SQLite file. UserError for what is no address, or only in memory."""
    if isinstance(path_or_url, Path) or "://" not in path_or_url:
        return URL.create("sqlite", database=str(Path(path_or_url)))
    try:
        url = make_url(path_or_url)
    except ArgumentError:
        raise UserError("is not a database address", where=str(path_or_url)) from None
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise UserError("is neither SQLite nor PostgreSQL", where=url.render_as_string())
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise UserError("feedback in memory would be lost", where=str(path_or_url), fix="name a file")
    return url


def open_engine(path_or_url: str | Path) -> Engine:
    """An engine on the database, brought up to the newest migration. UserError when it cannot be opened."""
    url = url_of(path_or_url)
    where = url.render_as_string()  # without the password
    if url.get_backend_name() == "sqlite":
        assert url.database is not None
        where = url.database
        with writable(Path(where)):
            Path(where).parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = sa.create_engine(url, json_serializer=to_json, hide_parameters=True)
    except (ImportError, NoSuchModuleError) as error:
        raise UserError(
            f"its driver is missing ({error})", where=where, fix="pip install plaudit[postgres]"
        ) from None
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    sa.event.listen(engine, "handle_error", _explain)
    try:
        _migrate(engine, where)
    except DBAPIError as error:
        engine.dispose()
        reason = str(error.orig).strip().partition("\n")[0]
        raise UserError(f"cannot be opened as a feedback store ({reason})", where=where) from None
    except BaseException:
        engine.dispose()
        raise
    return engine


def to_json(value: Any) -> str:
    """Compact JSON; NaN and infinity are refused (ValueError)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


_TURNS: weakref.WeakKeyDictionary[Engine, threading.Lock] = weakref.WeakKeyDictionary()
_TURNS_LOCK = threading.Lock()


def _in_turn(engine: Engine) -> contextlib.AbstractContextManager[object]:
    """SQLite makes writers wait by sleeping and asking again; threads of one process stand in line instead."""
    if engine.dialect.name != "sqlite":
        return contextlib.nullcontext()
    with _TURNS_LOCK:
        return _TURNS.setdefault(engine, threading.Lock())


_OPEN: ContextVar[tuple[Connection, ...]] = ContextVar("plaudit_open", default=())
"""The transactions that write, of this thread or task, in the order in which they began."""


@contextmanager
def writing(engine: Engine, *, at_once: bool = True) -> Iterator[Connection]:
    """One transaction that writes, alone; when the block ends well it is on disk. Within another it is a part of that
    one: all or none. at_once: others wait from the start, else from `alone` on, before which it only reads."""
    if (open_ := _open(engine)) is not None:
        if at_once:
            alone(open_)
        yield open_
        return
    with (
        _in_turn(engine),
        engine.connect().execution_options(plaudit_writes=True) as connection,
        connection.begin(),
    ):
        if at_once:
            alone(connection)
        token = _OPEN.set((*_OPEN.get(), connection))
        try:
            yield connection
        finally:
            _OPEN.reset(token)


def at_one_go(engine: Engine) -> contextlib.AbstractContextManager[object]:
    """Around transactions of which each stands by itself: one on SQLite, which waits for the disk at each, and where
    others wait anyway; several elsewhere."""
    one = engine.dialect.name == "sqlite"
    return writing(engine, at_once=False) if one else contextlib.nullcontext()


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection to read with; within `writing` that one, so that what was just written is seen."""
    if (open_ := _open(engine)) is not None:
        yield open_
        return
    with engine.connect() as connection:
        if (
            connection.dialect.name == "postgresql"
        ):  # each query sees its own moment anyway; saves two messages
            connection.execution_options(isolation_level="AUTOCOMMIT")
        yield connection


def alone(connection: Connection) -> None:
    """Lets nobody else write until this transaction ends. SQLite has seen to that when it began."""
    transaction = connection.get_transaction()
    if connection.dialect.name == "postgresql" and connection.info.get("alone") is not transaction:
        connection.execute(_ALONE)
        connection.info["alone"] = transaction


def _open(engine: Engine) -> Connection | None:
    return next((connection for connection in _OPEN.get() if connection.engine is engine), None)


def _explain(context: ExceptionContext) -> None:
    """Unavailable for what is not ours to mend: the server, the disk, the rights, another process."""
    error = context.sqlalchemy_exception
    if not isinstance(error, OperationalError) or context.engine is None:
        return
    url = context.engine.url
    sqlite = url.get_backend_name() == "sqlite"
    where = str(url.database) if sqlite else url.render_as_string()  # without the password
    reason = str(error.orig).strip().partition("\n")[0]
    if "locked" in reason:
        raise Unavailable("another process keeps the store busy", where=where, fix="try again")
    if "disk is full" in reason or "No space left" in reason:
        raise Unavailable("cannot be written (no space left on device)", where=where, fix="free some space")
    fix = "check the path and its permissions" if sqlite else "check the address and that the server runs"
    raise Unavailable(f"the database cannot be used ({reason})", where=where, fix=fix)


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin below, where it says how
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    _refuse_another(cursor)
    _write_ahead(cursor)
    for pragma in (
        "synchronous = FULL",
        "foreign_keys = ON",
        "secure_delete = ON",  # what is forgotten is overwritten
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """A database that is new to WAL wants the file alone for it and, unlike any other statement, does not wait
    for `busy_timeout` when several change at once; so it is asked again here, as long as that."""
    patience = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > patience:
                raise
            time.sleep(0.01)


def _refuse_another(cursor: sqlite3.Cursor) -> None:
    """UserError for a database that is somebody else's, before anything in it is changed."""
    rows = cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    tables = {name for (name,) in rows if not name.startswith("sqlite_")} - {"alembic_version"}
    if tables and not {"raters", "items", "events"} <= tables:
        path = cursor.execute("PRAGMA database_list").fetchone()[2]
        raise UserError("is no feedback store", where=path, fix="name another file")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("plaudit_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found


def _migrate(engine: Engine, where: str) -> None:
    with engine.connect() as connection:
        if _revision(connection) == HEAD:
            return
    with writing(engine) as connection:
        revision = _revision(connection)
        if revision == HEAD:
            return
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "plaudit.feedback:migrations")
        config.set_main_option("path_separator", "os")
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if revision is not None and revision not in known:
            raise UserError("was written by a newer Plaudit", where=where, fix="update Plaudit")
        command.upgrade(config, "head")
