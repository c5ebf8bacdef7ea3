"""What a worker computes, what it is worth, and two models side by side."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from plaudit.feedback import answering, overview, schema, value
from plaudit.feedback.events import prompt_from_json
from plaudit.feedback.jobs import Job, Jobs
from plaudit.feedback.projects import Entry
from plaudit.feedback.tasks import Task
from plaudit.studio import text, wire
from plaudit.studio.guard import Answer, Caller, Id, Manage, Number, Review
from plaudit.studio.judging import projects_of, prompt_shown
from plaudit.studio.owning import note
from plaudit.types import Missing, UserError, prompt_to_json

router = APIRouter(prefix="/api/v1", tags=["computing"])
PLAYGROUND = "Playground"


def jobs_of(request: Request) -> Jobs:
    return Jobs(projects_of(request).store.engine)


@router.post("/projects/{project}/samples", status_code=202)
def ask_for_samples(request: Request, caller: Manage, project: Id, body: wire.Sampling) -> wire.JobShown:
    """Has a worker draw completions of prompts and put them into the project."""
    projects = projects_of(request)
    projects.get(project)
    prompts: list[Any] = [
        one if isinstance(one, str) else [turn.model_dump() for turn in one] for one in body.prompts
    ] or [prompt_to_json(prompt) for prompt in overview.prompts(projects, project)]
    if not prompts:
        raise UserError("gives no prompts, and the project has none", where="prompts", fix="give some")
    told = body.model_dump(exclude={"prompts"}, exclude_none=True) | {"project": project, "prompts": prompts}
    with schema.writing(projects.store.engine):
        job = jobs_of(request).put("sample", told, by=caller.name)
        known = {"job": job.id, "model": body.model, "prompts": len(prompts)}
        note(request, caller, "ask for samples", f"project {project}", **known)
    return _shown(job)


@router.post("/projects/{project}/vectors", status_code=202)
def ask_for_vectors(request: Request, caller: Manage, project: Id, body: wire.Reading) -> wire.JobShown:
    """Has a worker make a vector of each completion, which the value of judgements is measured with."""
    projects_of(request).get(project)
    with schema.writing(projects_of(request).store.engine):
        job = jobs_of(request).put("vectors", {"project": project, "model": body.model}, by=caller.name)
        note(request, caller, "ask for vectors", f"project {project}", job=job.id, model=body.model)
    return _shown(job)


@router.post("/projects/{project}/scores", status_code=202)
def ask_for_scores(request: Request, caller: Manage, project: Id, body: wire.Scoring) -> wire.JobShown:
    """Has a worker score each completion with a reward; an ensemble's doubt then orders what comes next."""
    projects_of(request).get(project)
    if ":" in body.reward:
        raise UserError(
            "names code, which the studio does not run", where="reward", fix="name a directory or a YAML"
        )
    with schema.writing(projects_of(request).store.engine):
        job = jobs_of(request).put("scores", {"project": project, "reward": body.reward}, by=caller.name)
        note(request, caller, "ask for scores", f"project {project}", job=job.id, reward=body.reward)
    return _shown(job)


@router.get("/jobs")
def list_jobs(request: Request, _: Manage) -> list[wire.JobShown]:
    """The newest fifty."""
    return [_shown(job) for job in jobs_of(request).newest()]


@router.get("/jobs/{job}")
def show_job(request: Request, _: Manage, job: Number) -> wire.JobShown:
    """One of them."""
    return _shown(jobs_of(request).get(job))


@router.delete("/jobs/{job}")
def cancel_job(request: Request, caller: Manage, job: Number) -> wire.JobShown:
    """Stops it, where it has not ended."""
    with schema.writing(projects_of(request).store.engine):
        found = jobs_of(request).cancel(job)
        note(request, caller, "cancel", f"job {job}")
    return _shown(found)


@router.get("/projects/{project}/value")
def show_value(request: Request, _: Review, project: Id) -> wire.ValueShown:
    """How right a light reward is on prompts that it has not seen, by judgements, and what the next hundred bring."""
    return wire.ValueShown(**value.of_project(projects_of(request), project))


@router.get("/projects/{project}/standings")
def show_standings(
    request: Request, _: Review, project: Id, since: Annotated[int | None, Query(ge=0, lt=2**31)] = None
) -> wire.Standings:
    """Where each answer stands by that reward, and which have changed their place."""
    return wire.Standings(**value.standings(projects_of(request), project, since))


