"""Completions for many callers at once, who come and go: one thread draws, and tells each caller its tokens as they
are drawn.

What a caller is given depends on its own prompt, parameters and key, as with `plaudit.rollout.local`, and not on who
else is there; a test holds the two to the same tokens.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from plaudit.models.decode import COLUMNS, Cache, Decoder
from plaudit.randomness import rng
from plaudit.rollout.local import PROMPT_TOKENS, draw
from plaudit.tensors import FinishReason, Key, SamplingParams

log = logging.getLogger(__name__)
CACHE_TOKENS = 65_536
"""Columns of keys and values held at once, over all rows: 1.5 GB for SmolLM2-135M in bfloat16."""


class Busy(Exception):
    """As many wait as may."""


class Constraint(Protocol):
    """What may be said next, where not everything may: a grammar's state."""

    def allowed(self) -> Tensor:
        """[V] bool, one at least True."""
        ...

    def take(self, token: int) -> None:
        """This one was said."""
        ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token of a completion, and of what distribution: as `Sample.logprobs`, after the constraint.

    top: the likeliest tokens with their log-probabilities, as many as were asked for. finish: why it is the last, None
    where it is not.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    finish: FinishReason | None


Hear = Callable[[Drawn | Exception], None]
"""Called by the engine's thread with each token, in order, or with what went wrong; it must not wait."""


@dataclass(eq=False, slots=True)
class Order:
    """One completion that somebody waits for. key: of its draws; top: how many of the likeliest tokens are told."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    key: Key
    hear: Hear
    top: int = 0
    constraint: Constraint | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Nobody waits any more: it is told nothing from some step on, and its place goes to another."""
        self.cancelled = True

    def tell(self, what: Drawn | Exception) -> None:
        """Whoever waits is told; one who cannot be told, or was told of an error, waits no more."""
        if self.cancelled:
            return
        self.cancelled = isinstance(what, Exception)
        try:
            self.hear(what)
        except Exception:
            log.exception("nobody could be told")
            self.cancelled = True

    @property
    def columns(self) -> int:
        """What it fills of the cache at most."""
        return len(self.prompt_ids) + self.params.max_new_tokens


@dataclass(eq=False, slots=True)
class Row:
    """An order that is drawn now. uniforms [steps] float64; drawn: how many tokens it has."""

    order: Order
    uniforms: Tensor
    drawn: int = 0
    token: int = -1
    over: bool = False


