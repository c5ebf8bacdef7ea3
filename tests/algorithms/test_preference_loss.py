# mypy: disable-error-code="no-untyped-call"
"""Preference losses: known constants, what the optimum must be, and what must change nothing."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.preference_loss import (
    PAIRED,
    Pairs,
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
    smoothed,
)

# -ln sigmoid(1), -ln sigmoid(-1), sigmoid(1), ln 2
WON, LOST, SIGMOID1, LN2 = 0.31326168751822286, 1.3132616875182228, 0.7310585786300049, 0.6931471805599453


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(seed: int, count: int = 7) -> Pairs:
    """Pairs with every field, one of them a tie, one soft."""
    generator = torch.Generator().manual_seed(seed)
    sums = -20 + 8 * torch.rand(4, count, generator=generator, dtype=torch.float64)
    target = vec(1.0, 0.0, 0.5, 0.8, 1.0, 0.0, 0.3)[:count]
    tokens = torch.randint(1, 9, (2, count), generator=generator)
    margin, weight = torch.rand(2, count, generator=generator, dtype=torch.float64)
    return Pairs(sums[0], sums[1], target, sums[2], sums[3], tokens[0], tokens[1], margin, weight + 0.1)


def cut(pairs: Pairs, rows: Tensor | slice) -> Pairs:
    return pairs._replace(**{name: x[rows] for name, x in pairs._asdict().items() if x is not None})


def run(
    loss: Callable[..., LossOutput], pairs: Pairs, total: float | Tensor
) -> tuple[float, Tensor, dict[str, float]]:
    """The loss, its gradient [2, N] with respect to the sums, and the metrics."""
    first, second = (x.clone().requires_grad_() for x in (pairs.first, pairs.second))
    out = loss(pairs._replace(first=first, second=second), total=total)
    out.loss.backward()
    assert first.grad is not None
    assert second.grad is not None
    metrics = {name: value.item() for name, value in out.metrics.items()}
    return out.loss.item(), torch.stack([first.grad, second.grad]), metrics


@pytest.fixture(params=list(PAIRED))
def loss(request: pytest.FixtureRequest) -> Callable[..., LossOutput]:
    return PAIRED[request.param]


# Constants


@pytest.mark.parametrize(
    ("target", "margin", "wanted", "slope"),
    [
        (1.0, 0.0, WON, SIGMOID1 - 1),
        (0.0, 0.0, LOST, SIGMOID1),
        (0.5, 0.0, (WON + LOST) / 2, SIGMOID1 - 0.5),
        (0.9, 0.0, 0.9 * WON + 0.1 * LOST, SIGMOID1 - 0.9),
        (1.0, 1.0, LN2, -0.5),  # the lead is all margin
        (1.0, 2.0, LOST, -SIGMOID1),
        (0.5, 2.0, (WON + LOST) / 2, SIGMOID1 - 0.5),  # a tie has no side to lead
        (0.0, 2.0, 3.048587351573742, 0.9525741268224334),  # -ln sigmoid(-3), sigmoid(3)
    ],
)
def test_one_pair_by_hand(target: float, margin: float, wanted: float, slope: float) -> None:
    """beta 0.5; log-ratios 3 and 1, so that rewards are 1.5 and 0.5 and the gap is 1."""
    pairs = Pairs(vec(-7.0), vec(-8.0), vec(target), vec(-10.0), vec(-9.0), margin=vec(margin))
    value, gradient, metrics = run(lambda p, total: dpo_loss(p, total=total, beta=0.5), pairs, 1)
    assert value == pytest.approx(wanted, abs=1e-14)
    assert gradient.flatten().tolist() == pytest.approx([0.5 * slope, -0.5 * slope], abs=1e-14)
    if target == 0.5:
        assert set(metrics.values()) == {0}
    else:
        better, worse = (1.5, 0.5) if target > 0.5 else (0.5, 1.5)
        assert metrics == {
            "decided": 1,
            "correct": float(target > 0.5),
            "reward_chosen": better,
            "reward_rejected": worse,
            "margin": better - worse,
        }


def test_a_policy_that_is_its_reference_pays_the_log_of_two() -> None:
    pairs = draw(0)._replace(margin=None, weight=None)
    assert pairs.ref_first is not None
    assert pairs.ref_second is not None
    same = pairs._replace(first=pairs.ref_first, second=pairs.ref_second)
    value, _, metrics = run(dpo_loss, same, 7)
    assert value == pytest.approx(LN2, rel=1e-15)
    assert metrics["correct"] == metrics["margin"] == 0
    assert kto_baseline(pairs.first, pairs.first) == 0
    out = kto_loss(pairs.first, pairs.first, pairs.target > 0.5, vec(0.0).sum(), total=7)
    assert out.loss.item() == 0.5


def test_robust_by_hand() -> None:
    """flip 0.2: (0.8 * WON - 0.2 * LOST) / 0.6."""
    pairs = Pairs(vec(1.0), vec(0.0), vec(1.0), vec(0.0), vec(0.0))
    out = robust_dpo_loss(pairs, total=1, beta=1.0, flip=0.2)
    assert out.loss.item() == pytest.approx((0.8 * WON - 0.2 * LOST) / 0.6, abs=1e-14)


def test_robust_is_right_on_average_over_flips() -> None:
    """The mean of the loss over true and flipped labels is plain DPO's of the true ones (Chowdhury et al. 2024)."""
    flip, true = 0.3, draw(1)._replace(margin=None)
    flipped = true._replace(target=1 - true.target)

    def robust(p: Pairs, total: float) -> LossOutput:
        return robust_dpo_loss(p, total=total, flip=flip)

    plain, one, other = run(dpo_loss, true, 7), run(robust, true, 7), run(robust, flipped, 7)
    assert (1 - flip) * one[0] + flip * other[0] == pytest.approx(plain[0], rel=1e-13)
    torch.testing.assert_close((1 - flip) * one[1] + flip * other[1], plain[1], rtol=1e-12, atol=1e-15)


