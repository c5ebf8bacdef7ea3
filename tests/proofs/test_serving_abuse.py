"""A thousand requests of the kind that nobody wishes for: cancelled, read slowly, broken. No leak, no 5xx, and whoever
asks properly meanwhile is answered."""

from __future__ import annotations

import gc
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from plaudit.randomness import rng
from plaudit.serving.server import Settings
from servers import Host

pytest_plugins = ("serving_fixtures",)
REQUESTS, AT_ONCE = 1000, 16
MODEST = 200 * 2**20
"""Bytes that a server may have grown by after a thousand requests; a leak of a request's cache would be more."""


def asked(stream: bool, tokens: int) -> bytes:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Tell me"}],
        "max_tokens": tokens,
        "stream": stream,
    }
    return json.dumps(body).encode()


def head(host: Host, length: int, extra: str = "") -> bytes:
    place = urlsplit(host.url)
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {host.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n{extra}\r\n"
    ).encode()


def connected(host: Host) -> socket.socket:
    place = urlsplit(host.url)
    return socket.create_connection((place.hostname, place.port), timeout=60)


def gone_before_the_answer(host: Host, number: int) -> str:
    body = asked(stream=number % 2 == 0, tokens=64)
    with connected(host) as line:
        line.sendall(head(host, len(body)) + body)
        time.sleep(0.01 * (number % 5))
    return "left"


def gone_in_the_stream(host: Host, _: int) -> str:
    body = asked(stream=True, tokens=64)
    with connected(host) as line:
        line.sendall(head(host, len(body)) + body)
        first = line.recv(400)
    return first.split(b" ", 2)[1].decode() if first else "closed"


def half_a_body(host: Host, _: int) -> str:
    body = asked(stream=False, tokens=4)
    with connected(host) as line:
        line.sendall(head(host, len(body)) + body[: len(body) // 2])
    return "left"


def slow_reader(host: Host, _: int) -> str:
    body = asked(stream=True, tokens=16)
    with connected(host) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        line.sendall(head(host, len(body), "Connection: close\r\n") + body)
        said = b""
        while piece := line.recv(256):
            said += piece
            time.sleep(0.002)
    assert b"[DONE]" in said
    return said.split(b" ", 2)[1].decode()


def with_(**more: Any) -> bytes:
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}], **more}).encode()


BROKEN = (
    b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "tiny"}', b'{"model": 3, "messages": []}', b"[" * 5000,
    with_(messages=[{"role": "user", "content": "\ud800"}]), with_(model="none"), with_(max_tokens=-1),
    with_(temperature=1e999), with_(n=100_000),
)  # fmt: skip


def broken(host: Host, number: int) -> str:
    found = httpx2.post(
        f"{host.url}/v1/chat/completions",
        content=BROKEN[number % len(BROKEN)],
        headers={"Authorization": f"Bearer {host.key}", "Content-Type": "application/json"},
        timeout=60,
    )
    return str(found.status_code)


KINDS: tuple[Callable[[Host, int], str], ...] = (
    gone_before_the_answer, gone_in_the_stream, half_a_body, slow_reader, broken,
)  # fmt: skip


def held() -> tuple[int, int, int]:
    """Bytes of memory, open files, threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.proof
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="platform: what a process holds is read from /proc"
)
@pytest.mark.parametrize("host", [Settings(requests=1e9, tokens=1e12)], indirect=True)
def test_a_thousand_bad_requests_leave_nothing(host: Host, client: openai.OpenAI, say: Any) -> None:
    draw, over = rng(0, "abuse"), threading.Event()
    order = [int(kind) for kind in draw.integers(0, len(KINDS), REQUESTS)]

    def properly() -> int:
        count = 0
        while not over.is_set():
            found = client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
            )
            assert found.choices[0].finish_reason in ("stop", "length")
            count += 1
        return count

    def one(number: int) -> tuple[str, str]:
        kind = KINDS[order[number]]
        return kind.__name__, kind(host, number)

    with ThreadPoolExecutor(AT_ONCE + 1) as people:
        list(
            people.map(one, range(100))
        )  # what is made once, as connections are, is made before it is measured
        gc.collect()
        before = held()
        asking = people.submit(properly)
        told = Counter(people.map(one, range(REQUESTS)))
        over.set()
        answered = asking.result()

    (arm,) = host.server.fleet.names["tiny"]
    engine: Any = arm.backend.engine  # type: ignore[attr-defined]
    deadline = time.monotonic() + 30
    while engine.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engine.running == 0, "nobody is answered who has gone"
    gc.collect()
    while held()[1] > before[1] + 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    after = held()

    assert not [status for _, status in told if status.startswith("5")]
    assert {status for kind, status in told if kind == "broken"} <= {"400", "404", "422"}
    assert {status for kind, status in told if kind == "slow_reader"} == {"200"}
    assert answered > 10
    assert after[0] - before[0] < MODEST
    assert after[1] <= before[1] + 5
    assert after[2] <= before[2] + AT_ONCE + 2
    say(
        f"{REQUESTS} bad requests, {answered} proper ones beside them answered; "
        f"memory {(after[0] - before[0]) / 2**20:+.0f} MB, files {after[1] - before[1]:+d}"
    )
