"""Webhooks: told in order, signed, again until taken, and never inside."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from plaudit.access import hooks
from plaudit.access.hooks import SIGNATURE, Hooks, check_public, is_public, post, signature, verify
from plaudit.feedback import schema
from plaudit.feedback.events import Item, comparison_event
from plaudit.feedback.store import Store
from plaudit.types import UserError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "check_public", lambda _: "127.0.0.1")


def say(store: Store, *names: str) -> None:
    (item,) = store.add_items([Item("p", ("a", "b"))])
    for name in names:
        store.append(comparison_event(item, name, 0, id=name, comment="sealed words"))


@pytest.mark.usefixtures("everywhere")
def test_what_is_not_taken_is_told_again_and_nothing_is_left_out(store: Store) -> None:
    say(store, "before")
    made = Hooks(store.engine)
    hook, secret = made.create("https://example.org/x", ["answers"], by="Olga")
    sent: list[tuple[Mapping[str, str], bytes]] = []
    broken = True

    def send(_: str, headers: Mapping[str, str], body: bytes) -> None:
        if broken:
            raise OSError("answered 500")
        sent.append((headers, body))

    assert made.deliver(0.0, send) == 0, "nothing has happened since"
    say(store, "one", "two")
    assert made.deliver(0.0, send) == 0
    (told,) = made.all()
    assert (told.failures, told.fault) == (1, "answered 500")
    assert made.deliver(4.9, send) == 0, "not due yet"
    assert made.all()[0].failures == 1
    assert made.deliver(5.0, send) == 0
    assert made.deliver(14.9, send) == 0, "a pause that has doubled"
    assert made.all()[0].failures == 2
    broken = False
    assert made.deliver(15.0, send) == 1
    headers, body = sent[0]
    said = json.loads(body)
    assert [answer["event"] for answer in said["answers"]] == ["one", "two"]
    assert said["hook"] == hook.id
    assert b"sealed words" not in body
    assert verify(secret, headers[SIGNATURE], body, 15.0)
    assert not verify(secret, headers[SIGNATURE], body + b" ", 15.0)
    assert not verify("another", headers[SIGNATURE], body, 15.0)
    assert not verify(secret, headers[SIGNATURE], body, 400.0), "an old one, sent again by somebody else"
    assert not verify(secret, "nonsense", body, 15.0)
    assert made.deliver(16.0, send) == 0, "told once"
    assert made.all()[0].failures == 0


@pytest.mark.usefixtures("everywhere")
def test_changes_are_told_and_a_removed_hook_hears_nothing(store: Store) -> None:
    made = Hooks(store.engine)
    hook, _ = made.create("https://example.org/x", ["changes"], by="Olga")
    bodies: list[bytes] = []

    def send(_url: str, _headers: Mapping[str, str], body: bytes) -> None:
        bodies.append(body)

    assert made.deliver(0.0, send) == 1
    assert [line["action"] for line in json.loads(bodies[0])["changes"]] == ["add webhook"]
    made.remove(hook.id, by="Olga")
    assert made.deliver(0.0, send) == 0
    with pytest.raises(UserError, match="no such webhook"):
        made.remove(hook.id, by="Olga")


def test_a_signature_is_what_the_header_says() -> None:
    # printf '7.{}' | openssl dgst -sha256 -hmac k
    digest = "676b269d79cd27a0484d05de0823eb209fd73922d153a5a975a92a1b5c31b889"
    assert signature("k", b"{}", 7) == f"t=7,v1={digest}"


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "::1", "fe80::1",
     "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "224.0.0.1", "2002:7f00:1::",
     "64:ff9b::7f00:1", "64:ff9b:1::1", "::127.0.0.1", "::ffff:0:127.0.0.1", "fec0::1"],
)  # fmt: skip
def test_private_addresses_are_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: [(family, 1, 6, "", (address, 80))])
    with pytest.raises(UserError, match="private network"):
        check_public("http://innocent.example/")


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(2, 1, 6, "", ("8.8.8.8", 80)), (2, 1, 6, "", ("127.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: both)
    with pytest.raises(UserError, match="private network"):
        check_public("http://mixed.example/")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: both[:1])
    assert check_public("http://fine.example/") == "8.8.8.8"
    for wrong in ("ftp://x.example/", "http://u:p@x.example/", "http://"):
        with pytest.raises(UserError):
            check_public(wrong)


class Ear(http.server.BaseHTTPRequestHandler):
    heard: list[tuple[str, str, bytes]]
    status = 200

    def do_POST(self) -> None:  # the name that http.server calls
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append((self.path, self.headers["Host"], body))
        self.send_response(self.status)
        if self.status == 302:
            self.send_header("Location", "http://elsewhere.example/")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("status", [200, 302, 500])
def test_a_request_goes_to_the_address_that_was_checked(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ear: Any = type("Ear", (Ear,), {"heard": [], "status": status})
    server = http.server.HTTPServer(("127.0.0.1", 0), ear)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(hooks, "check_public", lambda _: "127.0.0.1")
    url = f"http://name.that.is.nowhere.example:{server.server_port}/in?a=1"
    try:
        if status == 200:
            post(url, {"Content-Type": "application/json"}, b"{}")
        else:
            with pytest.raises(OSError, match=f"answered {status}"):
                post(url, {}, b"{}")
    finally:
        server.shutdown()
        server.server_close()
    ((path, host, body),) = ear.heard
    assert (path, body) == ("/in?a=1", b"{}")
    assert host.startswith("name.that.is.nowhere.example")


def test_no_secret_is_listed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "check_public", lambda _: "8.8.8.8")
    _, secret = Hooks(store.engine).create("https://example.org/x", ["answers", "changes"], by="Olga")
    assert secret not in str(Hooks(store.engine).all())
    with store.engine.connect() as connection:
        told = connection.execute(sa.select(schema.audit.c.detail)).scalars().all()
    assert secret not in str(told)
