"""What tests of the server hold of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from plaudit.feedback.store import Store
from plaudit.serving.server import Server

T = TypeVar("T")


def alone(scene: Coroutine[Any, Any, T]) -> T:
    """Runs it in a thread of its own: Playwright keeps an event loop running in the tests'."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, scene).result()


@dataclass(frozen=True)
class Host:
    """store: the same database, opened by the test."""

    url: str
    key: str
    server: Server
    store: Store
