"""The routes that machines ask: does it live, would it answer, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from plaudit.serving.server import Server

router = APIRouter()


class Health(BaseModel):
    """fault: of the newest release, where it cannot be loaded and the one before goes on."""

    status: str
    fault: str = ""


@router.get("/healthz")
async def healthz() -> Health:
    """It lives."""
    return Health(status="ok")


@router.get("/readyz")
async def readyz(request: Request) -> Health:
    """It would answer. 503 while models load, while too many wait, and once it is ending."""
    server: Server = request.app.state.server
    if server.draining or not await server.fleet.ready():
        raise HTTPException(503, server.fleet.fault or "not ready", {"Retry-After": "1"})
    return Health(status="ready", fault=server.fleet.fault)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus. No text of anybody's is in it, and no name of a requester."""
    server: Server = request.app.state.server
    return Response(server.figures.text(), media_type=CONTENT_TYPE_LATEST)
