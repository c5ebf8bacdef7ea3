"""A server that somebody has already (vLLM, Ollama, any that speaks OpenAI's API), asked in the requester's place.

Answers are always asked for as a stream, so that one that nobody waits for any more ends there too.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2

from plaudit.serving.backend import Ask, Broken, Finish, Overloaded, Piece, Reply, Token
from plaudit.types import UserError

FINISHES: dict[str, Finish] = {
    "stop": "stop", "length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls",
    "content_filter": "content_filter",
}  # fmt: skip
LONGEST_FAULT = 300
"""Characters of what the server behind says of a fault that are handed on."""


class UpstreamBackend:
    """Another server's model under a version's name (plaudit.serving.backend.Backend)."""

    def __init__(
        self,
        url: str,
        model: str,
        version: str,
        *,
        key: str | None = None,
        timeout: float = 600.0,
        logprobs: bool = True,
    ) -> None:
        """url: up to /v1. model: as that server calls it. timeout: seconds without a word. logprobs: whether
        log-probabilities are asked for, to be kept with the answer; a server that refuses them is asked without."""
        try:
            address = httpx2.URL(url.rstrip("/"))
        except httpx2.InvalidURL:
            raise UserError("is no address", where=f"upstream {url}", fix="http://host:port/v1") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise UserError("is no address", where=f"upstream {url}", fix="http://host:port/v1")
        self.url, self.model, self.version, self.logprobs = str(address), model, version, logprobs
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        limits = httpx2.Timeout(timeout, connect=10.0)
        local = address.host in ("localhost", "127.0.0.1", "::1")
        many = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
        self.client = httpx2.AsyncClient(headers=headers, timeout=limits, limits=many, trust_env=not local)

    async def ready(self) -> bool:
        try:
            return (await self.client.get(f"{self.url}/models", timeout=5.0)).status_code < 500
        except httpx2.HTTPError:
            return False

    async def close(self, seconds: float) -> None:  # noqa: ARG002 (whoever still waits is waited for by the app)
        await self.client.aclose()

    async def answer(self, ask: Ask) -> Reply:
        """As `Backend.answer`."""
        chat = not isinstance(ask.prompt, str)
        path = f"{self.url}/{'chat/completions' if chat else 'completions'}"
        response = await self._post(path, body_of(ask, self.model, logprobs=self.logprobs))
        if response.status_code in (400, 422) and self.logprobs and not ask.top:
            said = (await response.aread()).decode(errors="replace")
            if "logprob" in said.lower():
                await response.aclose()
                self.logprobs = False
                response = await self._post(path, body_of(ask, self.model, logprobs=False))
        if response.status_code != 200:
            raise await _refusal(response)
        events = _events(response)
        return Reply(None, _pieces(response, events, chat, ask.n))

    async def _post(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        try:
            request = self.client.build_request("POST", path, json=body)
            return await self.client.send(request, stream=True)
        except httpx2.ConnectError:
            raise Broken("the server behind cannot be reached", 503) from None
        except httpx2.TimeoutException:
            raise Broken("the server behind does not answer", 504) from None
        except (httpx2.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed meanwhile
            raise Broken(f"the server behind failed ({type(error).__name__})") from None


def body_of(ask: Ask, model: str, *, logprobs: bool) -> dict[str, Any]:
    """The request in OpenAI's words. What stands in `extra` goes along, and overrides nothing."""
    body: dict[str, Any] = dict(ask.extra)
    body |= {"model": model, "n": ask.n, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "seed": ask.seed % 2**63}
    for name, value in (("temperature", ask.temperature), ("top_p", ask.top_p)):
        if value is not None:
            body[name] = value
    body |= {name: value for name, value in ask.handed.items() if name != "response_format"}
    if ask.top_k:
        body["top_k"] = ask.top_k
    if ask.most is not None:
        body["max_tokens"] = ask.most
    if ask.stops:
        body["stop"] = list(ask.stops)
    if isinstance(ask.prompt, str):
        body["prompt"] = ask.prompt
        if ask.top or logprobs:
            body["logprobs"] = ask.top
        return body
    body["messages"] = [dict(turn) for turn in ask.prompt]
    if ask.top or logprobs:
        body["logprobs"] = True
        if ask.top:
            body["top_logprobs"] = ask.top
    if ask.schema is not None:
        plain = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(ask.schema)}}
        body["response_format"] = ask.handed.get("response_format", plain)
    if ask.tools:
        body["tools"] = [{"type": "function", "function": dict(tool)} for tool in ask.tools]
        if ask.calls in ("none", "required"):
            body["tool_choice"] = ask.calls
        elif ask.calls is not None:
            body["tool_choice"] = {"type": "function", "function": {"name": ask.calls}}
    return body


