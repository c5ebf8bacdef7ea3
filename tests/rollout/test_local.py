"""The local engine: greedy as transformers generates, drawn as the softmax says, and the same however batched."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plaudit.data.collate import pack
from plaudit.models.adapter import Adapter
from plaudit.models.branch import Branch, hidden_states, token_logprobs
from plaudit.models.decode import Cache, Decoder
from plaudit.models.llama import Llama
from plaudit.models.load import Model, load_model
from plaudit.randomness import rng
from plaudit.rollout.local import LocalEngine, draw
from plaudit.tensors import Sample, SamplingParams
from plaudit.types import UserError
from tiny_models import random_adapter, random_ids, transformers_model

PROMPTS = random_ids(11, 5, 1, 14)
KEY = (3, "test", 0)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("tiny", torch.float64)


def peaked(trunk: Llama, *, ends: float = 0.0) -> Llama:
    """The trunk with an output twenty times as sure, whose end-of-text token is `ends` likelier or less likely."""
    other = load_model("tiny", trunk.dtype).trunk
    with torch.no_grad():
        other.norm.mul_(20.0)
        if ends:
            other.embedding[1] += ends * other.embedding[2:].mean(0)
    return other


def drawn(
    engine: LocalEngine, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, key: Any = KEY
) -> list[Sample]:
    return sorted(engine.sample(prompts, n, params, key), key=lambda s: (s.prompt, s.index))


def ids(samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    return [s.completion_ids for s in samples]


def test_greedy_is_what_transformers_generates(model: Model) -> None:
    """Five prompts of 1 to 14 tokens in one batch, against transformers' generate one by one."""
    theirs = transformers_model(model.directory, torch.float64)
    params = SamplingParams(max_new_tokens=12, temperature=0)
    ours = drawn(LocalEngine(model.trunk, model.tokenizer), PROMPTS, 1, params)
    assert len({len(p) for p in PROMPTS}) > 2
    for prompt, sample in zip(PROMPTS, ours, strict=True):
        out = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=12,
            do_sample=False,
        )
        assert sample.completion_ids == tuple(out[0, len(prompt) :].tolist())
        assert sample.prompt_ids == tuple(prompt)
    assert len(set(ids(ours))) > 1


def test_greedy_through_an_adapter_is_what_the_trainer_finds_likeliest(model: Model) -> None:
    adapter = random_adapter(model.trunk, blocks=2)
    engine = LocalEngine(model.trunk, model.tokenizer)
    engine.load(adapter, "adapted")
    params = SamplingParams(max_new_tokens=8, temperature=0, ignore_eos=True)
    samples = drawn(engine, PROMPTS, 1, params)
    packed = pack(PROMPTS, [s.completion_ids for s in samples])
    hidden = hidden_states(Branch(model.trunk, adapter), packed).index_select(
        0, packed.predictor[packed.mask]
    )
    logits = hidden @ model.trunk.output_weight.T
    logits[:, 1] = -torch.inf
    assert logits.argmax(-1).tolist() == packed.tokens[packed.mask].tolist()
    assert {s.policy_version for s in samples} == {"adapted"}
    engine.load(None, "bare")
    assert ids(drawn(engine, PROMPTS, 1, params)) != ids(samples)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("adapted", [True, False])
def test_reported_logprobs_are_the_trainers(
    dtype: torch.dtype, tolerance: float, temperature: float, adapted: bool
) -> None:
    """One float32 number may be off by 5e-6 (logits near 7 have 5e-7 apart); their mean stays within 1e-6."""
    model = load_model("tiny", dtype)
    adapter = random_adapter(model.trunk, blocks=2) if adapted else None
    engine = LocalEngine(model.trunk, model.tokenizer)
    engine.load(adapter, "")
    params = SamplingParams(max_new_tokens=10, temperature=temperature)
    samples = drawn(engine, PROMPTS, 3, params)
    packed = pack([s.prompt_ids for s in samples], [s.completion_ids for s in samples])
    with torch.no_grad():
        mine = token_logprobs(Branch(model.trunk, adapter), packed, temperature=temperature).logprobs
    theirs = torch.tensor([x for s in samples for x in s.logprobs], dtype=torch.float64)
    gaps = (mine[packed.mask].double() - theirs).abs()
    assert float(gaps.max()) < tolerance
    assert float(gaps.mean()) < min(tolerance, 1e-6)
    assert all(len(s.logprobs) == len(s.completion_ids) for s in samples)


