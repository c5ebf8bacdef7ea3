"""`plaudit studio`: the app behind a server, and the link that makes its first owner."""

from __future__ import annotations

import sys
import time
from ipaddress import ip_address
from pathlib import Path

import uvicorn
from rich.console import Console

from plaudit.access.accounts import Accounts
from plaudit.feedback.store import Store
from plaudit.studio.app import make_app
from plaudit.types import UserError

TURN_SECONDS = 0.0005
"""For which a thread keeps others waiting: a query to the store is shorter than Python's 5 ms."""


def run(store: str, host: str, port: int, runs: Path) -> None:
    """Serves until it is interrupted. UserError where the port is taken, or the host is nobody's."""
    opened = Store.open(store)
    console, place = Console(stderr=True), f"http://{_shown(host)}:{port}"
    if not Accounts(opened.engine).all():
        token = Accounts(opened.engine).invite("owner", time.time(), seconds=86400)
        said = "Nobody has an account yet. This link makes the owner's, once, within a day:"
        console.print(f"{said}\n  {place}/welcome/{token}", highlight=False, soft_wrap=True)
    console.print(f"The studio is at {place} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
    if not is_local(host):
        console.print(
            "It can be reached from other machines, unencrypted: put a proxy with TLS before it.",
            style="yellow",
        )
    sys.setswitchinterval(TURN_SECONDS)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(opened, runs),
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=10,
            timeout_keep_alive=75,  # longer than most people think about an answer
        )
    )
    try:
        server.run()
    except SystemExit:  # what uvicorn says of a port that it cannot have
        raise UserError("cannot be listened on", where=f"{host}:{port}", fix="take another --port") from None


def is_local(host: str) -> bool:
    """Whether nobody but this machine reaches it."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
