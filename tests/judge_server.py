"""A real HTTP server on 127.0.0.1 that behaves like an OpenAI endpoint, faults included."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Brain = Callable[[str, str], str]
"""(the question, its key) -> the reply."""
Fault = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Served:
    """url: what base_url names; asked: every question that was sent, in order of arrival; faults: answers that go
    before the brain's, one a request."""

    url: str
    brain: Brain
    asked: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    finish: str = "stop"
    lock: threading.Lock = field(default_factory=threading.Lock)


def key_of(question: str) -> str:
    return str(re.findall(r"VERDICT ([0-9a-f]+): [NX]\Z", question)[0])


def fenced_texts(question: str, key: str) -> list[str]:
    """What stands between the borders, in order."""
    return re.findall(rf"<<<{key} [^>]*>>>\n(.*?)\n<<<{key} end of [^>]*>>>", question, re.DOTALL)


def longest(question: str, key: str) -> str:
    """A judge that likes what is long: a rating of one point a word, or the longer of two."""
    texts = fenced_texts(question, key)
    if len(texts) == 2:
        return f"Counting words.\nVERDICT {key}: {min(10, len(texts[1].split()))}"
    a, b = len(texts[1]), len(texts[2])
    return f"VERDICT {key}: {'A' if a > b else 'B' if b > a else 'C'}"


def first(_question: str, key: str) -> str:
    """A judge that takes whatever stands first."""
    return f"VERDICT {key}: A"


def status(number: int, headers: dict[str, str] | None = None, body: str = "{}") -> Fault:
    def fault(handler: BaseHTTPRequestHandler) -> None:
        send(handler, number, body, headers)

    return fault


def slow(seconds: float) -> Fault:
    def fault(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        send(handler, 200, "{}")

    return fault


def drips(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then, without end."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


def send(
    handler: BaseHTTPRequestHandler, number: int, body: str, headers: dict[str, str] | None = None
) -> None:
    data = body.encode()
    handler.send_response(number)
    for name, value in {"content-type": "application/json", **(headers or {})}.items():
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@contextlib.contextmanager
def serving(brain: Brain = longest) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            question = body["messages"][-1]["content"]
            with served.lock:
                served.bodies.append(body)
                served.asked.append(question)
                served.headers.append({k.lower(): v for k, v in self.headers.items()})
                fault = served.faults.pop(0) if served.faults else None
            with contextlib.suppress(OSError):
                if self.path != "/v1/chat/completions":
                    send(self, 404, '{"error": {"message": "no such path"}}')
                elif fault is not None:
                    fault(self)
                else:
                    text = served.brain(question, key_of(question))
                    choice = {"message": {"role": "assistant", "content": text}}
                    send(self, 200, json.dumps({"choices": [choice | {"finish_reason": served.finish}]}))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = Served(f"http://127.0.0.1:{server.server_address[1]}/v1", brain)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
