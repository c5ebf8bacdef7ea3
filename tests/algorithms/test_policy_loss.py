# mypy: disable-error-code="no-untyped-call"
"""Policy losses by hand. Beside a peer: test_beside_trl.py, test_policy_beside_trl.py; laws: test_loss_laws.py; what
they are in expectation: test_policy_gradients.py.
"""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.policy_loss import ppo_policy_loss, reinforce_loss, sequence_policy_loss

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


def test_clip_higher_raises_the_upper_clip_alone() -> None:
    # ratio 1.5, A 2: min(3, 1.4 * 2 = 2.8); ratio 0.5, A -3: min(-1.5, 0.8 * -3 = -2.4); sum 0.4 over 2
    old = row(-1.0, -1.0)
    loss, metrics = ppo_policy_loss(
        old + row(LN15, -LN2), old, row(2.0, -3.0), every(old), total=2, clip=0.2, clip_high=0.4
    )
    assert loss.item() == pytest.approx(-0.2, abs=1e-14)
    assert metrics["clip_fraction"].item() == 1.0


def two() -> tuple[Tensor, Tensor, Tensor]:
    """Ratios 1.5, 0.5 and no third; 2, 1, 1. old, logprobs, mask."""
    old = torch.tensor([[-1.0, -2.0, math.nan], [-1.0, -2.0, -3.0]], dtype=torch.float64)
    step = torch.tensor([[LN15, -LN2, 0.0], [LN2, 0.0, 0.0]], dtype=torch.float64)
    return old, old + step, ~old.isnan()


def test_per_sequence_by_hand() -> None:
    # A 1 and -1, clip 0.2. First: min(1.5, 1.2) + min(0.5, 0.8) = 1.7, over its 2 tokens 0.85.
    # Second: min(-2, -1.2) - 1 - 1 = -4, over its 3 tokens -4/3. Sum -29/60, over 2 completions: loss 29/120.
    # slope: -r A / (2 n_i) unless clipped: 0, -0.125; 1/3, 1/6, 1/6
    old, new, mask = two()
    new.requires_grad_()
    advantages = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 3)
    loss, metrics = ppo_policy_loss(new, old, advantages, mask, total=2, per_sequence=True)
    loss.backward()
    assert loss.item() == pytest.approx(29 / 120, abs=1e-14)
    assert new.grad is not None
    assert new.grad.flatten().tolist() == pytest.approx([0.0, -0.125, 0.0, 1 / 3, 1 / 6, 1 / 6], abs=1e-14)
    assert metrics["clip_fraction"].item() == pytest.approx((1 / 2 + 0) / 2)
    assert metrics["ratio_mean"].item() == pytest.approx((1 + 4 / 3) / 2, abs=1e-14)


def test_one_ratio_a_completion_by_hand() -> None:
    # product: 1.5 * 0.5 = 0.75 with A 2: min(1.5, 0.8 * 2 = 1.6) = 1.5; 2 with A 3: min(6, 1.3 * 3) = 3.9, clipped
    # sum 5.4 over 2; slope -0.75 * 2 / 2 on each token of the first, 0 on the second's
    old, new, mask = two()
    new.requires_grad_()
    advantages = torch.tensor([2.0, 3.0], dtype=torch.float64)
    loss, metrics = sequence_policy_loss(
        new, old, advantages, mask, total=2, ratio="product", clip=0.2, clip_high=0.3
    )
    loss.backward()
    assert loss.item() == pytest.approx(-2.7, abs=1e-14)
    assert new.grad is not None
    assert new.grad.flatten().tolist() == pytest.approx([-0.75, -0.75, 0.0, 0.0, 0.0, 0.0], abs=1e-14)
    assert metrics["clip_fraction"].item() == 0.5
    assert metrics["ratio_mean"].item() == pytest.approx(2.75 / 2, abs=1e-14)
    assert metrics["ratio_max"].item() == pytest.approx(2.0, abs=1e-14)
    # ratio - 1 - ln ratio of tokens: (0.5 - ln 1.5 - 0.5 + ln 2) / 2 and (1 - ln 2) / 3
    expected = ((LN2 - LN15) / 2 + (1 - LN2) / 3) / 2
    assert metrics["approx_kl"].item() == pytest.approx(expected, abs=1e-14)


