"""What was changed, by whom: a log that only grows.

The database refuses to change or delete a line, and each line holds a digest of itself and of all before it: whoever
edits the file behind the database's back breaks the chain, which `check` finds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from plaudit.feedback.schema import audit, reading, to_json


@dataclass(frozen=True, slots=True)
class Line:
    """actor: an account's name, "command line" or "studio". target: what was changed, as "kind name"."""

    seq: int
    at: str
    actor: str
    action: str
    target: str
    detail: Mapping[str, Any]


def note(connection: Connection, actor: str, action: str, target: str, **detail: Any) -> None:
    """Writes a line, in the transaction of what it tells of. No identity and no secret belongs into the detail."""
    last = connection.execute(sa.select(audit).order_by(audit.c.seq.desc()).limit(1)).first()
    seq, before = (1, "") if last is None else (last.seq + 1, last.chain)
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    row = {"seq": seq, "at": at, "actor": actor, "action": action, "target": target, "detail": detail}
    connection.execute(audit.insert(), row | {"chain": _chained(before, row)})


def lines(engine: Engine, before: int | None = None, limit: int = 100) -> list[Line]:
    """The newest first, of those before line number `before`."""
    query = sa.select(audit).order_by(audit.c.seq.desc()).limit(limit)
    if before is not None:
        query = query.where(audit.c.seq < before)
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    return [Line(row.seq, row.at, row.actor, row.action, row.target, row.detail) for row in rows]


def check(engine: Engine) -> int | None:
    """The number of the first line that is not as it was written; None where all are."""
    before, expected = "", 1
    with reading(engine) as connection:
        for row in connection.execute(sa.select(audit).order_by(audit.c.seq)):
            values = dict(row._mapping)
            chain = values.pop("chain")
            if row.seq != expected or chain != _chained(before, values):
                return expected
            before, expected = chain, expected + 1
    return None


def _chained(before: str, row: Mapping[str, Any]) -> str:
    return hashlib.sha256((before + to_json(dict(sorted(row.items())))).encode()).hexdigest()
