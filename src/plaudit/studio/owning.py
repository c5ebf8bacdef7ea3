"""For owners: projects and what is in them."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request

from plaudit.access import audit
from plaudit.feedback import overview, schema
from plaudit.feedback.events import prompt_from_json
from plaudit.feedback.projects import Entry, Project, Projects
from plaudit.studio import wire
from plaudit.studio.guard import Caller, Id, Judge, Manage, Review
from plaudit.studio.judging import admitted, projects_of

router = APIRouter(prefix="/api/v1", tags=["projects"])


@router.get("/projects")
def list_projects(request: Request, caller: Judge) -> list[wire.ProjectShown]:
    """All of them; for who does not manage, those that are not archived and that they may judge."""
    projects = projects_of(request)
    return [
        _shown(projects, project, caller)
        for project in projects.all()
        if caller.may("manage") or (not project.archived and project.task.admits(caller.name))
    ]


@router.post("/projects", status_code=201)
def create_project(request: Request, caller: Manage, body: wire.NewProject) -> wire.ProjectShown:
    """A project without items."""
    projects = projects_of(request)
    with schema.writing(projects.store.engine):
        made = projects.create(body.name, body.task)
        if body.guideline:
            projects.write_guideline(made.id, dict[str, str](body.guideline.items()))
        note(request, caller, "create", f"project {made.id}", name=made.name, kind=made.task.kind)
    return _shown(projects, projects.get(made.id), caller)


@router.get("/projects/{project}")
def show_project(request: Request, caller: Judge, project: Id) -> wire.ProjectShown:
    """One of them."""
    projects, found = admitted(request, caller, project)
    return _shown(projects, found, caller)


@router.get("/projects/{project}/counts")
def show_counts(request: Request, _: Review, project: Id) -> wire.Counts:
    """How much there is, and how much is still to come."""
    return wire.Counts(**overview.counts(projects_of(request), project, time.time()))


@router.patch("/projects/{project}")
def change_project(
    request: Request, caller: Manage, project: Id, body: wire.ProjectChange
) -> wire.ProjectShown:
    """Another name, guideline, settings of the task (not its kind), raters; archived or not."""
    projects, raters = projects_of(request), body.raters or wire.RatersChange()
    settings = body.task.model_dump(exclude_unset=True) if body.task else {}
    with schema.writing(projects.store.engine):
        projects.change(
            project, name=body.name, settings=settings, admit=raters.admit, dismiss=raters.dismiss,
            archived=body.archived,
        )  # fmt: skip
        if body.guideline is not None:
            projects.write_guideline(project, dict[str, str](body.guideline.items()))
        note(request, caller, "change", f"project {project}", fields=sorted(body.model_fields_set))
    return _shown(projects, projects.get(project), caller)


@router.post("/projects/{project}/copies", status_code=201)
def duplicate_project(request: Request, caller: Manage, project: Id) -> wire.ProjectShown:
    """The same task, guidelines and items, without what was said."""
    projects = projects_of(request)
    with schema.writing(projects.store.engine):
        made = projects.duplicate(project, f"{projects.get(project).name} (copy)")
        note(request, caller, "duplicate", f"project {made.id}", of=project)
    return _shown(projects, made, caller)


@router.post("/projects/{project}/items", status_code=201)
def add_items(request: Request, caller: Manage, project: Id, body: wire.NewItems) -> wire.Added:
    """Puts items in, all or none; those that are there already stay as they are."""
    entries = [
        Entry(
            prompt_from_json(item.prompt if isinstance(item.prompt, str) else [m.model_dump() for m in item.prompt]),
            tuple(item.completions), item.policy_version, item.meta, item.part, item.answer, item.why,
        )
        for item in body.items
    ]  # fmt: skip
    with schema.writing(projects_of(request).store.engine):
        added = projects_of(request).add(project, entries)
        note(request, caller, "add items", f"project {project}", added=added)
    return wire.Added(added=added)


def _shown(projects: Projects, project: Project, caller: Caller) -> wire.ProjectShown:
    """When gold comes, who else judges and when it is enough is for who manages alone."""
    task = project.task if caller.may("manage") else project.task.asked()
    return wire.ProjectShown(
        id=project.id, name=project.name, task=task, created_at=project.created_at,
        archived=project.archived, guideline=project.guideline, guidelines=projects.guideline(project.id)[1],
    )  # fmt: skip


def note(request: Request, caller: Caller, action: str, target: str, **detail: object) -> None:
    """A line of the audit log, on disk with what it tells of where both stand in one transaction."""
    with schema.writing(projects_of(request).store.engine) as connection:
        audit.note(connection, caller.name, action, target, **detail)
