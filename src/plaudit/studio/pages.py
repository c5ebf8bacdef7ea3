"""Pages: frames that scripts fill by the HTTP API."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from plaudit import __version__
from plaudit.access.roles import ROLES, may_give
from plaudit.data.dialects import ENCODERS
from plaudit.studio.guard import COOKIE, SAFE, Answer, Caller, Guard, Judge, Manage, Review, csrf_of
from plaudit.studio.judging import admitted

router = APIRouter(include_in_schema=False)
HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")
LANGUAGE_COOKIE = "language"


@router.get("/")
def home() -> Response:
    """Where somebody begins."""
    return RedirectResponse("/projects", 303)


@router.get("/log-in")
def log_in(request: Request) -> Response:
    """For whoever has an account."""
    guard: Guard = request.app.state.guard
    if guard.caller(request) is not None:
        return RedirectResponse("/projects", 303)
    return page(request, "log_in.html.j2", None)


@router.get("/welcome/{token}", name="welcome")
def welcome(request: Request, token: str) -> Response:
    """For whoever was invited."""
    return page(request, "welcome.html.j2", None, token=token)


@router.get("/projects")
def projects(request: Request, caller: Judge) -> Response:
    """All projects, to judge or to look after."""
    return page(request, "projects.html.j2", caller)


@router.get("/projects/{project}/judge")
def judge(request: Request, caller: Judge, project: str) -> Response:
    """Where people judge."""
    _, found = admitted(request, caller, project)
    return page(request, "judge.html.j2", caller, project=found)


@router.get("/projects/{project}")
def project(request: Request, caller: Review, project: str) -> Response:
    """Where an owner looks after a project, and reviewers see what its judgements are worth."""
    found = request.app.state.projects.get(project)
    return page(request, "project.html.j2", caller, project=found, formats=list(ENCODERS))


@router.get("/projects/{project}/items/{item}")
def item(request: Request, caller: Review, project: str, item: str) -> Response:
    """One item and its history, where a reviewer decides."""
    found = request.app.state.projects.get(project)
    return page(request, "item.html.j2", caller, project=found, item=item)


@router.get("/runs")
def runs(request: Request, caller: Review) -> Response:
    """Runs and their curves, and the worker's jobs."""
    return page(request, "runs.html.j2", caller)


@router.get("/loops")
def loops(request: Request, caller: Review) -> Response:
    """Loops and their rounds."""
    return page(request, "loops.html.j2", caller)


@router.get("/playground")
def playground(request: Request, caller: Answer) -> Response:
    """Two models, blind, and a vote."""
    return page(request, "playground.html.j2", caller)


@router.get("/account")
def account(request: Request, caller: Judge) -> Response:
    """One's own keys."""
    return page(request, "account.html.j2", caller)


@router.get("/people")
def people(request: Request, caller: Manage) -> Response:
    """Accounts and invitations."""
    roles = [role for role in ROLES if may_give(caller.account.role, role)]
    return page(request, "people.html.j2", caller, roles=roles)


@router.get("/language/{language}")
def language(request: Request, language: str) -> Response:
    """Another language, and back to where one was."""
    back = request.query_params.get("back", "/")
    if not back.startswith("/") or back.startswith(("//", "/\\")):
        back = "/"
    answer = RedirectResponse(back, 303)
    if language in LANGUAGES:
        answer.set_cookie(LANGUAGE_COOKIE, language, max_age=31_536_000, samesite="lax", httponly=True)
    return answer


def fault(request: Request, status: int, said: Mapping[str, str]) -> Response:
    """What was refused, to who wanted a page. said: where, what and how to mend it."""
    guard: Guard = request.app.state.guard
    caller = guard.caller(request) if request.method in SAFE else None
    heading = {403: "page_not_yours", 404: "page_not_there"}.get(status, "page_not_shown")
    return page(request, "fault.html.j2", caller, status, heading=heading, said=said)


def page(
    request: Request, template: str, caller: Caller | None, status: int = 200, **content: Any
) -> Response:
    """A template with the words of the reader's language."""
    spoken = language_of(request)
    words = dictionary(spoken)
    token = request.cookies.get(COOKIE, "")
    text = (
        _environment()
        .get_template(template)
        .render(
            t=lambda key: words[key],
            language=spoken,
            words=words,
            caller=caller,
            csrf=csrf_of(token) if caller is not None and caller.token else "",
            path=request.url.path,
            version=__version__,
            **content,
        )
    )
    return HTMLResponse(text, status)


def language_of(request: Request) -> str:
    """As the reader chose, else as their browser prefers, else English."""
    if (chosen := request.cookies.get(LANGUAGE_COOKIE)) in LANGUAGES:
        return str(chosen)
    ranked = list[tuple[float, int, str]]()
    for place, part in enumerate(request.headers.get("accept-language", "").split(",")):
        name, _, quality = part.strip().partition(";q=")
        try:
            ranked.append((-float(quality or 1), place, name[:2].lower()))
        except ValueError:
            continue
    return next((name for _, _, name in sorted(ranked) if name in LANGUAGES), "en")


@functools.cache
def dictionary(language: str) -> dict[str, str]:
    """All words of a language, by key."""
    found: dict[str, str] = json.loads((HERE / "languages" / f"{language}.json").read_text("utf-8"))
    return found


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("plaudit.studio", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
