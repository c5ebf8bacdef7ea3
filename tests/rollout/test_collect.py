"""Collecting: one pass of the trunk equals every branch run alone, and the first ratio is exactly 1."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from plaudit.data.collate import micro_batches, pack
from plaudit.models.branch import (
    Branch,
    Pool,
    final_scores,
    lower_stream,
    token_logprobs,
    token_shares,
    token_values,
)
from plaudit.models.llama import Llama
from plaudit.models.load import load_model
from plaudit.rollout.collect import Forward, by_token, forward, preflight
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Sample, SamplingParams
from plaudit.types import UserError
from tiny_models import as_samples, random_branch, random_head, random_ids

PROMPTS = [p for p in random_ids(21, 4, 2, 9) for _ in range(3)]
SAMPLES = [
    replace(sample, prompt=place // 3, index=place % 3)
    for place, sample in enumerate(as_samples(PROMPTS, random_ids(22, 12, 1, 8)))
]
PACKED = pack([s.prompt_ids for s in SAMPLES], [s.completion_ids for s in SAMPLES])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def branches(trunk: Llama, blocks: tuple[int, int, int]) -> tuple[Branch, Branch, Branch]:
    policy, value, reward = (random_branch(trunk, blocks=b, seed=i) for i, b in enumerate(blocks))
    policy.head = None
    return policy, value, reward


@DTYPES
@pytest.mark.parametrize("budget", [1, 40, 10_000])
@pytest.mark.parametrize("blocks", [(3, 1, 2), (1, 3, 3), (0, 0, 4), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_one_pass_equals_every_branch_alone(
    dtype: torch.dtype, blocks: tuple[int, int, int], budget: int, pool: Pool
) -> None:
    trunk = load_model("tiny", dtype).trunk
    policy, value, reward = branches(trunk, blocks)
    reward.pool = pool
    seen = forward(
        SAMPLES, reference=trunk, policy=policy, value=value, reward=reward, temperature=0.8, budget=budget
    )
    with torch.no_grad():
        now = token_logprobs(policy, PACKED, temperature=0.8, entropy=True)
        alone = {
            "logprobs": now.logprobs,
            "entropies": now.entropies,
            "ref_logprobs": token_logprobs(Branch(trunk), PACKED, temperature=0.8).logprobs,
            "values": token_values(value, PACKED),
            "shares": token_shares(reward, PACKED),
        }
    for name, expected in alone.items():
        found = getattr(seen, name)
        assert found.dtype == dtype, name
        assert float((found - expected).abs().max()) < (1e-12 if dtype == torch.float64 else 1e-5), name
    assert len({round(float(x.sum()), 6) for x in alone.values()}) == 5
    real = (PACKED.segments >= 0)[..., None]
    assert set(seen.streams) == {b.first for b in (policy, value, reward)}
    for depth, stream in seen.streams.items():
        gap = (stream - lower_stream(trunk, PACKED, depth)) * real
        assert float(gap.abs().max()) < (1e-12 if dtype == torch.float64 else 1e-5)
    assert bool((seen.sampled_logprobs == -1.0 * PACKED.mask).all())


def test_without_a_reward_branch_there_are_no_shares() -> None:
    trunk = load_model("tiny", torch.float64).trunk
    policy, value, _ = branches(trunk, (1, 2, 1))
    seen = forward(
        SAMPLES, reference=trunk, policy=policy, value=value, reward=None, temperature=1.0, budget=64
    )
    assert seen.shares is None
    assert set(seen.streams) == {2, 3}


def test_nothing_of_it_carries_a_gradient() -> None:
    trunk = load_model("tiny", torch.float64).trunk
    policy, value, reward = branches(trunk, (1, 2, 1))
    seen = forward(
        SAMPLES, reference=trunk, policy=policy, value=value, reward=reward, temperature=1.0, budget=64
    )
    assert seen.shares is not None
    for tensor in (seen.logprobs, seen.values, seen.shares, *seen.streams.values()):
        assert not tensor.requires_grad


@DTYPES
@pytest.mark.parametrize("budget", [30, 10_000])
def test_the_first_ratio_is_exactly_1(dtype: torch.dtype, budget: int) -> None:
    """Bit for bit, whatever order the rows are named in, from the kept streams and from nothing."""
    trunk = load_model("tiny", dtype).trunk
    policy, value, _ = branches(trunk, (3, 1, 1))
    seen = forward(
        SAMPLES, reference=trunk, policy=policy, value=value, reward=None, temperature=0.7, budget=budget
    )
    order = torch.tensor([2, 0, 3, 1])
    for with_stream in (True, False):
        for rows in micro_batches(seen.packed, budget, order):
            part, index = seen.packed.take(rows)
            steps, columns = part.mask.shape[1], part.ids.shape[1]
            entered = (
                {"stream": seen.streams[policy.first][rows, :columns], "depth": policy.first}
                if with_stream
                else {}
            )
            now = token_logprobs(policy, part, temperature=0.7, **entered).logprobs  # type: ignore[arg-type]
            assert now.requires_grad
            assert torch.equal(now, seen.logprobs[index, :steps])
            if with_stream:
                stream = seen.streams[value.first][rows, :columns]
                assert torch.equal(
                    token_values(value, part, stream=stream, depth=value.first), seen.values[index, :steps]
                )


def test_branches_of_their_own_trunks_are_run_whole() -> None:
    """Full fine-tuning: policy and value are trained trunks, the reference and the reward share another."""
    trunk = load_model("tiny", torch.float64).trunk
    torch.manual_seed(0)
    own = [copy.deepcopy(trunk).requires_grad_(True) for _ in range(2)]
    with torch.no_grad():
        for number, other in enumerate(own):
            for parameter in other.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05 * (number + 1))
    policy, value = Branch(own[0]), Branch(own[1], head=random_head(trunk))
    reward = random_branch(trunk, blocks=0, seed=5)
    seen = forward(
        SAMPLES, reference=trunk, policy=policy, value=value, reward=reward, temperature=1.0, budget=50
    )
    assert seen.shares is not None
    with torch.no_grad():
        for found, expected in (
            (seen.logprobs, token_logprobs(policy, PACKED).logprobs),
            (seen.ref_logprobs, token_logprobs(Branch(trunk), PACKED).logprobs),
            (seen.values, token_values(value, PACKED)),
            (seen.shares.sum(1), final_scores(reward, PACKED)),
        ):
            assert float((found - expected).abs().max()) < 1e-12
    assert float((seen.logprobs - seen.ref_logprobs).abs().max()) > 0.1


def test_sampled_logprobs_keep_their_places() -> None:
    samples = [
        replace(s, logprobs=tuple(-(i * 100.0 + t) for t in range(len(s.logprobs))))
        for i, s in enumerate(SAMPLES)
    ]
    out = by_token([s.logprobs for s in samples], samples, PACKED)
    for i, sample in enumerate(samples):
        count = len(sample.completion_ids)
        assert out[i, :count].tolist() == [-(i * 100.0 + t) for t in range(count)]
        assert not bool(out[i, count:].any())


def test_what_stands_at_an_observation_changes_nothing() -> None:
    """Not its log-probability, which may be NaN; and what was drawn keeps the numbers that it has without a mask."""
    trunk = load_model("tiny", torch.float64).trunk
    policy, value, reward = branches(trunk, (1, 3, 2))
    reward.pool = "mean"
    masks = [tuple(t % 3 != 1 for t in range(len(s.completion_ids))) for s in SAMPLES]

    def seen(there: float) -> Forward:
        samples = [
            replace(
                s, action_mask=m, logprobs=tuple(-1.0 - t if drawn else there for t, drawn in enumerate(m))
            )
            for s, m in zip(SAMPLES, masks, strict=True)
        ]
        return forward(
            samples, reference=trunk, policy=policy, value=value, reward=reward, temperature=0.8, budget=50
        )

    one, other = seen(0.0), seen(float("nan"))
    whole = forward(
        SAMPLES, reference=trunk, policy=policy, value=value, reward=None, temperature=0.8, budget=50
    )
    mask = one.packed.mask
    assert 0 < int(mask.sum()) < int(whole.packed.mask.sum())
    for name in ("logprobs", "ref_logprobs", "sampled_logprobs", "entropies", "values", "shares"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert not bool(getattr(one, name)[~mask].any()), name
        if name not in ("sampled_logprobs", "shares"):
            assert float((getattr(one, name) - getattr(whole, name) * mask).abs().max()) < 1e-12, name
    place = torch.arange(mask.shape[1], dtype=torch.float64)
    assert torch.equal(one.sampled_logprobs, (-1.0 - place) * mask)


def test_sampler_and_trainer_agree_about_what_was_drawn() -> None:
    """The preflight's own measure, in float64 far below its limit; and for another policy far above it."""
    model = load_model("tiny", torch.float64)
    policy, value, _ = branches(model.trunk, (2, 1, 1))
    engine = LocalEngine(model.trunk, model.tokenizer)
    engine.load(policy.adapter, "")

    def gap(samples: list[Sample], temperature: float) -> float:
        seen = forward(
            samples, reference=model.trunk, policy=policy, value=value, reward=None,
            temperature=temperature, budget=99,
        )  # fmt: skip
        return float((seen.logprobs - seen.sampled_logprobs).abs().sum() / seen.packed.mask.sum())

    params = SamplingParams(max_new_tokens=8, temperature=0.7)
    samples = list(engine.sample(PROMPTS[::3], 3, params, (0,)))
    assert gap(samples, 0.7) < 1e-10
    assert gap(samples, 1.0) > 0.01
    engine.load(None, "")
    assert gap(list(engine.sample(PROMPTS[::3], 3, params, (0,))), 0.7) > 0.01


LIMITS = ((torch.float32, 1e-4), (torch.float64, 1e-4), (torch.bfloat16, 0.03))


@pytest.mark.parametrize(("dtype", "limit"), LIMITS, ids=str)
@pytest.mark.parametrize("share", [0.95, 1.05, float("nan")])
def test_preflight_draws_its_line_at_the_mean_difference(
    dtype: torch.dtype, limit: float, share: float
) -> None:
    """Of counted tokens alone, up or down; the one precision that can be left is named."""
    now = PACKED.mask * -2.0
    signs = torch.ones_like(now)
    signs[::2] = -1
    sampled = torch.where(PACKED.mask, now + share * limit * signs, 99.0)
    seen = Forward(PACKED, {}, now, now, sampled, now, now, None)
    if share < 1:
        preflight(seen, dtype)
        return
    fix = "set precision: float32" if dtype == torch.bfloat16 else "please report it"
    with pytest.raises(UserError, match=f"nats a token, more than {limit}; {fix}"):
        preflight(seen, dtype)