def test_the_geometric_mean_by_hand() -> None:
    # sqrt(0.75) = 0.8660 and cbrt(2) = 1.2599, A -2 and -3: min(s A, 0.9 * -2) = -1.8, clipped; 1.2599 * -3
    # slope of the second: 3 * 1.2599 / (2 completions * 3 tokens) on each token
    old, new, mask = two()
    new.requires_grad_()
    advantages = torch.tensor([-2.0, -3.0], dtype=torch.float64)
    loss, metrics = sequence_policy_loss(new, old, advantages, mask, total=2, ratio="mean", clip=0.1)
    loss.backward()
    cube_root = 1.2599210498948732
    assert loss.item() == pytest.approx((1.8 + 3 * cube_root) / 2, abs=1e-14)
    assert new.grad is not None
    assert new.grad.flatten().tolist() == pytest.approx([0.0] * 3 + [cube_root / 2] * 3, abs=1e-14)
    assert metrics["ratio_mean"].item() == pytest.approx((0.75**0.5 + cube_root) / 2, abs=1e-14)


@pytest.mark.parametrize(
    ("ratio", "weights"), [("product", (0.5 * 1.5, 2.0)), ("mean", (0.75**0.5, 3.0 ** (1 / 3)))]
)
def test_one_weight_a_completion_by_hand(
    ratio: Literal["mean", "product"], weights: tuple[float, float]
) -> None:
    """exp(old - sampled) of tokens 0.5, 1.5 and 3, 1, 1; the cap of 2 holds the product of 3. First ratio: 1.1."""
    old, _, mask = two()
    sampled = old - torch.tensor([[-LN2, LN15, math.nan], [LN3, 0.0, 0.0]], dtype=torch.float64)
    new = (old + row(LN11, 0.0, 0.0) * row(1.0, 0.0).T).requires_grad_()
    advantages = torch.tensor([1.0, 10.0], dtype=torch.float64)
    loss, metrics = sequence_policy_loss(
        new, old, advantages, mask, total=2, ratio=ratio, sampled_logprobs=sampled, importance_cap=2.0
    )
    loss.backward()
    moved = 1.1 if ratio == "product" else 1.1**0.5
    assert loss.item() == pytest.approx(-(weights[0] * moved + 10 * weights[1]) / 2, abs=1e-13)
    share = (1.0, 1.0) if ratio == "product" else (1 / 2, 1 / 3)
    first, second = -weights[0] * moved * share[0] / 2, -weights[1] * 10 * share[1] / 2
    assert new.grad is not None
    assert new.grad.flatten().tolist() == pytest.approx(
        [first, first, 0.0, second, second, second], abs=1e-13
    )
    assert metrics["importance_mean"].item() == pytest.approx(sum(weights) / 2, abs=1e-14)
    assert metrics["importance_capped"].item() == (0.5 if ratio == "product" else 0.0)
    assert metrics["sampler_difference"].item() == pytest.approx(((LN2 + LN15) / 2 + LN3 / 3) / 2, abs=1e-14)


def test_reinforce_by_hand() -> None:
    # A log p = -2 + 6 = 4, over one completion: loss -4; slope -A
    new = row(-1.0, -2.0).requires_grad_()
    loss, metrics = reinforce_loss(new, row(2.0, -3.0), every(new), total=1)
    loss.backward()
    assert loss.item() == pytest.approx(-4.0, abs=1e-14)
    assert new.grad is not None
    assert new.grad[0].tolist() == [-2.0, 3.0]
    assert metrics == {}


