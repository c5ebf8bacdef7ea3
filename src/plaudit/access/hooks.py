"""Webhooks: what raters answer and owners change, told to an address outside, signed, and again until it is taken.

A hook remembers the last event and the last line of the audit log that it was told, so that nothing is left out when
the studio or its other end is down: what comes after is sent in order, at least once, with the number by which a
repetition is known.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from plaudit.access import audit
from plaudit.feedback import schema
from plaudit.feedback.judgements import PROJECT
from plaudit.types import Missing, UserError

SIGNATURE = "X-Plaudit-Signature"
"""t=SECONDS,v1=HEX: HMAC-SHA256 under the hook's secret of "SECONDS.BODY"."""
MOST = 100
"""Events or changes in one request."""
TRANSLATED = tuple(
    ipaddress.ip_network(network)
    for network in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "fec0::/10")
)
"""IPv6 that is another address in truth: an IPv4 one, by a translator on the way, or one of this site."""
TIMEOUT, FIRST_PAUSE, LONGEST_PAUSE = 10.0, 5.0, 3600.0
"""Seconds: of a request, and between tries, doubled each time."""


Told = Literal["answers", "changes"]


@dataclass(frozen=True, slots=True)
class Hook:
    """failures: in a row; fault: why the last one failed."""

    id: int
    url: str
    kinds: tuple[Told, ...]
    created_at: str
    failures: int
    fault: str


class Hooks:
    """All webhooks of a store."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def create(self, url: str, kinds: Sequence[str], *, by: str) -> tuple[Hook, str]:
        """A new one, told of what happens from now on, and its secret, which is shown this once. UserError for an
        address that is not public."""
        check_public(url)
        secret = secrets.token_urlsafe(32)
        with schema.writing(self.engine) as connection:
            row = {
                "url": url, "kinds": sorted(set(kinds)), "secret": secret, "made_by": by, "failures": 0, "due": 0.0,
                "fault": "", "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "answers_seen": _last(connection, schema.events), "changes_seen": _last(connection, schema.audit),
            }  # fmt: skip
            key = connection.execute(schema.hooks.insert(), row).inserted_primary_key
            assert key is not None
            audit.note(connection, by, "add webhook", f"webhook {key[0]}", host=urlsplit(url).hostname)
        return next(hook for hook in self.all() if hook.id == key[0]), secret

    def all(self) -> list[Hook]:
        """In the order in which they were made."""
        with schema.reading(self.engine) as connection:
            rows = connection.execute(sa.select(schema.hooks).order_by(schema.hooks.c.id)).all()
        return [Hook(r.id, r.url, tuple(r.kinds), r.created_at, r.failures, r.fault) for r in rows]

    def remove(self, id: int, *, by: str) -> None:
        """UserError where there is none."""
        with schema.writing(self.engine) as connection:
            gone = connection.execute(schema.hooks.delete().where(schema.hooks.c.id == id)).rowcount
            if not gone:
                raise Missing("webhook", id)
            audit.note(connection, by, "remove webhook", f"webhook {id}")

    def deliver(self, now: float, send: Callable[[str, Mapping[str, str], bytes], None] | None = None) -> int:
        """Tells every hook that is due what it was not told, one request each; how many were taken."""
        with schema.reading(self.engine) as connection:
            due = connection.execute(
                sa.select(schema.hooks).where(schema.hooks.c.due <= now).order_by(schema.hooks.c.id)
            ).all()
        return sum(self._deliver(row, now, send or post) for row in due)

    def _deliver(self, row: Any, now: float, send: Callable[[str, Mapping[str, str], bytes], None]) -> bool:
        with schema.reading(self.engine) as connection:
            told = {name: _READ[name](connection, getattr(row, f"{name}_seen")) for name in row.kinds}
        if not any(told.values()):
            return False
        body = schema.to_json(
            {"hook": row.id, **{name: found for name, found in told.items() if found}}
        ).encode()
        headers = {"Content-Type": "application/json", SIGNATURE: signature(row.secret, body, int(now))}
        values: dict[str, Any]
        try:
            send(row.url, headers, body)
        except (OSError, http.client.HTTPException, UserError, ValueError) as error:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(row.failures, 30))
            values = {
                "failures": row.failures + 1,
                "due": now + pause,
                "fault": str(error)[:300] or type(error).__name__,
            }
        else:
            values = {f"{name}_seen": found[-1]["seq"] for name, found in told.items() if found}
            values |= {"failures": 0, "due": 0.0, "fault": ""}
        with schema.writing(self.engine) as connection:
            connection.execute(schema.hooks.update().where(schema.hooks.c.id == row.id).values(**values))
        return bool(values["failures"] == 0)


class Courier:
    """A thread that delivers, beside the server."""

    def __init__(self, engine: Engine, pause: float = 2.0) -> None:
        self.hooks, self.pause = Hooks(engine), pause
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join(TIMEOUT + 2)

    def _run(self) -> None:
        while not self.ended.wait(self.pause):
            try:
                self.hooks.deliver(time.time())
            except UserError:  # the store is busy, or its disk full: the next look finds it again
                continue


def signature(secret: str, body: bytes, now: int) -> str:
    """What the header says."""
    digest = hmac.new(secret.encode(), f"{now}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={now},v1={digest}"


def verify(secret: str, header: str, body: bytes, now: float, tolerance: float = 300.0) -> bool:
    """For the other end: whether it was this hook that sent the body, not longer than `tolerance` seconds ago."""
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    if not parts.get("t", "").isdigit() or abs(now - int(parts["t"])) > tolerance:
        return False
    return hmac.compare_digest(signature(secret, body, int(parts["t"])), header)


def check_public(url: str) -> str:
    """An address of the host that is not of a private network, of this machine or reserved. UserError where any of its
    addresses is, or where it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UserError("is no http or https address", where=url) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("is no http or https address", where=url)
    if parts.username or parts.password:
        raise UserError(
            "holds a name or a password", where="webhook", fix="leave it out: what is sent is signed"
        )
    try:
        found = socket.getaddrinfo(parts.hostname, port or _PORTS[parts.scheme], type=socket.SOCK_STREAM)
    except (OSError, ValueError, UnicodeError):
        raise UserError("has no address", where=parts.hostname, fix="check its name") from None
    addresses = [str(one[4][0]) for one in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise UserError("is an address of a private network", where=parts.hostname, fix="give a public one")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether it is an address that everybody reaches by the same route."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.version == 6 and any(found in network for network in TRANSLATED):
        return False
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (inner is None or is_public(str(inner)))


def post(url: str, headers: Mapping[str, str], body: bytes) -> None:
    """To the very address that was found public, so that a name which changes its mind leads nowhere else; redirects
    are not followed. OSError for an answer other than 2xx."""
    address, parts = check_public(url), urlsplit(url)
    connection = _to(address, parts.scheme, str(parts.hostname), parts.port or _PORTS[parts.scheme])
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, dict(headers) | {"User-Agent": "plaudit"})
        answer = connection.getresponse()
        answer.read(4096)
        if not 200 <= answer.status < 300:
            raise OSError(f"answered {answer.status}")
    finally:
        connection.close()


