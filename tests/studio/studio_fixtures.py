"""An app over a fresh store, and somebody of each role. (A plugin of the tests that name it.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient

from plaudit.access import secrets
from plaudit.feedback.store import Store
from plaudit.studio.app import make_app
from plaudit.studio.guard import FORGERY

WORD = "correct horse"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """argon2 at its lowest costs."""
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(secrets, "_hasher", lambda: cheap)


@pytest.fixture
def app(tmp_path: Path, quick: None) -> Iterator[Any]:  # noqa: ARG001 (passwords are hashed cheaply)
    made = make_app(Store.open(tmp_path / "feedback.db"), tmp_path / "runs")
    with TestClient(made):
        yield made


@pytest.fixture
def somebody(app: Any) -> Callable[..., TestClient]:
    """somebody(role, name): a client who is logged in; somebody(): nobody."""

    def made(role: str | None = None, name: str | None = None) -> TestClient:
        found = TestClient(app, base_url="http://studio")
        if role is not None:
            name = name or f"A {role}"
            if app.state.guard.accounts.get(name) is None:
                app.state.guard.accounts.create(name, role, WORD)
            begun = found.post("/api/v1/log-in", json={"name": name, "password": WORD})
            assert begun.status_code == 200, begun.text
            found.headers[FORGERY] = begun.json()["csrf"]
        return found

    return made
