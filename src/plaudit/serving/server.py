"""What a server is made of, and how one request goes through it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import logging
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

from plaudit.access.keys import Keys
from plaudit.access.limits import Limit
from plaudit.feedback.served import Served
from plaudit.feedback.store import Store
from plaudit.serving import protocol
from plaudit.serving.backend import Ask, Backend, Broken, Piece, Turn
from plaudit.serving.exchange import Exchange, said_of
from plaudit.serving.figures import Figures
from plaudit.serving.fleet import Chosen, Fleet
from plaudit.serving.guarding import Guard, Verdict
from plaudit.serving.masking import Masker
from plaudit.types import UserError

log = logging.getLogger(__name__)
Keep = Literal["always", "consent", "never"]
"""Which answers are kept: all but those with `store: false`, those with `store: true` alone, or none."""
KNOWN, LARGEST_KNOWN = 256, 4096
"""Answers that are known already which are held, and tokens that one may tell of."""
WRITERS = 2
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """most_tokens: of an answer, None: as the model has room. seconds: until an answer is there. requests and tokens:
    a minute, of each key. keep: see `Keep`; days: for how long, None: for ever; logprobs: whether with them. open: who
    has no key may ask too. cache: whether answers that must be the same are given again without being drawn."""

    most_tokens: int | None = 1024
    seconds: float = 600.0
    requests: float = 600.0
    tokens: float = 200_000.0
    keep: Keep = "always"
    days: float | None = 90.0
    logprobs: bool = True
    open: bool = False
    cache: bool = True


@dataclass(frozen=True, slots=True)
class Known:
    """An answer that would be the same again."""

    prompt_tokens: int | None
    pieces: tuple[Piece, ...]


@dataclass(slots=True)
class Server:
    """Of one process."""

    store: Store
    fleet: Fleet
    settings: Settings = field(default_factory=Settings)
    masker: Masker = field(default_factory=Masker)
    figures: Figures = field(default_factory=Figures)
    before: Guard | None = None
    after: Guard | None = None
    refusal: str = "I cannot help with that."
    served: Served = field(init=False)
    keys: Keys = field(init=False)
    requests: Limit = field(init=False)
    tokens: Limit = field(init=False)
    draining: bool = False
    _people: OrderedDict[tuple[str, str | None], str] = field(default_factory=OrderedDict)
    _known: OrderedDict[str, Known] = field(default_factory=OrderedDict)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)
    _writers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WRITERS, "plaudit-store"))

    def __post_init__(self) -> None:
        self.served, self.keys = Served(self.store), Keys(self.store.engine)
        given = self.settings
        self.requests = Limit(rate=given.requests / 60, burst=max(1.0, given.requests / 6))
        self.tokens = Limit(rate=given.tokens / 60, burst=max(1.0, given.tokens))

    async def store_do(self, work: Callable[..., T], *given: Any) -> T:
        """What writes to the store, in threads of its own: where the store hesitates, nothing else waits for them."""
        return await asyncio.get_running_loop().run_in_executor(
            self._writers, functools.partial(work, *given)
        )

    async def requester(self, account: str, user: str | None) -> str | None:
        """The pseudonym of whoever asks; None for one who was forgotten, of whom nothing is kept."""
        who = (account, user)
        if who not in self._people:
            try:
                self._people[who] = await self.store_do(self.served.requester, account, user)
            except UserError:
                return None
            if len(self._people) > 10_000:
                self._people.popitem(last=False)
        return self._people[who]

    def keeps(self, store: bool | None) -> bool:
        """Whether an answer is kept, by what its requester says of it."""
        if self.settings.keep == "consent":
            return store is True
        return self.settings.keep == "always" and store is not False

    async def begin(
        self, request: protocol.ChatRequest | protocol.CompletionRequest, account: str
    ) -> tuple[Exchange, Chosen]:
        """Who answers, and what is asked of it. Missing for a name that nobody answers to."""
        requester = await self.requester(account, request.user) if self.keeps(request.store) else None
        conversation = request.conversation or uuid.uuid4().hex
        # Where nobody says who it is for, a conversation stays with one model.
        caller = json.dumps([account, request.user])
        chosen = self.fleet.choose(request.model, caller if request.user is not None else conversation)
        drawn = secrets.randbits(62)
        ask = request.ask(drawn, self.settings.most_tokens)
        chat = isinstance(request, protocol.ChatRequest)
        told = bool(request.logprobs) if chat else request.logprobs is not None
        exchange = Exchange(
            name=request.model,
            version=chosen.running.arm.version,
            propensity=chosen.propensity,
            caller=caller,
            requester=requester,
            conversation=conversation,
            ask=ask,
            chat=chat,
            told=told,
            regenerates=request.regenerates,
        )
        return exchange, chosen

    @contextlib.asynccontextmanager
    async def answer(
        self, exchange: Exchange, chosen: Chosen, *, repeats: bool
    ) -> AsyncIterator[AsyncIterator[Piece]]:
        """The answer's pieces as they come, or, with a guard after the model, each completion when it is whole.
        repeats: whether it would be the same again, so that it may be known.

        Overloaded, Broken or UserError before the first of them, or in their midst.
        """
        async with self.fleet.using(chosen) as backend:
            if self.before is not None and not await self._may_be_asked(exchange, self.before):
                yield self._refused(exchange)
                return
            async with self._drawn(exchange, backend, repeats=repeats) as pieces:
                yield pieces if self.after is None else self._looked_at(exchange, pieces, self.after)

    async def _may_be_asked(self, exchange: Exchange, guard: Guard) -> bool:
        """Whether the last thing that was said to the model may be; where it is written anew, the model hears that."""
        prompt = exchange.ask.prompt
        before: str | Sequence[Turn] = prompt if isinstance(prompt, str) else prompt[:-1]
        last = prompt if isinstance(prompt, str) else said_of(prompt[-1], lambda text: text)[1]
        verdict = await asyncio.to_thread(guard.look, before, last)
        self._note(exchange, "before", verdict)
        if verdict.text is not None:
            changed = (
                verdict.text
                if isinstance(prompt, str)
                else [*prompt[:-1], {**prompt[-1], "content": verdict.text}]
            )
            exchange.ask = replace(exchange.ask, prompt=changed)
        return not verdict.refused

    async def _refused(self, exchange: Exchange) -> AsyncIterator[Piece]:
        for index in range(exchange.ask.n):
            yield Piece(index, self.refusal, finish="content_filter")

    async def _looked_at(
        self, exchange: Exchange, pieces: AsyncIterator[Piece], guard: Guard
    ) -> AsyncIterator[Piece]:
        """Each completion in one piece, once the guard has seen it whole."""
        held: dict[int, list[Piece]] = {}
        async for piece in pieces:
            if piece.usage is not None:
                yield piece
                continue
            held.setdefault(piece.index, []).append(piece)
            if piece.finish is None:
                continue
            parts = held.pop(piece.index)
            text = "".join(part.text for part in parts)
            called = "".join(f"\n{json.dumps(dict(call))}" for part in parts for call in part.calls)
            verdict = await asyncio.to_thread(guard.look, exchange.ask.prompt, text + called)
            self._note(exchange, "after", verdict)
            if verdict.refused:
                yield Piece(piece.index, self.refusal, finish="content_filter")
                continue
            tokens = tuple(token for part in parts for token in part.tokens)
            calls = tuple(call for part in parts for call in part.calls)
            if verdict.text is None:
                cut = any(part.cut for part in parts)
                yield Piece(piece.index, text, tokens, calls, piece.finish, cut=cut)
            else:  # its tokens are not what is said
                yield Piece(piece.index, verdict.text, (), calls, piece.finish)

    def _note(self, exchange: Exchange, where: str, verdict: Verdict) -> None:
        """Each refusal is logged, without a word of what was refused."""
        if verdict.refused or verdict.text is not None:
            did = "refused" if verdict.refused else "rewritten"
            exchange.guarded[where] = {did: True, "score": verdict.score}
            log.info(json.dumps({"id": exchange.id, "guard": where, did: True, "score": verdict.score}))
        if verdict.refused:
            self.figures.refused.labels(where).inc()

    @contextlib.asynccontextmanager
    async def _drawn(
        self, exchange: Exchange, backend: Backend, *, repeats: bool
    ) -> AsyncIterator[AsyncIterator[Piece]]:
        """What the model says."""
        place = _place(exchange, backend) if repeats and self.settings.cache else None
        if place is not None and (known := self._known.get(place)) is not None:
            self._known.move_to_end(place)
            self.figures.cached.inc()
            exchange.prompt_tokens = known.prompt_tokens
            yield _again(known)
            return
        reply = await backend.answer(exchange.ask)
        exchange.prompt_tokens = reply.prompt_tokens
        pieces = list[Piece]()
        try:
            yield self._watched(reply.pieces, exchange, pieces)
        finally:
            self._let_go(reply.pieces)
        ended = len({piece.index for piece in pieces if piece.finish}) == exchange.ask.n
        if place is not None and ended and sum(map(_size, pieces)) < LARGEST_KNOWN:
            self._known[place] = Known(reply.prompt_tokens, tuple(pieces))
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)

    async def _watched(
        self, coming: AsyncIterator[Piece], exchange: Exchange, pieces: list[Piece]
    ) -> AsyncIterator[Piece]:
        """The pieces as they come, noted down; Broken where they take too long."""
        late = Broken(f"the answer took more than {self.settings.seconds:g} s", 504)
        ends = exchange.began + self.settings.seconds
        while True:
            try:
                piece = await asyncio.wait_for(anext(coming), max(0.001, ends - time.monotonic()))
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise late from None
            if not pieces:
                self.figures.first.labels(exchange.version).observe(time.monotonic() - exchange.began)
            pieces.append(piece)
            yield piece

    def _let_go(self, coming: AsyncIterator[Piece]) -> None:
        """Ends what may still come, in a task of its own: whoever waited may have been cancelled."""

        async def close() -> None:
            with contextlib.suppress(Exception):
                await coming.aclose()  # type: ignore[attr-defined]

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def end(self, exchange: Exchange, *, account: str) -> protocol.Handle | None:
        """Counts the answer, and keeps it; what feedback on it is sent with: None where it is not kept, or not the
        model's. It is nobody's fault who asked where the store cannot keep it: that is logged, and they are answered.
        """
        usage = exchange.counted()
        for kind, count in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
            self.figures.tokens.labels(exchange.version, kind).inc(count)
        self.tokens.spend(account, time.monotonic(), float(usage.total_tokens))
        if any(one.finish is None for one in exchange.completions):
            self.figures.cancelled.inc()
        log.info(
            json.dumps(
                {"id": exchange.id, "name": exchange.name, "version": exchange.version, "by": account,
                 "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
                 "seconds": round(time.monotonic() - exchange.began, 3), "kept": exchange.requester is not None}
            )
        )  # fmt: skip
        if exchange.requester is None:
            return None
        try:
            token = await self.store_do(self._keep, exchange)
        except Exception:
            log.exception("an answer could not be kept: %s", exchange.id)
            return None
        if any("refused" in found for found in exchange.guarded.values()):
            return None
        return protocol.Handle(token=token, conversation=exchange.conversation)

    def _keep(self, exchange: Exchange) -> str:
        return self.served.keep(exchange.response(self.masker, logprobs=self.settings.logprobs))

    async def tidy(self) -> int:
        """Takes away what was kept as long as it may be; how many answers."""
        if self.settings.days is None:
            return 0
        return await self.store_do(self.served.purge, time.time() - self.settings.days * 86400)


def repeats(ask: Ask, seed: int | None) -> bool:
    """Whether the same request gets the same answer: nothing is drawn, or from a seed that was given."""
    return ask.temperature == 0 or seed is not None


def _size(piece: Piece) -> int:
    """Tokens that a piece tells of."""
    return 1 + sum(1 + len(token.top) for token in piece.tokens)


def _place(exchange: Exchange, backend: Backend) -> str:
    asked = asdict(exchange.ask)
    if exchange.ask.temperature == 0:
        asked["seed"] = 0
    said = json.dumps([id(backend), exchange.caller, asked], sort_keys=True, default=str)
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


async def _again(known: Known) -> AsyncIterator[Piece]:
    for piece in known.pieces:
        yield piece
