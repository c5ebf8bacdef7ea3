"""`plaudit studio`: the app behind a server, and the link that makes its first owner."""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing import parent_process
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from rich.console import Console
from uvicorn.supervisors import Multiprocess

from plaudit.access.accounts import Accounts
from plaudit.access.hooks import Courier
from plaudit.access.hosts import OPEN, address, is_local, listening
from plaudit.feedback.store import Store
from plaudit.studio.app import make_app

WORKERS_A_CORE, MOST_WORKERS = 2, 8
"""Where nobody says how many: while one waits for the database, another is at work."""
TURN_SECONDS = 0.0005
"""For which a thread keeps others waiting: a query to the store is shorter than Python's 5 ms."""


def run(store: str, host: str, port: int, runs: Path, workers: int = 0) -> None:
    """Serves until it is interrupted. workers: processes; 0: one on SQLite, where one writes at a time, else two a
    core. UserError where the port is taken, or the host is nobody's."""
    opened = Store.open(store)
    console, place = Console(stderr=True), address(host, port)
    if not Accounts(opened.engine).all():
        token = Accounts(opened.engine).invite("owner", time.time(), seconds=86400)
        said = "Nobody has an account yet. This link makes the owner's, once, within a day:"
        console.print(f"{said}\n  {place}/welcome/{token}", highlight=False, soft_wrap=True)
    console.print(f"The studio is at {place} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
    if not is_local(host):
        console.print(OPEN, style="yellow")
    if workers == 0:
        many = min(MOST_WORKERS, WORKERS_A_CORE * (os.cpu_count() or 1))
        workers = 1 if opened.engine.dialect.name == "sqlite" else many
    config = uvicorn.Config(
        functools.partial(_worker, store, runs, workers),
        factory=True,
        workers=workers,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=75,  # longer than most people think about an answer
    )
    with listening(host, port) as taken:
        if workers == 1:
            opened.close()
            uvicorn.Server(config).run(sockets=[taken])
        else:
            _supervise(config, taken, opened)


def _worker(store: str, runs: Path, workers: int) -> FastAPI:
    """The app of one process."""
    sys.setswitchinterval(TURN_SECONDS)
    if workers > 1:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    return make_app(Store.open(store), runs, workers=workers)


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on by itself, and hold the port."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _supervise(config: uvicorn.Config, taken: socket.socket, store: Store) -> None:
    """Several processes behind one socket; a worker that dies is started again. What hooks are told goes out here."""
    courier = Courier(store.engine)
    courier.start()
    Multiprocess(config, sockets=[taken]).run()
    courier.stop()
    store.close()
