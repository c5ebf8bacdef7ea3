"""The app: routes, pages, and what every fault becomes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy.exc import DataError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from plaudit import __version__
from plaudit.access.accounts import Accounts
from plaudit.access.headers import PALETTE, Headers
from plaudit.access.hooks import Courier
from plaudit.access.keys import Keys
from plaudit.feedback.projects import Projects
from plaudit.feedback.store import Store
from plaudit.studio import (
    computing,
    exchanging,
    hooking,
    judging,
    owning,
    pages,
    people,
    reviewing,
    watching,
    wire,
)
from plaudit.studio.faults import translated
from plaudit.studio.guard import Guard
from plaudit.types import Missing, Unavailable, UserError

HERE = Path(__file__).parent
THREADS = 8
"""Requests worked on at once. Python's threads take turns, and each turn costs: with 40, a thread that holds the store
waits for all others after every query."""
JUDGING = 1
"""Of them, those that write answers: they write one after the other anyway, and a second one would take turns with the
first at every query instead of letting it end."""
LARGE = r"/api/v1/projects/[^/]+/(items|records|samples)"
"""Where much is sent at once."""
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.Fault} for status in (400, 401, 403, 404, 413, 422, 429, 503)
}


def make_app(store: Store, runs: Path = Path("runs"), *, workers: int = 1) -> FastAPI:
    """The studio over an open store, which it closes at its end. runs: the directory whose runs owners see. workers:
    how many processes serve it; where they are more than this one, whoever started them delivers what hooks are told.
    """
    courier = Courier(store.engine) if workers == 1 else None

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if courier is not None:
            courier.start()
        current_default_thread_limiter().total_tokens = THREADS
        yield
        if courier is not None:
            courier.stop()
        store.close()

    app = FastAPI(
        title="Plaudit studio",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        responses={**FAULTS},
    )
    app.state.projects = Projects(store)
    app.state.runs = runs
    app.state.guard = guard = Guard(Accounts(store.engine), Keys(store.engine), workers)
    app.state.judging = CapacityLimiter(JUDGING)
    app.state.settled = dict[str, float]()  # when each project is looked at again
    for room in (judging, owning, reviewing, computing, exchanging, watching, people, hooking, pages):
        app.include_router(room.router)
    app.mount("/static", StaticFiles(directory=HERE / "static", packages=[PALETTE]), name="static")
    app.add_middleware(Headers, large=LARGE, known=lambda request: guard.caller(request) is not None)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(HTTPException, _refusal)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(UnicodeEncodeError, _half_a_character)
    app.add_exception_handler(OverflowError, _too_much)
    app.add_exception_handler(DataError, _too_much)
    return app


async def _user_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, UserError)
    status = 503 if isinstance(error, Unavailable) else 404 if isinstance(error, Missing) else 400
    return await _fault(request, status, error.what, error.where, error.fix)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 401 and not request.url.path.startswith("/api/"):
        return RedirectResponse("/log-in", 303)
    answer = await _fault(request, error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    within = first.get("ctx", {}).get("at")  # of what is checked on its own, as a task is
    where = ".".join(str(part) for part in (*first["loc"], *([within] if within else [])))
    return await _fault(request, 422, str(first["msg"]), where)


async def _too_much(request: Request, _: Exception) -> Response:
    return await _fault(request, 400, "holds a number or a character that cannot be kept", fix="leave it out")


async def _half_a_character(request: Request, _: Exception) -> Response:
    return await _fault(request, 400, "a text holds half a character", fix="write the whole character")


async def _fault(request: Request, status: int, what: str, where: str = "", fix: str = "") -> Response:
    language = pages.language_of(request)
    given = {"where": where, "what": what, "fix": fix}
    said = {name: translated(text, language) for name, text in given.items()}
    if not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", ""):
        return await run_in_threadpool(pages.fault, request, status, said)
    return JSONResponse(said, status)
