"""Keyed dropout: what is dropped depends on the key, the row, the place and the column, and on nothing else."""

from __future__ import annotations

import pytest
import torch

from plaudit.data.collate import Packed, micro_batches, pack
from plaudit.models.branch import Branch, lower_stream, token_logprobs
from plaudit.models.dropout import Dropout, drop, row_dropout
from plaudit.models.load import load_model
from tiny_models import random_branch, random_ids

KEY = (0, "dropout", 3)


def test_no_rate_is_no_dropout() -> None:
    packed = pack([[5]], [[6, 7]])
    assert row_dropout(0.0, packed, torch.tensor([0]), KEY) is None
    x = torch.randn(1, 3, 4)
    assert drop(x, None, 0, "mlp") is x


def test_a_share_is_dropped_and_the_rest_scaled() -> None:
    """Chance: of 40,000 numbers at 0.3, a standard deviation of 92."""
    x = torch.ones(2, 200, 100, dtype=torch.float64)
    dropout = Dropout(0.3, ((0, 0), (0, 1)), (200, 200))
    out = drop(x, dropout, 1, "mlp")
    assert set(out.flatten().tolist()) == {0.0, 1 / 0.7}
    assert abs(int((out == 0).sum()) - 12_000) < 400
    for dim in (0, 1, 2):  # no row, column or feature is more often dropped than others
        share = (out == 0).double().mean([d for d in range(3) if d != dim])
        assert (share - 0.3).abs().max() < 0.3 * (0.05 if dim == 0 else 0.6)
    assert not torch.equal(out[0], out[1])


def test_every_part_of_the_key_tells() -> None:
    x = torch.ones(1, 50, 8)
    base = drop(x, Dropout(0.5, ((*KEY, 0),), (50,)), 1, "mlp")
    assert torch.equal(base, drop(x, Dropout(0.5, ((*KEY, 0),), (50,)), 1, "mlp"))
    for key, place in (
        ((*KEY, 1), (1, "mlp")),
        ((0, "dropout", 4, 0), (1, "mlp")),
        ((*KEY, 0), (2, "mlp")),
        ((*KEY, 0), (1, "q_proj")),
    ):
        assert not torch.equal(base, drop(x, Dropout(0.5, (key,), (50,)), *place))


def test_padding_and_the_other_rows_change_nothing() -> None:
    alone = drop(torch.ones(1, 7, 8), Dropout(0.5, ((*KEY, 4),), (7,)), 0, "mlp")
    among = drop(torch.ones(3, 30, 8), Dropout(0.5, ((*KEY, 1), (*KEY, 4), (*KEY, 2)), (30, 7, 9)), 0, "mlp")
    assert torch.equal(among[1, :7], alone[0])


def whole(branch: Branch, packed: Packed, budget: int) -> torch.Tensor:
    out = torch.zeros(packed.mask.shape, dtype=torch.float64)
    for rows in micro_batches(packed, budget):
        part, index = packed.take(rows)
        found = token_logprobs(branch, part, dropout=row_dropout(0.4, part, rows, KEY)).logprobs
        out[index, : found.shape[1]] = found.detach()
    return out


@pytest.mark.parametrize("full", [True, False])
def test_the_split_into_micro_batches_changes_nothing(full: bool) -> None:
    trunk = load_model("tiny", torch.float64).trunk
    branch = Branch(trunk.requires_grad_(True)) if full else random_branch(trunk, head=False)
    prompts, completions = random_ids(0, 6, 2, 9), random_ids(1, 8, 1, 12)
    packed = pack(
        [prompts[min(i, 5)] for i in range(8)], completions
    )  # the last three share a prompt, and a row
    assert packed.rows == 6
    once = whole(branch, packed, 10_000)
    for budget in (1, 40):
        torch.testing.assert_close(whole(branch, packed, budget), once, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        plain = token_logprobs(branch, packed).logprobs
    assert (plain - once).abs().max() > 0.01


def test_frozen_blocks_below_the_adapter_have_none() -> None:
    """An adapter on the two top blocks: the stream that reaches it is the bare trunk's own."""
    branch = random_branch(load_model("tiny", torch.float64).trunk, blocks=2, head=False)
    packed = pack(random_ids(0, 3, 2, 9), random_ids(1, 3, 1, 12))
    dropout = row_dropout(0.4, packed, torch.arange(3), KEY)
    stream = lower_stream(branch.trunk, packed, 2)
    with torch.no_grad():
        one = token_logprobs(branch, packed, dropout=dropout).logprobs
        other = token_logprobs(branch, packed, stream=stream, depth=2, dropout=dropout).logprobs
    assert torch.equal(one, other)
