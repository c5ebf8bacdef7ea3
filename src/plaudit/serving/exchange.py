"""One request and its answer: what is gathered as it comes, what is sent of it, and what is kept."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plaudit.feedback.served import Response, Said
from plaudit.serving import protocol
from plaudit.serving.backend import Ask, Piece, Token, Turn
from plaudit.serving.masking import Masker
from plaudit.types import Message, Prompt

CANCELLED = "cancelled"
"""Why a completion ended that nobody waited for."""


@dataclass(slots=True)
class Completion:
    """One of the n, as far as it has come."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    calls: list[protocol.MadeCall] = field(default_factory=list)
    finish: str | None = None
    cut: bool = False


@dataclass(slots=True)
class Exchange:
    """caller: whoever asks, as this process tells them apart; requester: their pseudonym, None where nothing is kept.
    began: on a clock that does not go back; created: seconds since 1970. told: whether log-probabilities are asked for.
    """

    name: str
    version: str
    propensity: float
    caller: str
    requester: str | None
    conversation: str
    ask: Ask
    chat: bool
    told: bool
    regenerates: str | None = None
    guarded: dict[str, Any] = field(default_factory=dict)
    """What a guard made of it, as it is kept: where, and its score."""
    id: str = ""
    created: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    prompt_tokens: int | None = None
    usage: tuple[int, int] | None = None
    completions: list[Completion] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = self.id or ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex
        self.completions = [Completion() for _ in range(self.ask.n)]

    def take(self, piece: Piece) -> tuple[protocol.MadeCall, ...]:
        """Adds the piece; its calls with their ids."""
        if self.first is None:
            self.first = time.monotonic()
        if piece.usage is not None:
            self.usage = piece.usage
            return ()
        one = self.completions[piece.index]
        one.text += piece.text
        one.tokens += piece.tokens
        made = tuple(made_call(call) for call in piece.calls)
        one.calls += made
        one.cut = one.cut or piece.cut
        if piece.finish is not None:
            one.finish = piece.finish
        return made

    # What is sent

    def counted(self) -> protocol.Usage:
        said = sum(len(one.tokens) for one in self.completions)
        asked, answered = self.usage or (self.prompt_tokens or 0, said)
        return protocol.Usage(prompt_tokens=asked, completion_tokens=answered, total_tokens=asked + answered)

    def whole(self, handle: protocol.Handle | None) -> protocol.ChatCompletion | protocol.TextCompletion:
        """The answer in one."""
        shared: dict[str, Any] = {"id": self.id, "created": int(self.created), "model": self.name}
        shared |= {"usage": self.counted(), "system_fingerprint": self.version, "feedback": handle}
        if self.chat:
            return protocol.ChatCompletion(
                choices=tuple(self._choice(index) for index in range(len(self.completions))), **shared
            )
        return protocol.TextCompletion(
            choices=tuple(self._text_choice(index) for index in range(len(self.completions))), **shared
        )

    def _choice(self, index: int) -> protocol.Choice:
        one = self.completions[index]
        said = protocol.Said(
            content=None if one.calls and not one.text else one.text, tool_calls=tuple(one.calls) or None
        )
        logprobs = protocol.Logprobs(content=tuple(map(logprob, one.tokens))) if self.told else None
        finish: Any = one.finish or "stop"
        return protocol.Choice(index=index, message=said, logprobs=logprobs, finish_reason=finish)

    def _text_choice(self, index: int) -> protocol.TextChoice:
        one = self.completions[index]
        finish: Any = one.finish or "stop"
        return protocol.TextChoice(
            index=index,
            text=one.text,
            logprobs=text_logprobs(one.tokens, 0, self.ask.top) if self.told else None,
            finish_reason=finish,
        )

    def chunk(self, piece: Piece, calls: tuple[protocol.MadeCall, ...], *, opens: bool) -> dict[str, Any]:
        """What a stream says of a piece. opens: it is its completion's first."""
        if not self.chat:
            before = len(self.completions[piece.index].text) - len(piece.text)
            choice: dict[str, Any] = {"index": piece.index, "text": piece.text, "finish_reason": piece.finish}
            choice["logprobs"] = None
            if self.told:
                choice["logprobs"] = text_logprobs(piece.tokens, before, self.ask.top).model_dump()
            return self.event([choice])
        delta: dict[str, Any] = {"role": "assistant"} if opens else {}
        if piece.text or opens:
            delta["content"] = piece.text
        if calls:
            so_far = len(self.completions[piece.index].calls) - len(calls)
            delta["tool_calls"] = [
                {"index": so_far + place, **call.model_dump()} for place, call in enumerate(calls)
            ]
        choice = {"index": piece.index, "delta": delta, "finish_reason": piece.finish, "logprobs": None}
        if self.told:
            told = protocol.Logprobs(content=tuple(map(logprob, piece.tokens)))
            choice["logprobs"] = told.model_dump()
        return self.event([choice])

    def event(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """One object of a stream."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        shared = {"id": self.id, "object": kind, "created": int(self.created), "model": self.name}
        return shared | {"system_fingerprint": self.version, "choices": choices} | more

    # What is kept

    def response(self, masker: Masker, *, logprobs: bool = True) -> Response:
        """As it is stored, without personal data. Tokens are kept where they say what was said, and no more."""
        assert self.requester is not None
        masked: dict[str, int] = {}

        def clean(text: str) -> str:
            found, counts = masker.mask(text)
            for kind, count in counts.items():
                masked[kind] = masked.get(kind, 0) + count
            return found

        prompt: Prompt
        if isinstance(self.ask.prompt, str):
            prompt = clean(self.ask.prompt)
        else:
            prompt = tuple(Message(*said_of(turn, clean)) for turn in self.ask.prompt)
        said = []
        for one in self.completions:
            text = clean(one.text)
            calls = tuple(
                {"name": call.function.name, "arguments": clean(call.function.arguments)}
                for call in one.calls
            )
            known = bool(one.tokens) and logprobs
            ids = tuple(token.id for token in one.tokens if token.id is not None)
            plain = text == one.text and all(
                made["arguments"] == call.function.arguments
                for made, call in zip(calls, one.calls, strict=True)
            )
            whole = known and plain and not one.cut and len(ids) == len(one.tokens)
            said.append(
                Said(
                    text=text,
                    finish=one.finish or CANCELLED,
                    logprobs=tuple(token.logprob for token in one.tokens) if known else None,
                    ids=ids if whole else None,
                    calls=calls,
                )
            )
        ended, usage = time.monotonic(), self.counted()
        return Response(
            id=self.id,
            created_at=self.created,
            requester=self.requester,
            conversation=self.conversation,
            name=self.name,
            version=self.version,
            propensity=self.propensity,
            prompt=prompt,
            completions=tuple(said),
            sampling=sampling_of(self.ask) | ({"guard": self.guarded} if self.guarded else {}),
            usage={
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "seconds": round(ended - self.began, 4),
                "first_token_seconds": round((self.first or ended) - self.began, 4),
            },
            masked=masked,
            regenerates=self.regenerates,
        )


def said_of(turn: Turn, clean: Any) -> tuple[Any, str]:
    """A turn's role and words; calls of tools stand in them as JSON."""
    content = turn.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content)
    for call in turn.get("tool_calls") or ():
        function = call["function"]
        content += f'{{"name": "{function["name"]}", "arguments": {function["arguments"]}}}'
    role = "system" if turn["role"] == "developer" else turn["role"]
    return role, clean(content)


