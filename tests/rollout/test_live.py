"""The live engine: the local engine's tokens whoever else is there, and nobody harmed by another's leaving."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from queue import Queue

import pytest
import torch
from torch import Tensor

from plaudit.models.decode import Decoder
from plaudit.models.load import Model, load_model
from plaudit.rollout.live import Busy, Drawn, LiveEngine, Order
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import SamplingParams
from tiny_models import random_ids

PROMPTS = random_ids(11, 6, 1, 14)
PARAMS = [
    SamplingParams(max_new_tokens=9),
    SamplingParams(max_new_tokens=17, temperature=0.7),
    SamplingParams(max_new_tokens=12, temperature=0),
    SamplingParams(max_new_tokens=9, top_k=20),
    SamplingParams(max_new_tokens=5, top_p=0.8, ignore_eos=True),
]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("tiny", torch.float64)


@pytest.fixture(scope="module")
def decoder(model: Model) -> Decoder:
    return Decoder.of(model.trunk, torch.float64)


@pytest.fixture
def engine(decoder: Decoder, model: Model) -> Iterator[LiveEngine]:
    made = LiveEngine(decoder, model.tokenizer.eos_ids, max_batch=4)
    yield made
    made.close()


class Listener:
    """Hears one completion, and waits for its end."""

    def __init__(self) -> None:
        self.heard: Queue[Drawn | Exception] = Queue()

    def __call__(self, what: Drawn | Exception) -> None:
        self.heard.put(what)

    def whole(self) -> list[Drawn]:
        found = list[Drawn]()
        while not found or found[-1].finish is None:
            what = self.heard.get(timeout=60)
            if isinstance(what, Exception):
                raise what
            found.append(what)
        return found


def ordered(prompt: int, params: SamplingParams, **more: object) -> tuple[Order, Listener]:
    listener = Listener()
    order = Order(PROMPTS[prompt], params, ("live", prompt, 0), listener)
    return replace(order, **more), listener  # type: ignore[arg-type]


def test_everybody_is_given_what_the_local_engine_draws(model: Model, engine: LiveEngine) -> None:
    """Six prompts with five kinds of parameters from three threads, four rows at once, each twice."""
    local = LocalEngine(model.trunk, model.tokenizer)
    listeners: dict[tuple[int, int, int], Listener] = {}

    def caller(thread: int) -> None:
        for prompt in range(len(PROMPTS)):
            for kind, params in enumerate(PARAMS):
                if (prompt + kind) % 3 == thread:
                    for again in range(2):
                        order, listener = ordered(prompt, params)
                        listeners[prompt, kind, again] = listener
                        engine.order(order)

    threads = [threading.Thread(target=caller, args=(thread,)) for thread in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    lengths = set()
    for (prompt, kind, _), listener in listeners.items():
        (wanted,) = local.sample([PROMPTS[prompt]], 1, PARAMS[kind], ("live",), names=[(prompt,)])
        found = listener.whole()
        assert tuple(each.token for each in found) == wanted.completion_ids
        assert [each.logprob for each in found] == pytest.approx(list(wanted.logprobs), abs=1e-12)
        assert found[-1].finish == wanted.finish_reason
        lengths.add(len(found))
    assert len(listeners) == 60
    assert len(lengths) > 2


def test_who_leaves_takes_nothing_from_the_others(model: Model, engine: LiveEngine) -> None:
    """Of six, two leave after two tokens; the others, and one that comes later, hear everything."""
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    made = [ordered(prompt, params) for prompt in range(6)]

    class Leaver(Listener):
        order: Order

        def __call__(self, what: Drawn | Exception) -> None:
            super().__call__(what)
            if self.heard.qsize() == 2:
                self.order.cancel()

    left = list[Leaver]()
    for place in (0, 2):
        leaver = Leaver()
        order = replace(made[place][0], hear=leaver)
        leaver.order = order
        made[place] = order, leaver
        left.append(leaver)
    engine.order(*(order for order, _ in made))
    local = LocalEngine(model.trunk, model.tokenizer)
    for place in (1, 3, 4, 5):
        (wanted,) = local.sample([PROMPTS[place]], 1, params, ("live",), names=[(place,)])
        assert tuple(each.token for each in made[place][1].whole()) == wanted.completion_ids
    assert [leaver.heard.qsize() for leaver in left] == [2, 2]


def test_the_likeliest_tokens_are_told_where_they_are_asked_for(engine: LiveEngine) -> None:
    params = SamplingParams(max_new_tokens=4, temperature=0, ignore_eos=True)
    (asked, one), (plain, other) = ordered(0, params, top=3), ordered(0, params)
    engine.order(asked, plain)
    found = one.whole()
    for each in found:
        assert len(each.top) == 3
        assert each.top[0][0] == each.token
        assert each.top[0][1] == pytest.approx(each.logprob, abs=1e-9)
        assert each.top[0][1] >= each.top[1][1] >= each.top[2][1]
    assert [each.top for each in other.whole()] == [()] * 4
    cooler, third = ordered(1, SamplingParams(max_new_tokens=3, temperature=0.5, ignore_eos=True), top=700)
    engine.order(cooler)
    for each in third.whole():
        assert dict(each.top)[each.token] == pytest.approx(each.logprob, abs=1e-9)


class Even:
    """Only even tokens, and after 6 of them the end-of-text token alone."""

    def __init__(self, size: int, end: int, fails_at: int = -1) -> None:
        self.size, self.end, self.fails_at, self.taken = size, end, fails_at, list[int]()

    def allowed(self) -> Tensor:
        if len(self.taken) == self.fails_at:
            raise RuntimeError("no such rule")
        allowed = torch.zeros(self.size, dtype=torch.bool)
        if len(self.taken) == 6:
            allowed[self.end] = True
        else:
            allowed[2::2] = True
        return allowed

    def take(self, token: int) -> None:
        self.taken.append(token)


def test_a_constraint_says_what_may_be_drawn(model: Model, engine: LiveEngine) -> None:
    size, end = model.trunk.shape.vocab, model.tokenizer.eos_ids[0]
    params = SamplingParams(max_new_tokens=20)
    (bound, one), (free, other) = ordered(0, params, constraint=Even(size, end)), ordered(1, params)
    engine.order(bound, free)
    found = one.whole()
    assert [each.token % 2 for each in found[:-1]] == [0] * 6
    assert (found[-1].token, found[-1].finish) == (end, "stop")
    assert found[-1].logprob == pytest.approx(0.0, abs=1e-9)  # of what was left, it alone
    assert other.whole()


def test_one_whose_constraint_fails_is_told_and_nobody_else(model: Model, engine: LiveEngine) -> None:
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    rule = Even(model.trunk.shape.vocab, model.tokenizer.eos_ids[0], fails_at=3)
    (broken, one), (free, other) = ordered(0, params, constraint=rule), ordered(1, params)
    engine.order(broken, free)
    with pytest.raises(RuntimeError, match="no such rule"):
        one.whole()
    assert len(other.whole()) == 20


def test_one_who_cannot_be_told_harms_nobody(engine: LiveEngine) -> None:
    def deaf(_: Drawn | Exception) -> None:
        raise OSError("gone")

    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    (bad, _), (good, listener) = ordered(0, params, hear=deaf), ordered(1, params)
    engine.order(bad, good)
    assert len(listener.whole()) == 20
    assert bad.cancelled


def test_as_many_wait_as_may_and_no_more(decoder: Decoder, model: Model) -> None:
    engine = LiveEngine(decoder, model.tokenizer.eos_ids, max_batch=1, most_waiting=2)
    gate, began = threading.Event(), threading.Event()

    def slow(_: Drawn | Exception) -> None:
        began.set()
        gate.wait(60)

    params = SamplingParams(max_new_tokens=3, ignore_eos=True)
    first, _ = ordered(0, params, hear=slow)
    engine.order(first)
    assert began.wait(60)
    made = [ordered(prompt, params) for prompt in range(1, 4)]
    with pytest.raises(Busy):
        engine.order(*(order for order, _ in made))
    engine.order(made[0][0], made[1][0])
    with pytest.raises(Busy):
        engine.order(made[2][0])
    made[0][0].cancel()  # whoever gave up keeps nobody out
    engine.order(made[2][0])
    gate.set()
    assert len(made[2][1].whole()) == 3
    assert engine.close()
    with pytest.raises(Busy):
        engine.order(made[0][0])


def test_what_no_cache_has_room_for_is_refused(engine: LiveEngine) -> None:
    context = engine.decoder.shape.context
    for prompt, new in ([1] * context, 1), ([], 5), ([1], 0):
        with pytest.raises(ValueError, match="tokens, where the model takes"):
            engine.order(Order(prompt, SamplingParams(max_new_tokens=new), (), Listener()))


def test_rows_share_a_cache_of_limited_size(decoder: Decoder, model: Model) -> None:
    """Room for 50 columns: of orders that need up to 22 each, two are drawn at a time; one that needs more than there
    is comes alone."""
    engine = LiveEngine(decoder, model.tokenizer.eos_ids, cache_tokens=50)
    seen = list[int]()

    class Watcher(Listener):
        def __call__(self, what: Drawn | Exception) -> None:
            seen.append(engine.running)
            super().__call__(what)

    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    made = [ordered(prompt, params, hear=Watcher()) for prompt in range(6)]
    large = ordered(0, SamplingParams(max_new_tokens=60, ignore_eos=True), hear=Watcher())
    engine.order(*(order for order, _ in made), large[0])
    for order, _ in (*made, large):
        assert isinstance(order.hear, Watcher)
        assert len(order.hear.whole()) == order.params.max_new_tokens
    assert max(seen) == 2
    engine.close()


def test_closing_waits_for_those_who_wait_or_tells_them(decoder: Decoder, model: Model) -> None:
    params = SamplingParams(max_new_tokens=10, ignore_eos=True)
    engine = LiveEngine(decoder, model.tokenizer.eos_ids, max_batch=2)
    made = [ordered(prompt, params) for prompt in range(5)]
    engine.order(*(order for order, _ in made))
    assert engine.close()
    assert [len(listener.whole()) for _, listener in made] == [10] * 5

    engine = LiveEngine(decoder, model.tokenizer.eos_ids, max_batch=1)
    long = [ordered(prompt, replace(params, max_new_tokens=40)) for prompt in range(3)]
    engine.order(*(order for order, _ in long))
    assert not engine.close(timeout=0)
    for _, listener in long[1:]:
        with pytest.raises(Busy):
            listener.whole()