@dataclass(slots=True)
class Batch:
    """The rows that are drawn now, row r in the cache's slot r. hidden [B, width]: what predicts each one's next token;
    length [B]: the columns that it fills."""

    cache: Cache
    hidden: Tensor
    length: Tensor
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def none(cls, decoder: Decoder) -> Batch:
        device = decoder.norm.device
        return cls(
            cache=Cache.empty(decoder.shape, 0, 0, dtype=decoder.dtype, device=device),
            hidden=torch.zeros(0, decoder.shape.width, dtype=decoder.norm.dtype, device=device),
            length=torch.zeros(0, dtype=torch.long, device=device),
        )

    def enter(self, orders: Sequence[Order], found: Cache, states: Tensor, which: Tensor) -> None:
        """These begin, behind the rows that stand. found, states, which: see `prompts_of`."""
        lengths = torch.tensor([len(order.prompt_ids) for order in orders], device=self.length.device)
        start, count = len(self.rows), len(self.rows) + len(orders)
        self.cache.reserve(int(lengths.max()) + 1, start, count)
        self.cache.put(start, found, which)
        self.hidden = torch.cat([self.hidden, states[which]])
        self.length = torch.cat([self.length, lengths])
        for order in orders:
            uniforms = torch.from_numpy(rng(*order.key).random(order.params.max_new_tokens))
            self.rows.append(Row(order, uniforms))

    def narrow(self) -> None:
        """Gives back columns of the cache that a longer row has left behind, where they are more than half."""
        needed = max((row.order.columns for row in self.rows), default=0)
        if self.cache.columns > 2 * (needed + COLUMNS):
            self.cache.narrow(needed, len(self.rows))

    def draw(self, logits: Tensor, ends: Sequence[int]) -> None:
        """One token a row, told to whom it may concern. logits [B, V]."""
        for place, row in enumerate(self.rows):
            if row.order.params.ignore_eos:
                logits[place, list(ends)] = -torch.inf
            if row.order.constraint is not None and not row.order.cancelled:
                try:
                    allowed = row.order.constraint.allowed().to(logits.device)
                except Exception as error:  # of the caller's grammar, and of nobody else
                    row.order.tell(error)
                else:
                    logits[place].masked_fill_(~allowed, -torch.inf)
        for params, places in self._alike().items():
            where = torch.tensor(places, device=logits.device)
            own = logits[where] if len(places) < len(self.rows) else logits
            uniforms = torch.stack([self.rows[place].uniforms[self.rows[place].drawn] for place in places])
            tokens, logprobs = draw(own, uniforms.to(logits.device), params)
            most = max(self.rows[place].order.top for place in places)
            tops = _likeliest(own, most, params.temperature)
            for place, token, logprob, top in zip(
                places, tokens.tolist(), logprobs.tolist(), tops, strict=True
            ):
                self._tell(self.rows[place], token, logprob, top, ends)

    def _alike(self) -> dict[SamplingParams, list[int]]:
        """Rows by how they are drawn; how many tokens one may have is no part of that."""
        found: dict[SamplingParams, list[int]] = {}
        for place, row in enumerate(self.rows):
            given = row.order.params
            same = SamplingParams(temperature=given.temperature, top_k=given.top_k, top_p=given.top_p)
            found.setdefault(same, []).append(place)
        return found

    def _tell(
        self, row: Row, token: int, logprob: float, top: Sequence[tuple[int, float]], ends: Sequence[int]
    ) -> None:
        order = row.order
        row.token, row.drawn = token, row.drawn + 1
        finish: FinishReason | None = None
        if token in ends:
            finish = "stop"
        elif row.drawn == order.params.max_new_tokens:
            finish = "length"
        row.over = finish is not None
        order.tell(Drawn(token, logprob, tuple(top[: order.top]), finish))
        if order.constraint is not None and not row.over and not order.cancelled:
            try:
                order.constraint.take(token)
            except Exception as error:
                order.tell(error)

    def leave(self) -> None:
        """Rows that are over, or that nobody waits for, give up their places; the last that go on take them."""
        stay = [not row.over and not row.order.cancelled for row in self.rows]
        if all(stay):
            return
        count = sum(stay)
        holes = [place for place in range(count) if not stay[place]]
        moved = [place for place in range(count, len(self.rows)) if stay[place]]
        if holes:
            device = self.length.device
            source, target = torch.tensor(moved, device=device), torch.tensor(holes, device=device)
            self.cache.move(source, target)
            self.hidden[target], self.length[target] = self.hidden[source], self.length[source]
            for hole, place in zip(holes, moved, strict=True):
                self.rows[hole] = self.rows[place]
        self.hidden, self.length = self.hidden[:count], self.length[:count]
        del self.rows[count:]

    def go_on(self, decoder: Decoder) -> None:
        """The states after the tokens that were drawn last."""
        self.cache.reserve(int(self.length.max()) + 1, len(self.rows), len(self.rows))
        tokens = torch.tensor([row.token for row in self.rows], device=self.length.device)
        self.hidden = decoder.step(tokens, self.length, self.cache)
        self.length += 1