def chi_square(observed: Counter[int], probabilities: np.ndarray[Any, Any], count: int) -> float:
    """The upper tail of Pearson's statistic; cells expected under 5 times are pooled (Wilson-Hilferty)."""
    expected = probabilities * count
    common = expected >= 5
    seen = np.array([observed[i] for i in range(len(expected))], dtype=float)
    pairs = [
        *zip(seen[common], expected[common], strict=True),
        (seen[~common].sum(), expected[~common].sum()),
    ]
    statistic = sum((o - e) ** 2 / e for o, e in pairs if e > 0)
    freedom = sum(e > 0 for _, e in pairs) - 1
    normal = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(normal / math.sqrt(2))


def test_the_chi_square_by_a_table() -> None:
    """10 degrees of freedom: 18.31 is the 5 % point."""
    expected = np.full(11, 1 / 11)
    observed = Counter(dict.fromkeys(range(11), 100))
    step = math.sqrt(18.307 * 100 / 2)
    observed[0] += round(step)
    observed[1] -= round(step)
    assert abs(chi_square(observed, expected, 1100) - 0.05) < 0.005


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_distribution(temperature: float) -> None:
    """First tokens of 4,000 samples, and second tokens given the likeliest first, against the exact softmax."""
    trunk = peaked(load_model("tiny", torch.float32).trunk)
    engine = LocalEngine(trunk, load_model("tiny", torch.float32).tokenizer, max_batch=1000)
    prompt = PROMPTS[0]
    samples = drawn(engine, [prompt], 4000, SamplingParams(max_new_tokens=2, temperature=temperature))
    first = Counter(s.completion_ids[0] for s in samples)

    def exact(before: list[int]) -> np.ndarray[Any, Any]:
        packed = pack([before], [[0]])
        hidden = hidden_states(Branch(trunk), packed)[len(before) - 1].double()
        return torch.softmax(hidden @ trunk.output_weight.double().T / temperature, -1).numpy()

    probabilities = exact(prompt)
    assert chi_square(first, probabilities, 4000) > 1e-4
    assert chi_square(first, exact([*prompt[:-1], 7]), 4000) < 1e-6, "another distribution is told apart"
    likeliest = first.most_common(1)[0][0]
    second = [s.completion_ids[1] for s in samples if s.completion_ids[0] == likeliest and likeliest != 1]
    assert len(second) > 100
    assert chi_square(Counter(second), exact([*prompt, likeliest]), len(second)) > 1e-4


@pytest.mark.parametrize(
    ("params", "support"),
    [
        (SamplingParams(top_k=1), {3}),
        (SamplingParams(top_k=2), {3, 0}),
        (SamplingParams(top_k=9), {0, 1, 2, 3, 4}),
        (SamplingParams(top_p=0.39), {3}),
        (SamplingParams(top_p=0.41), {3, 0}),  # 0.4 alone does not reach it: the one that crosses stays
        (SamplingParams(top_p=0.69), {3, 0}),
        (SamplingParams(top_p=0.71), {3, 0, 4}),
        (SamplingParams(top_p=1e-9), {3}),
        (SamplingParams(top_k=2, top_p=0.99), {3, 0}),
        (SamplingParams(top_k=3, top_p=0.5), {3, 0}),
        (SamplingParams(), {0, 1, 2, 3, 4}),
    ],
    ids=str,
)
def test_top_k_and_top_p_leave_exactly_their_support(params: SamplingParams, support: set[int]) -> None:
    """Probabilities 0.3, 0.05, 0.05, 0.4, 0.2: what is left keeps its proportions; what is reported is not cut."""
    probabilities = torch.tensor([0.3, 0.05, 0.05, 0.4, 0.2], dtype=torch.float64)
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens, logprobs = draw(probabilities.log().expand(10_000, 5), grid, params)
    shares = torch.bincount(tokens, minlength=5) / 10_000
    assert set(tokens.tolist()) == support
    kept = torch.tensor([i in support for i in range(5)])
    expected = torch.where(kept, probabilities, 0.0)
    assert torch.allclose(shares.double(), expected / expected.sum(), atol=2e-4)
    assert torch.allclose(logprobs, probabilities.log()[tokens])


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    """By hand: a quarter each; a number at a border belongs to the token above it."""
    logits = torch.zeros(6, 4, dtype=torch.float64)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.75, 0.9999999], dtype=torch.float64)
    assert draw(logits, uniforms, SamplingParams())[0].tolist() == [0, 0, 1, 2, 3, 3]