_PORTS = {"http": 80, "https": 443}


def _to(address: str, scheme: str, host: str, port: int) -> http.client.HTTPConnection:
    """A connection to this address that speaks, and checks certificates, as to this host."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    made = socket.create_connection((address, port), TIMEOUT)
    connection.sock = (
        ssl.create_default_context().wrap_socket(made, server_hostname=host) if scheme == "https" else made
    )
    return connection


def _answers(connection: Connection, after: int) -> list[dict[str, Any]]:
    """Events after a number, without free text, which is sealed."""
    table, items = schema.events, schema.items
    rows = connection.execute(
        sa.select(table, items.c.meta)
        .outerjoin(items, items.c.id == table.c.item)
        .where(table.c.seq > after)
        .order_by(table.c.seq)
        .limit(MOST)
    )
    return [
        {
            "seq": row.seq, "event": row.id, "kind": row.kind, "project": (row.meta or {}).get(PROJECT),
            "item": row.item, "rater": row.rater, "payload": row.payload, "at": row.created_at,
        }
        for row in rows
    ]  # fmt: skip


def _changes(connection: Connection, after: int) -> list[dict[str, Any]]:
    table = schema.audit
    rows = connection.execute(sa.select(table).where(table.c.seq > after).order_by(table.c.seq).limit(MOST))
    names = ("seq", "at", "actor", "action", "target", "detail")
    return [{name: getattr(row, name) for name in names} for row in rows]


def _last(connection: Connection, table: sa.Table) -> int:
    return int(connection.scalar(sa.select(sa.func.max(table.c.seq))) or 0)


_READ: dict[str, Callable[[Connection, int], list[dict[str, Any]]]] = {
    "answers": _answers,
    "changes": _changes,
}
