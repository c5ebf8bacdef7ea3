"""A slot for somebody, made for a test that says who judges what."""

from __future__ import annotations

import sqlalchemy as sa

from plaudit.feedback import assignments, privacy, schema
from plaudit.feedback.assignments import FOR_ONE
from plaudit.feedback.projects import Projects


def ticket(projects: Projects, project: str, rater: str, item: str) -> str:
    """What the rater hands in with an answer to the item."""
    with schema.writing(projects.store.engine) as connection:
        privacy.ensure(connection, rater)
        slots = schema.assignments
        mine = (slots.c.item == item, slots.c.rater == rater)
        slot = connection.scalar(sa.select(slots.c.id).where(*mine))
        if slot is None:
            slot = assignments.give(connection, item, rater, 1e12, project=project, queue=FOR_ONE).id
        return privacy.seal(connection, rater, str(slot)).decode()