def test_reinforce_weighted_by_hand() -> None:
    # p / q = 0.5, 3 -> 2 (cap), 1: w A = 1, -6, 0; slope -w A / 2 completions: the weight has none of its own
    new = row(-1.0, -2.0, -1.5).requires_grad_()
    sampled = row(-1.0 + LN2, -2.0 - LN3, -1.5)
    loss, metrics = reinforce_loss(
        new, row(2.0, -3.0, 0.0), every(new), total=2, sampled_logprobs=sampled, importance_cap=2.0
    )
    loss.backward()
    assert loss.item() == pytest.approx(-(-1.0 + 12.0) / 2, abs=1e-14)
    assert new.grad is not None
    assert new.grad[0].tolist() == pytest.approx([-0.5, 3.0, 0.0], abs=1e-14)
    assert metrics["importance_mean"].item() == pytest.approx(3.5 / 2, abs=1e-14)
    assert metrics["importance_capped"].item() == 0.5
    assert metrics["sampler_difference"].item() == pytest.approx((LN2 + LN3) / 2, abs=1e-14)


@pytest.mark.parametrize("kind", ["sequence", "reinforce"])
def test_nothing_but_the_present_policy_is_learned(kind: str) -> None:
    new, old, sampled = (row(*x).requires_grad_() for x in ((-1.05, -2.1), (-1.0, -2.0), (-1.1, -2.2)))
    if kind == "sequence":
        advantages = torch.ones(1, dtype=torch.float64, requires_grad=True)
        out = sequence_policy_loss(
            new, old, advantages, every(new), total=1, ratio="mean", sampled_logprobs=sampled
        )
    else:
        advantages = row(1.0, -1.0).requires_grad_()
        out = reinforce_loss(new, advantages, every(new), total=1, sampled_logprobs=sampled)
    out.loss.backward()
    assert new.grad is not None
    assert old.grad is advantages.grad is sampled.grad is None
    assert not any(value.requires_grad for value in out.metrics.values())


Extreme = Callable[[Tensor, Tensor, float], LossOutput]
EXTREME: dict[str, Extreme] = {
    "ppo": lambda new, old, a: ppo_policy_loss(
        new, old, torch.full_like(old, a), every(old), total=1, sampled_logprobs=old - 200.0
    ),
    "mean": lambda new, old, a: sequence_policy_loss(
        new, old, torch.tensor([a]), every(old), total=1, ratio="mean", sampled_logprobs=old - 200.0
    ),
    "product": lambda new, old, a: sequence_policy_loss(
        new, old, torch.tensor([a]), every(old), total=1, ratio="product", sampled_logprobs=old + 200.0
    ),
    "reinforce": lambda new, old, a: reinforce_loss(
        new, torch.full_like(old, a), every(old), total=1, sampled_logprobs=new.detach() - 200.0
    ),
}


@pytest.mark.parametrize("gap", [80.0, 100.0, 1000.0, -1000.0])
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("name", list(EXTREME))
def test_float32_holds_out_where_policies_are_worlds_apart(name: str, advantage: float, gap: float) -> None:
    """exp(89) is infinite in float32; what is clipped must still have slope 0, not 0 * inf."""
    old = torch.tensor([[-1001.0, -1001.0]])
    new = (old + gap).requires_grad_()
    loss, _ = EXTREME[name](new, old, advantage)
    loss.backward()
    assert math.isfinite(loss.item())
    assert new.grad is not None
    assert bool(new.grad.isfinite().all())
    if name != "reinforce" and advantage * gap >= 0:  # clipped, or nothing to learn
        assert torch.count_nonzero(new.grad) == 0


def test_shapes_of_whole_completions_are_checked() -> None:
    ok = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"advantages \(2, 3\) do not fit"):
        sequence_policy_loss(ok, ok, ok, every(ok), total=2, ratio="mean")
    with pytest.raises(ValueError, match="shapes differ"):
        sequence_policy_loss(ok, ok[:1], torch.zeros(2), every(ok), total=2, ratio="mean")
    with pytest.raises(ValueError, match="shapes differ"):
        reinforce_loss(ok, torch.zeros(2), every(ok), total=2)
