"""The forward pass of sampling beside the trainer's: prompts at once, then token after token, each kind of trunk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.data.collate import pack
from plaudit.models.adapter import Adapter
from plaudit.models.branch import Branch, hidden_states
from plaudit.models.decode import Cache, Decoder, Linear, Output, packs
from plaudit.models.llama import Llama
from plaudit.models.load import linear_sizes, load_model
from plaudit.models.rotary import Scaling
from tiny_models import random_adapter, random_ids

PROMPTS = random_ids(21, 4, 3, 17)
NEW = random_ids(22, 4, 40, 40)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"qkv_bias": True},
    "normed heads": {"qk_norm": True},
    "one head a key": {"kv_heads": 4},
    "odd widths": {"head_width": 10, "mlp_width": 52},
    "Gemma's": {"gate": "gelu_tanh", "embed_scale": 3.5, "norm_offset": 1.0},
    "all biases": {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
    "scaled": {"rope_scaling": Scaling("llama3", 4.0, 16, 1.0, 4.0, 1.0, True)},
}


def trunk_of(kind: str, dtype: torch.dtype) -> Llama:
    """A random trunk whose norms and biases are not 1 and 0."""
    shape = replace(load_model("tiny", torch.float32).trunk.shape, heads=4, kv_heads=2, head_width=16)
    trunk = Llama(replace(shape, **KINDS[kind]))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * drawn if "norm" in name else drawn * 0.15)
    return trunk.to(dtype).requires_grad_(False)


def trained(trunk: Llama, adapter: Adapter | None) -> Tensor:
    """The trainer's states [4, 41, width] from each prompt's last token on, the texts side by side."""
    packed = pack(PROMPTS, [[*tokens, 0] for tokens in NEW])
    with torch.no_grad():
        hidden = hidden_states(Branch(trunk, adapter), packed)
    return hidden[packed.predictor]


def sampled(decoder: Decoder) -> Tensor:
    """The same, token after token; the third row enters when the others have gone on by nine."""
    columns = max(map(len, PROMPTS))
    cache = Cache.empty(decoder.shape, 4, columns, dtype=decoder.dtype, device=torch.device("cpu"))
    found, last = decoder.prefill([PROMPTS[row] for row in (0, 1, 3)])
    cache.put(0, found, torch.arange(3))
    order, states = [0, 1, 3], {0: [last[0]], 1: [last[1]], 3: [last[2]]}
    for step in range(49):
        if step == 9:
            found, last = decoder.prefill([PROMPTS[2]])
            cache.put(3, found, torch.tensor([0]))
            order.append(2)
            states[2] = [last[0]]
        if step == 40:  # the others are done: the last row takes the first one's place
            cache.move(torch.tensor([3]), torch.tensor([0]))
            order = [2]
        done = [len(states[row]) - 1 for row in order]
        lengths = torch.tensor([len(PROMPTS[row]) + d for row, d in zip(order, done, strict=True)])
        cache.reserve(int(lengths.max()) + 1, len(order))
        tokens = torch.tensor([NEW[row][d] for row, d in zip(order, done, strict=True)])
        for row, state in zip(order, decoder.step(tokens, lengths, cache), strict=True):
            states[row].append(state)
    assert cache.columns > columns + 30, "the cache has grown on the way"
    return torch.stack([torch.stack(states[row]) for row in range(4)])


@pytest.mark.parametrize("adapted", ["bare", "every map", "some maps"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)], ids=str)
def test_states_are_the_trainers(dtype: torch.dtype, tolerance: float, kind: str, adapted: str) -> None:
    trunk = trunk_of(kind, dtype)
    adapter = None
    if adapted == "every map":
        adapter = random_adapter(trunk, blocks=2)
    if adapted == "some maps":
        sizes = linear_sizes(trunk, ("k_proj", "up_proj", "o_proj"))
        adapter = Adapter(sizes, first=0, depth=trunk.shape.depth, rank=3, alpha=5.0, dtype=trunk.wide)
        with torch.no_grad():
            for seed, factor in enumerate(adapter.factors.values()):
                factor.copy_(torch.randn(factor.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    with torch.no_grad():
        mine = sampled(Decoder.of(trunk).adapted(adapter, trunk))
    theirs = trained(trunk, adapter)
    gaps = (mine - theirs).abs() / theirs.std()
    assert float(gaps.mean()) < tolerance
    # CPUs sum in orders of their own: the worst state is 36 tolerances off on one with AMX, below 30 on one with AVX2.
    assert float(gaps.max()) < 60 * tolerance
    assert float(theirs.std()) > 0.5
    if adapter is not None:
        assert float((theirs - trained(trunk, None)).abs().mean()) > 0.05, "the adapter changes something"


def test_weights_are_packed_where_the_machine_has_a_layout_for_them() -> None:
    """float64 has none; what a packed product gives is the plain one's, to rounding."""
    assert not packs(torch.float64)
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    x, bias = torch.randn(5, 24, generator=torch.Generator().manual_seed(1)), torch.arange(40.0)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        linear = Linear.of(weight, bias, dtype)
        assert linear.packed == packs(dtype)
        gap = (linear(x.to(dtype)).float() - (x @ weight.T + bias)).abs().max()
        assert float(gap) < tolerance


def test_a_float32_trunk_is_sampled_in_bfloat16_where_a_run_computes_so() -> None:
    """As the trainer of such a trunk: rounded weights, a float32 stream."""
    trunk = trunk_of("plain", torch.float32)
    decoder = Decoder.of(trunk, torch.bfloat16)
    assert decoder.dtype == torch.bfloat16
    with torch.no_grad():
        mine = sampled(decoder)
    assert mine.dtype == torch.float32
    theirs = trained(trunk, None)
    gap = float((mine - theirs).abs().mean())
    narrow = float((trained(trunk_of("plain", torch.bfloat16), None) - theirs).abs().mean())
    assert 0 < gap < 2 * narrow


def test_bfloat16_logits_are_rounded_near_nothing() -> None:
    """Logits of 30 to 40, where bfloat16 has quarters: the distribution is off by what rounded states alone make."""
    generator = torch.Generator().manual_seed(2)
    weight = (torch.randn(3000, 64, generator=generator) * 0.35).bfloat16()
    weight[:, 0] = 4.0
    hidden = torch.randn(200, 64, generator=generator)
    hidden[:, 0] = 8.5
    hidden = hidden.bfloat16().float()
    exact = torch.log_softmax(hidden @ weight.float().T, -1)
    assert float((hidden @ weight.float().T).max()) > 38
    mine = Output.of(weight, torch.bfloat16)(hidden)
    assert mine.dtype == torch.float32
    plain = torch.log_softmax((hidden.bfloat16() @ weight.T).float(), -1)

    def off(logprobs: Tensor) -> float:
        return float((exact.exp() * (logprobs - exact).abs()).sum(-1).mean())

    assert off(plain) > 0.03
    assert off(torch.log_softmax(mine, -1)) < 0.004
    wide = Output.of(weight, torch.float32)(hidden)
    assert float((torch.log_softmax(wide, -1) - exact).abs().max()) < 1e-4
