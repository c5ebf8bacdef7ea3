"""Several processes behind one address."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2
import pytest

from plaudit.access.accounts import Accounts
from plaudit.access.keys import Keys
from plaudit.feedback.store import Store
from programs import PROGRAM

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="a process of Windows cannot be asked to end by a signal"
)


T = TypeVar("T")


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_two_processes_serve_one_store_and_end_together(tmp_path: Path, by: signal.Signals) -> None:
    """Also where whoever started them is killed: nobody goes on and holds the port."""
    place = tmp_path / "feedback.db"
    with Store.open(place) as store:
        Accounts(store.engine).create("Olga", "owner", "correct horse")
        key = Keys(store.engine).create("Olga", ["judge", "manage"])[1]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = ["studio", "--store", str(place), "--port", str(port), "--workers", "2"]
    server = subprocess.Popen([sys.executable, "-c", PROGRAM, *words], start_new_session=True)
    headers, url = {"Authorization": f"Bearer {key}"}, f"http://127.0.0.1:{port}/api/v1/projects"
    try:
        body = {"name": "p", "task": {"kind": "edit"}}
        made = until(lambda: httpx2.post(url, json=body, headers=headers, timeout=5))
        assert made.status_code == 201, made.text
        for _ in range(8):  # each on a connection of its own, which either process takes
            assert [one["name"] for one in httpx2.get(url, headers=headers).json()] == ["p"]
        if (children := Path(f"/proc/{server.pid}/task/{server.pid}/children")).exists():
            workers = [pid for pid in children.read_text().split() if "spawn_main" in words_of(pid)]
            assert len(workers) == 2
        os.kill(server.pid, by)
        assert server.wait(30) in (0, -by)
        until(lambda: free(port))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def until(tried: Callable[[], T]) -> T:
    """What comes of it once it works, within a minute."""
    end = time.monotonic() + 60
    while True:
        try:
            return tried()
        except (httpx2.HTTPError, OSError):
            assert time.monotonic() < end
            time.sleep(0.1)  # between two looks


def free(port: int) -> None:
    """OSError where somebody listens there."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind(("127.0.0.1", port))


def words_of(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
