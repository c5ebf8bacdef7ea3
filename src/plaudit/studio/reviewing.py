"""For reviewers: what the judgements are worth, and what is said of an item."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request

from plaudit.feedback import answering, quality, queries, schema
from plaudit.studio import wire
from plaudit.studio.guard import Id, Review
from plaudit.studio.judging import completion_shown, projects_of, prompt_shown
from plaudit.types import Missing

router = APIRouter(prefix="/api/v1", tags=["quality"])


@router.get("/projects/{project}/quality")
def show_quality(request: Request, _: Review, project: Id) -> dict[str, Any]:
    """Agreement, each rater's figures, and the items on which they are furthest apart."""
    return quality.of_project(projects_of(request), project)


@router.get("/projects/{project}/items/{item}")
def show_item(request: Request, _: Review, project: Id, item: Id) -> wire.ItemShown:
    """An item and all that was ever said of it, what stands and what does not."""
    with schema.reading(projects_of(request).store.engine) as connection:
        of = connection.scalar(
            sa.select(schema.project_items.c.project).where(schema.project_items.c.item == item)
        )
        found = queries.items(connection, [item]).get(item)
        if of != project or found is None:
            raise Missing("item", item)
        rows = connection.execute(
            queries.logged().where(schema.events.c.item == item).order_by(schema.events.c.seq)
        ).all()
        stands = set(
            connection.scalars(queries.standing(None, schema.events.c.id).where(schema.events.c.item == item))
        )
    events = [queries.event(row) for row in rows]
    return wire.ItemShown(
        item=item,
        prompt=prompt_shown(found),
        completions=[completion_shown(found, place) for place in range(len(found.completions))],
        said=[
            wire.Told(
                event=event.id,
                seq=event.seq,
                at=event.created_at,
                rater=event.rater,
                kind=event.kind,
                payload=dict(event.payload),
                comment=event.comment,
                stands=event.id in stands,
                supersedes=event.supersedes,
            )
            for event in events
        ],
    )


@router.post("/projects/{project}/adjudications")
def adjudicate(request: Request, caller: Review, project: Id, body: wire.Decision) -> wire.Written:
    """A reviewer's word on an item about which raters disagree: a judgement of their own that says so. Their earlier
    one is replaced."""
    seq = answering.decide(
        projects_of(request), project, caller.name, body.item, body.payload, event=body.event, guideline=body.guideline,
        comment=body.comment, flags=body.flags,
    )  # fmt: skip
    return wire.Written(seq=seq)
