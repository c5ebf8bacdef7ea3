"""Which models answer under which name, as a history: nothing is overwritten, so that going back is one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from plaudit.feedback import schema
from plaudit.feedback.store import Store
from plaudit.types import Missing, UserError

MOST_ARMS = 16


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the models that share a name. version: unlike that of any other model; weight: its share is this by the
    sum of all; model: a directory or a name, or, with `upstream`, what the server at that address calls it; adapter: a
    directory to answer with, on the model; digest: of what both held when they were published."""

    version: str
    model: str
    weight: float = 1.0
    adapter: str | None = None
    upstream: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """number: in the order in which they were made, over all names. restores: the earlier one that it goes back to."""

    number: int
    name: str
    arms: tuple[Arm, ...]
    made_by: str
    created_at: str
    note: str
    restores: int | None = None


class Releases:
    """All of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def publish(self, name: str, arms: Sequence[Arm], *, by: str, note: str = "") -> Release:
        """From now on these answer under the name. The same as now changes nothing. UserError for weights that give
        nobody a share, or two arms of one version."""
        _check(name, arms)
        with schema.writing(self.store.engine) as connection:
            now = _newest(connection, name)
            if now is not None and now.arms == tuple(arms):
                return now
            return _insert(connection, name, arms, by, note)

    def roll_back(self, name: str, *, by: str, note: str = "") -> Release:
        """What was before the release that stands answers again, as a release of its own; so again after that goes
        further back. UserError where nothing was before."""
        with schema.writing(self.store.engine) as connection:
            history = [_release(row) for row in connection.execute(_named(name))]
            if not history:
                raise Missing("name", name)
            stand = list[Release]()  # the one that answers, and under it those that it followed
            for release in history:
                if release.restores is None:
                    stand.append(release)
                else:
                    stand = [old for old in stand if old.number <= release.restores]
            if len(stand) < 2:
                raise UserError("nothing was published before", where=f"name {name}")
            return _insert(connection, name, stand[-2].arms, by, note, restores=stand[-2].number)

    def newest(self) -> dict[str, Release]:
        """By name, what stands."""
        with schema.reading(self.store.engine) as connection:
            rows = connection.execute(sa.select(schema.releases).order_by(schema.releases.c.number))
            return {row.name: _release(row) for row in rows}

    def history(self, name: str) -> list[Release]:
        """Of a name, the oldest first."""
        with schema.reading(self.store.engine) as connection:
            return [_release(row) for row in connection.execute(_named(name))]

    def last(self) -> int:
        """The number of the newest release of any name, 0 before the first."""
        with schema.reading(self.store.engine) as connection:
            return int(connection.scalar(sa.select(sa.func.max(schema.releases.c.number))) or 0)


def _check(name: str, arms: Sequence[Arm]) -> None:
    where = f"name {name}"
    if not name.strip():
        raise UserError("is empty", where="name")
    if not 0 < len(arms) <= MOST_ARMS:
        raise UserError(f"has {len(arms)} models, not 1 to {MOST_ARMS}", where=where)
    if len({arm.version for arm in arms}) < len(arms):
        raise UserError("two models have the same version", where=where, fix="name each by its own")
    if any(not math.isfinite(arm.weight) or arm.weight < 0 for arm in arms) or not sum(
        arm.weight for arm in arms
    ):
        raise UserError("weights are not numbers of 0 or more, one above 0", where=where)


def _named(name: str) -> sa.Select[Any]:
    return sa.select(schema.releases).where(schema.releases.c.name == name).order_by(schema.releases.c.number)


def _newest(connection: Connection, name: str) -> Release | None:
    rows = connection.execute(_named(name)).all()
    return _release(rows[-1]) if rows else None


def _insert(
    connection: Connection, name: str, arms: Sequence[Arm], by: str, note: str, restores: int | None = None
) -> Release:
    number = 1 + int(connection.scalar(sa.select(sa.func.max(schema.releases.c.number))) or 0)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    made = Release(number, name, tuple(arms), by, at, note, restores)
    row = {"number": number, "name": name, "arms": [asdict(arm) for arm in arms], "restores": restores}
    connection.execute(schema.releases.insert(), row | {"made_by": by, "created_at": at, "note": note})
    return made


def _release(row: sa.Row[Any]) -> Release:
    arms = tuple(Arm(**arm) for arm in row.arms)
    return Release(row.number, row.name, arms, row.made_by, row.created_at, row.note, row.restores)