def test_robust_without_flips_is_dpo() -> None:
    assert (
        run(lambda p, total: robust_dpo_loss(p, total=total, flip=0.0), draw(2), 7)[0]
        == run(dpo_loss, draw(2), 7)[0]
    )


@pytest.mark.parametrize(
    ("target", "margin", "goal"), [(1.0, 0.0, 2.5), (0.0, 0.0, -2.5), (0.5, 0.0, 0.0), (0.9, 0.0, 2.0),
                                   (1.0, 0.3, 4.0), (0.0, 0.3, -4.0), (0.5, 0.3, 0.0)]
)  # fmt: skip
def test_ipo_asks_for_a_gap_and_no_more(target: float, margin: float, goal: float) -> None:
    """beta 0.2: 1 / (2 beta) = 2.5 nats; a margin of 0.3 in rewards is 1.5 nats."""
    there = Pairs(vec(goal - 1), vec(-1.0), vec(target), vec(0.0), vec(0.0), margin=vec(margin))
    value, gradient, _ = run(lambda p, total: ipo_loss(p, total=total, beta=0.2), there, 1)
    assert value == pytest.approx(0, abs=1e-26)
    assert gradient.abs().max() < 1e-12
    beyond = there._replace(first=vec(goal + 2))
    value, gradient, _ = run(lambda p, total: ipo_loss(p, total=total, beta=0.2), beyond, 1)
    assert value == pytest.approx(9)
    assert gradient.flatten().tolist() == pytest.approx([6, -6])


def test_ipo_of_sums_and_of_means_by_hand() -> None:
    """beta 0.1, sums of log-ratios 6 of 3 tokens and -8 of 2: (14 - 5)^2 and (2 + 4 - 5)^2."""
    pairs = Pairs(vec(6.0), vec(-8.0), vec(1.0), vec(0.0), vec(0.0))
    assert ipo_loss(pairs, total=1).loss.item() == pytest.approx(81)
    pairs = pairs._replace(first_tokens=torch.tensor([3]), second_tokens=torch.tensor([2]))
    out = ipo_loss(pairs, total=1)
    assert out.loss.item() == pytest.approx(1)
    assert out.metrics["reward_chosen"].item() == pytest.approx(0.2)
    assert out.metrics["reward_rejected"].item() == pytest.approx(-0.4)


def test_ipo_of_a_soft_target_has_the_gradient_of_the_expected_loss() -> None:
    pairs = draw(3)._replace(margin=None, weight=None)
    t = pairs.target
    soft = run(ipo_loss, pairs, 7)[1]
    won = run(ipo_loss, pairs._replace(target=torch.ones(7, dtype=torch.float64)), 7)[1]
    lost = run(ipo_loss, pairs._replace(target=torch.zeros(7, dtype=torch.float64)), 7)[1]
    torch.testing.assert_close(soft, t * won + (1 - t) * lost, rtol=1e-12, atol=1e-13)


