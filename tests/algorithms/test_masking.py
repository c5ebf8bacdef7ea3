# mypy: disable-error-code="no-untyped-call"
"""Masked sums, means, variance and whitening."""

import math

import pytest
import torch
from torch import Tensor

from plaudit.algorithms.masking import masked_mean, masked_sum, masked_var, sequence_mean, whiten, zero_masked

# `whiten` of OpenAI's lm-human-preferences on this table, run in TensorFlow (float32), the mean kept; printed in
# Huang, Liu & von Werra 2023, "The N Implementation Details of RLHF with PPO", which also shows that the
# unbiased variance would give 0.1394 first.
TABLE = [[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]]
MEAN_KEPT = [
    [0.05080712, 0.4381051, 0.8254035],
    [1.2127019, 1.6000004, 1.9872988],
    [2.3745968, 2.7618952, 3.1491938],
]


def table() -> Tensor:
    return torch.tensor(TABLE, dtype=torch.float64)


def garbage() -> tuple[Tensor, Tensor]:
    """The table with a column and a row of garbage that the mask does not count."""
    x = torch.full((4, 4), math.nan, dtype=torch.float64)
    x[3, :], x[:3, :3] = math.inf, table()
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:3, :3] = True
    return x, mask


def test_whitening_with_the_mean_kept_is_lm_human_preferences() -> None:
    white = whiten(table(), torch.ones(3, 3, dtype=torch.bool), keep_mean=True)
    expected = torch.tensor(MEAN_KEPT, dtype=torch.float64)
    torch.testing.assert_close(white, expected, rtol=0, atol=2e-6)  # the source is float32
    assert white.mean().item() == pytest.approx(1.6, abs=1e-12)


def test_whitening_without_the_mean_is_the_same_less_the_mean() -> None:
    white = whiten(table(), torch.ones(3, 3, dtype=torch.bool), keep_mean=False)
    expected = torch.tensor(MEAN_KEPT, dtype=torch.float64) - 1.6
    torch.testing.assert_close(white, expected, rtol=0, atol=2e-6)
    assert white.mean().item() == pytest.approx(0.0, abs=1e-12)


def test_whitened_has_population_deviation_one() -> None:
    white = whiten(table(), torch.ones(3, 3, dtype=torch.bool), keep_mean=False)
    assert white.std(correction=0).item() == pytest.approx(
        1.0, abs=1e-6
    )  # eps 1e-8 beside a variance of 0.067


@pytest.mark.parametrize("keep_mean", [True, False])
def test_whitening_reads_and_writes_nothing_that_is_masked(keep_mean: bool) -> None:
    x, mask = garbage()
    white = whiten(x, mask, keep_mean=keep_mean)
    clean = whiten(table(), torch.ones(3, 3, dtype=torch.bool), keep_mean=keep_mean)
    torch.testing.assert_close(white[:3, :3], clean, rtol=1e-14, atol=1e-14)
    assert white[~mask].tolist() == [0.0] * 7


def test_whitening_of_what_does_not_vary_is_finite() -> None:
    x = torch.full((2, 2), 3.0)
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert whiten(x, mask, keep_mean=False).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert whiten(x, mask, keep_mean=True).tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_reductions_by_hand() -> None:
    x, mask = garbage()
    assert masked_sum(x, mask).item() == pytest.approx(14.4, abs=1e-12)
    assert masked_sum(x, mask, dim=1).tolist() == pytest.approx([3.9, 4.8, 5.7, 0.0], abs=1e-12)
    assert masked_mean(x, mask).item() == pytest.approx(1.6, abs=1e-12)
    assert masked_mean(x, mask, dim=0).tolist() == pytest.approx([1.5, 1.6, 1.7, 0.0], abs=1e-12)
    assert masked_mean(x, mask, total=32).item() == pytest.approx(0.45, abs=1e-12)
    # squares of (x - 1.6): 2 * (0.16 + 0.09 + 0.04 + 0.01) = 0.6, over 9 (not over 8)
    assert masked_var(x, mask).item() == pytest.approx(0.6 / 9, abs=1e-12)


def test_the_mean_of_sequences_means_by_hand() -> None:
    # 3, 7 -> 5; 1, 2, 6 -> 3; 10 -> 10; nothing -> 0: 18 over 4 sequences, or over the 6 of the whole batch
    x, nan = torch.full((4, 3), math.nan, dtype=torch.float64), math.nan
    x[0], x[1], x[2] = (torch.tensor(row) for row in ([3.0, nan, 7.0], [1.0, 2.0, 6.0], [nan, 10.0, nan]))
    x.requires_grad_()
    mask = ~x.isnan()
    mean = sequence_mean(x, mask)
    mean.backward()
    assert mean.item() == pytest.approx(4.5, abs=1e-14)
    assert sequence_mean(x, mask, total=6).item() == pytest.approx(3.0, abs=1e-14)
    assert x.grad is not None
    expected = [[1 / 8, 0, 1 / 8], [1 / 12] * 3, [0, 1 / 4, 0], [0, 0, 0]]
    torch.testing.assert_close(x.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_nothing_counted_gives_zero() -> None:
    x, mask = torch.full((2, 2), math.nan), torch.zeros(2, 2, dtype=torch.bool)
    for result in (masked_sum(x, mask), masked_mean(x, mask), masked_var(x, mask)):
        assert result.item() == 0.0
    assert whiten(x, mask, keep_mean=True).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_micro_batches_with_one_total_sum_to_the_whole() -> None:
    x, mask = garbage()
    parts = [masked_mean(x[rows], mask[rows], total=mask.sum()) for rows in (slice(0, 1), slice(1, 4))]
    assert sum(part.item() for part in parts) == pytest.approx(masked_mean(x, mask).item(), abs=1e-14)


def test_gradient_is_zero_where_masked() -> None:
    x, mask = garbage()
    x.requires_grad_()
    masked_sum(torch.exp(zero_masked(x, mask)), mask).backward()
    assert x.grad is not None
    assert x.grad[~mask].tolist() == [0.0] * 7
    torch.testing.assert_close(x.grad[:3, :3], table().exp(), rtol=1e-14, atol=0)


def test_shapes_that_would_broadcast_and_masks_of_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes differ: x \(2, 3\), mask \(3,\)"):
        masked_mean(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="not bool"):
        masked_mean(torch.zeros(2, 3), torch.ones(2, 3))
