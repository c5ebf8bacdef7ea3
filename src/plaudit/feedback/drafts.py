"""What raters have begun and not sent, sealed under their keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from plaudit.feedback import giving, privacy, schema
from plaudit.feedback.projects import read
from plaudit.feedback.store import Store
from plaudit.types import Missing

_ALL = (
    sa.select(schema.drafts.c.item, schema.drafts.c.sealed, schema.raters.c.key)
    .join_from(schema.drafts, schema.raters, schema.raters.c.id == schema.drafts.c.rater)
    .where(schema.drafts.c.rater == sa.bindparam("by"))
)
_SOME = _ALL.where(schema.drafts.c.item.in_(sa.bindparam("items", expanding=True)))


def save(store: Store, rater: str, item: str, draft: Mapping[str, Any], now: float | None = None) -> None:
    """Keeps what is not sent yet, sealed under the rater's key. An empty one takes it away. now: what the rater
    holds of the item is kept for them from then on. UserError where there is no such item."""
    table = schema.drafts
    with schema.writing(store.engine) as connection:
        if connection.scalar(sa.select(schema.items.c.id).where(schema.items.c.id == item)) is None:
            raise Missing("item", item)
        privacy.ensure(connection, rater)
        drop(connection, rater, item)
        if draft:
            sealed = privacy.seal(connection, rater, json.dumps(draft))
            connection.execute(table.insert(), {"rater": rater, "item": item, "sealed": sealed})
        items = schema.project_items
        project = connection.scalar(sa.select(items.c.project).where(items.c.item == item))
        if now is not None and project is not None:
            giving.keep(connection, read(connection, project).task, rater, item, now)


def of(store: Store, rater: str, items: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """What the rater has begun, by item: of these items, or of all."""
    query, told = (_ALL, {}) if items is None else (_SOME, {"items": list(items)})
    with schema.reading(store.engine) as connection:
        rows = connection.execute(query, {"by": rater, **told}).all()
    texts = {row.item: privacy.unseal(row.key, row.sealed) for row in rows}
    return {item: dict(json.loads(text)) for item, text in texts.items() if text is not None}


def drop(connection: Connection, rater: str, item: str) -> None:
    """Takes one away."""
    drafts = schema.drafts
    connection.execute(drafts.delete().where(drafts.c.rater == rater, drafts.c.item == item))
