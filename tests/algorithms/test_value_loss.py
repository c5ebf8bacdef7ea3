# mypy: disable-error-code="no-untyped-call"
"""The clipped value loss and the explained variance by hand."""

import math

import pytest
import torch
from torch import Tensor

from plaudit.algorithms.value_loss import clipped_value_loss, explained_variance


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


VALUES, OLD, RETURNS = (1.5, 1.5, 0.5, 1.1), (1.0, 1.0, 1.0, 1.0), (2.0, 0.0, 0.0, 1.0)


def test_by_hand() -> None:
    # v    R   (v-R)^2  clipped v  (.-R)^2   larger   d loss / d v = (v - R) / 4 unless the clip has it
    # 1.5  2   0.25     1.2        0.64      0.64     0
    # 1.5  0   2.25     1.2        1.44      2.25     0.375
    # 0.5  0   0.25     0.8        0.64      0.64     0
    # 1.1  1   0.01     1.1        0.01      0.01     0.025
    # sum 3.54, half of it over 4 tokens: 0.4425
    values = row(*VALUES).requires_grad_()
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss, metrics = clipped_value_loss(values, row(*OLD), row(*RETURNS), mask, total=4, clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(0.4425, abs=1e-14)
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([0.0, 0.375, 0.0, 0.025], abs=1e-14)
    assert metrics["clip_fraction"].item() == pytest.approx(0.5)
    assert metrics["value_error"].item() == pytest.approx(2.76 / 4, abs=1e-14)


def test_an_infinite_clip_is_half_the_mean_square() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss, metrics = clipped_value_loss(row(*VALUES), row(*OLD), row(*RETURNS), mask, total=4, clip=math.inf)
    assert loss.item() == pytest.approx(2.76 / 8, abs=1e-14)
    assert metrics["clip_fraction"].item() == 0.0


def test_the_clip_is_02_by_default() -> None:
    loss, _ = clipped_value_loss(row(1.5), row(1.0), row(2.0), torch.ones(1, 1, dtype=torch.bool), total=1)
    assert loss.item() == pytest.approx(0.32, abs=1e-14)  # 0.8^2 / 2


def test_only_the_present_values_get_a_gradient() -> None:
    values, old, returns = (row(*x).requires_grad_() for x in (VALUES, OLD, RETURNS))
    loss, metrics = clipped_value_loss(values, old, returns, torch.ones(1, 4, dtype=torch.bool), total=4)
    loss.backward()
    assert values.grad is not None
    assert old.grad is returns.grad is None
    assert not any(value.requires_grad for value in metrics.values())


def test_explained_variance_by_hand() -> None:
    # returns 1, 2, 3, 4: variance 1.25; residuals 0, 0, 0, -1: variance 3/16; 1 - 0.1875 / 1.25 = 0.85
    mask = torch.tensor([[True, True, True, True, False]])
    nan = math.nan
    assert explained_variance(row(1, 2, 3, 5, nan), row(1, 2, 3, 4, nan), mask).item() == pytest.approx(0.85)


def test_explained_variance_at_its_landmarks() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    returns = row(1, 2, 3, 4)
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(returns + 5, returns, mask).item() == 1.0  # a constant off is not variance
    assert explained_variance(row(7, 7, 7, 7), returns, mask).item() == 0.0
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3.0)
    assert math.isnan(explained_variance(returns, row(2, 2, 2, 2), mask).item())
