"""Judgements out and in: files in the shapes of docs/records.md, and all that is kept of one rater."""

from __future__ import annotations

import tempfile
from pathlib import Path as File
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import Response

from plaudit.data.formats import read_records, write_records
from plaudit.feedback import drafts, privacy, schema
from plaudit.feedback.events import Event
from plaudit.feedback.judgements import everything
from plaudit.studio import wire
from plaudit.studio.guard import Id, Manage, Own
from plaudit.studio.judging import projects_of
from plaudit.studio.owning import note
from plaudit.types import Missing, UserError

router = APIRouter(prefix="/api/v1", tags=["exchange"])
Name = Annotated[str, Path(max_length=100)]
Format = Annotated[str, Query(max_length=40)]
KINDS = {"jsonl": "application/x-ndjson", "json": "application/json", "csv": "text/csv; charset=utf-8"}


@router.get("/projects/{project}/records", response_class=Response)
def download(
    request: Request, caller: Manage, project: Id, format: Format = "plaudit",
    kind: Annotated[str, Query(pattern="^(jsonl|json|csv)$")] = "jsonl",
) -> Response:  # fmt: skip
    """The judgements that stand, as a file; what the format cannot hold is left out, and counted in a header."""
    projects = projects_of(request)
    projects.get(project)
    records = [judged.record for judged in everything(projects.store, project=project)]
    with tempfile.TemporaryDirectory() as place:
        path = File(place) / f"{project}.{kind}"
        left_out = write_records(records, path, format, skip_unrepresentable=True)
        data = path.read_bytes()
    note(request, caller, "download", f"project {project}", format=format, records=len(records) - left_out)
    headers = {
        "Content-Disposition": f'attachment; filename="{project}.{format}.{kind}"',
        "X-Plaudit-Records": str(len(records) - left_out),
        "X-Plaudit-Left-Out": str(left_out),
    }
    return Response(data, media_type=KINDS[kind], headers=headers)


@router.post("/projects/{project}/records")
def upload(
    request: Request, caller: Manage, project: Id, body: Annotated[bytes, Body(media_type="application/octet-stream")],
    format: Format = "auto", kind: Annotated[str, Query(pattern="^(jsonl|json|csv)$")] = "jsonl",
) -> wire.TakenIn:  # fmt: skip
    """Takes in judgements that were made elsewhere, all or none; the same again adds nothing."""
    with tempfile.TemporaryDirectory() as place:
        path = File(place) / f"records.{kind}"
        path.write_bytes(body)
        try:
            records = read_records(path, format)
        except UserError as error:  # where it is told is the file that was sent
            where = error.where.replace(str(path), "the file")
            raise UserError(error.what, where=where, fix=error.fix) from None
    with schema.writing(projects_of(request).store.engine):
        counts = projects_of(request).take_in(project, records)
        note(request, caller, "take in", f"project {project}", **counts)
    return wire.TakenIn(**counts)


@router.get("/raters/{name}")
def show_rater(request: Request, caller: Own, name: Name) -> wire.RaterShown:
    """All that is kept of a rater, for them to have: who they are, what they said, which models learned from it."""
    store = projects_of(request).store
    state = store.raters().get(name)
    if state is None:
        raise Missing("rater", name)
    with schema.reading(store.engine) as connection:
        identity = privacy.identity(connection, name)
        practised = connection.execute(
            sa.select(schema.practice.c.item, schema.practice.c.payload).where(
                schema.practice.c.rater == name
            )
        )
        practice = [{"item": row.item, "payload": row.payload} for row in practised]
    events = [_told(event) for event in store.log() if event.rater == name]
    note(request, caller, "show rater", f"rater {name}", events=len(events))
    return wire.RaterShown(
        rater=name, state=state, identity=identity, models=store.models_trained_on(name), events=events,
        drafts=drafts.of(store, name), practice=practice,
    )  # fmt: skip


@router.put("/raters/{name}/retracted")
def retract_rater(request: Request, caller: Own, name: Name, retracted: bool = True) -> wire.Said:
    """Leaves out what a rater said from here on, or takes it in again; nothing is destroyed."""
    store = projects_of(request).store
    with schema.writing(store.engine):
        (store.retract_rater if retracted else store.restore_rater)(name)
        projects_of(request).reopen(name)
        note(request, caller, "retract" if retracted else "restore", f"rater {name}")
    return wire.Said()


@router.delete("/raters/{name}")
def forget_rater(request: Request, caller: Own, name: Name) -> wire.Forgotten:
    """Destroys all that a rater said and who they are; names the models that were trained on it. Final."""
    store = projects_of(request).store
    if name not in store.raters():
        raise Missing("rater", name)
    if name == caller.name:
        raise UserError("is your own account", where=f"rater {name}", fix="let another owner do it")
    models = store.models_trained_on(name)
    with schema.writing(store.engine):
        store.erase_rater(name)
        projects_of(request).reopen(name)
        note(request, caller, "forget", f"rater {name}", models=models)
    store.cut_log()
    return wire.Forgotten(rater=name, models=models)


def _told(event: Event) -> dict[str, object]:
    return {
        "event": event.id, "seq": event.seq, "at": event.created_at, "kind": event.kind, "item": event.item,
        "payload": dict(event.payload), "comment": event.comment, "presented": event.presented,
        "supersedes": event.supersedes,
    }  # fmt: skip
