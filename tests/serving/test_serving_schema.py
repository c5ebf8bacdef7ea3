"""Every route answers what its schema says to whatever is sent, and never with an error of the server's; and none of
those that answer does so for a key that may not ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import torch
from argon2 import PasswordHasher
from fastapi.testclient import TestClient

from plaudit.access import secrets
from plaudit.access.accounts import Accounts
from plaudit.access.keys import Keys
from plaudit.feedback.releases import Arm, Releases
from plaudit.feedback.store import Store
from plaudit.serving.app import make_app
from plaudit.serving.backend import Backend
from plaudit.serving.fleet import Fleet
from plaudit.serving.run import Config, backend_of
from plaudit.serving.server import Server, Settings
from schemas import hold_to_schema
from servers import alone

EXAMPLES = 15
"""Requests of each kind."""
OPEN = {"/healthz", "/readyz", "/metrics"}
"""Routes that machines ask without a key."""
BY_TOKEN = {"/v1/feedback", "/v1/feedback/signals", "/v1/feedback/retract"}
"""Routes that the token of an answer opens."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    patch = pytest.MonkeyPatch()
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    patch.setattr(secrets, "_hasher", lambda: cheap)
    store = Store.open(tmp_path_factory.mktemp("schema") / "feedback.db")
    Releases(store).publish("tiny", [Arm("tiny-1", "tiny")], by="test")
    Accounts(store.engine).create("shop", "admin", "a long password")

    async def load(arm: Arm) -> Backend:
        return backend_of(arm, Config(), torch.device("cpu"), torch.float32)

    fleet = Fleet(load)
    alone(fleet.follow(Releases(store)))
    made = make_app(Server(store, fleet, Settings(most_tokens=4, requests=1e9, tokens=1e12)))
    for limit in made.state.opinions:
        limit.rate = limit.burst = 1e9
    made.state.keys = {
        scope: Keys(store.engine).create("shop", [scope])[1]
        for scope in ("answer", "judge", "review", "manage")
    }
    yield made
    patch.undo()
    store.close()


def published(case: Any) -> None:
    """No random name is."""
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "tiny"


def test_no_route_fails_or_answers_off_its_schema(app: Any) -> None:
    headers = {"Authorization": f"Bearer {app.state.keys['answer']}"}
    api = schemathesis.openapi.from_asgi("/v1/openapi.json", app)
    assert hold_to_schema(api, headers, EXAMPLES, published) == 10


def test_a_key_that_may_not_ask_is_refused_on_every_route(app: Any) -> None:
    client, seen = TestClient(app), set[str]()
    for place, methods in app.openapi()["paths"].items():
        seen.add(place)
        for method in map(str.upper, methods):
            path = place.replace("{name}", "tiny")
            body: Any = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "prompt": "x"}
            given: Any = {"json": body} if method == "POST" else {}
            for key, wanted in [(None, 401), ("plaudit_a_b", 401), ("answer", 0)] + [
                (scope, 403) for scope in ("judge", "review", "manage")
            ]:
                sent = app.state.keys.get(key, key)
                headers = {} if sent is None else {"Authorization": f"Bearer {sent}"}
                status = client.request(method, path, headers=headers, **given).status_code
                if place in OPEN | BY_TOKEN or wanted == 0:
                    assert status not in (401, 403), (place, key)
                else:
                    assert status == wanted, (place, key)
    assert seen >= OPEN | BY_TOKEN
    assert len(seen) == 10
