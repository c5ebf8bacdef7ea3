"""What is trained: a whole copy keeps float32 weights and multiplies in the trunk's dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plaudit.data.collate import pack
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import load_model
from plaudit.training.policy import AdapterConfig, make_policy, whole_copy
from tiny_models import random_ids

PACKED = pack(random_ids(0, 4, 3, 9), random_ids(1, 4, 5, 20))


def slopes(branch: Branch) -> tuple[Tensor, list[Tensor]]:
    total = token_logprobs(branch, PACKED).logprobs.sum()
    return total.detach(), list(torch.autograd.grad(total, branch.parameters()))


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_the_weights_are_wide_and_the_products_the_trunks(dtype: torch.dtype, wide: torch.dtype) -> None:
    model = load_model("tiny", dtype)
    branch = make_policy(model, AdapterConfig(rank=0), seed=0)
    assert {p.dtype for p in branch.parameters()} == {wide}
    assert branch.trunk.dtype == dtype
    assert branch.trunk.wide == wide
    assert not any(p.requires_grad for p in model.trunk.parameters())
    # Before the first step it is the trunk that it was copied from, to the last bit.
    with torch.no_grad():
        assert torch.equal(
            token_logprobs(branch, PACKED).logprobs, token_logprobs(Branch(model.trunk), PACKED).logprobs
        )


def test_bfloat16_products_give_the_gradients_of_float32_within_their_rounding() -> None:
    """Relative to the whole gradient of each tensor; 8 bits in each of some twenty roundings on the way."""
    exact_value, exact = slopes(Branch(whole_copy(load_model("tiny", torch.float32).trunk)))
    value, found = slopes(Branch(whole_copy(load_model("tiny", torch.bfloat16).trunk)))
    assert float((value - exact_value).abs() / exact_value.abs()) < 2e-3
    for mine, their in zip(found, exact, strict=True):
        assert mine.dtype == torch.float32
        assert float((mine - their).norm()) < 0.04 * float(their.norm())
