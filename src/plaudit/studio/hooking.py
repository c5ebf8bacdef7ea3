"""Webhooks, for owners."""

from __future__ import annotations

from fastapi import APIRouter, Request

from plaudit.access.hooks import Hook, Hooks
from plaudit.studio import wire
from plaudit.studio.guard import Number, Own
from plaudit.studio.judging import projects_of

router = APIRouter(prefix="/api/v1", tags=["webhooks"])


def hooks_of(request: Request) -> Hooks:
    return Hooks(projects_of(request).store.engine)


@router.get("/webhooks")
def list_hooks(request: Request, _: Own) -> list[wire.HookShown]:
    """All, without their secrets."""
    return [_shown(hook) for hook in hooks_of(request).all()]


@router.post("/webhooks", status_code=201)
def create_hook(request: Request, caller: Own, body: wire.NewHook) -> wire.HookMade:
    """A new one; its secret is shown this once."""
    hook, secret = hooks_of(request).create(body.url, body.kinds, by=caller.name)
    return wire.HookMade(hook=_shown(hook), secret=secret)


@router.delete("/webhooks/{id}")
def remove_hook(request: Request, caller: Own, id: Number) -> wire.Said:
    """It is told nothing more."""
    hooks_of(request).remove(id, by=caller.name)
    return wire.Said()


def _shown(hook: Hook) -> wire.HookShown:
    return wire.HookShown(
        id=hook.id, url=hook.url, kinds=[*hook.kinds], created_at=hook.created_at, failures=hook.failures,
        fault=hook.fault,
    )  # fmt: skip
