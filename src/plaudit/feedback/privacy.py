"""Who the raters are: identity and free text, sealed under one key a rater, so that forgetting is final."""

from __future__ import annotations

import json
from collections.abc import Mapping

import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.engine import Connection

from plaudit.feedback import schema
from plaudit.types import UserError

_WHOSE = schema.raters.c.id == sa.bindparam("rater")
_FORGOTTEN = sa.select(schema.raters.c.forgotten).where(_WHOSE)
_KEY = sa.select(schema.raters.c.key).where(_WHOSE)


def ensure(connection: Connection, rater: str) -> None:
    """Enters the rater; one who is already there stays as they are. UserError for one who was forgotten."""
    row = connection.execute(_FORGOTTEN, {"rater": rater}).first()
    if row is None:
        connection.execute(schema.raters.insert().values(id=rater))
    elif row.forgotten is not None:
        raise was_forgotten(rater)


def was_forgotten(rater: str) -> UserError:
    return UserError("this rater was forgotten", where=f"rater {rater}", fix="start under a new pseudonym")


def seal(connection: Connection, rater: str, text: str) -> bytes:
    """The text as only the rater's key opens it."""
    return Fernet(key_of(connection, rater)).encrypt(text.encode())


def key_of(connection: Connection, rater: str) -> bytes:
    """The rater's key, made at the first need, also by two at once. UserError for one who was forgotten."""
    if (key := known_key(connection, rater)) is not None:
        return key
    raters = schema.raters
    none = (raters.c.id == rater, raters.c.key.is_(None), raters.c.forgotten.is_(None))
    connection.execute(raters.update().where(*none).values(key=Fernet.generate_key()))
    if (key := known_key(connection, rater)) is None:
        raise was_forgotten(rater)
    return key


def known_key(connection: Connection, rater: str) -> bytes | None:
    """The rater's key; None where there is none, or it is destroyed."""
    key: bytes | None = connection.scalar(_KEY, {"rater": rater})
    return key


def unseal(key: bytes | None, sealed: bytes | None) -> str | None:
    """The text again, or None when there is none or its key is destroyed."""
    if sealed is None or key is None:
        return None
    return Fernet(key).decrypt(sealed).decode()


def set_identity(connection: Connection, rater: str, identity: Mapping[str, str]) -> None:
    """Keeps the rater's name, e-mail and so on, sealed."""
    ensure(connection, rater)
    if identity:
        sealed = seal(connection, rater, json.dumps(dict(identity)))
        connection.execute(schema.raters.update().where(schema.raters.c.id == rater).values(identity=sealed))


def identity(connection: Connection, rater: str) -> dict[str, str]:
    """What is known of the rater; empty when nothing is, or no more."""
    row = connection.execute(
        sa.select(schema.raters.c.key, schema.raters.c.identity).where(schema.raters.c.id == rater)
    ).first()
    text = None if row is None else unseal(row.key, row.identity)
    return {} if text is None else dict(json.loads(text))


def erase(connection: Connection, rater: str, seq: int) -> None:
    """Destroys the rater's key, what their judgements, drafts, chats, their items and what a served model told them
    said, and their account, and gives their open work back.

    What is left of an event is its tombstone: number, id, kind, item, pseudonym, versions and time.
    seq: number of the event that says so.
    """
    raters, events, items = schema.raters, schema.events, schema.items
    connection.execute(
        raters.update().where(raters.c.id == rater).values(key=None, identity=None, forgotten=seq)
    )
    connection.execute(
        events.update()
        .where(events.c.rater == rater, events.c.seq < seq)
        .values(payload=sa.null(), comment=sa.null(), presented=sa.null())
    )
    connection.execute(
        items.update()
        .where(items.c.author == rater)
        .values(prompt=sa.null(), completions=sa.null(), meta=sa.null())
    )
    theirs = sa.select(items.c.id).where(items.c.author == rater)
    for table in (schema.vectors, schema.scores):
        connection.execute(table.delete().where(table.c.item.in_(theirs)))
    for table in (schema.drafts, schema.practice):
        connection.execute(table.delete().where(table.c.rater == rater))
    jobs = schema.jobs
    mine = jobs.update().where(jobs.c.asked_by == rater)
    connection.execute(
        mine.where(jobs.c.state.in_(("queued", "running"))).values(state="cancelled", worker=None, lease=None)
    )
    connection.execute(mine.values(arguments={}, result=sa.null(), message=""))
    said = schema.responses.c.requester == rater
    done = schema.signals.c.response.in_(sa.select(schema.responses.c.id).where(said))
    connection.execute(schema.signals.delete().where(done))
    connection.execute(
        schema.responses.update()
        .where(said)
        .values(
            prompt=sa.null(), completions=sa.null(), sampling={}, masked={}, conversation="", regenerates=None
        )
    )
    connection.execute(schema.accounts.delete().where(schema.accounts.c.name == rater))
    open_work = schema.assignments.c.event.is_(None)
    connection.execute(
        schema.assignments.update()
        .where(schema.assignments.c.rater == rater, open_work)
        .values(rater=None, expires=None)
    )
