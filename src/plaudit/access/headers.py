"""What every answer carries: nothing is loaded from elsewhere, nothing frames a page, nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
ALWAYS = {
    "Content-Security-Policy": CONTENT,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
LARGE, SMALL = 32 * 2**20, 2**20
"""Bytes of a request's body, where many things are sent at once and elsewhere."""
PALETTE = ("plaudit.access", "static")
"""Where the colours of all pages are, as StaticFiles finds them."""
STRANGERS = 2**16
"""Of whoever is not known: a body is read before it is clear what it is for, and reading costs."""
Known = Callable[[Request], bool]


class Headers:
    """Around the app. Also cuts off bodies that are too large, whatever they say their length is.

    large: paths that may be sent LARGE bodies. known: whether a request comes from somebody who may send anything; it
    is asked in a thread, of bodies that are larger than STRANGERS.
    """

    def __init__(self, app: ASGIApp, large: str, known: Known) -> None:
        self.app, self.large, self.known = app, re.compile(large), known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen, most, known = 0, LARGE if self.large.fullmatch(scope["path"]) else SMALL, False

        async def counted() -> Message:
            nonlocal seen, known
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > STRANGERS and not known:
                known = await run_in_threadpool(self.known, Request(scope))
                if not known:
                    raise HTTPException(401, "log in, or send an API key, for as much as this")
            if seen > most:
                raise TooLarge
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in ALWAYS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self.app(scope, counted, with_headers)


class TooLarge(HTTPException):
    """The request's body has more bytes than may be sent there."""

    def __init__(self) -> None:
        super().__init__(413, "the request is too large; send it in parts")
