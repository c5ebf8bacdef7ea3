"""Clients of a studio's app, logged in."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from plaudit.studio.guard import FORGERY

WORD = "correct horse"


def client(app: Any, role: str | None = None, name: str | None = None) -> TestClient:
    """Somebody of this role, logged in; None: nobody."""
    made = TestClient(app, base_url="http://studio")
    if role is not None:
        name = name or f"A {role}"
        if app.state.guard.accounts.get(name) is None:
            app.state.guard.accounts.create(name, role, WORD)
        begun = made.post("/api/v1/log-in", json={"name": name, "password": WORD})
        assert begun.status_code == 200, begun.text
        made.headers[FORGERY] = begun.json()["csrf"]
    return made
