"""An app over a fresh store, and somebody of each role. (A plugin of the tests that name it.)"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from clients import client
from fastapi.testclient import TestClient

from plaudit.access import secrets
from plaudit.feedback.store import Store
from plaudit.studio.app import make_app


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
    """somebody(role, name): `client` of this app."""
    return functools.partial(client, app)
