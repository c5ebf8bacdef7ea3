"""The routes that answer: /v1/chat/completions, /v1/completions, /v1/models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from plaudit.serving import protocol
from plaudit.serving.backend import Broken, Overloaded
from plaudit.serving.exchange import Exchange
from plaudit.serving.fleet import Chosen
from plaudit.serving.guard import Limited, known
from plaudit.serving.server import Server, repeats
from plaudit.types import Missing, UserError

router = APIRouter(prefix="/v1")
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "or a stream"}
}


@router.post("/chat/completions", responses=STREAM)
async def chat(request: Request, body: protocol.ChatRequest, caller: Limited) -> protocol.ChatCompletion:
    """Answers a conversation; as a stream of server-sent events where `stream` is true."""
    found: Any = await _answer(request.app.state.server, body, caller)
    return found  # type: ignore[no-any-return]


@router.post("/completions", responses=STREAM)
async def completions(
    request: Request, body: protocol.CompletionRequest, caller: Limited
) -> protocol.TextCompletion:
    """Goes on with a text."""
    found: Any = await _answer(request.app.state.server, body, caller)
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
    server: Server, body: protocol.ChatRequest | protocol.CompletionRequest, account: str
) -> protocol.ChatCompletion | protocol.TextCompletion | StreamingResponse:
    exchange, chosen = await server.begin(body, account)
    kept = server.keeps(body.store)
    again = repeats(exchange.ask, body.seed)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(server, exchange, chosen, account, again=again, kept=kept, usage=usage)
        first = await anext(events)  # what cannot be answered is refused before the stream begins
        return StreamingResponse(_stream(first, events), media_type="text/event-stream")
    try:
        async with server.answer(exchange, chosen, repeats=again) as pieces:
            async for piece in pieces:
                exchange.take(piece)
    except asyncio.CancelledError:
        await asyncio.shield(server.end(exchange, kept=kept and _said(exchange), account=account))
        raise
    return exchange.whole(await server.end(exchange, kept=kept, account=account))


def _said(exchange: Exchange) -> bool:
    return any(one.tokens or one.text for one in exchange.completions)


async def _stream(first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for event in events:
        yield event


async def _events(
    server: Server, exchange: Exchange, chosen: Chosen, account: str, *, again: bool, kept: bool, usage: bool
) -> AsyncIterator[str]:
    """The stream: a chunk a piece; then, where they are wanted, usage, and what feedback is sent with."""
    opened, ended = set[int](), False
    try:
        try:
            async with server.answer(exchange, chosen, repeats=again) as pieces:
                async for piece in pieces:
                    calls = exchange.take(piece)
                    if piece.usage is None:
                        opens = piece.index not in opened
                        opened.add(piece.index)
                        yield _line(exchange.chunk(piece, calls, opens=opens))
        except (Broken, Overloaded, UserError) as error:
            if not opened:
                raise
            yield _line(
                {"error": {"message": str(error), "type": "server_error", "param": None, "code": None}}
            )
            return
        ended = True
        handle = await server.end(exchange, kept=kept, account=account)
        if usage or handle is not None:
            more: dict[str, Any] = {"usage": exchange.counted().model_dump() if usage else None}
            if handle is not None:
                more["feedback"] = handle.model_dump()
            yield _line(exchange.event([], **more))
        yield "data: [DONE]\n\n"
    finally:
        if not ended and opened:  # whoever asked has gone, or it broke off
            await asyncio.shield(server.end(exchange, kept=kept, account=account))


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"
