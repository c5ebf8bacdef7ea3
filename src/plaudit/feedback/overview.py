"""A project at a glance: how much there is, what models said to a prompt, and a rater's own work."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from plaudit.feedback import queries, schema
from plaudit.feedback.assignments import FOR_ONE, SURPLUS
from plaudit.feedback.events import Event, Item
from plaudit.feedback.judgements import ADJUDICATES
from plaudit.feedback.projects import Projects, given, read
from plaudit.feedback.tasks import agrees
from plaudit.types import Prompt, prompt_to_json

FEWEST_SHARED = 5
"""Answers of others without which nothing is said of agreement."""


def prompts(projects: Projects, id: str) -> list[Prompt]:
    """Those of its items, each once, in the order in which they came in."""
    found = {schema.to_json(prompt_to_json(item.prompt)): item.prompt for item in _items(projects, id)}
    return list(found.values())


def by_prompt(projects: Projects, id: str) -> dict[str, tuple[Item, list[tuple[str, str, str]]]]:
    """{the prompt as JSON: (an item of it, [(the model that said it, item, completion)])}."""
    found: dict[str, tuple[Item, list[tuple[str, str, str]]]] = {}
    for item in _items(projects, id):
        models = item.meta.get("models") or [item.policy_version or ""] * len(item.completions)
        _, said = found.setdefault(schema.to_json(prompt_to_json(item.prompt)), (item, []))
        said += [(str(model), item.id, text) for model, text in zip(models, item.completions, strict=False)]
    return found


def counts(projects: Projects, id: str, now: float = 0.0) -> dict[str, int]:
    """{"open", "gold", "training": items; "judgements": that stand; "to_come": slots without one; "raters"}. What
    nobody else is asked for is to come until its rater's time has run out, now."""
    table, slots, events = schema.project_items, schema.assignments, schema.events
    with schema.reading(projects.store.engine) as connection:
        read(connection, id)
        rows = connection.execute(
            sa.select(table.c.part, sa.func.count()).where(table.c.project == id).group_by(table.c.part)
        )
        parts = {part: int(count) for part, count in rows}
        over = sa.and_(slots.c.queue == SURPLUS, sa.func.coalesce(slots.c.expires, now) <= now)
        open_ = (slots.c.project == id, slots.c.event.is_(None), slots.c.queue != FOR_ONE, ~over)
        to_come = connection.scalar(sa.select(sa.func.count()).select_from(slots).where(*open_))
        people = queries.standing(None, sa.func.count(sa.distinct(events.c.rater)))
        people = people.join(table, table.c.item == events.c.item).where(table.c.project == id)
        return {
            **{part: parts.get(part, 0) for part in ("open", "gold", "training")},
            "judgements": given(connection, id),
            "to_come": int(to_come or 0),
            "raters": int(connection.scalar(people) or 0),
        }


def own(projects: Projects, id: str, rater: str, since: str) -> dict[str, Any]:
    """A rater's own work: {"done", "skipped", "today": since that moment, "agreement": how often others who judged
    the same said the same (as gold would count it), None where fewer than five others have}."""
    table, events = schema.project_items, schema.events
    with schema.reading(projects.store.engine) as connection:
        project = read(connection, id)
        query = queries.standing(None).join(table, table.c.item == events.c.item).where(table.c.project == id)
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


def _items(projects: Projects, id: str) -> list[Item]:
    """All that can be read, in the order in which they came in; what is asked twice once."""
    table = schema.project_items
    with schema.reading(projects.store.engine) as connection:
        read(connection, id)
        query = sa.select(table.c.item).where(table.c.project == id, table.c.part != "repeat")
        ids = connection.scalars(query.order_by(table.c.number)).all()
        found = queries.items(connection, ids)
    return [item for key in ids if (item := found.get(key)) is not None]
