"""Several processes behind one address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from plaudit.access.accounts import Accounts
from plaudit.access.keys import Keys
from plaudit.feedback.store import Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to a process group")


def test_two_processes_serve_one_store_and_end_together(tmp_path: Path) -> None:
    place = tmp_path / "feedback.db"
    with Store.open(place) as store:
        Accounts(store.engine).create("Olga", "owner", "correct horse")
        key = Keys(store.engine).create("Olga", ["judge", "manage"])[1]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = ["studio", "--store", str(place), "--port", str(port), "--workers", "2"]
    program = "import sys; from plaudit.cli import main; sys.exit(main())"
    server = subprocess.Popen([sys.executable, "-c", program, *words], start_new_session=True)
    try:
        headers, url = {"Authorization": f"Bearer {key}"}, f"http://127.0.0.1:{port}/api/v1/projects"
        until = time.monotonic() + 60
        while True:
            try:
                made = httpx2.post(
                    url, json={"name": "p", "task": {"kind": "edit"}}, headers=headers, timeout=5
                )
                break
            except httpx2.HTTPError:
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
        assert made.status_code == 201, made.text
        for _ in range(8):  # each on a connection of its own, which either process takes
            assert [one["name"] for one in httpx2.get(url, headers=headers).json()] == ["p"]
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        if children.exists():
            workers = [pid for pid in children.read_text().split() if "spawn_main" in _words(pid)]
            assert len(workers) == 2
    finally:
        os.kill(server.pid, signal.SIGTERM)
        ended = server.wait(30)
    assert ended in (0, -signal.SIGTERM)
    with pytest.raises(httpx2.HTTPError):
        httpx2.get(url, headers=headers)


def _words(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
