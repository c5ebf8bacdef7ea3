# mypy: disable-error-code="no-untyped-call"
"""Attention by tiles beside torch's own with a dense mask: values and gradients, whatever the tiles' shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.data.collate import pack
from plaudit.models import attention
from plaudit.models.attention import attend, tiles_of
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.llama import Llama
from plaudit.models.load import load_model
from plaudit.training.policy import whole_copy
from tiny_models import random_branch, random_ids

HEADS, KV_HEADS, WIDTH = 6, 2, 4
PROMPTS = [[5, 6, 7, 8, 9]] * 3 + [[3]] + [[4] * 9] * 2
PACKED = pack(PROMPTS, random_ids(1, 6, 1, 11))


def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's own on the rows with their padding and a mask, [N, heads, width] in and out."""
    rows, columns = PACKED.ids.shape
    real = torch.nonzero(PACKED.segments.flatten() != -1)[:, 0]

    def spread(x: Tensor) -> Tensor:
        wide = x.new_zeros(rows * columns, *x.shape[1:]).index_copy(0, real, x)
        repeated = wide.view(rows, columns, *x.shape[1:]).transpose(1, 2)
        return repeated.repeat_interleave(HEADS // x.shape[1], dim=1)

    mask = PACKED.visible() | torch.eye(
        columns, dtype=torch.bool
    )  # padding sees itself: no row without a key
    out = F.scaled_dot_product_attention(spread(query), spread(key), spread(value), attn_mask=mask[:, None])
    return out.transpose(1, 2).reshape(rows * columns, HEADS, WIDTH).index_select(0, real)


def inputs(dtype: torch.dtype) -> list[Tensor]:
    count = int((PACKED.segments != -1).sum())
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(count, heads, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


@pytest.mark.parametrize("longest", [1, 3, 256], ids="longest {}".format)
@pytest.mark.parametrize("slack", [0, 40, 10_000], ids="slack {}".format)
@pytest.mark.parametrize("kept", [0, 512], ids="kept {}".format)
def test_values_and_gradients_are_torchs_own(
    longest: int, slack: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in (("LONGEST", longest), ("SLACK", slack), ("KEPT", kept)):
        monkeypatch.setattr(attention, name, number)
    given = inputs(torch.float64)
    tiles = tiles_of(PACKED.segments)
    up = torch.randn(
        len(given[0]), HEADS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    query, key, value = given
    ours, theirs = attend(query, key, value, tiles), dense(query, key, value)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    for mine, their in zip(
        torch.autograd.grad(ours, given, up), torch.autograd.grad(theirs, given, up), strict=True
    ):
        torch.testing.assert_close(mine, their, rtol=1e-11, atol=1e-13)


def test_gradcheck() -> None:
    tiles = tiles_of(torch.tensor([[0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, -1, -1, -1]]))
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randn(11, heads, 2, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    ]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, tiles), given)


def test_bfloat16_rounds_no_scores() -> None:
    """Errors are those of a weight and a product rounded to 8 bits, 2^-8 of the values' size; scores of 16, rounded to
    the nearest 1/16, would make 6 % of a probability."""
    query, key, value = (x.detach().bfloat16() for x in inputs(torch.float64))
    query = query * 6
    exact = dense(query.double(), key.double(), value.double())
    ours = attend(query, key, value, tiles_of(PACKED.segments))
    assert ours.dtype == torch.bfloat16
    assert float((ours.double() - exact).abs().max()) < 2 * 2**-8 * float(value.abs().max())


def test_a_row_of_several_completions_costs_what_they_see() -> None:
    """Eight completions of 64 tokens after a prompt of 64: 576 columns, and no tile has more than 128 keys."""
    packed = pack([[1] * 64] * 8, [[2] * 64] * 8)
    groups = tiles_of(packed.segments).groups
    assert packed.ids.shape == (1, 576)
    (alone,) = tiles_of(pack([[1] * 30], [[2] * 30]).segments).groups  # nobody else reads its prompt
    assert alone.queries.shape == alone.keys.shape == (1, 60)
    assert [(tuple(g.queries.shape), g.keys.shape[1]) for g in groups] == [((9, 64), 128)]


def gradients(branch: Branch, part: list[int], prompts: list[list[int]]) -> tuple[Tensor, list[Tensor]]:
    """The log-probabilities' sum over some samples in one packing, and what it asks of the parameters."""
    completions = random_ids(1, 6, 1, 11)
    packed = pack([prompts[i] for i in part], [completions[i] for i in part])
    logprobs = token_logprobs(branch, packed).logprobs
    worth = torch.linspace(-1, 2, 11, dtype=logprobs.dtype)[: logprobs.shape[1]]
    total = (logprobs * worth).sum()
    return total.detach(), list(torch.autograd.grad(total, branch.parameters()))


def whole(trunk: Llama) -> Branch:
    return Branch(whole_copy(trunk))


@pytest.mark.parametrize(
    "make", [whole, lambda trunk: random_branch(trunk, head=False)], ids=["whole", "adapter"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_packed_losses_and_gradients_are_those_of_every_sample_alone(
    make: type[Branch], dtype: torch.dtype, tolerance: float
) -> None:
    """A row of its own for each sample, without padding and without a prompt that others read."""
    branch = make(load_model("tiny", dtype).trunk)
    value, slopes = gradients(branch, list(range(6)), PROMPTS)
    alone = [gradients(branch, [sample], PROMPTS) for sample in range(6)]
    torch.testing.assert_close(value, sum(v for v, _ in alone), rtol=tolerance, atol=0)
    for place, slope in enumerate(slopes):
        plain = torch.stack([of[place] for _, of in alone]).sum(0)
        assert float((slope - plain).norm()) <= tolerance * float(plain.norm())


def test_a_mask_gives_what_tiles_give() -> None:
    """The form that a GPU runs: rows with their padding, and torch's own attention."""
    trunk = load_model("tiny", torch.float64).trunk
    stream = trunk.embed(PACKED.ids)
    by_mask = trunk.run(
        stream,
        trunk.context(PACKED.positions, PACKED.visible() | torch.eye(PACKED.ids.shape[1], dtype=torch.bool)),
    )
    by_tiles = trunk.run(stream, trunk.context(PACKED.positions, tiles_of(PACKED.segments)))
    real = PACKED.segments != -1
    torch.testing.assert_close(by_tiles[real], by_mask[real], rtol=1e-12, atol=1e-12)
    assert not bool(by_tiles[~real].any())
