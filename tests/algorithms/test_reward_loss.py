# mypy: disable-error-code="no-untyped-call"
"""Bradley-Terry and rating regression: known constants, and what the optimum must be."""

import math

import pytest
import torch
from torch import Tensor

from plaudit.algorithms.reward_loss import bradley_terry, rating_regression

# -ln sigmoid(1), -ln sigmoid(-1) and sigmoid(1)
WON, LOST, SIGMOID1 = 0.31326168751822286, 1.3132616875182228, 0.7310585786300049


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("target", "loss"),
    [(1.0, WON), (0.0, LOST), (0.5, (WON + LOST) / 2), (0.9, 0.9 * WON + 0.1 * LOST)],
)
def test_one_pair_by_hand(target: float, loss: float) -> None:
    first, second = vec(2.0).requires_grad_(), vec(1.0).requires_grad_()
    result = bradley_terry(first, second, vec(target), total=1).loss
    result.backward()
    assert result.item() == pytest.approx(loss, abs=1e-14)
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.item() == pytest.approx(SIGMOID1 - target, abs=1e-14)
    assert second.grad.item() == pytest.approx(target - SIGMOID1, abs=1e-14)


def test_exchanging_the_two_changes_nothing() -> None:
    torch.manual_seed(0)
    first, second, target = torch.randn(6), torch.randn(6), torch.tensor([1.0, 0.0, 0.5, 0.3, 1.0, 0.0])
    one = bradley_terry(first, second, target, total=6)
    other = bradley_terry(second, first, 1 - target, total=6)
    assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-6)  # float32
    assert all(one.metrics[name].item() == pytest.approx(other.metrics[name].item()) for name in one.metrics)


def test_metrics_leave_ties_out_of_accuracy() -> None:
    first, second = vec(1.0, 0.0, 5.0, 0.0, 2.0), vec(0.0, 3.0, 0.0, 1.0, 2.0)
    target = vec(1.0, 0.0, 0.5, 0.9, 1.0)  # right, right, tie, wrong, equal scores (not right)
    _, metrics = bradley_terry(first, second, target, total=5)
    assert metrics["correct"].item() == pytest.approx(2 / 5)
    assert metrics["decided"].item() == pytest.approx(4 / 5)
    # (2 target - 1)(first - second): 1, 3, 0, -0.8, 0
    assert metrics["margin"].item() == pytest.approx(3.2 / 5)


def test_weights_by_hand() -> None:
    # 2 * WON + 0.5 * LOST, over the sum of weights 2.5; the third pair has weight 0 and is not read
    first, second = vec(1.0, 0.0, math.nan).requires_grad_(), vec(0.0, 1.0, math.inf)
    weight = vec(2.0, 0.5, 0.0)
    loss, metrics = bradley_terry(first, second, vec(1.0, 1.0, math.nan), weight, total=weight.sum())
    loss.backward()
    assert loss.item() == pytest.approx((2 * WON + 0.5 * LOST) / 2.5, abs=1e-14)
    assert metrics["correct"].item() == pytest.approx(2 / 2.5)
    assert metrics["decided"].item() == pytest.approx(1.0)
    assert first.grad is not None
    assert first.grad.tolist() == pytest.approx(
        [2 * (SIGMOID1 - 1) / 2.5, -0.5 * SIGMOID1 / 2.5, 0.0], abs=1e-14
    )


def test_the_best_gap_is_the_log_odds_of_the_share_of_raters() -> None:
    # 3 of 4 raters prefer the first: the loss is stationary at a gap of ln 3
    gap = vec(math.log(3.0)).requires_grad_()
    bradley_terry(gap, vec(0.0), vec(0.75), total=1).loss.backward()
    assert gap.grad is not None
    assert gap.grad.item() == pytest.approx(0.0, abs=1e-15)


def test_a_hopeless_pair_has_a_finite_loss() -> None:
    first = torch.tensor([-500.0], requires_grad=True)
    loss = bradley_terry(first, torch.tensor([500.0]), torch.tensor([1.0]), total=1).loss
    loss.backward()
    assert loss.item() == 1000.0
    assert first.grad is not None
    assert first.grad.item() == -1.0


@pytest.mark.parametrize(
    ("score", "rating", "loss", "slope"),
    [
        (0.0, 0.25, 0.6931471805599453, 0.25),
        (1.0, 1.0, WON, SIGMOID1 - 1),
        (1.0, 0.0, LOST, SIGMOID1),
        (math.log(3.0), 0.75, 0.5623351446188083, 0.0),  # the entropy of 3:1, the least there is
    ],
)
def test_one_rating_by_hand(score: float, rating: float, loss: float, slope: float) -> None:
    scores = vec(score).requires_grad_()
    result = rating_regression(scores, vec(rating), total=1)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, abs=1e-14)
    assert scores.grad is not None
    assert scores.grad.item() == pytest.approx(slope, abs=1e-14)


def test_the_best_score_says_the_mean_rating() -> None:
    # ratings 0.2, 0.6, 0.7 of one answer: mean 0.5, so score 0
    score = vec(0.0).requires_grad_()
    rating_regression(score.expand(3), vec(0.2, 0.6, 0.7), total=3).loss.backward()
    assert score.grad is not None
    assert score.grad.item() == pytest.approx(0.0, abs=1e-15)


def test_rating_weights_and_error() -> None:
    scores = vec(1.0, 0.0, math.nan).requires_grad_()
    loss, metrics = rating_regression(scores, vec(1.0, 0.25, math.nan), vec(3.0, 1.0, 0.0), total=4)
    loss.backward()
    assert loss.item() == pytest.approx((3 * WON + 0.6931471805599453) / 4, abs=1e-14)
    assert metrics["rating_error"].item() == pytest.approx((3 * (1 - SIGMOID1) + 0.25) / 4, abs=1e-14)
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([3 * (SIGMOID1 - 1) / 4, 0.25 / 4, 0.0], abs=1e-14)


def test_micro_batches_with_one_total_sum_to_the_whole() -> None:
    torch.manual_seed(1)
    first, second, target, weight = torch.randn(4, 8, dtype=torch.float64).unbind()
    target, weight = target.sigmoid(), weight.abs()
    for loss in (
        lambda rows: bradley_terry(first[rows], second[rows], target[rows], weight[rows], total=weight.sum()),
        lambda rows: rating_regression(first[rows], target[rows], weight[rows], total=weight.sum()),
    ):
        whole, parts = loss(slice(0, 8)), [loss(slice(0, 3)), loss(slice(3, 8))]
        assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-14)
        for name, value in whole.metrics.items():
            assert sum(part.metrics[name].item() for part in parts) == pytest.approx(value.item(), rel=1e-13)


def test_targets_outside_the_unit_interval_and_odd_shapes_are_refused() -> None:
    one = vec(1.0)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="target is outside"):
            bradley_terry(one, one, vec(wrong), total=1)
        with pytest.raises(ValueError, match="rating is outside"):
            rating_regression(one, vec(wrong), total=1)
    with pytest.raises(ValueError, match="shapes differ"):
        bradley_terry(vec(1.0, 2.0), one, one, total=2)
