"""A model of this process: prompts through its chat template, tokens by the live engine, text as it comes."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from plaudit.data.tokenizer import Tokenizer
from plaudit.models.adapter import Adapter
from plaudit.models.decode import Decoder
from plaudit.models.load import Model
from plaudit.rollout.live import Busy, Drawn, Hear, LiveEngine, Order
from plaudit.serving.backend import Ask, Finish, Overloaded, Piece, Reply, Token, TooMuch, Turn, Unsupported
from plaudit.serving.words import Words
from plaudit.tensors import SamplingParams
from plaudit.types import UserError

CALL, CALL_END = "<tool_call>", "</tool_call>"
"""How Qwen, Hermes and SmolLM3 write a call of a tool; other families are not read."""


class LocalBackend:
    """A model that answers in this process (plaudit.serving.backend.Backend)."""

    def __init__(self, model: Model, version: str, adapter: Adapter | None = None, **limits: int) -> None:
        """adapter: to answer with, on the model. limits: of `LiveEngine`."""
        self.model, self.version = model, version
        self.tokenizer = model.tokenizer
        decoder = Decoder.of(model.trunk).adapted(adapter, model.trunk)
        self.engine = LiveEngine(decoder, model.tokenizer.eos_ids, **limits)
        self._shown = functools.lru_cache(maxsize=65_536)(functools.partial(_shown, model.tokenizer))

    @property
    def context(self) -> int:
        return self.model.context

    async def ready(self) -> bool:
        return self.engine.room > 0

    async def close(self, seconds: float) -> None:
        await asyncio.to_thread(self.engine.close, seconds)

    async def answer(self, ask: Ask) -> Reply:
        """As `Backend.answer`."""
        if ask.extra:
            names = ", ".join(sorted(ask.extra))
            raise Unsupported(f"this model does not know {names}", where="request", fix="leave it out")
        ids, orders, heard = await asyncio.to_thread(self._prepare, ask, asyncio.get_running_loop())
        try:
            self.engine.order(*orders)
        except Busy:
            raise Overloaded from None
        return Reply(len(ids), self._pieces(ask, orders, heard))

    def _prepare(
        self, ask: Ask, loop: asyncio.AbstractEventLoop
    ) -> tuple[list[int], list[Order], asyncio.Queue[tuple[int, Drawn | Exception]]]:
        """The prompt's ids, an order for each completion, and where they will be heard."""
        ids = self._render(ask)
        room = self.context - len(ids)
        if room < 1:
            raise TooMuch(f"has {len(ids)} tokens, the model takes {self.context}", where="messages")
        params = SamplingParams(
            max_new_tokens=room if ask.most is None else min(ask.most, room),
            temperature=1.0 if ask.temperature is None else ask.temperature,
            top_k=ask.top_k,
            top_p=1.0 if ask.top_p is None else ask.top_p,
        )
        heard: asyncio.Queue[tuple[int, Drawn | Exception]] = asyncio.Queue()

        def hears(index: int) -> Hear:
            def hear(what: Drawn | Exception) -> None:
                loop.call_soon_threadsafe(heard.put_nowait, (index, what))

            return hear

        grammar = self._grammar(ask)
        orders = []
        for index in range(ask.n):
            order = Order(ids, params, ("serve", ask.seed, index), hears(index), ask.top)
            if grammar is not None:
                from plaudit.serving.grammar import Grammar

                order.constraint = Grammar(self.tokenizer, self.model.trunk.shape.vocab, grammar)
            orders.append(order)
        return ids, orders, heard

    def _render(self, ask: Ask) -> list[int]:
        """UserError where the model's template refuses, or has no place for tools."""
        if isinstance(ask.prompt, str):
            return self.tokenizer.render(ask.prompt) if ask.prompt else [self.tokenizer.eos_ids[0]]
        template = str(self.tokenizer.inner.chat_template or "")
        if not template:
            raise Unsupported("this model has no chat template", where="messages", fix="use /v1/completions")
        if ask.tools and "tools" not in template:
            raise Unsupported(
                "this model's chat template has no place for tools", where="tools", fix="leave them out"
            )
        tools = [{"type": "function", "function": dict(tool)} for tool in ask.tools] or None
        try:
            text = self.tokenizer.inner.apply_chat_template(
                [_plain(turn) for turn in ask.prompt], tools=tools, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:  # the template is the model's
            raise UserError(f"the chat template refuses it ({error})", where="messages") from None
        if not (ids := self.tokenizer.encode(str(text))):
            raise UserError("a prompt has no tokens", where="messages")
        return ids

    def _grammar(self, ask: Ask) -> str | None:
        if ask.schema is not None:
            from plaudit.serving import grammar

            return grammar.of_schema(ask.schema)
        if ask.tools and ask.calls not in (None, "none"):
            from plaudit.serving import grammar

            named = [tool for tool in ask.tools if ask.calls in ("required", tool["name"])]
            return grammar.of_calls(named, f"{CALL}\n", f"\n{CALL_END}")
        return None

    async def _pieces(
        self, ask: Ask, orders: Sequence[Order], heard: asyncio.Queue[tuple[int, Drawn | Exception]]
    ) -> AsyncIterator[Piece]:
        """What is said of each completion as it comes, until all have ended; closed before, all end."""
        words = [Words(self.tokenizer, ask.stops) for _ in orders]
        reads = [Calls() if ask.tools and ask.calls != "none" else None for _ in orders]
        going = set(range(len(orders)))
        try:
            while going:
                index, what = await heard.get()
                if index not in going:
                    continue
                if isinstance(what, Busy):
                    raise Overloaded
                if isinstance(what, Exception):
                    raise what
                piece = self._piece(index, what, words[index], reads[index])
                if piece.finish is not None:
                    going.remove(index)
                    orders[index].cancel()
                yield piece
        finally:
            for order in orders:
                order.cancel()

    def _piece(self, index: int, what: Drawn, words: Words, reads: Calls | None) -> Piece:
        text = words.take(what.token)
        finish: Finish | None = what.finish
        if words.stopped:
            finish = "stop"
        elif finish is not None:
            text += words.end()
        told = (self._token(what.token, what.logprob, what.top),)
        if reads is None:
            return Piece(index, text, told, (), finish, cut=words.stopped)
        text, calls = reads.read(text, over=finish is not None)
        if finish == "stop" and reads.made:
            finish = "tool_calls"
        return Piece(index, text, told, calls, finish, cut=words.stopped)

    def _token(self, id: int, logprob: float, top: Sequence[tuple[int, float]] = ()) -> Token:
        text, raw = self._shown(id)
        return Token(id, text, raw, logprob, tuple(self._token(*other) for other in top))


def _plain(turn: Turn) -> dict[str, Any]:
    """A message as templates read it: text parts joined, arguments of calls as objects."""
    found = {name: value for name, value in turn.items() if value is not None}
    content = found.get("content", "")
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content)
    found["content"] = content
    if calls := found.get("tool_calls"):
        found["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _object(call["function"]["arguments"])}}
            for call in calls
        ]
    if found.get("role") == "developer":
        found["role"] = "system"
    return found


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(tokenizer: Tokenizer, id: int) -> tuple[str, tuple[int, ...]]:
    """A token by itself: its text, and its bytes, which may be no whole character."""
    piece = tokenizer.inner.convert_ids_to_tokens(id)
    text = str(tokenizer.inner.decode([id]))
    if piece is not None and "\N{REPLACEMENT CHARACTER}" in text:
        found = bytes_of(piece)
        if found is not None:
            return text, tuple(found)
    return text, tuple(text.encode())


