"""The routes that answer: /v1/chat/completions, /v1/completions, /v1/models."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from datetime import datetime
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import StreamingResponse

from plaudit.serving import protocol
from plaudit.serving.backend import Broken, Overloaded
from plaudit.serving.exchange import Exchange
from plaudit.serving.fleet import Chosen
from plaudit.serving.guard import Limited, known
from plaudit.serving.guarding import GuardFailed
from plaudit.serving.server import Server, repeats
from plaudit.types import Missing, UserError

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1")
T = TypeVar("T")
UNHELD = {"X-Accel-Buffering": "no"}
"""A proxy is not to gather a stream before it hands it on."""
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "or a stream"}
}


@router.post("/chat/completions", responses=STREAM)
async def chat(request: Request, body: protocol.ChatRequest, caller: Limited) -> protocol.ChatCompletion:
    """Answers a conversation; as a stream of server-sent events where `stream` is true."""
    found: Any = await _answer(request, body, caller)
    return found  # type: ignore[no-any-return]


@router.post("/completions", responses=STREAM)
async def completions(
    request: Request, body: protocol.CompletionRequest, caller: Limited
) -> protocol.TextCompletion:
    """Goes on with a text."""
    found: Any = await _answer(request, body, caller)
    return found  # type: ignore[no-any-return]


@router.get("/models", dependencies=[Depends(known)])
async def models(request: Request) -> protocol.ModelList:
    """What may be asked."""
    fleet = request.app.state.server.fleet
    return protocol.ModelList(data=tuple(_card(name, fleet.created[name]) for name in sorted(fleet.names)))


@router.get("/models/{name:path}", dependencies=[Depends(known)])
async def model(request: Request, name: str) -> protocol.ModelCard:
    """One of them."""
    fleet = request.app.state.server.fleet
    if name not in fleet.names:
        raise Missing("model", name)
    return _card(name, fleet.created[name])


def _card(name: str, created: str) -> protocol.ModelCard:
    return protocol.ModelCard(
        id=name, created=int(datetime.fromisoformat(created).timestamp()), owned_by="plaudit"
    )


async def _answer(
    request: Request, body: protocol.ChatRequest | protocol.CompletionRequest, account: str
) -> protocol.ChatCompletion | protocol.TextCompletion | StreamingResponse:
    server: Server = request.app.state.server
    exchange, chosen = await server.begin(body, account)
    again = repeats(exchange.ask, body.seed)
    if not body.stream:
        return await _unless_gone(request, _whole(server, exchange, chosen, account, again=again))
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    events = _events(server, exchange, chosen, account, again=again, usage=usage)
    # What cannot be answered is refused before the stream begins.
    first = await _unless_gone(request, _first(events))
    return StreamingResponse(_stream(first, events), media_type="text/event-stream", headers=UNHELD)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; where whoever asked goes away meanwhile, it is cancelled. HTTPException 499 then, which nobody
    reads."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(499, "nobody waits for this any more")
        return await working
    finally:
        for task in (working, watching):
            task.cancel()


async def _whole(
    server: Server, exchange: Exchange, chosen: Chosen, account: str, *, again: bool
) -> protocol.ChatCompletion | protocol.TextCompletion:
    try:
        async with server.answer(exchange, chosen, repeats=again) as pieces:
            async for piece in pieces:
                exchange.take(piece)
    except asyncio.CancelledError:
        if any(one.tokens or one.text for one in exchange.completions):
            await asyncio.shield(server.end(exchange, account=account))
        raise
    return exchange.whole(await asyncio.shield(server.end(exchange, account=account)))


async def _first(events: AsyncIterator[str]) -> str:
    return await anext(events)


async def _stream(first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for event in events:
        yield event


async def _events(
    server: Server, exchange: Exchange, chosen: Chosen, account: str, *, again: bool, usage: bool
) -> AsyncIterator[str]:
    """The stream: a chunk a piece, the last one with what feedback is sent with; then, where it is wanted, usage."""
    opened, ended = set[int](), False
    held: dict[str, Any] | None = None
    try:
        try:
            async with server.answer(exchange, chosen, repeats=again) as pieces:
                async for piece in pieces:
                    calls = exchange.take(piece)
                    if piece.usage is not None:
                        continue
                    opens = piece.index not in opened
                    opened.add(piece.index)
                    if held is not None:
                        yield _line(held)
                    held = exchange.chunk(piece, calls, opens=opens)
                    if piece.finish is None:
                        yield _line(held)
                        held = None
        except Exception as error:
            if not opened:
                raise
            if not isinstance(error, Broken | Overloaded | UserError | GuardFailed):
                log.exception("an answer broke off: %s", exchange.id)
                error = Broken("the server failed")
            yield _line(
                {"error": {"message": str(error), "type": "server_error", "param": None, "code": None}}
            )
            return
        ended = True
        handle = await asyncio.shield(server.end(exchange, account=account))
        if held is not None:
            yield _line(held | {"feedback": None if handle is None else handle.model_dump()})
        if usage:
            yield _line(exchange.event([], usage=exchange.counted().model_dump()))
        yield "data: [DONE]\n\n"
    finally:
        if not ended and opened:  # whoever asked has gone, or it broke off
            await asyncio.shield(server.end(exchange, account=account))


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"
