"""The app: routes, what every fault becomes, and what goes on beside them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit import __version__
from plaudit.access.headers import PALETTE, Headers
from plaudit.access.limits import Limit
from plaudit.feedback.releases import Releases
from plaudit.serving import chat, health, opinions, protocol
from plaudit.serving.backend import Broken, Overloaded, Unsupported
from plaudit.serving.guarding import GuardFailed
from plaudit.serving.server import Server
from plaudit.types import Missing, Unavailable, UserError

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
LARGE = r"/v1/(chat/)?completions"
"""Where conversations are sent."""
FOLLOW_SECONDS, TIDY_SECONDS = 1.0, 3600.0
"""How often the store is looked at for a new release, and for answers that were kept long enough."""
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": protocol.FaultAnswer} for status in (400, 401, 403, 404, 413, 429, 500, 502, 503, 504)
}
KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         413: "invalid_request_error", 429: "rate_limit_error"}  # fmt: skip


def make_app(server: Server) -> FastAPI:
    """The API of a server, which it ends with itself."""

    def known(request: Request) -> bool:
        kind, _, sent = request.headers.get("authorization", "").partition(" ")
        if server.settings.open:
            return True
        return kind.lower() == "bearer" and server.keys.holder(sent.strip(), time.time()) is not None

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        releases = Releases(server.store)
        await server.fleet.follow(releases)
        await server.tidy()
        tasks = [
            asyncio.create_task(_every(FOLLOW_SECONDS, lambda: server.fleet.follow(releases))),
            asyncio.create_task(_every(TIDY_SECONDS, server.tidy)),
        ]
        yield
        for task in tasks:
            task.cancel()
        await server.fleet.close()
        server.store.close()

    app = FastAPI(
        title="Plaudit server",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        responses={**FAULTS},
    )
    app.state.server = server
    # Of one answer, and of one address, behind which a whole site's people may be.
    app.state.opinions = Limit(rate=1.0, burst=12.0), Limit(rate=50.0, burst=500.0)
    for room in (chat, opinions, health):
        app.include_router(room.router)
    app.mount("/static", StaticFiles(directory=HERE / "static", packages=[PALETTE]), name="static")
    app.add_api_route("/", _page, include_in_schema=False)
    app.add_middleware(Counted, server=server)
    app.add_middleware(Headers, large=LARGE, known=known)
    app.add_middleware(Cross)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(Overloaded, _overloaded)
    app.add_exception_handler(Broken, _broken)
    app.add_exception_handler(HTTPException, _refusal)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(GuardFailed, _guard_failed)
    for error in (UnicodeEncodeError, DataError):
        app.add_exception_handler(error, _not_kept)
    app.add_exception_handler(Exception, _fault_of_ours)
    return app


async def _page() -> FileResponse:
    """To talk with what is served, and say what one thinks of it."""
    return FileResponse(HERE / "static" / "chat.html")


async def _every(seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    """Again and again, whatever goes wrong meanwhile."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:
            log.exception("what is done beside the requests failed")


class Counted:
    """Around the app: requests by route and status, and how long they take."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.monotonic()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        figures = self.server.figures
        figures.going.inc()
        try:
            await self.app(scope, receive, watched)
        finally:
            figures.going.dec()
            route = getattr(scope.get("route"), "path", "none")
            figures.requests.labels(route, str(status)).inc()
            figures.seconds.labels(route).observe(time.monotonic() - began)


class Cross:
    """Around the app: pages of any origin may send feedback, which a token opens, and nothing else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.open = CORSMiddleware(
            app, allow_origins=["*"], allow_methods=["POST"], allow_headers=["content-type"]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        feedback = scope["type"] == "http" and scope["path"].startswith("/v1/feedback")
        await (self.open if feedback else self.app)(scope, receive, send)


async def _guard_failed(_: Request, error: Exception) -> Response:
    return _fault(503, str(error))


async def _fault_of_ours(_: Request, __: Exception) -> Response:
    """What is logged with its place, and says nothing of it to whoever asked."""
    return _fault(500, "the server failed")


async def _user_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, UserError)
    status = 503 if isinstance(error, Unavailable) else 404 if isinstance(error, Missing) else 400
    code = "unsupported" if isinstance(error, Unsupported) else None
    if isinstance(error, Missing) and error.where.startswith("model "):
        code = "model_not_found"
    return _fault(status, str(error), error.where or None, code)


async def _overloaded(_: Request, error: Exception) -> Response:
    assert isinstance(error, Overloaded)
    answer = _fault(429, str(error), None, "overloaded")
    answer.headers["Retry-After"] = str(math.ceil(error.seconds))
    return answer


async def _broken(_: Request, error: Exception) -> Response:
    assert isinstance(error, Broken)
    return _fault(error.status, str(error))


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _fault(error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return _fault(400, f"{where}: {first['msg']}" if where else str(first["msg"]), where or None)


async def _not_kept(_: Request, __: Exception) -> Response:
    return _fault(400, "holds a number or a character that cannot be kept")


def _fault(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    kind = KINDS.get(status, "server_error")
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)