@pytest.mark.parametrize("vocab", [255, 256, 257, 700, 1024])
def test_a_draw_from_a_large_vocabulary_is_numpys(vocab: int) -> None:
    """Whatever blocks the sums are taken in, and where the last one is not full."""
    logits = torch.randn(50, vocab, generator=torch.Generator().manual_seed(vocab), dtype=torch.float64) * 2
    logits[:, -1] += 6
    grid = rng("grid", vocab).random(50)
    tokens, _ = draw(logits, torch.from_numpy(grid), SamplingParams())
    cumulative = torch.softmax(logits, -1).numpy().cumsum(-1)
    assert tokens.tolist() == [
        int(np.searchsorted(c, u, "right")) for c, u in zip(cumulative, grid, strict=True)
    ]
    assert vocab - 1 in tokens


def test_top_p_that_needs_most_of_a_large_vocabulary() -> None:
    """3,000 words alike but for a slope: 0.9 of them are 2,700, of which far fewer are sorted at first."""
    logits = torch.linspace(0, -1e-6, 3000, dtype=torch.float64).expand(2000, 3000)
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    tokens, _ = draw(logits, grid, SamplingParams(top_p=0.9))
    assert 2695 < int(tokens.max()) <= 2700
    assert abs(float(tokens.double().mean()) - 1350) < 2


def test_what_has_no_probability_is_never_drawn() -> None:
    """Neither where rounding carries a float32 number up to 1, nor at 0, nor between."""
    inf = torch.inf
    logits = torch.tensor([[-inf, 0.0, -inf, 0.0, -inf]]).expand(5, 5)
    uniforms = torch.tensor([0.0, 0.4999, 0.5, 1 - 1e-17, 1 - 1e-9], dtype=torch.float64)
    tokens, logprobs = draw(logits, uniforms, SamplingParams())
    assert tokens.tolist() == [1, 1, 3, 3, 3]
    assert torch.allclose(logprobs, torch.full((5,), math.log(0.5)))


def test_temperature_zero_takes_the_likeliest_and_reports_it_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, math.log(3.0), 0.0]])
    token, logprob = draw(logits, torch.tensor([0.999]), SamplingParams(temperature=0))
    assert token.tolist() == [1]
    assert torch.allclose(logprob, torch.tensor([math.log(0.6)]))


def test_draws_do_not_depend_on_the_batch(model: Model) -> None:
    """max_batch, how many samples are asked for, and which other prompts stand beside: nothing changes."""
    params = SamplingParams(max_new_tokens=9)
    whole = drawn(LocalEngine(model.trunk, model.tokenizer, max_batch=64), PROMPTS, 4, params)
    for max_batch in (1, 3, 7):
        part = drawn(LocalEngine(model.trunk, model.tokenizer, max_batch=max_batch), PROMPTS, 4, params)
        assert ids(part) == ids(whole)
        gaps = [
            abs(a - b)
            for s, t in zip(part, whole, strict=True)
            for a, b in zip(s.logprobs, t.logprobs, strict=True)
        ]
        assert max(gaps) < 1e-12
    fewer = drawn(LocalEngine(model.trunk, model.tokenizer), PROMPTS, 2, params)
    assert ids(fewer) == [s.completion_ids for s in whole if s.index < 2]
    beside = [PROMPTS[0], *random_ids(99, 4, 20, 30)]
    assert ids(drawn(LocalEngine(model.trunk, model.tokenizer), beside, 4, params))[:4] == ids(whole)[:4]
    assert len(set(ids(whole))) == len(whole), "no two samples are the same draw"


