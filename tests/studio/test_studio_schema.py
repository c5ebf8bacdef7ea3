"""Every route answers what its schema says to whatever is sent, and never with an error of the server's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from argon2 import PasswordHasher

from plaudit.access import hooks, secrets
from plaudit.feedback.projects import Entry
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Task
from plaudit.studio.app import make_app
from plaudit.types import UserError
from schemas import hold_to_schema

WORD = "correct horse"
EXAMPLES = 12
"""Requests of each kind."""


def refuse(url: str) -> str:
    raise UserError("has no address", where=url)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    patch = pytest.MonkeyPatch()
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    patch.setattr(secrets, "_hasher", lambda: cheap)
    patch.setattr(hooks, "check_public", refuse)  # no name is looked up
    place = tmp_path_factory.mktemp("schema")
    app = make_app(Store.open(place / "feedback.db"), place / "runs")
    app.state.guard.requests.rate = app.state.guard.requests.burst = 1e9
    projects = app.state.projects
    made = projects.create("Pairs", Task(kind="comparison", gold_every=0))
    projects.add(made.id, [Entry(f"p{i}", (f"a{i}", f"b{i}")) for i in range(3)])
    app.state.guard.accounts.create("Olga", "owner", WORD)
    app.state.key = app.state.guard.keys.create("Olga", ["judge", "review", "manage", "own", "answer"])[1]
    yield schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
    patch.undo()


def test_no_route_fails_or_answers_off_its_schema(api: Any) -> None:
    headers = {"Authorization": f"Bearer {api.app.state.key}"}
    assert hold_to_schema(api, headers, EXAMPLES) > 40
