"""A server on a free port, with the tiny model, and OpenAI's own client before it. (A plugin of tests that name it.)"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
import uvicorn
from argon2 import PasswordHasher

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
from servers import Host


def _listening() -> socket.socket:
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    return found


@pytest.fixture
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Parametrised with `Settings`, where a test wants others than the shipped ones."""
    monkeypatch.setattr(secrets, "_hasher", lambda: PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    store = Store.open(tmp_path / "feedback.db")
    Releases(store).publish("tiny", [Arm("tiny-1", "tiny")], by="test")
    Accounts(store.engine).create("shop", "admin", "a long password")
    _, key = Keys(store.engine).create("shop", ["answer"])

    async def load(arm: Arm) -> Backend:
        return await asyncio.to_thread(backend_of, arm, Config(), torch.device("cpu"), torch.float32)

    settings = getattr(request, "param", Settings())
    server = Server(store, Fleet(load), settings)
    listening = _listening()
    config = uvicorn.Config(make_app(server), log_level="error", server_header=False)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    ends = time.monotonic() + 60
    while not running.started:
        assert time.monotonic() < ends
        time.sleep(0.01)
    yield Host(url, key, server, Store.open(tmp_path / "feedback.db"))
    running.should_exit = True
    thread.join(60)


@pytest.fixture
def client(host: Host) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{host.url}/v1", api_key=host.key, max_retries=0) as made:
        yield made