def sampling_of(ask: Ask) -> dict[str, Any]:
    """How the completions were drawn, as it is kept."""
    found: dict[str, Any] = {"n": ask.n, "temperature": ask.temperature, "top_p": ask.top_p}
    found |= {"top_k": ask.top_k, "max_new_tokens": ask.most, "seed": ask.seed, "stops": len(ask.stops)}
    if ask.schema is not None or ask.calls not in (None, "none"):
        found["constrained"] = True
    if ask.tools:
        found["tools"] = [tool["name"] for tool in ask.tools]
    return found


def made_call(call: Mapping[str, Any]) -> protocol.MadeCall:
    function = protocol.MadeFunction(name=call["name"], arguments=call["arguments"])
    return protocol.MadeCall(id=call.get("id") or f"call_{uuid.uuid4().hex[:24]}", function=function)


def logprob(token: Token) -> protocol.TokenLogprob:
    top = tuple(
        protocol.TopToken(token=other.text, logprob=other.logprob, bytes=other.bytes) for other in token.top
    )
    return protocol.TokenLogprob(token=token.text, logprob=token.logprob, bytes=token.bytes, top_logprobs=top)


def text_logprobs(tokens: Any, before: int, top: int) -> protocol.TextLogprobs:
    """Of /v1/completions. before: characters said so far."""
    offsets = []
    for token in tokens:
        offsets.append(before)
        before += len(token.text)
    return protocol.TextLogprobs(
        tokens=tuple(token.text for token in tokens),
        token_logprobs=tuple(token.logprob for token in tokens),
        top_logprobs=tuple({o.text: o.logprob for o in token.top} for token in tokens) if top else None,
        text_offset=tuple(offsets),
    )
