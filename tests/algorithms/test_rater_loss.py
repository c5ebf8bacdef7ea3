# mypy: disable-error-code="no-untyped-call"
"""What a rater's habits do to a judgement's likelihood: by hand, by certainty over all outcomes, and without habits."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.algorithms.rater_loss import (
    choice_logprobs,
    rater_bradley_terry,
    rater_ordinal,
    rater_plackett_luce,
    rating_logprobs,
)
from plaudit.algorithms.reward_loss import bradley_terry, ordinal, plackett_luce

COMPARED: Any = rater_bradley_terry
RANKED: Any = rater_plackett_luce
RATED: Any = rater_ordinal
"""The same, where arguments come in lists."""


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LN3 = math.log(3)


@pytest.mark.parametrize(
    ("careless", "scale", "side", "target", "chance"),
    [
        (0.0, 1.0, 0.0, 1.0, 0.75),  # sigmoid(ln 3)
        (1.0, 1.0, 0.0, 1.0, 0.5),  # says nothing of the answers
        (0.5, 1.0, 0.0, 1.0, 0.625),  # half and half
        (0.5, 1.0, 0.0, 0.0, 0.375),
        (0.0, -1.0, 0.0, 1.0, 0.25),  # the question upside down
        (0.0, 2.0, 0.0, 1.0, 0.9),  # sigmoid(ln 9)
        (0.0, 1.0, LN3, 1.0, 0.9),  # the first stood first
        (0.0, 1.0, -LN3, 1.0, 0.5),  # the second did
        (0.0, 1.0, -LN3, 0.0, 0.5),
        (1.0, 1.0, LN3, 1.0, 0.75),  # a careless rater's side
        (1.0, 1.0, LN3, 0.0, 0.25),
        (0.2, -1.0, LN3, 1.0, 0.2 * 0.75 + 0.8 * 0.5),
    ],
)
def test_a_choice_by_hand(careless: float, scale: float, side: float, target: float, chance: float) -> None:
    habits = vec(careless), vec(scale), vec(side)
    loss = rater_bradley_terry(vec(LN3), vec(0.0), vec(target), *habits, total=1).loss
    assert math.exp(-loss.item()) == pytest.approx(chance, abs=1e-14)


def test_without_habits_it_is_bradley_terry() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    target, weight, margin = vec(1, 0, 0.5, 0.3, 0.8, 0), vec(1, 2, 0.5, 1, 0, 3), vec(0, 1, 0, 0, 0, 0.5)
    none = torch.zeros(6, dtype=torch.float64)
    aware = rater_bradley_terry(first, second, target, none, none + 1, none, weight, total=7.5, margin=margin)
    plain = bradley_terry(first, second, target, weight, total=7.5, margin=margin)
    assert aware.loss.item() == pytest.approx(plain.loss.item(), rel=1e-13)
    for name, value in plain.metrics.items():
        assert aware.metrics[name].item() == pytest.approx(value.item())


def test_a_tie_says_nothing_of_who_said_it() -> None:
    habits = [vec(x).requires_grad_() for x in (0.3, 1.2, 0.4)]
    gap = vec(0.8).requires_grad_()
    loss = rater_bradley_terry(gap, vec(0.0), vec(0.5), *habits, total=1).loss
    slopes = torch.autograd.grad(loss, [gap, *habits])
    assert loss.item() == pytest.approx(
        bradley_terry(gap, vec(0.0), vec(0.5), total=1).loss.item(), abs=1e-15
    )
    assert [slope.item() for slope in slopes[1:]] == [0, 0, 0]
    assert slopes[0].item() > 0


def test_a_margin_is_the_choices_and_a_ties_share_has_none() -> None:
    """A soft target is |2 target - 1| of a choice, whose margin it is, and the rest of a tie: not `bradley_terry`'s."""

    def loss(target: float, margin: float) -> float:
        none, given = vec(0.0), {"total": 1, "margin": vec(margin)}
        return float(COMPARED(vec(LN3), none, vec(target), none, vec(1.0), none, **given).loss)

    assert loss(0.75, 1.0) == pytest.approx(0.5 * loss(1.0, 1.0) + 0.5 * loss(0.5, 0.0), rel=1e-14)
    assert loss(0.5, 1.0) == pytest.approx(loss(0.5, 0.0), rel=1e-14)
    plain = bradley_terry(vec(LN3), vec(0.0), vec(0.75), total=1, margin=vec(1.0)).loss.item()
    assert loss(0.75, 1.0) < plain - 0.1