def test_simpo_by_hand() -> None:
    """beta 2, gamma 0.5: means -1 of 4 tokens and -1.75 of 2, a gap of 1.5, less 0.5."""
    pairs = Pairs(
        vec(-4.0), vec(-3.5), vec(1.0), first_tokens=torch.tensor([4]), second_tokens=torch.tensor([2])
    )
    out = simpo_loss(pairs, total=1, beta=2.0, gamma=0.5)
    assert out.loss.item() == pytest.approx(WON, abs=1e-14)
    assert out.metrics["reward_chosen"].item() == pytest.approx(-2)
    assert out.metrics["margin"].item() == pytest.approx(1.5)
    more = simpo_loss(pairs._replace(margin=vec(1.0)), total=1, beta=2.0, gamma=0.5)
    assert more.loss.item() == pytest.approx(LN2, abs=1e-14)
    tie = simpo_loss(pairs._replace(target=vec(0.5), second=vec(-2.0)), total=1, beta=2.0, gamma=0.5)
    assert tie.loss.item() == pytest.approx(LN2, abs=1e-14)


def test_orpo_by_hand() -> None:
    """P = 0.8 and 0.5: odds 4 and 1; -ln sigmoid(ln 4) = ln(5/4); NLL = ln(5/4), and ln 2 of the other."""
    tokens = {"first_tokens": torch.tensor([3]), "second_tokens": torch.tensor([2])}
    pairs = Pairs(vec(3 * math.log(0.8)), vec(2 * math.log(0.5)), vec(1.0), **tokens)
    out = orpo_loss(pairs, total=1, lam=0.25)
    assert out.loss.item() == pytest.approx(1.25 * math.log(1.25), abs=1e-14)
    assert out.metrics["reward_chosen"].item() == pytest.approx(math.log(4))
    assert out.metrics["reward_rejected"].item() == pytest.approx(0, abs=1e-14)
    lost = orpo_loss(pairs._replace(target=vec(0.0)), total=1, lam=0.25)
    assert lost.loss.item() == pytest.approx(LN2 + 0.25 * math.log(5), abs=1e-14)
    soft = orpo_loss(pairs._replace(target=vec(0.75)), total=1, lam=0.25)
    assert soft.loss.item() == pytest.approx(0.75 * out.loss.item() + 0.25 * lost.loss.item(), abs=1e-14)


def test_orpo_of_a_certain_completion_is_finite() -> None:
    tokens = {"first_tokens": torch.tensor([1]), "second_tokens": torch.tensor([1])}
    for dtype in (torch.float32, torch.float64):
        for first, second in ((0.0, -1.0), (-1.0, 0.0), (-800.0, -1.0)):
            sums = torch.tensor([[first], [second]], dtype=dtype)
            pairs = Pairs(sums[0], sums[1], torch.ones(1, dtype=dtype), **tokens)
            value, gradient, _ = run(orpo_loss, pairs, 1)
            assert math.isfinite(value)
            assert gradient.isfinite().all()


def test_kto_by_hand() -> None:
    """beta 0.5, baseline 1: log-ratios 3 and 3 give rewards 1.5, one over the baseline's 0.5."""
    logprobs = vec(-1.0, -1.0).requires_grad_()
    out = kto_loss(
        logprobs, vec(-4.0, -4.0), torch.tensor([True, False]), torch.tensor(1.0), vec(1.0, 3.0), total=4,
        beta=0.5, desirable_weight=1.2, undesirable_weight=0.5,
    )  # fmt: skip
    out.loss.backward()
    assert out.loss.item() == pytest.approx((1.2 * (1 - SIGMOID1) + 3 * 0.5 * SIGMOID1) / 4, abs=1e-14)
    slope = SIGMOID1 * (1 - SIGMOID1) * 0.5
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1.2 * slope / 4, 3 * 0.5 * slope / 4], abs=1e-15)
    found = {name: value.item() for name, value in out.metrics.items()}
    assert found == pytest.approx(
        {"correct": 0.25, "desirable": 0.25, "undesirable": 0.75, "reward_desirable": 1.5 / 4,
         "reward_undesirable": 4.5 / 4}
    )  # fmt: skip


