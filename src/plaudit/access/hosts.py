"""Where something listens, and who can reach it there."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from plaudit.types import UserError

OPEN = "It can be reached from other machines, unencrypted: put a proxy with TLS before it."
"""Said of a host that `is_local` is not true of."""
WAITING = 2048
"""Connections that the system holds until they are taken."""


def is_local(host: str) -> bool:
    """Whether nobody but this machine reaches it."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def address(host: str, port: int) -> str:
    """As it stands in a browser."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, and that processes started from here may have. UserError where the port is taken, or the
    host is none of this machine's."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(WAITING)
    except OSError as error:
        found.close()
        what = f"cannot be listened on ({error.strerror or error})"
        raise UserError(what, where=f"{host}:{port}", fix="take another port") from None
    found.set_inheritable(True)
    return found
