"""A model behind an OpenAI-compatible API: one question, one reply, asked again where the service stumbles.

Replies are kept on disk by the question's content, so that a run which is resumed asks nothing twice. The key of the
API is read from the environment when it is used; it is in no file, no message and no digest.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from plaudit import files
from plaudit.randomness import rng
from plaudit.reward.rubric import Question
from plaudit.types import UserError

AGAIN = {408, 409, 425, 429, *range(500, 600)}
"""Statuses after which the same question may well be answered."""
LEAST_SECRET = 8
"""Characters of a key from which it is taken out of what is told: one of fewer guards nothing, and stands in words."""
LARGEST = 1 << 20
"""Bytes of a reply that are read at most."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries, whatever the service asks for."""


def fresh_client(base_url: str) -> httpx2.Client:
    """Leaves no connection open between two questions, so that nobody has to close it. The environment's proxies are
    asked for any other machine, and never for this one, whose texts would leave it."""
    host = httpx2.URL(base_url).host
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    return httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), trust_env=not here)


class Stumble(Exception):
    """The service did not answer this time. after: seconds that it asked for, if it did."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said; whole: False where it was cut off; kept: it was not asked, the reply stood on disk."""

    text: str
    whole: bool
    kept: bool = False


@dataclass(frozen=True)
class Endpoint:
    """base_url: up to /v1, without the last slash. body: what goes with every request beside model and messages.

    timeout: seconds a try; retries: tries after the first, with pauses of pause, 2 * pause, 4 * pause, ... seconds.
    cache: the directory of kept replies. stopped: once set, nothing more is sent and nobody pauses; what is on its way
    is waited for, one `timeout` at most. Safe to use from several threads.
    """

    base_url: str
    model: str
    api_key_env: str | None
    body: Mapping[str, Any]
    timeout: float
    retries: int
    cache: Path
    client: httpx2.Client = field(repr=False, compare=False)
    pause: float = 0.5
    stopped: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def reply(self, question: Question) -> Reply:
        """UserError where the service refuses, or does not answer within all tries."""
        messages = [{"role": message.role, "content": message.content} for message in question.messages]
        request = {"model": self.model, "messages": messages, **self.body}
        digest = digest_of(self.base_url, request)
        path = self.cache / digest[:2] / f"{digest}.json"
        if (known := _kept(path)) is not None:
            return known
        answer = self._ask(request, digest)
        files.write_json(path, {"model": self.model, "text": answer.text, "whole": answer.whole})
        return answer

    def _ask(self, request: Mapping[str, Any], digest: str) -> Reply:
        reason = ""
        for attempt in range(self.retries + 1):
            if self.stopped.is_set():
                raise Stumble("stopped")
            try:
                return self._try(request)
            except Stumble as stumble:
                reason = str(stumble)
                # Threads that stumbled together do not come back together: each question has a pace of its own.
                pace = self.pause * 2**attempt * (0.5 + rng("pace", digest, attempt).random())
                if attempt < self.retries:
                    self.stopped.wait(min(max(pace, stumble.after), LONGEST_PAUSE))
        raise UserError(
            f"the judge does not answer ({reason}; asked {self.retries + 1} times)",
            where=self.base_url,
            fix="start the service, or raise timeout or retries; what is answered is kept",
        )

    def _try(self, request: Mapping[str, Any]) -> Reply:
        """One try, over after `timeout` seconds even where the answer drips in."""
        key = secret(self.api_key_env)
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        until = time.monotonic() + self.timeout
        data = b""
        try:
            with self.client.stream(
                "POST",
                f"{self.base_url}/chat/completions",
                content=json.dumps(request).encode(),
                headers=headers,
                timeout=self.timeout,
            ) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    if time.monotonic() > until:
                        raise Stumble(f"no answer within {self.timeout:g} s")
                    if len(data) > LARGEST:
                        raise Stumble("an answer without end")
        except httpx2.TimeoutException:
            raise Stumble(f"no answer within {self.timeout:g} s") from None
        except httpx2.HTTPError as error:
            raise Stumble(_told(error, key)) from None
        if response.status_code in AGAIN:
            raise Stumble(f"status {response.status_code}", _seconds(response.headers.get("retry-after")))
        if response.status_code != 200:
            raise UserError(
                f"the judge refuses: status {response.status_code} {_told(_fault(data), key)}".rstrip(),
                where=self.base_url,
                fix=f"check {self.api_key_env or 'api_key_env'}"
                if response.status_code in (401, 403)
                else "check base_url and model",
            )
        return _read(data, key)


def digest_of(base_url: str, request: Mapping[str, Any]) -> str:
    """The name under which the reply to a request is kept: of all that the reply depends on."""
    content = json.dumps([base_url, request], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def secret(name: str | None) -> str:
    """The environment variable's value, "" without a name. UserError where it is not set; it never says a value."""
    if name is None:
        return ""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise UserError(
            "api_key_env is no environment variable's name",
            fix="write its name, such as OPENAI_API_KEY, never the key itself",
        )
    value = os.environ.get(name, "").strip()
    if not value:
        raise UserError(f"the environment variable {name} is not set", fix=f"export {name}=...")
    if not value.isascii() or not value.isprintable():
        raise UserError(f"the environment variable {name} holds what is no key", fix=f"export {name}=...")
    return value


def checked_url(base_url: str) -> str:
    """The address without its last slash. UserError for one that is none, or that holds a secret."""
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        raise UserError("base_url is no address", fix="write http://127.0.0.1:8000/v1, say") from None
    if url.userinfo or url.query or url.fragment:
        raise UserError(
            "base_url holds more than an address", fix="leave the secret out and name it in api_key_env"
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError("base_url is no address", fix="write http://127.0.0.1:8000/v1, say")
    return base_url.rstrip("/")


def _read(data: bytes, key: str) -> Reply:
    """The first choice's text, without the key, should it repeat it. Stumble where there is no chat completion."""
    try:
        choice = json.loads(data)["choices"][0]
        text = choice["message"].get("content")
        whole = choice.get("finish_reason") != "length"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Stumble("an answer that is no chat completion") from None
    if text is not None and not isinstance(text, str):
        raise Stumble("an answer that is no text")
    # Half a character can be no part of a verdict, and no file could hold it.
    return Reply(_without(key, text or "").encode(errors="replace").decode(), whole)


def _kept(path: Path) -> Reply | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Reply(str(found["text"]), bool(found["whole"]), kept=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            "is no kept reply", where=str(path), fix="remove it, and it is asked for again"
        ) from None


def _fault(data: bytes) -> str:
    """What the service says is wrong."""
    try:
        error = json.loads(data)["error"]
        return str(error.get("message") if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _told(reason: object, key: str) -> str:
    """A service's or the network's words in brackets, short, and without the key, should they repeat it."""
    text = _without(key, " ".join(str(reason).split()) or type(reason).__name__)
    return f"({text[:160]})" if str(reason) or isinstance(reason, Exception) else ""


def _without(key: str, text: str) -> str:
    return text.replace(key, "***") if len(key) >= LEAST_SECRET else text


def _seconds(text: str | None) -> float:
    """Retry-After in seconds; a date is not read."""
    try:
        return max(0.0, float(text or 0.0))
    except ValueError:
        return 0.0