@functools.cache
def _alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with (Radford et al. 2019)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    found = {chr(byte): byte for byte in shown}
    rest = [byte for byte in range(256) if byte not in shown]
    return found | {chr(256 + place): byte for place, byte in enumerate(rest)}


def bytes_of(piece: str) -> bytes | None:
    """A piece of a vocabulary as bytes: of a byte-level one, or <0xE4> of SentencePiece's. None for neither."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    alphabet = _alphabet()
    return bytes(alphabet[c] for c in piece) if all(c in alphabet for c in piece) else None


class Calls:
    """Calls of tools in a text as it comes: what stands between the marks is a call, all else is said."""

    def __init__(self) -> None:
        self.made = 0
        self._held = ""

    def read(self, text: str, *, over: bool) -> tuple[str, tuple[Mapping[str, Any], ...]]:
        """(what is said, calls) that the text adds; a call that is not whole JSON with a name is said as it stands."""
        self._held += text
        said, calls = "", list[Mapping[str, Any]]()
        while True:
            before, mark, after = self._held.partition(CALL)
            if not mark:
                kept = 0 if over else _partial(self._held)
                said += self._held[: len(self._held) - kept]
                self._held = self._held[len(self._held) - kept :]
                break
            inner, closed, rest = after.partition(CALL_END)
            if not closed and not over:
                said, self._held = said + before, mark + after
                break
            call = _object(inner.strip())
            if isinstance(call, dict) and isinstance(call.get("name"), str):
                said += before.rstrip() if not before.strip() else before
                arguments = call.get("arguments", {})
                if not isinstance(arguments, str):
                    arguments = json.dumps(arguments, ensure_ascii=False)
                calls.append({"name": call["name"], "arguments": arguments})
                self.made += 1
            else:
                said += before + mark + inner + closed
            self._held = rest
        return ("" if self.made and not said.strip() else said), tuple(calls)


def _partial(text: str) -> int:
    """How many characters at the end may begin a call."""
    return next((n for n in range(min(len(CALL) - 1, len(text)), 0, -1) if CALL.startswith(text[-n:])), 0)
