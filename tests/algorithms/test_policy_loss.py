# mypy: disable-error-code="no-untyped-call"
"""PPO's surrogate by hand. Beside a peer: test_beside_trl.py; laws: test_loss_laws.py."""

import math

import pytest
import torch
from torch import Tensor

from plaudit.algorithms.policy_loss import ppo_policy_loss

LN2, LN3, LN15, LN11 = 0.6931471805599453, 1.0986122886681098, 0.4054651081081644, 0.0953101798043249


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def every(like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool)


def test_the_four_corners_of_the_clip_by_hand() -> None:
    # ratio  A    ratio A  clipped A  least   d loss / d logp = -ratio A / 5 unless clipped
    # 1.5    2     3        2.4        2.4     0
    # 1.5   -2    -3       -2.4       -3       0.6
    # 0.5    2     1        1.6        1      -0.2
    # 0.5   -2    -1       -1.6       -1.6     0
    # 1.1    1     1.1      1.1        1.1    -0.22
    # sum -0.1, over 5 tokens: loss 0.02
    logprobs = row(LN15, LN15, -LN2, -LN2, LN11).sub_(3.0).requires_grad_()
    old = torch.full((1, 5), -3.0, dtype=torch.float64)
    loss, metrics = ppo_policy_loss(logprobs, old, row(2, -2, 2, -2, 1), every(old), total=5, clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(0.02, abs=1e-14)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, 0.6, -0.2, 0.0, -0.22], abs=1e-14)
    assert metrics["clip_fraction"].item() == pytest.approx(2 / 5)
    assert metrics["ratio_mean"].item() == pytest.approx(1.02, abs=1e-14)
    assert metrics["ratio_max"].item() == pytest.approx(1.5, abs=1e-14)
    # ratio - 1 - ln ratio: 0.5 - ln 1.5 twice, -0.5 + ln 2 twice, 0.1 - ln 1.1
    expected = (2 * (0.5 - LN15) + 2 * (LN2 - 0.5) + 0.1 - LN11) / 5
    assert metrics["approx_kl"].item() == pytest.approx(expected, abs=1e-14)


def test_the_clip_is_the_one_given() -> None:
    old = row(-1.0)
    loss, _ = ppo_policy_loss(old + LN15, old, row(1.0), every(old), total=1, clip=0.4)
    assert loss.item() == pytest.approx(-1.4, abs=1e-14)
    loss, _ = ppo_policy_loss(old + LN15, old, row(1.0), every(old), total=1)
    assert loss.item() == pytest.approx(-1.2, abs=1e-14)  # 0.2 by default


def test_before_the_first_update_it_is_the_plain_policy_gradient() -> None:
    torch.manual_seed(0)
    old = -torch.rand(3, 4)  # float32, as in training
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 1]], dtype=torch.bool)
    advantages = torch.randn(3, 4)
    logprobs = old.clone().requires_grad_()
    loss, metrics = ppo_policy_loss(logprobs, old, advantages, mask, total=8)
    loss.backward()
    assert metrics["clip_fraction"].item() == 0.0
    assert metrics["approx_kl"].item() == 0.0
    assert metrics["ratio_mean"].item() == 1.0
    assert metrics["ratio_max"].item() == 1.0
    assert logprobs.grad is not None
    assert torch.equal(logprobs.grad, torch.where(mask, -advantages / 8, 0.0))


def test_truncated_importance_weights_by_hand() -> None:
    # exp(old - sampled) = 0.5, 1.5, 3 -> 0.5, 1.5, 2 (cap); ratio 1; A = 1, 2, 3
    # sum of w A = 0.5 + 3 + 6 = 9.5, over 3 tokens
    old = row(-2.0, -2.0, -2.0)
    logprobs = old.clone().requires_grad_()
    sampled = old - row(-LN2, LN15, LN3)
    loss, metrics = ppo_policy_loss(
        logprobs, old, row(1, 2, 3), every(old), total=3, sampled_logprobs=sampled, importance_cap=2.0
    )
    loss.backward()
    assert loss.item() == pytest.approx(-9.5 / 3, abs=1e-14)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([-0.5 / 3, -1.0, -2.0], abs=1e-14)
    assert metrics["importance_mean"].item() == pytest.approx(4 / 3, abs=1e-14)
    assert metrics["importance_capped"].item() == pytest.approx(1 / 3, abs=1e-14)
    assert metrics["sampler_difference"].item() == pytest.approx((LN2 + LN15 + LN3) / 3, abs=1e-14)


def test_importance_weights_make_the_samplers_tokens_speak_for_the_trainer() -> None:
    # One choice of two words, A = +1 and -1. Trainer's policy 0.6, 0.4: the true mean of A is 0.2. The sampler
    # drew from 0.5, 0.5; its mean of w A, each word by its sampler's probability, must be 0.2 again.
    trainer, sampler = row(0.6, 0.4).log(), row(0.5, 0.5).log()
    loss, _ = ppo_policy_loss(
        trainer, trainer, row(1.0, -1.0), every(trainer), total=2, sampled_logprobs=sampler
    )
    assert -loss.item() == pytest.approx(0.2, abs=1e-14)


def test_only_the_present_policy_gets_a_gradient() -> None:
    old, advantages = row(-1.0, -2.0).requires_grad_(), row(1.0, -1.0).requires_grad_()
    sampled, logprobs = row(-1.1, -2.2).requires_grad_(), row(-1.05, -2.1).requires_grad_()
    loss, metrics = ppo_policy_loss(logprobs, old, advantages, every(old), total=2, sampled_logprobs=sampled)
    loss.backward()
    assert logprobs.grad is not None
    assert old.grad is advantages.grad is sampled.grad is None
    assert not any(value.requires_grad for value in metrics.values())


def test_shapes_are_checked() -> None:
    ok = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"advantages \(2,\)"):
        ppo_policy_loss(ok, ok, torch.zeros(2), every(ok), total=6)
    with pytest.raises(ValueError, match="sampled_logprobs"):
        ppo_policy_loss(ok, ok, ok, every(ok), total=6, sampled_logprobs=torch.zeros(3))


def test_an_enormous_ratio_with_a_good_advantage_is_clipped_not_infinite() -> None:
    old = row(-400.0, -1.0)
    logprobs = row(0.0, -1.0).requires_grad_()
    loss, _ = ppo_policy_loss(logprobs, old, row(1.0, 1.0), every(old), total=2)
    loss.backward()
    assert math.isfinite(loss.item())
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == [0.0, -0.5]