def _likeliest(logits: Tensor, most: int, temperature: float) -> list[list[tuple[int, float]]]:
    """The most likely tokens of each row, as far as they may be said, and their log-probabilities at the temperature
    (at 0, and at 1: as they are). logits [B, V]."""
    if most == 0:
        return [[] for _ in range(len(logits))]
    scaled = logits / temperature if temperature > 0 else logits
    values, tokens = torch.log_softmax(scaled, -1).topk(min(most, logits.shape[1]), dim=-1)
    return [
        [(token, logprob) for token, logprob in zip(ids, logprobs, strict=True) if logprob > -math.inf]
        for ids, logprobs in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def prompts_of(decoder: Decoder, orders: Sequence[Order]) -> tuple[Cache, Tensor, Tensor]:
    """Keys and values of the orders' prompts, the states after them, and which row of these each order has: a prompt
    that several share is computed once."""
    prompts = list(dict.fromkeys(tuple(order.prompt_ids) for order in orders))
    found, states = decoder.prefill(prompts)
    which = [prompts.index(tuple(order.prompt_ids)) for order in orders]
    return found, states, torch.tensor(which, device=states.device)


class LiveEngine:
    """Draws for whoever orders, until it is closed. Safe to use from many threads."""

    def __init__(
        self,
        decoder: Decoder,
        ends: Sequence[int],
        *,
        max_batch: int = 64,
        most_waiting: int = 256,
        cache_tokens: int = CACHE_TOKENS,
    ) -> None:
        """ends: tokens that end a completion. max_batch: rows drawn at once; most_waiting: orders that may wait beside
        them; cache_tokens: columns that all rows together may fill."""
        self.decoder, self.ends = decoder, tuple(ends)
        self.max_batch, self.most_waiting, self.cache_tokens = max_batch, most_waiting, cache_tokens
        self.running = 0
        self._waiting: deque[Order] = deque()
        self._changed = threading.Condition()
        self._closing = self._dropping = False
        self._thread = threading.Thread(target=self._serve, name="plaudit-live", daemon=True)
        self._thread.start()

    @property
    def room(self) -> int:
        """How many more orders are taken now: places in the batch that are free, and those in which one may wait."""
        return self.most_waiting + max(0, self.max_batch - self.running) - len(self._waiting)

    def order(self, *orders: Order) -> None:
        """All of them, or none: Busy where more would wait than may, or where it is closed. ValueError for one that
        no cache has room for."""
        context = self.decoder.shape.context
        for order in orders:
            if not order.prompt_ids or order.params.max_new_tokens < 1 or order.columns > context:
                raise ValueError(f"{order.columns} tokens, where the model takes {context}")
        with self._changed:
            if len(orders) > self.room:
                self._waiting = deque(order for order in self._waiting if not order.cancelled)
            if self._closing or len(orders) > self.room:
                raise Busy
            self._waiting.extend(orders)
            self._changed.notify()

    def close(self, timeout: float | None = None) -> bool:
        """No more orders; returns when those that stand have been told all, or after so many seconds, with what is
        left told that it ends here. Whether all were told everything."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        done = not self._thread.is_alive()
        if not done:
            with self._changed:
                self._dropping = True  # the thread ends at its next step
            self._thread.join()
        return done

    @torch.no_grad()
    def _serve(self) -> None:
        batch = Batch.none(self.decoder)
        while True:
            with self._changed:
                while not self._waiting and not batch.rows and not self._closing:
                    self._changed.wait()
                if self._closing and (self._dropping or not (self._waiting or batch.rows)):
                    left = [*self._waiting, *(row.order for row in batch.rows)]
                    self._waiting.clear()
                    break
                coming = self._next(batch)
                self.running = len(batch.rows) + len(coming)
            if coming:
                try:
                    prepared = prompts_of(self.decoder, coming)
                except Exception as error:  # of these alone: those who stand go on
                    log.exception("a prompt failed")
                    _tell_all(coming, error)
                    coming = []
            try:
                if coming:
                    batch.enter(coming, *prepared)
                if batch.rows:
                    batch.draw(self.decoder.output(batch.hidden), self.ends)
                    batch.leave()
                    batch.narrow()
                if batch.rows:
                    batch.go_on(self.decoder)
                else:
                    batch = Batch.none(self.decoder)  # gives the memory back
            except Exception as error:
                log.exception("drawing failed")
                _tell_all({*coming, *(row.order for row in batch.rows)}, error)
                batch = Batch.none(self.decoder)
            self.running = len(batch.rows)
        _tell_all(left, Busy())

    def _next(self, batch: Batch) -> list[Order]:
        """Orders that begin now: there is a place, their prompts fit into one pass, and no row's end would need more of
        the cache than there may be. The first one that does not fit keeps those behind it waiting."""
        taken, prompts = list[Order](), dict[tuple[int, ...], None]()
        longest = max((row.order.columns for row in batch.rows), default=0)
        longest = max(longest, batch.cache.columns)
        while self._waiting:
            order = self._waiting[0]
            if order.cancelled:
                self._waiting.popleft()
                continue
            count = len(batch.rows) + len(taken) + 1
            longest = max(longest, order.columns)
            tokens = sum(map(len, prompts | {tuple(order.prompt_ids): None}))
            if count > self.max_batch or (count > 1 and count * longest > self.cache_tokens):
                break
            if taken and tokens > PROMPT_TOKENS:
                break
            prompts[tuple(order.prompt_ids)] = None
            taken.append(self._waiting.popleft())
        return taken


def _tell_all(orders: Sequence[Order] | set[Order], error: Exception) -> None:
    for order in orders:
        order.tell(error)
