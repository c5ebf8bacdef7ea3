"""What the studio asks of a worker: rows that are claimed one at a time, and taken up again when a worker dies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from plaudit.feedback import schema
from plaudit.types import Missing

State = Literal["queued", "running", "done", "failed", "cancelled"]
MOST_ATTEMPTS = 3
"""A job whose worker died so often is given up."""


@dataclass(frozen=True, slots=True)
class Job:
    """progress: 0 to 1. message: what it is at, or why it failed. result: what it gave, None before its end."""

    id: int
    kind: str
    arguments: Mapping[str, Any]
    state: State
    asked_by: str
    created_at: str
    attempts: int
    progress: float
    message: str
    result: Any


class Jobs:
    """All jobs of a store. Times are seconds on one clock, given by whoever calls."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def put(self, kind: str, arguments: Mapping[str, Any], *, by: str) -> Job:
        """A new one at the end of the queue."""
        row = {"kind": kind, "arguments": dict(arguments), "state": "queued", "asked_by": by, "attempts": 0}
        row |= {
            "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "progress": 0.0,
            "message": "",
        }
        with schema.writing(self.engine) as connection:
            key = connection.execute(schema.jobs.insert(), row).inserted_primary_key
        assert key is not None
        return self.get(int(key[0]))

    def get(self, id: int) -> Job:
        """UserError where there is none."""
        with schema.reading(self.engine) as connection:
            row = connection.execute(sa.select(schema.jobs).where(schema.jobs.c.id == id)).first()
        if row is None:
            raise Missing("job", id)
        return _job(row)

    def newest(self, limit: int = 50) -> list[Job]:
        """The newest first."""
        with schema.reading(self.engine) as connection:
            rows = connection.execute(sa.select(schema.jobs).order_by(schema.jobs.c.id.desc()).limit(limit))
            return [_job(row) for row in rows]

    def claim(self, worker: str, now: float, lease_seconds: float) -> Job | None:
        """The first that is queued, or whose worker is silent for longer than its lease; None where nothing is to be
        done. One that was given up by too many is marked as failed."""
        jobs = schema.jobs
        silent = sa.and_(jobs.c.state == "running", jobs.c.lease <= now)
        with schema.writing(self.engine) as connection:
            connection.execute(
                jobs.update()
                .where(silent, jobs.c.attempts >= MOST_ATTEMPTS)
                .values(
                    state="failed", message=f"its worker died {MOST_ATTEMPTS} times", worker=None, lease=None
                )
            )
            first = sa.select(jobs.c.id).where(sa.or_(jobs.c.state == "queued", silent))
            row = connection.execute(
                jobs.update()
                .where(jobs.c.id == first.order_by(jobs.c.id).limit(1).scalar_subquery())
                .values(
                    state="running", worker=worker, lease=now + lease_seconds, attempts=jobs.c.attempts + 1
                )
                .returning(jobs)
            ).first()
        return None if row is None else _job(row)

    def beat(
        self, id: int, worker: str, now: float, lease_seconds: float, progress: float, message: str
    ) -> bool:
        """Says that the worker is alive and how far it is; False where the job is no longer its own (cancelled, or
        taken by another), so that it should stop."""
        values = {"lease": now + lease_seconds, "progress": min(1.0, max(0.0, progress)), "message": message}
        return self._as_worker(id, worker, values)

    def finish(self, id: int, worker: str, result: Any) -> bool:
        """Done; False where it was no longer its own, and what it did does not count."""
        values = {
            "state": "done",
            "result": result,
            "progress": 1.0,
            "message": "",
            "worker": None,
            "lease": None,
        }
        return self._as_worker(id, worker, values)

    def fail(self, id: int, worker: str, message: str) -> bool:
        """It cannot be done, and is not tried again."""
        return self._as_worker(
            id, worker, {"state": "failed", "message": message, "worker": None, "lease": None}
        )

    def cancel(self, id: int) -> Job:
        """Its worker stops at its next beat. One that has ended stays as it is."""
        jobs = schema.jobs
        self.get(id)
        with schema.writing(self.engine) as connection:
            connection.execute(
                jobs.update()
                .where(jobs.c.id == id, jobs.c.state.in_(("queued", "running")))
                .values(state="cancelled", worker=None, lease=None)
            )
        return self.get(id)

    def _as_worker(self, id: int, worker: str, values: Mapping[str, Any]) -> bool:
        jobs = schema.jobs
        mine = (jobs.c.id == id, jobs.c.worker == worker, jobs.c.state == "running")
        with schema.writing(self.engine) as connection:
            return bool(connection.execute(jobs.update().where(*mine).values(**values)).rowcount)


def _job(row: sa.Row[Any]) -> Job:
    return Job(
        row.id, row.kind, row.arguments, cast(State, row.state), row.asked_by, row.created_at, row.attempts,
        row.progress, row.message, row.result,
    )  # fmt: skip
