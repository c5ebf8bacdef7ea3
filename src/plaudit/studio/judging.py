"""For raters: what comes next, and what they say of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from pydantic import BaseModel

from plaudit.feedback import answering, drafts, overview, quality
from plaudit.feedback.answering import Turn
from plaudit.feedback.events import Item
from plaudit.feedback.projects import Project, Projects
from plaudit.studio import text, wire
from plaudit.studio.guard import Caller, Id, Judge
from plaudit.types import Missing, prompt_to_json

router = APIRouter(prefix="/api/v1", tags=["judging"])
SAID = {"event", "assignment", "guideline", "comment", "flags", "supersedes"}
SETTLE_EVERY = 25
"""Events of a store between two looks at whether raters agree enough."""
SETTLE_SHARE = 20.0
"""A project is not looked at again until so many times as long as the last look took."""


def projects_of(request: Request) -> Projects:
    found: Projects = request.app.state.projects
    return found


def admitted(request: Request, caller: Caller, project: str) -> tuple[Projects, Project]:
    """All projects, and this one, which the caller may judge. UserError as for one that there is not."""
    projects = projects_of(request)
    found = projects.get(project)
    if not caller.may("manage") and not found.task.admits(caller.name):
        raise Missing("project", project)
    return projects, found


async def _in_line(request: Request, work: Callable[[], Response]) -> Response:
    """In a thread, when its turn has come."""
    return await run_sync(work, limiter=request.app.state.judging)


@router.get("/projects/{project}/next", response_model=wire.Next)
async def next_turns(
    request: Request, caller: Judge, project: Id, count: Annotated[int, Query(ge=1, le=3)] = 2,
    have: Annotated[str, Query(max_length=500)] = "",
) -> Response:  # fmt: skip
    """What this rater judges next, and what after that, which a page loads ahead. have: items that the page has
    already, with commas between; they are not sent again."""
    return await _in_line(request, lambda: _next_turns(request, caller, project, count, have.split(",")))


def _next_turns(request: Request, caller: Caller, project: str, count: int, have: Sequence[str]) -> Response:
    projects, found = admitted(request, caller, project)
    turns = answering.upcoming(projects, found, caller.name, time.time(), count, have)
    return _json(_next(projects, found, turns))


@router.post("/projects/{project}/answers", response_model=wire.Written)
async def answer(
    request: Request, caller: Judge, project: Id, body: wire.Answer, after: BackgroundTasks
) -> Response:
    """Writes an answer; when this returns, it is on disk. The same again is harmless. With ahead, what comes next is in
    the acknowledgement: a page that asks so has one request an item."""
    return await _in_line(request, lambda: _answer(request, caller, project, body, after))


def _answer(
    request: Request, caller: Caller, project: str, body: wire.Answer, after: BackgroundTasks
) -> Response:
    said = body.model_dump(include=SAID) | {"reviews": caller.may("review")}
    try:
        projects, found = admitted(request, caller, project)
    except Missing:
        # Who was taken out since is given nothing, and what they sent before is known all the same.
        projects = projects_of(request)
        known = projects.store.event(body.event)
        if known is None or known.rater != caller.name:
            raise
        seq = answering.judge(projects, project, caller.name, body.item, body.payload, **said)
        return _json(wire.Written(seq=seq))
    if body.ahead:
        seq, turns = answering.judge_on(
            projects, found, caller.name, body.item, body.payload, now=time.time(), count=body.ahead,
            have=body.have, **said,
        )  # fmt: skip
        coming = _next(projects, found, turns)
    else:
        seq, coming = answering.judge(projects, project, caller.name, body.item, body.payload, **said), None
    if seq % SETTLE_EVERY == 0:
        after.add_task(_settle, request, projects, project)  # when the answer is acknowledged
    return _json(wire.Written(seq=seq, next=coming))


def _settle(request: Request, projects: Projects, project: str) -> None:
    """`quality.settle`, which reads the whole project: not more often than it can be afforded."""
    due, began = request.app.state.settled, time.monotonic()
    if began >= due.get(project, 0.0):
        quality.settle(projects, project)
        due[project] = began + SETTLE_SHARE * (time.monotonic() - began)


@router.get("/projects/{project}/own")
def show_own(
    request: Request, caller: Judge, project: Id, since: Annotated[str | None, Query(max_length=40)] = None
) -> wire.Own:
    """One's own work, and how often others said the same. since: when the caller's day began, in UTC (ISO 8601)."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    began = since or midnight.isoformat(timespec="milliseconds")
    projects, _ = admitted(request, caller, project)
    return wire.Own(**overview.own(projects, project, caller.name, began))


@router.post("/projects/{project}/practice")
def practise(request: Request, caller: Judge, project: Id, body: wire.Practice) -> wire.Lesson:
    """Answers a training item, and says what is right and why."""
    projects, _ = admitted(request, caller, project)
    right, answer, why = answering.practise(projects, project, caller.name, body.item, body.payload)
    return wire.Lesson(right=right, answer=dict(answer), why=why)


@router.put("/drafts/{item}")
def keep_draft(request: Request, caller: Judge, item: Id, body: wire.Draft) -> wire.Said:
    """Keeps what is not sent yet, for this rater alone."""
    if (project := projects_of(request).of_item(item)) is not None:
        admitted(request, caller, project)
    drafts.save(projects_of(request).store, caller.name, item, body.draft, time.time())
    return wire.Said()


def _json(model: BaseModel) -> Response:
    """As FastAPI would send it, without the thread that it serialises in: for what is asked with every item."""
    return Response(model.model_dump_json(), media_type="application/json")


def _next(projects: Projects, project: Project, turns: Sequence[Turn]) -> wire.Next:
    version, texts = projects.guideline(project.id) if project.guideline else (0, {})
    shown = [_shown(turn) for turn in turns]
    return wire.Next(turns=shown, task=project.task.asked(), guideline=version, guidelines=texts)


def _shown(turn: Turn) -> wire.TurnShown:
    item = turn.item
    return wire.TurnShown(
        item=item.id,
        part=turn.part,
        assignment=turn.assignment,
        prompt=prompt_shown(item),
        completions=[completion_shown(item, i) for i in turn.order],
        draft=dict(turn.draft),
    )


def completion_shown(item: Item, index: int) -> wire.Shown:
    """One of its completions."""
    raw = item.completions[index]
    return wire.Shown(index=index, raw=raw, text=text.visible(raw), html=text.markdown(raw))


def prompt_shown(item: Item) -> list[dict[str, str]]:
    """Its turns, each with a role and HTML."""
    prompt = prompt_to_json(item.prompt)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": turn["role"], "html": text.markdown(turn["content"])} for turn in turns]