@router.post("/projects/{project}/priorities")
def prioritise(request: Request, caller: Manage, project: Id) -> wire.Ordered:
    """From now on gives out next what teaches that reward most (beside the random slice)."""
    projects = projects_of(request)
    worth = value.worth(projects, project)
    with schema.writing(projects.store.engine):
        projects.prioritise(project, worth)
        note(request, caller, "prioritise", f"project {project}", items=len(worth))
    return wire.Ordered(ordered=len(worth))


@router.get("/projects/{project}/models")
def show_side_by_side(request: Request, _: Review, project: Id) -> list[wire.SideBySide]:
    """Of each prompt what each model said, of prompts that two models or more have answered; at most 200."""
    found = []
    for item, answers in overview.by_prompt(projects_of(request), project).values():
        if len({version for version, _, _ in answers}) > 1:
            sides = [wire.Side(model=v, item=id, html=text.markdown(said)) for v, id, said in answers]
            found.append(wire.SideBySide(prompt=prompt_shown(item), answers=sides))
    return found[:200]


@router.post("/playground", status_code=202)
def chat(request: Request, caller: Answer, body: wire.Chat) -> wire.ChatShown:
    """Asks two models what they say next; which is on which side is drawn, and told after the vote."""
    order = [0, 1] if secrets.randbelow(2) else [1, 0]
    models = [body.models[i] for i in order]
    told = {
        "models": models, "messages": [turn.model_dump() for turn in body.messages],
        "max_new_tokens": body.max_new_tokens, "seed": secrets.randbelow(2**31),
    }  # fmt: skip
    return _chat(jobs_of(request).put("reply", told, by=caller.name), revealed=False)


@router.get("/playground/{job}")
def show_chat(request: Request, caller: Answer, job: Number) -> wire.ChatShown:
    """What they say, once they have."""
    return _chat(_own_chat(request, caller, job), revealed=False)


@router.post("/playground/{job}/vote")
def vote(request: Request, caller: Answer, job: Number, body: wire.Vote) -> wire.ChatShown:
    """Keeps the vote as a comparison in the project "Playground", and says who was who."""
    found = _own_chat(request, caller, job)
    if found.state != "done":
        raise UserError("the models have not answered yet", where=f"job {job}", fix="wait for both")
    projects = projects_of(request)
    prompt = prompt_from_json(found.arguments["messages"])
    models, replies = list(found.arguments["models"]), list(found.result["replies"])
    entry = Entry(prompt, tuple(replies), " / ".join(models), {"job": job, "models": models})
    said = {"choice": body.choice, "strength": None}
    with schema.writing(projects.store.engine):  # one project, and no item without its vote
        project = _playground(request, caller)
        item = projects.enter(project, entry, caller.name)
        answering.decide(
            projects,
            project,
            caller.name,
            item,
            said,
            event=f"{wire.OURS}playground-{job}",
            adjudicates=False,
        )
    return _chat(found, revealed=True)


def _playground(request: Request, caller: Caller) -> str:
    """The project that keeps the votes, which is made at the first."""
    projects = projects_of(request)
    for project in projects.all():
        if project.name == PLAYGROUND and project.task.kind == "comparison":
            return project.id
    made = projects.create(PLAYGROUND, Task(kind="comparison", overlap=1, gold_every=0))
    note(request, caller, "create", f"project {made.id}", name=made.name, kind=made.task.kind)
    return made.id


def _own_chat(request: Request, caller: Caller, id: int) -> Job:
    job = jobs_of(request).get(id)
    if job.kind != "reply" or job.asked_by != caller.name:
        raise Missing("chat of yours", id)
    return job


def _chat(job: Job, *, revealed: bool) -> wire.ChatShown:
    replies = list(job.result["replies"]) if job.state == "done" else []
    return wire.ChatShown(
        job=job.id, state=job.state, message=job.message, replies=[text.visible(reply) for reply in replies],
        html=[text.markdown(reply) for reply in replies], models=list(job.arguments["models"]) if revealed else None,
    )  # fmt: skip


def _shown(job: Job) -> wire.JobShown:
    return wire.JobShown(
        id=job.id, kind=job.kind, state=job.state, asked_by=job.asked_by, created_at=job.created_at,
        attempts=job.attempts, progress=job.progress, message=job.message,
        result=None if job.kind == "reply" else job.result,
    )  # fmt: skip
