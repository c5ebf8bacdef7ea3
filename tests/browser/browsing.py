"""What the browser's tests share."""

from __future__ import annotations

import time
from typing import Any


def until(page: Any, condition: str, seconds: float = 15.0) -> None:
    """Waits until the expression is true in the page. (Playwright's own way evaluates text there, which the studio's
    policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"not within {seconds:g} s: {condition}"
        page.wait_for_timeout(50)


def events_of(site: Any, count: int) -> list[Any]:
    """The events that stand, once there are so many."""
    end = time.monotonic() + 10.0
    while len(found := site.store.current()) < count:
        assert time.monotonic() < end, f"{len(found)} events, not {count}"
        time.sleep(0.05)
    return list(found)
