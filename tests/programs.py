"""Plaudit as a program of its own, for tests that kill it."""

from __future__ import annotations

import socket

PROGRAM = "import sys; from plaudit.cli import main; sys.exit(main())"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
