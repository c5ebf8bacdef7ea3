"""Who is asking, and whether they may: API keys with the right to answer, and how often they are used."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Annotated

from fastapi import Depends, HTTPException, Request

from plaudit.serving.server import Server

NOBODY = "public"
"""Whoever asks an open server without a key."""


async def known(request: Request) -> str:
    """The account that a request's key is of. HTTPException 401 without one, 403 for one that may not ask."""
    server: Server = request.app.state.server
    header = request.headers.get("authorization")
    if header is None:
        if server.settings.open:
            return NOBODY
        raise HTTPException(401, "send an API key: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"})
    kind, _, sent = header.partition(" ")
    found = None
    if kind.lower() == "bearer":
        found = await asyncio.to_thread(server.keys.holder, sent.strip(), time.time())
    if found is None:
        if server.settings.open:
            return NOBODY  # clients of OpenAI's send some key always
        raise HTTPException(401, "this is no API key that is valid", {"WWW-Authenticate": "Bearer"})
    account, permissions, _ = found
    if "answer" not in permissions:
        raise HTTPException(403, "this key may not ask; make one with the scope answer")
    return account.name


async def _limited(request: Request, caller: Annotated[str, Depends(known)]) -> str:
    """As above. HTTPException 429 for one that asks more often than may be, 503 where the server is about to end."""
    server: Server = request.app.state.server
    if server.draining:
        raise HTTPException(503, "this server is ending", {"Retry-After": "5"})
    now = time.monotonic()
    wait = server.tokens.wait(caller, now) or server.requests.take(caller, now)
    if wait > 0:
        raise HTTPException(
            429, "too many requests or tokens a minute", {"Retry-After": str(math.ceil(wait))}
        )
    return caller


Limited = Annotated[str, Depends(_limited)]
