"""Branches: a stream entered half-way, what learns and what does not, the scalar head, and states that come back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plaudit.data.collate import pack
from plaudit.models.branch import (
    Branch,
    Pool,
    ScalarHead,
    final_scores,
    hidden_states,
    lower_stream,
    token_logprobs,
    token_shares,
    token_values,
)
from plaudit.models.llama import Llama
from plaudit.models.load import load_model, make_adapter
from tiny_models import random_adapter, random_branch, random_head, random_ids

PROMPTS, COMPLETIONS = [[4, 5, 6]] * 3 + [[8, 9]], random_ids(4, 4, 2, 6)
PACKED = pack(PROMPTS, COMPLETIONS)


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=str)
def trunk(request: pytest.FixtureRequest) -> Llama:
    return load_model("tiny", request.param).trunk


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_stream_entered_half_way_gives_the_whole_run(trunk: Llama, blocks: int) -> None:
    branch = random_branch(trunk, blocks=blocks)
    whole = token_logprobs(branch, PACKED, entropy=True)
    for depth in range(branch.first + 1):
        stream = lower_stream(trunk, PACKED, depth)
        part = token_logprobs(branch, PACKED, stream=stream, depth=depth, entropy=True)
        for a, b in ((whole.logprobs, part.logprobs), (whole.entropies, part.entropies)):
            assert torch.equal(a, b)
        for of_head in (token_values, final_scores):
            assert torch.equal(of_head(branch, PACKED, stream=stream, depth=depth), of_head(branch, PACKED))


def test_a_stream_entered_above_the_adapter_is_another_model(trunk: Llama) -> None:
    """The depth matters: what enters above an adapted block misses it."""
    branch = random_branch(trunk, blocks=3)
    late = token_logprobs(branch, PACKED, stream=lower_stream(trunk, PACKED, 2), depth=2).logprobs
    assert float((late - token_logprobs(branch, PACKED).logprobs).detach().abs().max()) > 0.01


def test_the_temperature_divides_the_logits(trunk: Llama) -> None:
    branch = random_branch(trunk)
    hidden = hidden_states(branch, PACKED).index_select(0, PACKED.predictor[PACKED.mask])
    logits = (hidden @ trunk.output_weight.T).double() / 0.7
    logprobs = torch.log_softmax(logits, -1)
    out = token_logprobs(branch, PACKED, temperature=0.7, entropy=True)
    expected = logprobs.gather(1, PACKED.tokens[PACKED.mask][:, None])[:, 0]
    tolerance = 1e-12 if trunk.dtype == torch.float64 else 1e-5
    assert float((out.logprobs[PACKED.mask] - expected).detach().abs().max()) < tolerance
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    assert float((out.entropies[PACKED.mask] - entropy).detach().abs().max()) < tolerance


def test_only_the_adapter_learns_from_logprobs(trunk: Llama) -> None:
    branch = random_branch(trunk, blocks=2)
    torch.autograd.backward(token_logprobs(branch, PACKED).logprobs.sum())
    assert branch.adapter is not None
    assert branch.head is not None
    assert all(p.grad is not None and bool(p.grad.any()) for p in branch.adapter.parameters())
    assert all(p.grad is None for p in branch.head.parameters())
    assert all(p.grad is None for p in trunk.parameters())
    assert len(branch.parameters()) == len(list(branch.adapter.parameters())) + 2


def test_a_fresh_adapter_learns_at_once_though_it_changes_nothing(trunk: Llama) -> None:
    adapter = make_adapter(trunk, rank=2, alpha=4.0, blocks=1, seed=0)
    torch.autograd.backward(token_logprobs(Branch(trunk, adapter), PACKED).logprobs.sum())
    grads = {name: factor.grad for name, factor in adapter.factors.items()}
    assert all(bool(g.any()) == name.endswith("_B") for name, g in grads.items() if g is not None)
    assert all(g is not None for g in grads.values())


def test_the_gradient_is_that_of_finite_differences() -> None:
    trunk = load_model("tiny", torch.float64).trunk
    branch = random_branch(trunk, blocks=2)

    def loss() -> Tensor:
        logprobs = token_logprobs(branch, PACKED, temperature=0.8).logprobs
        return (
            logprobs.sum() + token_values(branch, PACKED).square().sum() + final_scores(branch, PACKED).sum()
        )

    torch.autograd.backward(loss())
    assert branch.adapter is not None
    generator = torch.Generator().manual_seed(0)
    for parameter in (*list(branch.adapter.parameters())[::5], *branch.parameters()[-2:]):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        ends = []
        for side in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=side * 1e-6)
                ends.append(float(loss()))
                parameter.sub_(direction, alpha=side * 1e-6)
        assert parameter.grad is not None
        slope = float((parameter.grad * direction).sum())
        assert math.isclose((ends[0] - ends[1]) / 2e-6, slope, rel_tol=1e-6, abs_tol=1e-6)


def test_which_block_a_branch_begins_to_differ_at() -> None:
    trunk = load_model("tiny", torch.float32).trunk
    assert Branch(trunk).first == 4
    assert Branch(trunk, random_adapter(trunk, blocks=1)).first == 3
    assert Branch(load_model("tiny", torch.float32).trunk.requires_grad_(True)).first == 0


def test_a_trained_trunk_is_the_branchs_own_and_a_frozen_one_is_not() -> None:
    trunk = load_model("tiny", torch.float64).trunk.requires_grad_(True)
    whole = Branch(trunk, head=random_head(trunk))
    assert {name for name, _ in whole.modules()} == {"trunk", "head"}
    torch.autograd.backward(token_values(whole, PACKED).sum())
    assert trunk.embedding.grad is not None
    assert not list(Branch(load_model("tiny", torch.float64).trunk).modules())


def test_the_head_by_hand() -> None:
    head = ScalarHead(3, dtype=torch.float64)
    hidden = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]], dtype=torch.float64)
    assert head(hidden).tolist() == [0.0, 0.0], "a value head starts at zero"
    with torch.no_grad():
        head.weight.copy_(torch.tensor([2.0, -1.0, 4.0]))
        head.bias.fill_(0.5)
        head.gain.fill_(10.0)
        head.shift.fill_(-3.0)
    assert head(hidden).tolist() == [122.0, 32.0]  # (12.5, 3.5) * 10 - 3
    assert {name for name, _ in head.named_parameters()} == {"weight", "bias"}, (
        "gain and shift are not learned"
    )


def test_a_reward_head_is_normal_with_std_one_over_root_of_width_plus_one() -> None:
    head = ScalarHead(9_999).initialise(3)
    drawn = head.weight.detach()
    assert abs(float(drawn.std()) * 100 - 1) < 0.03
    assert abs(float(drawn.mean())) < 5e-4
    assert float(head.bias.detach()) == 0.0
    assert torch.equal(drawn, ScalarHead(9_999).initialise(3).weight)
    assert not torch.equal(drawn, ScalarHead(9_999).initialise(4).weight)


def test_the_head_reads_bfloat16_states_in_float32() -> None:
    head = ScalarHead(4).initialise(0)
    out = head(torch.ones(2, 4, dtype=torch.bfloat16))
    assert out.dtype == torch.float32
    assert torch.allclose(out, head.weight.sum().expand(2))


def test_a_state_comes_back_bit_for_bit(trunk: Llama) -> None:
    one, two = random_branch(trunk, seed=1), random_branch(trunk, seed=2)
    assert one.head is not None
    one.head.gain.fill_(2.0)
    state = {name: tensor.clone() for name, tensor in one.state().items()}
    two.load_state(state)
    assert two.state().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in two.state().items())
    assert torch.equal(final_scores(one, PACKED), final_scores(two, PACKED))
    assert {name.split(".")[0] for name in state} == {"adapter", "head"}
    del state["head.shift"]
    with pytest.raises(RuntimeError, match="shift"):
        two.load_state(state)


def test_the_state_of_a_trained_trunk_is_whole() -> None:
    one, two = (load_model("tiny", torch.float64).trunk.requires_grad_(True) for _ in range(2))
    with torch.no_grad():
        one.norm.add_(1.0)
    Branch(two).load_state(Branch(one).state())
    assert torch.equal(two.norm, one.norm)


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_a_tokens_share_is_what_it_adds_to_the_score(trunk: Llama, pool: Pool) -> None:
    branch = random_branch(trunk, blocks=2, seed=3)
    branch.pool = pool
    shares, scores = token_shares(branch, PACKED), final_scores(branch, PACKED)
    near = 1e-12 if trunk.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(shares.sum(1), scores, rtol=0, atol=near)
    assert not bool(shares[~PACKED.mask].any())
    if pool == "last":
        assert torch.equal(shares[range(len(scores)), PACKED.mask.sum(1) - 1], scores)
        assert ((shares != 0).sum(1) == 1).all()
        return
    # The number of a text that ends after token t is the mean of the first t + 1 tokens' numbers.
    count = PACKED.mask.sum(1)
    for sample, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        for t in range(len(completion)):
            begun = final_scores(branch, pack([prompt], [completion[: t + 1]]))[0]
            mean = shares[sample, : t + 1].sum() * count[sample] / (t + 1)
            assert float((begun - mean).detach().abs()) < near


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize(
    ("drawn", "end"),
    [([True, False, False, True], 3), ([False, True, True, False], 2)],
    ids=["within", "around"],
)
def test_observations_have_no_share_of_the_score(
    trunk: Llama, pool: Pool, drawn: list[bool], end: int
) -> None:
    """The score is at the last token whoever said it, or the mean over what was drawn; by hand, text after text."""
    branch = random_branch(trunk, blocks=2, seed=3)
    prompt, completion = PROMPTS[0], [9, 300, 20, 10]
    packed = pack([prompt, prompt], [completion, [8]], action_masks=[drawn, None])
    near = 1e-12 if trunk.dtype == torch.float64 else 1e-5
    own = torch.stack(
        [final_scores(branch, pack([prompt], [completion[: t + 1]]))[0].detach() for t in range(4)]
    )
    branch.pool = pool
    shares, score = token_shares(branch, packed)[0], final_scores(branch, packed)[0]
    if pool == "last":
        wanted = torch.zeros_like(own)
        wanted[end] = own[3]
    else:
        wanted = own * torch.tensor(drawn) / 2
    torch.testing.assert_close(shares.detach(), wanted, rtol=0, atol=near)
    torch.testing.assert_close(score.detach(), wanted.sum(), rtol=0, atol=near)


@pytest.mark.parametrize("blocks", [None, 0, 1])
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_a_branch_that_leaves_half_way(trunk: Llama, blocks: int | None, pool: Pool) -> None:
    """Its head reads the stream after two blocks, at unit mean square; each completion alone, by hand."""
    adapter = (
        None if blocks is None else make_adapter(trunk, rank=2, alpha=4.0, blocks=blocks, seed=1, depth=2)
    )
    if adapter is not None:
        with torch.no_grad():
            for factor in adapter.parameters():
                factor.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    head = random_head(trunk)
    with torch.no_grad():
        head.centre.fill_(0.1)
        head.scale.fill_(2.0)
    branch = Branch(trunk, adapter, head, exit=2, pool=pool)
    scores = final_scores(branch, PACKED)
    for depth in range(branch.first + 1):
        stream = lower_stream(trunk, PACKED, depth)
        assert torch.equal(final_scores(branch, PACKED, stream=stream, depth=depth), scores)
    prompts, completions = [[4, 5, 6]] * 3 + [[8, 9]], random_ids(4, 4, 2, 6)
    for sample, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = torch.tensor([prompt + completion])
        positions = torch.arange(ids.shape[1])[None]
        causal = positions[:, None, :] <= positions[:, :, None]
        stream = trunk.run(trunk.embed(ids), trunk.context(positions, causal), adapter, stop=2)[
            0, len(prompt) :
        ]
        even = stream / stream.square().mean(-1, keepdim=True).sqrt()
        read = even[-1] if pool == "last" else even.mean(0)
        expected = ((read - 0.1) / 2.0) @ head.weight + head.bias
        assert float((scores[sample] - expected).detach().abs()) < (
            1e-10 if trunk.dtype == torch.float64 else 1e-5
        )