def test_exchanging_the_two_changes_nothing() -> None:
    habits = vec(0.2, 0.4), vec(0.7, -1.1)
    side, first, second, target = vec(0.5, -0.3), vec(1.0, 2.0), vec(0.2, 2.5), vec(1.0, 0.2)
    one = rater_bradley_terry(first, second, target, *habits, side, total=2).loss
    other = rater_bradley_terry(second, first, 1 - target, *habits, -side, total=2).loss
    assert one.item() == pytest.approx(other.item(), rel=1e-14)


@pytest.mark.parametrize("odds", [-700.0, -50.0, 0.0, 50.0, 700.0])
def test_both_choices_together_are_certain_and_finite(odds: float) -> None:
    for careless in (0.0, 1e-12, 0.3, 1.0):
        c = vec(careless).requires_grad_()
        ways = [choice_logprobs(vec(sign * odds), c, vec(sign * 0.4)) for sign in (1, -1)]
        assert sum(way.exp().item() for way in ways) == pytest.approx(1.0)
        for way in ways:
            (slope,) = torch.autograd.grad(way.sum(), c)
            assert bool(torch.isfinite(slope).all())
    assert choice_logprobs(vec(-5000.0), vec(0.0), vec(0.0)).item() == -5000.0


def test_a_careless_ranking_is_any() -> None:
    """All K! rankings are certain together, and a wholly careless one has 1/K!."""
    draw = torch.randn(4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    rows = torch.stack([draw[list(order)] for order in permutations(range(4))])
    mask, ones = torch.ones_like(rows, dtype=torch.bool), torch.ones(24, dtype=torch.float64)

    def chances(careless: float, scale: float) -> Tensor:
        each = [
            rater_plackett_luce(rows[i : i + 1], mask[:1], vec(careless), vec(scale), total=1).loss
            for i in range(24)
        ]
        return torch.stack(each).neg().exp()

    for careless in (0.0, 0.4, 1.0):
        assert chances(careless, -0.7).sum().item() == pytest.approx(1.0)
    assert chances(1.0, 1.0).tolist() == pytest.approx([1 / 24] * 24)
    assert chances(0.4, 1.0).tolist() == pytest.approx((0.4 / 24 + 0.6 * chances(0.0, 1.0)).tolist())
    plain = plackett_luce(rows, mask, total=24)
    aware = rater_plackett_luce(rows, mask, 0 * ones, ones, total=24)
    assert aware.loss.item() == pytest.approx(plain.loss.item(), rel=1e-13)
    assert aware.metrics["correct"].item() == pytest.approx(plain.metrics["correct"].item())


def test_a_sharp_ranking_by_hand() -> None:
    """Strengths 4, 2, 2 at scale 2 are 16, 4, 4: 16/24, then 4/8; at scale -1 they are 1/4, 1/2, 1/2."""
    scores, mask = vec(math.log(4), math.log(2), math.log(2))[None], torch.ones(1, 3, dtype=torch.bool)
    for scale, chance in ((2.0, 16 / 24 / 2), (-1.0, 0.25 / 1.25 / 2)):
        loss = rater_plackett_luce(scores, mask, vec(0.0), vec(scale), total=1).loss
        assert math.exp(-loss.item()) == pytest.approx(chance, abs=1e-14)


def test_a_padded_ranking_guesses_among_its_own() -> None:
    scores, mask = vec(1.0, 2.0, math.nan)[None], torch.tensor([[True, True, False]])
    loss = rater_plackett_luce(scores, mask, vec(1.0), vec(1.0), total=1).loss
    assert loss.item() == pytest.approx(math.log(2), abs=1e-14)


def test_a_severe_rater_by_hand() -> None:
    """Score ln 3, severity ln 3: as if the score were 0. Cuts at -ln 3 and ln 3 give 1/4, 1/2, 1/4."""
    cuts, guess = vec(-LN3, LN3), vec(0.2, 0.2, 0.6)

    def chance(level: float, careless: float, scale: float, severity: float) -> float:
        habits = vec(careless), vec(scale), vec(severity)
        return math.exp(-rater_ordinal(vec(LN3), vec(level), cuts, *habits, guess, total=1).loss.item())

    assert [chance(k, 0.0, 1.0, LN3) for k in (0, 1, 2)] == pytest.approx([0.25, 0.5, 0.25])
    assert [chance(k, 1.0, 1.0, LN3) for k in (0, 1, 2)] == pytest.approx([0.2, 0.2, 0.6])
    assert chance(2, 0.5, 1.0, LN3) == pytest.approx(0.5 * 0.6 + 0.5 * 0.25)
    assert chance(2, 0.0, 2.0, 0.0) == pytest.approx(0.75)  # sigmoid(2 ln 3 - ln 3)
    assert [chance(k, 0.0, 2.0, LN3) for k in (0, 1, 2)] == pytest.approx([0.25, 0.5, 0.25])
    assert chance(0, 0.0, 2.0, 0.0) == pytest.approx(1 / 28)  # sigmoid(-ln 27)
    scores, levels, none = vec(0.3, -1.0), vec(1.5, 0.0), vec(0.0, 0.0)
    aware = rater_ordinal(scores, levels, cuts, none, none + 1, none, guess, total=2)
    assert aware.loss.item() == pytest.approx(ordinal(scores, levels, cuts, total=2).loss.item(), rel=1e-14)
    rows = torch.arange(3).double()
    chances = rating_logprobs(vec(0.4, 0.4, 0.4), rows, cuts, vec(0.3, 0.3, 0.3), guess).exp()
    assert chances.sum().item() == pytest.approx(1.0)


def test_gradients_by_differences() -> None:
    """Of the scores and every habit, for all three losses."""
    generator = torch.Generator().manual_seed(9)
    first, second, scale, side = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    careless, target = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    cuts, guess, levels = vec(-1.0, 0.0, 0.7), vec(0.1, 0.2, 0.3, 0.4), 3 * target
    mask = torch.tensor([[True] * 4, [True, True, True, False], [True, True, False, False]])
    rankings = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    losses = [
        (lambda *x: rater_bradley_terry(x[0], x[1], target, x[2], x[3], x[4], total=5).loss,
         [first, second, careless, scale, side]),
        (lambda *x: rater_plackett_luce(x[0], mask, x[1], x[2], total=3).loss, [rankings, careless[:3], scale[:3]]),
        (lambda *x: rater_ordinal(x[0], levels, x[1], x[2], x[3], x[4], guess, total=5).loss,
         [first, cuts, careless, scale, side]),
    ]  # fmt: skip
    for loss, inputs in losses:
        assert torch.autograd.gradcheck(
            loss, [x.clone().requires_grad_() for x in inputs], eps=1e-6, atol=1e-7
        )


def test_what_has_no_weight_is_not_read() -> None:
    nan, good = math.nan, vec(1.0, 0.0)
    weight = vec(1.0, 0.0)
    holes = [vec(x, nan).requires_grad_() for x in (0.4, 0.1, 0.2, 1.3, 0.5)]
    loss = COMPARED(holes[0], holes[1], vec(1.0, nan), *holes[2:], weight, total=1).loss
    slopes = torch.autograd.grad(loss, holes)
    clean = COMPARED(*(h[:1] for h in holes[:2]), good[:1], *(h[:1] for h in holes[2:]), total=1).loss
    assert loss.item() == clean.item()
    assert all(slope[1].item() == 0 for slope in slopes)
    rated = RATED(holes[0], vec(1.0, nan), vec(-1.0, 1.0), *holes[2:], vec(0.3, 0.3, 0.4), weight, total=1)
    assert math.isfinite(rated.loss.item())
    mask = torch.ones(2, 2, dtype=torch.bool)
    ranked = RANKED(torch.stack(holes[:2], 1), mask, *holes[2:4], weight, total=1)
    assert math.isfinite(ranked.loss.item())


def test_micro_batches_sum_and_odd_input_is_refused() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(6, 8, generator=generator, dtype=torch.float64)

    def part(rows: slice) -> tuple[float, ...]:
        out = COMPARED(*(row[rows] for row in x[:6]), x[0, rows], total=3.0)
        return out.loss.item(), *(value.item() for value in out.metrics.values())

    halves = zip(part(slice(0, 3)), part(slice(3, 8)), strict=True)
    assert [a + b for a, b in halves] == pytest.approx(part(slice(0, 8)), rel=1e-13)
    one = vec(1.0)
    with pytest.raises(ValueError, match="careless is outside"):
        COMPARED(one, one, one, vec(1.1), one, one, total=1)
    with pytest.raises(ValueError, match="careless is outside"):
        RANKED(one[None], torch.ones(1, 1, dtype=torch.bool), vec(math.nan), one, total=1)
    with pytest.raises(ValueError, match="careless is outside"):
        RATED(one, one, vec(0.0), vec(-0.1), one, one, vec(0.5, 0.5), total=1)
    with pytest.raises(ValueError, match="target is outside"):
        COMPARED(one, one, vec(1.2), one, one, one, total=1)
    with pytest.raises(ValueError, match="margin is below 0"):
        COMPARED(one, one, one, one, one, one, total=1, margin=vec(-1.0))
    with pytest.raises(ValueError, match="shapes differ"):
        COMPARED(one, one, one, one, vec(1.0, 2.0), one, total=1)
