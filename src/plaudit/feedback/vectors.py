"""What models make of completions, kept beside the feedback: a vector each, or a reward, written by the worker, read
without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Engine

from plaudit.feedback import queries, schema
from plaudit.types import Prompt

Place = tuple[str, int]
"""An item, and which of its completions."""


def put(engine: Engine, model: str, found: Mapping[Place, Sequence[float] | NDArray[Any]]) -> None:
    """Keeps them as float16 under the model's name; what is there already is replaced."""
    table = schema.vectors
    with schema.writing(engine) as connection:
        for (item, place), vector in found.items():
            mine = (table.c.item == item, table.c.completion == place, table.c.model == model)
            connection.execute(table.delete().where(*mine))
            floats = np.asarray(vector, dtype="<f2").tobytes()
            row = {"item": item, "completion": place, "model": model, "floats": floats}
            connection.execute(table.insert(), row)


def put_scores(engine: Engine, model: str, found: Mapping[Place, tuple[float, float | None]]) -> None:
    """Keeps rewards under the reward's name: (mean, deviation of an ensemble's members or None)."""
    table = schema.scores
    with schema.writing(engine) as connection:
        for (item, place), (mean, deviation) in found.items():
            mine = (table.c.item == item, table.c.completion == place, table.c.model == model)
            connection.execute(table.delete().where(*mine))
            row = {"item": item, "completion": place, "model": model, "mean": mean, "deviation": deviation}
            connection.execute(table.insert(), row)


def scores_of(engine: Engine, project: str) -> dict[Place, tuple[float, float | None]]:
    """Rewards of a project's completions by the model that has scored the most of them."""
    table, mine = schema.scores, schema.project_items
    with schema.reading(engine) as connection:
        model = connection.scalar(_busiest(table, project))
        rows = connection.execute(
            sa.select(table)
            .join(mine, mine.c.item == table.c.item)
            .where(mine.c.project == project, table.c.model == model)
        )
        return {(row.item, row.completion): (row.mean, row.deviation) for row in rows}


def _busiest(table: sa.Table, project: str) -> sa.Select[Any]:
    """The model of most rows of a project."""
    mine = schema.project_items
    return (
        sa.select(table.c.model)
        .join(mine, mine.c.item == table.c.item)
        .where(mine.c.project == project)
        .group_by(table.c.model)
        .order_by(sa.func.count().desc(), table.c.model)
        .limit(1)
    )


def of_project(engine: Engine, project: str, model: str | None = None) -> dict[Place, NDArray[np.float32]]:
    """All that are kept of a project's completions by this model, or by the one that has made the most of them."""
    table, mine = schema.vectors, schema.project_items
    with schema.reading(engine) as connection:
        if model is None:
            model = connection.scalar(_busiest(table, project))
        rows = connection.execute(
            sa.select(table.c.item, table.c.completion, table.c.floats)
            .join(mine, mine.c.item == table.c.item)
            .where(mine.c.project == project, table.c.model == model)
        )
        return {
            (row.item, row.completion): np.frombuffer(row.floats, dtype="<f2").astype(np.float32)
            for row in rows
        }


def missing(
    engine: Engine, project: str, model: str, table: sa.Table = schema.vectors
) -> list[tuple[Place, Prompt, str]]:
    """Completions of the project's items that the model has not put into the table, with prompt and text."""
    mine = schema.project_items
    with schema.reading(engine) as connection:
        known = set(
            map(
                tuple,
                connection.execute(
                    sa.select(table.c.item, table.c.completion)
                    .join(mine, mine.c.item == table.c.item)
                    .where(mine.c.project == project, table.c.model == model)
                ),
            )
        )
        ids = connection.scalars(
            sa.select(mine.c.item)
            .where(mine.c.project == project, mine.c.part != "repeat")
            .order_by(mine.c.number)
        ).all()
        found = list[tuple[Place, Prompt, str]]()
        for chunk in queries.chunks(ids):
            items = queries.items(connection, chunk)
            for id in chunk:
                if (item := items.get(id)) is not None:
                    places = ((id, place) for place in range(len(item.completions)))
                    found += [(at, item.prompt, item.completions[at[1]]) for at in places if at not in known]
    return found