def test_draws_depend_on_the_key_the_prompts_number_and_the_index(model: Model) -> None:
    engine = LocalEngine(model.trunk, model.tokenizer)
    params = SamplingParams(max_new_tokens=9)
    once = ids(drawn(engine, PROMPTS, 2, params))
    assert ids(drawn(engine, PROMPTS, 2, params)) == once
    assert ids(drawn(engine, PROMPTS, 2, params, (3, "test", 1))) != once
    twice = ids(drawn(engine, [PROMPTS[0], PROMPTS[0]], 2, params))
    assert len(set(twice)) == 4, "the same prompt asked twice in one call is drawn anew"


def test_a_shorter_run_is_the_beginning_of_a_longer_one(model: Model) -> None:
    engine = LocalEngine(model.trunk, model.tokenizer)
    short = ids(drawn(engine, PROMPTS, 2, SamplingParams(max_new_tokens=4)))
    long = ids(drawn(engine, PROMPTS, 2, SamplingParams(max_new_tokens=9)))
    assert [tokens[:4] for tokens in long] == short


def test_each_number_of_the_key_decides_its_own_token(model: Model) -> None:
    """Token t inverts the distribution after the tokens before it at the t-th number of (key, prompt, index)."""
    sample = drawn(LocalEngine(model.trunk, model.tokenizer), PROMPTS, 2, SamplingParams(max_new_tokens=6))[3]
    uniforms = rng(*KEY, 1, 1).random(6)
    packed = pack([sample.prompt_ids], [sample.completion_ids])
    hidden = hidden_states(Branch(model.trunk), packed).index_select(0, packed.predictor[packed.mask])
    cumulative = torch.softmax(hidden @ model.trunk.output_weight.T, -1).cumsum(-1).numpy()
    expected = [
        int(np.searchsorted(row, u, side="right")) for row, u in zip(cumulative, uniforms, strict=False)
    ]
    assert list(sample.completion_ids) == expected


@pytest.fixture(scope="module")
def ending(model: Model) -> LocalEngine:
    """A policy that ends about every fifth time."""
    trunk = load_model("tiny", torch.float64).trunk
    lift = Lifted(trunk)
    return LocalEngine(lift.trunk, model.tokenizer)


class Lifted:
    """The tiny trunk with an output layer of its own, in which end-of-text is a fifth of the probability."""

    def __init__(self, trunk: Llama) -> None:
        self.trunk = trunk
        output = trunk.embedding.detach().clone() * 0.05
        packed = pack(PROMPTS, [[2]] * len(PROMPTS))
        with torch.no_grad():
            mean = hidden_states(Branch(trunk), packed)[packed.segments.flatten() >= 0].mean(0)
            output[1] = mean / mean.square().sum() * math.log(714 / 4)
        trunk.output = torch.nn.Parameter(output, requires_grad=False)


def test_end_of_text_stops_and_is_part_of_the_completion(ending: LocalEngine) -> None:
    samples = drawn(ending, PROMPTS, 40, SamplingParams(max_new_tokens=12))
    stopped = [s for s in samples if s.finish_reason == "stop"]
    assert 20 < len(stopped) < 200
    for sample in samples:
        assert 1 not in sample.completion_ids[:-1]
        assert (sample.completion_ids[-1] == 1) == (sample.finish_reason == "stop")
        assert sample.finish_reason == "stop" or len(sample.completion_ids) == 12
        assert len(sample.logprobs) == len(sample.completion_ids)
        assert sample.text == ending.tokenizer.decode(sample.completion_ids)
    assert len({len(s.completion_ids) for s in stopped}) > 5