def test_the_baseline_of_kto_by_hand() -> None:
    logprobs, weight = vec(-1.0, -3.0, math.nan).requires_grad_(), vec(3.0, 1.0, 0.0)
    baseline = kto_baseline(logprobs, vec(-3.0, -5.0, math.inf), weight)
    assert not baseline.requires_grad
    assert baseline.item() == 2
    assert kto_baseline(vec(-3.0, -1.0), vec(-1.0, -2.0)).item() == 0  # -0.5 is held at 0


# Laws


def test_smoothing_pulls_towards_a_tie() -> None:
    assert smoothed(vec(1.0, 0.0, 0.5, 0.75), 0.1).tolist() == pytest.approx([0.9, 0.1, 0.5, 0.7])
    assert smoothed(vec(1.0, 0.3), 0.0).tolist() == [1.0, 0.3]


def test_exchanging_first_and_second_changes_nothing(loss: Callable[..., LossOutput]) -> None:
    p = draw(4)
    other = Pairs(
        p.second, p.first, 1 - p.target, p.ref_second, p.ref_first, p.second_tokens, p.first_tokens, p.margin,
        p.weight,
    )  # fmt: skip
    one, two = run(loss, p, 7), run(loss, other, 7)
    assert two[0] == pytest.approx(one[0], rel=1e-13)
    torch.testing.assert_close(two[1], one[1].flip(0), rtol=1e-12, atol=1e-15)
    assert two[2] == pytest.approx(one[2], rel=1e-13)


def test_order_changes_nothing(loss: Callable[..., LossOutput]) -> None:
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    one, moved = run(loss, draw(5), 7), run(loss, cut(draw(5), order), 7)
    assert moved[0] == pytest.approx(one[0], rel=1e-14)
    torch.testing.assert_close(moved[1], one[1][:, order], rtol=1e-13, atol=0)
    assert moved[2] == pytest.approx(one[2], rel=1e-13)


@pytest.mark.parametrize("cuts", [(0, 3, 7), (0, 1, 2, 7), tuple(range(8))])
def test_micro_batches_sum_to_the_whole(loss: Callable[..., LossOutput], cuts: tuple[int, ...]) -> None:
    pairs = draw(6)
    assert pairs.weight is not None
    total = pairs.weight.sum()
    whole, parts = (
        run(loss, pairs, total),
        [run(loss, cut(pairs, slice(a, b)), total) for a, b in pairwise(cuts)],
    )
    assert sum(part[0] for part in parts) == pytest.approx(whole[0], rel=1e-13)
    torch.testing.assert_close(torch.cat([part[1] for part in parts], 1), whole[1], rtol=1e-13, atol=0)
    for name, value in whole[2].items():
        assert sum(part[2][name] for part in parts) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e300])
def test_what_weighs_nothing_is_not_read(loss: Callable[..., LossOutput], rubbish: float) -> None:
    pairs = draw(7)
    assert pairs.weight is not None
    gone = torch.tensor([False, True, False, False, True, False, True])
    pairs = pairs._replace(weight=pairs.weight.masked_fill(gone, 0.0))
    kept = cut(pairs, ~gone)
    filled = {
        name: x.masked_fill(gone, rubbish if x.dtype.is_floating_point else 0)
        for name, x in pairs._asdict().items()
        if name != "weight"
    }
    dirty = pairs._replace(**filled)
    clean, found = run(loss, kept, 3.0), run(loss, dirty, 3.0)
    assert found[0] == pytest.approx(clean[0], rel=1e-14)
    torch.testing.assert_close(found[1][:, ~gone], clean[1], rtol=1e-14, atol=0)
    assert torch.count_nonzero(found[1][:, gone]) == 0
    assert found[2] == pytest.approx(clean[2], rel=1e-14)


def test_a_pair_of_weight_two_is_two_pairs(loss: Callable[..., LossOutput]) -> None:
    pairs = draw(8)._replace(weight=None)
    twice = run(loss, cut(pairs, torch.tensor([0, 1, 2, 3, 4, 5, 6, 3])), 8)
    heavy = run(loss, pairs._replace(weight=vec(1, 1, 1, 2, 1, 1, 1)), 8)
    assert heavy[0] == pytest.approx(twice[0], rel=1e-14)
    assert heavy[2] == pytest.approx(twice[2], rel=1e-13)


