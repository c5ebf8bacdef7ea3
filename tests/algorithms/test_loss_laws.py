# mypy: disable-error-code="no-untyped-call"
"""What must not change a loss over tokens: masked values, padding, order, and how the batch is split.

Also the supervised loss, beside torch's own cross-entropy.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.nll_loss import nll_loss
from plaudit.algorithms.policy_loss import ppo_policy_loss, reinforce_loss, sequence_policy_loss
from plaudit.algorithms.q_loss import Worth, awac_loss, cql_loss, expectile_loss, q_loss, td_targets
from plaudit.algorithms.value_loss import clipped_value_loss

Loss = Callable[[list[Tensor], Tensor, Tensor], LossOutput]
"""(tensors [B, T], the first of them learned; mask; total) -> loss"""

LOSSES: dict[str, tuple[int, Loss]] = {
    "policy": (3, lambda x, mask, total: ppo_policy_loss(x[0], x[1], x[2], mask, total=total)),
    "policy, importance": (
        4,
        lambda x, mask, total: ppo_policy_loss(
            x[0], x[1], x[2], mask, total=total, sampled_logprobs=x[3], importance_cap=1.2
        ),
    ),
    "policy, per sequence": (
        4,
        lambda x, mask, total: ppo_policy_loss(
            x[0], x[1], x[2], mask, total=total, clip_high=0.4, per_sequence=True,
            sampled_logprobs=x[3], importance_cap=1.2,
        ),
    ),
    "sequence, mean": (
        3,
        lambda x, mask, total: sequence_policy_loss(x[0], x[1], x[2][:, 0], mask, total=total, ratio="mean"),
    ),
    "sequence, product, importance": (
        4,
        lambda x, mask, total: sequence_policy_loss(
            x[0], x[1], x[2][:, 0], mask, total=total, ratio="product", sampled_logprobs=x[3], importance_cap=1.2
        ),
    ),
    "reinforce": (2, lambda x, mask, total: reinforce_loss(x[0], x[1], mask, total=total)),
    "reinforce, importance": (
        3,
        lambda x, mask, total: reinforce_loss(
            x[0], x[1], mask, total=total, sampled_logprobs=x[2], importance_cap=1.2
        ),
    ),
    "value": (3, lambda x, mask, total: clipped_value_loss(x[0], x[1], x[2], mask, total=total)),
    "nll": (1, lambda x, mask, total: nll_loss(x[0], mask, total=total)),
    "q, of targets ahead": (
        5,
        lambda x, mask, total: q_loss(
            x[0], td_targets("ilql", x[1], Worth(*x[2:]), mask, gamma=0.9), mask, total=total
        ),
    ),
    "expectile": (2, lambda x, mask, total: expectile_loss(x[0], x[1], mask, expectile=0.8, total=total)),
    "cql": (1, lambda x, mask, total: cql_loss(x[0], mask, total=total)),
    "awac": (2, lambda x, mask, total: awac_loss(x[0], x[1], mask, beta=0.7, total=total)),
}  # fmt: skip
OF_COMPLETIONS = {"sequence, mean", "sequence, product, importance"}
"""Losses with one ratio a completion: one that counts no token has none, and is refused."""
MASK = torch.tensor([[c == "1" for c in row] for row in ("111111", "111000", "110010", "100000")])


@pytest.fixture(params=list(LOSSES))
def case(request: pytest.FixtureRequest) -> tuple[list[Tensor], Loss]:
    return drawn(request.param)


def drawn(name: str) -> tuple[list[Tensor], Loss]:
    count, loss = LOSSES[name]
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(count)], loss


def run(
    loss: Loss, tensors: list[Tensor], mask: Tensor, total: Tensor | None = None
) -> tuple[float, Tensor, dict[str, float]]:
    """The loss, its gradient with respect to the first tensor, and the metrics."""
    learned = tensors[0].clone().requires_grad_()
    output = loss([learned, *tensors[1:]], mask, mask.sum() if total is None else total)
    output.loss.backward()
    assert learned.grad is not None
    return output.loss.item(), learned.grad, {name: value.item() for name, value in output.metrics.items()}


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e300])
def test_what_is_masked_changes_nothing(case: tuple[list[Tensor], Loss], rubbish: float) -> None:
    tensors, loss = case
    clean = run(loss, tensors, MASK)
    dirty = run(loss, [x.masked_fill(~MASK, rubbish) for x in tensors], MASK)
    assert dirty[0] == clean[0]
    assert torch.equal(dirty[1], clean[1])
    assert dirty[2] == clean[2]
    assert torch.count_nonzero(dirty[1][~MASK]) == 0


def test_padding_changes_nothing(case: tuple[list[Tensor], Loss]) -> None:
    tensors, loss = case
    clean = run(loss, tensors, MASK)
    longer = run(loss, [F.pad(x, (0, 5), value=9.0) for x in tensors], F.pad(MASK, (0, 5)))
    assert longer[0] == pytest.approx(clean[0], rel=1e-14)
    torch.testing.assert_close(longer[1], F.pad(clean[1], (0, 5)), rtol=1e-14, atol=0)
    assert longer[2] == pytest.approx(clean[2], rel=1e-14)


def test_order_changes_nothing(case: tuple[list[Tensor], Loss]) -> None:
    tensors, loss = case
    order = torch.tensor([2, 0, 3, 1])
    clean = run(loss, tensors, MASK)
    moved = run(loss, [x[order] for x in tensors], MASK[order])
    assert moved[0] == pytest.approx(clean[0], rel=1e-14)
    torch.testing.assert_close(moved[1], clean[1][order], rtol=1e-14, atol=0)
    assert moved[2] == pytest.approx(clean[2], rel=1e-14)


@pytest.mark.parametrize("cuts", [(0, 1, 4), (0, 2, 3, 4), (0, 1, 2, 3, 4)])
def test_micro_batches_sum_to_the_whole(case: tuple[list[Tensor], Loss], cuts: tuple[int, ...]) -> None:
    tensors, loss = case
    clean = run(loss, tensors, MASK)
    parts = [run(loss, [x[a:b] for x in tensors], MASK[a:b], MASK.sum()) for a, b in pairwise(cuts)]
    assert sum(part[0] for part in parts) == pytest.approx(clean[0], rel=1e-14)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), clean[1], rtol=1e-14, atol=0)
    for name, value in clean[2].items():
        combine: Callable[[list[float]], float] = max if name.endswith("_max") else sum
        assert combine([part[2][name] for part in parts]) == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in OF_COMPLETIONS])
def test_a_micro_batch_with_nothing_counted_adds_nothing(name: str) -> None:
    tensors, loss = drawn(name)
    value, gradient, metrics = run(loss, tensors, torch.zeros_like(MASK), MASK.sum())
    assert value == 0.0
    assert torch.count_nonzero(gradient) == 0
    assert set(metrics.values()) <= {0.0}


@pytest.mark.parametrize("name", sorted(OF_COMPLETIONS))
def test_a_completion_with_nothing_counted_has_no_ratio(name: str) -> None:
    tensors, loss = drawn(name)
    with pytest.raises(ValueError, match="no counted token"):
        run(loss, tensors, MASK & (torch.arange(4) > 0).unsqueeze(1), MASK.sum())


def test_nll_is_torchs_cross_entropy() -> None:
    torch.manual_seed(5)
    logits = torch.randn(4, 6, 9, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(9, (4, 6))
    logprobs = torch.distributions.Categorical(logits=logits).log_prob(tokens)
    loss, metrics = nll_loss(logprobs, MASK, total=MASK.sum())
    (ours,) = torch.autograd.grad(loss, logits)
    labels = tokens.masked_fill(~MASK, -100)
    theirs_loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    (theirs,) = torch.autograd.grad(theirs_loss, logits)
    assert loss.item() == pytest.approx(theirs_loss.item(), rel=1e-13)
    assert metrics["nll"].item() == loss.item()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