@pytest.mark.parametrize("max_batch", [3, 8, 64])
def test_rows_that_leave_and_enter_change_nothing(ending: LocalEngine, max_batch: int) -> None:
    """Rows that have ended make room for others, and the last take their places; alone, a row never meets that."""
    params = SamplingParams(max_new_tokens=48)
    together = drawn(LocalEngine(ending.trunk, ending.tokenizer, max_batch=max_batch), PROMPTS, 8, params)
    assert len({len(s.completion_ids) for s in together}) > 8, "they end at many different times"
    alone = drawn(LocalEngine(ending.trunk, ending.tokenizer, max_batch=1), PROMPTS, 8, params)
    assert ids(together) == ids(alone)
    gaps = [
        abs(a - b)
        for s, t in zip(together, alone, strict=True)
        for a, b in zip(s.logprobs, t.logprobs, strict=True)
    ]
    assert max(gaps) < 1e-12


def test_the_batch_stays_full_and_a_prompt_is_computed_once(
    ending: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five prompts of twenty samples, eight rows at a time."""
    rows, prompts = list[int](), list[tuple[int, ...]]()
    step, prefill = Decoder.step, Decoder.prefill

    def counted(self: Decoder, tokens: Tensor, lengths: Tensor, cache: Cache) -> Tensor:
        rows.append(len(tokens))
        return step(self, tokens, lengths, cache)

    def noted(self: Decoder, asked: Sequence[Sequence[int]]) -> tuple[Cache, Tensor]:
        prompts.extend(tuple(prompt) for prompt in asked)
        return prefill(self, asked)

    monkeypatch.setattr(Decoder, "step", counted)
    monkeypatch.setattr(Decoder, "prefill", noted)
    engine = LocalEngine(ending.trunk, ending.tokenizer, max_batch=8)
    samples = drawn(engine, PROMPTS, 20, SamplingParams(max_new_tokens=48))
    assert sorted(prompts) == sorted(map(tuple, PROMPTS))
    wanted = sum(len(s.completion_ids) - 1 for s in samples)
    assert sum(rows) == wanted, "no row is computed that nobody waits for"
    assert len(rows) < 0.8 * sum(max(lengths) for lengths in batches_of_eight(samples)), (
        "no batch waits for its last"
    )


def batches_of_eight(samples: Sequence[Sample]) -> list[list[int]]:
    """How long the samples are, in the batches that they would make if a batch had to end before the next."""
    order = sorted(samples, key=lambda s: (len(s.prompt_ids), s.prompt, s.index))
    lengths = [len(s.completion_ids) for s in order]
    return [lengths[start : start + 8] for start in range(0, len(lengths), 8)]


def test_ignoring_the_end_goes_on_to_the_last_token(ending: LocalEngine) -> None:
    samples = drawn(ending, PROMPTS, 10, SamplingParams(max_new_tokens=12, ignore_eos=True))
    assert all(len(s.completion_ids) == 12 and 1 not in s.completion_ids for s in samples)
    assert {s.finish_reason for s in samples} == {"length"}
    # What is reported is the distribution that was drawn from, without the end: it sums to 1 over the rest.
    packed = pack([s.prompt_ids for s in samples], [s.completion_ids for s in samples])
    hidden = hidden_states(Branch(ending.trunk), packed).index_select(0, packed.predictor[packed.mask])
    logits: Tensor = hidden @ ending.trunk.output_weight.T
    logits[:, 1] = -torch.inf
    exact = torch.log_softmax(logits, -1).gather(1, packed.tokens[packed.mask][:, None])[:, 0]
    reported = torch.tensor([x for s in samples for x in s.logprobs], dtype=torch.float64)
    assert float((exact - reported).abs().max()) < 1e-10


def test_any_of_several_ends_stops(model: Model) -> None:
    tokenizer = load_model("tiny", torch.float64).tokenizer
    params = SamplingParams(max_new_tokens=20)
    free = ids(drawn(LocalEngine(model.trunk, tokenizer), PROMPTS, 2, params))
    tokenizer.eos_ids = (1, free[0][3], free[1][5])
    samples = drawn(LocalEngine(model.trunk, tokenizer), PROMPTS, 2, params)
    for before, sample in zip(free, samples, strict=True):
        ends = [t for t, token in enumerate(before) if token in tokenizer.eos_ids]
        assert sample.completion_ids == (before[: ends[0] + 1] if ends else before)
        assert sample.finish_reason == ("stop" if ends else "length")


def test_a_sample_says_whose_it_is(model: Model) -> None:
    params = SamplingParams(max_new_tokens=3, temperature=0.9)
    (sample,) = drawn(LocalEngine(model.trunk, model.tokenizer), [[5, 6]], 1, params)
    assert (sample.prompt, sample.index, sample.prompt_ids, sample.params) == (0, 0, (5, 6), params)
    assert sample.tokenizer == model.tokenizer.fingerprint
    assert sample.policy_version == "start"


def test_samples_come_as_their_batches_end(model: Model) -> None:
    engine = LocalEngine(model.trunk, model.tokenizer, max_batch=4)
    stream = engine.sample(PROMPTS, 2, SamplingParams(max_new_tokens=2), KEY)
    first = next(stream)
    shortest = min(range(len(PROMPTS)), key=lambda p: len(PROMPTS[p]))
    assert first.prompt == shortest, "prompts of one length stand together"
    assert len(list(stream)) == 2 * len(PROMPTS) - 1


def test_another_trunk_and_back(model: Model) -> None:
    engine = LocalEngine(model.trunk, model.tokenizer)
    params = SamplingParams(max_new_tokens=6)
    before = ids(drawn(engine, PROMPTS, 2, params))
    other = peaked(model.trunk)
    engine.load(other, "other")
    sure = drawn(engine, PROMPTS, 2, params)
    assert ids(sure) != before
    assert ids(sure) == ids(drawn(LocalEngine(other, model.tokenizer), PROMPTS, 2, params))
    with torch.no_grad():  # trained in place, then loaded again
        other.norm.div_(20.0)
    engine.load(other, "trained")
    assert ids(drawn(engine, PROMPTS, 2, params)) == before


def test_an_adapter_trained_in_place_is_sampled_as_it_is_now(model: Model) -> None:
    adapter: Adapter = random_adapter(model.trunk)
    engine = LocalEngine(model.trunk, model.tokenizer)
    engine.load(adapter, "a")
    params = SamplingParams(max_new_tokens=9)
    before = ids(drawn(engine, PROMPTS, 2, params))
    with torch.no_grad():
        for factor in adapter.parameters():
            factor.mul_(2.0)
    assert ids(drawn(engine, PROMPTS, 2, params)) != before


@pytest.mark.parametrize(("length", "new"), [(250, 7), (256, 1), (300, 1), (0, 1)])
def test_a_prompt_that_leaves_no_room_is_refused_before_anything_is_drawn(
    model: Model, length: int, new: int
) -> None:
    engine = LocalEngine(model.trunk, model.tokenizer)
    with pytest.raises(UserError, match=r"prompt 2: has .* tokens"):
        next(engine.sample([[5], [5] * length], 1, SamplingParams(max_new_tokens=new), KEY))


def test_a_prompt_that_just_fits_is_taken(model: Model) -> None:
    engine = LocalEngine(model.trunk, model.tokenizer)
    (sample,) = drawn(engine, [[5] * 250], 1, SamplingParams(max_new_tokens=6))
    assert len(sample.completion_ids) == 6


SCRIPT = """
import torch
from plaudit.models.load import load_model
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import SamplingParams
torch.set_num_threads(1)
model = load_model("tiny", torch.float32)
engine, params = LocalEngine(model.trunk, model.tokenizer), SamplingParams(max_new_tokens=8)
for s in engine.sample([[5, 6, 7], [8]], 3, params, (1, "k")):
    print(s.prompt, s.index, s.completion_ids, [x.hex() for x in s.logprobs])
"""


def test_the_same_key_gives_the_same_text_in_another_process() -> None:
    """To the last bit of the log-probabilities: hash seeds and memory addresses decide nothing."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    found = [process.communicate()[0] for process in running]
    assert found[0] == found[1]
    assert len(found[0].splitlines()) == 6