async def _refusal(response: httpx2.Response) -> Exception:
    """What the server's refusal is here."""
    said = (await response.aread()).decode(errors="replace")
    await response.aclose()
    what = _message(said)[:LONGEST_FAULT] or f"status {response.status_code}"
    if response.status_code == 429:
        try:
            seconds = float(response.headers.get("retry-after", "1"))
        except ValueError:
            seconds = 1.0
        return Overloaded(seconds if 0 <= seconds < 86_400 else 1.0)
    if response.status_code in (401, 403):
        return Broken("the server behind refuses this server's key")
    if response.status_code < 500:
        return UserError(what, where="upstream")
    return Broken(f"the server behind failed ({what})")


def _message(said: str) -> str:
    try:
        found = json.loads(said)
    except ValueError:
        return " ".join(said.split())
    if isinstance(found, dict):
        error = found.get("error", found)
        if isinstance(error, dict):
            return str(error.get("message") or error.get("detail") or "")
        return str(error)
    return ""


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The stream's objects. Broken where it breaks off, or says what is none."""
    try:
        async for line in response.aiter_lines():
            name, _, value = line.partition(":")
            if name != "data":
                continue
            if (value := value.strip()) == "[DONE]":
                return
            found = json.loads(value)
            if not isinstance(found, dict):
                raise ValueError
            if "error" in found:
                raise Broken(f"the server behind failed ({_message(value)[:LONGEST_FAULT]})")
            yield found
    except ValueError:
        raise Broken("the server behind says what is no JSON") from None
    except httpx2.TimeoutException:
        raise Broken("the server behind has stopped in the middle of an answer", 504) from None
    except httpx2.HTTPError:
        raise Broken("the server behind broke off in the middle of an answer") from None


async def _pieces(
    response: httpx2.Response, events: AsyncIterator[dict[str, Any]], chat: bool, n: int
) -> AsyncIterator[Piece]:
    """Pieces as they come; calls of tools when they are whole, with the end. Broken unless all n come to an end."""
    calls: dict[int, dict[int, dict[str, Any]]] = {}
    ended = set[int]()
    try:
        async for event in events:
            if usage := event.get("usage"):
                yield Piece(-1, usage=(int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)))
            for choice in event.get("choices") or ():
                index = int(choice.get("index", 0))
                finish = FINISHES.get(choice.get("finish_reason") or "")
                if chat:
                    delta = choice.get("delta") or {}
                    text = delta.get("content") or ""
                    for call in delta.get("tool_calls") or ():
                        _gather(calls.setdefault(index, {}), call)
                else:
                    text = choice.get("text") or ""
                tokens = _tokens(choice.get("logprobs"), chat)
                made = tuple(calls.pop(index, {}).values()) if finish is not None else ()
                if not 0 <= index < n:
                    raise ValueError
                if index in ended or not (text or tokens or made or finish):
                    continue
                if finish is not None:
                    ended.add(index)
                yield Piece(index, text, tokens, made, finish)
        if len(ended) < n:
            raise Broken(f"the server behind ended {len(ended)} of {n} answers")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Broken("the server behind says what is no answer") from None
    finally:
        await response.aclose()


def _gather(calls: dict[int, dict[str, Any]], part: Mapping[str, Any]) -> None:
    """A call's parts, joined."""
    call = calls.setdefault(int(part.get("index", 0)), {"name": "", "arguments": ""})
    if part.get("id"):
        call["id"] = part["id"]
    function = part.get("function") or {}
    call["name"] += function.get("name") or ""
    call["arguments"] += function.get("arguments") or ""


def _tokens(logprobs: Any, chat: bool) -> tuple[Token, ...]:
    if not logprobs:
        return ()
    if chat:
        return tuple(
            _token(one, tuple(_token(other) for other in one.get("top_logprobs") or ()))
            for one in logprobs.get("content") or ()
        )
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return tuple(
        Token(None, text, None, float(logprob or 0.0), tuple(
            Token(None, other, None, float(value)) for other, value in (top or {}).items()
        ))
        for text, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    )  # fmt: skip


def _token(found: Mapping[str, Any], top: tuple[Token, ...] = ()) -> Token:
    raw = found.get("bytes")
    return Token(None, str(found["token"]), None if raw is None else tuple(raw), float(found["logprob"]), top)