def test_no_gradient_reaches_the_reference(loss: Callable[..., LossOutput]) -> None:
    pairs = draw(9)
    assert pairs.ref_first is not None
    reference = pairs.ref_first.clone().requires_grad_()
    first = pairs.first.clone().requires_grad_()
    loss(pairs._replace(first=first, ref_first=reference), total=7).loss.backward()
    assert first.grad is not None
    assert reference.grad is None


def test_reference_free_losses_read_no_reference() -> None:
    bare = draw(10)._replace(ref_first=None, ref_second=None)
    for name in ("simpo", "orpo"):
        assert run(PAIRED[name], bare, 7)[0] == run(PAIRED[name], draw(10), 7)[0]


def test_kto_in_micro_batches_and_with_what_weighs_nothing() -> None:
    generator = torch.Generator().manual_seed(11)
    logprobs, ref, weight = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    weight, desirable, baseline = weight.abs(), torch.arange(6) % 2 == 0, torch.tensor(0.3)

    def of(rows: slice, dirt: float = 0.0) -> tuple[float, Tensor, dict[str, float]]:
        w = weight[rows].clone()
        mine = logprobs[rows].clone()
        if dirt:
            w[0], mine[0] = 0.0, dirt
        mine.requires_grad_()
        out = kto_loss(
            mine, ref[rows], desirable[rows], baseline, w, total=weight.sum(), undesirable_weight=1.5
        )
        out.loss.backward()
        assert mine.grad is not None
        return out.loss.item(), mine.grad, {name: value.item() for name, value in out.metrics.items()}

    whole, parts = of(slice(0, 6)), [of(slice(0, 2)), of(slice(2, 6))]
    assert sum(part[0] for part in parts) == pytest.approx(whole[0], rel=1e-14)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), whole[1], rtol=1e-14, atol=0)
    for name, value in whole[2].items():
        assert sum(part[2][name] for part in parts) == pytest.approx(value, rel=1e-13)
    for dirt in (math.nan, math.inf):
        value, gradient, metrics = of(slice(0, 6), dirt)
        clean = of(slice(1, 6))
        assert value == pytest.approx(clean[0], rel=1e-14)
        assert gradient[0] == 0
        assert metrics == pytest.approx(clean[2], rel=1e-14)


# Optima: what each loss calls best


@pytest.mark.parametrize("share", [0.75, 0.5, 0.2])
def test_dpo_is_stationary_at_the_log_odds_of_the_share_of_raters(share: float) -> None:
    gap = math.log(share / (1 - share)) / 0.1
    pairs = Pairs(vec(gap), vec(0.0), vec(share), vec(0.0), vec(0.0))
    assert run(dpo_loss, pairs, 1)[1].abs().max() < 1e-15


# What is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": vec(1.1)}, "target is outside"),
        ({"target": vec(math.nan)}, "target is outside"),
        ({"margin": vec(-0.1)}, "margin is negative"),
        ({"target": vec(1.0, 1.0)}, "shapes differ"),
    ],
)
def test_pairs_that_are_refused(
    loss: Callable[..., LossOutput], change: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        loss(cut(draw(12), slice(0, 1))._replace(**change), total=1)


def test_what_a_loss_needs_is_named() -> None:
    bare = Pairs(vec(0.0), vec(0.0), vec(1.0))
    for name in ("dpo", "robust", "ipo"):
        with pytest.raises(ValueError, match="ref_first is needed"):
            PAIRED[name](bare, total=1)
    for name in ("simpo", "orpo"):
        with pytest.raises(ValueError, match="first_tokens is needed"):
            PAIRED[name](bare, total=1)
    none = bare._replace(first_tokens=torch.tensor([0]), second_tokens=torch.tensor([1]))
    with pytest.raises(ValueError, match="first_tokens: a completion has no tokens"):
        simpo_loss(none, total=1)


def test_other_refusals() -> None:
    for wrong in (-0.1, 0.5, math.nan):
        with pytest.raises(ValueError, match="label_smoothing is"):
            smoothed(vec(1.0), wrong)
        with pytest.raises(ValueError, match="flip is"):
            robust_dpo_loss(draw(13), total=7, flip=wrong)
    with pytest.raises(ValueError, match="not bool"):
        kto_loss(vec(0.0), vec(0.0), vec(1.0), torch.tensor(0.0), total=1)
