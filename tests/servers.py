"""What tests of the server hold of it."""

from __future__ import annotations

from dataclasses import dataclass

from plaudit.feedback.store import Store
from plaudit.serving.server import Server


@dataclass(frozen=True)
class Host:
    """store: the same database, opened by the test."""

    url: str
    key: str
    server: Server
    store: Store
