# mypy: disable-error-code="no-untyped-call"
"""Margins, Plackett-Luce and ordinal ratings: by hand, by counting every ranking, and beside choix and statsmodels."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from plaudit.algorithms.reward_loss import (
    bradley_terry,
    level_logprobs,
    ordinal,
    plackett_luce,
    ranking_logprobs,
    rating_regression,
    soft_pick,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "rankings.json").read_text())


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def numeric(loss: torch.nn.Module | object, x: Tensor, step: float = 1e-6) -> Tensor:
    """The gradient of a function of one tensor, by central differences."""
    found = torch.zeros_like(x)
    for place in range(x.numel()):
        ahead, behind = x.clone(), x.clone()
        ahead.view(-1)[place] += step
        behind.view(-1)[place] -= step
        found.view(-1)[place] = (float(loss(ahead)) - float(loss(behind))) / (2 * step)  # type: ignore[operator]
    return found


# margins


@pytest.mark.parametrize(
    ("gap", "margin", "target", "loss"),
    [
        (2.0, 1.0, 1.0, 0.31326168751822286),  # -ln sigmoid(1)
        (2.0, 1.0, 0.0, 3.048587351573742),  # -ln sigmoid(-3)
        (-2.0, 3.0, 0.0, 1.3132616875182228),  # -ln sigmoid(-1)
        (0.0, 0.0, 1.0, 0.6931471805599453),
    ],
)
def test_a_margin_by_hand(gap: float, margin: float, target: float, loss: float) -> None:
    """Llama 2's equation 2: the better one must be ahead by the margin, whichever it is."""
    found = bradley_terry(vec(gap), vec(0.0), vec(target), total=1, margin=vec(margin)).loss
    assert found.item() == pytest.approx(loss, abs=1e-14)


def test_no_margin_is_a_margin_of_zero_and_what_does_not_count_is_not_read() -> None:
    first, second, target = vec(1.0, -2.0, 0.3), vec(0.5, 1.0, 9.0), vec(1.0, 0.3, 0.5)
    weight = vec(1.0, 2.0, 0.0)
    plain = bradley_terry(first, second, target, weight, total=3)
    zero = bradley_terry(first, second, target, weight, total=3, margin=vec(0.0, 0.0, math.nan))
    assert zero.loss.item() == plain.loss.item()
    with pytest.raises(ValueError, match="margin is below 0"):
        bradley_terry(first, second, target, total=3, margin=vec(0.0, -0.1, 0.0))


# rankings


def test_a_ranking_of_three_by_hand() -> None:
    """Strengths 4, 2, 2: the best is chosen with 4/8, the next with 2/4."""
    scores = vec(math.log(4), math.log(2), math.log(2))[None].requires_grad_()
    loss, metrics = plackett_luce(scores, torch.ones(1, 3, dtype=torch.bool), total=1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4), abs=1e-14)
    assert scores.grad is not None
    # d/ds of -log: 1/2 of the first is left over; the second is 1/4 of all and 1/2 of the rest
    assert scores.grad[0].tolist() == pytest.approx([-0.5, 0.25 + 0.5 - 1, 0.25 + 0.5], abs=1e-14)
    assert metrics["correct"].item() == 2  # of three pairs; equal scores are not correct
    assert metrics["decided"].item() == 3


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_all_rankings_together_are_certain(count: int) -> None:
    draw = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64) * 3
    rows = torch.stack([draw[list(order)] for order in permutations(range(count))])
    assert ranking_logprobs(
        rows, torch.ones_like(rows, dtype=torch.bool)
    ).exp().sum().item() == pytest.approx(1)


def test_a_ranking_of_two_is_bradley_terry() -> None:
    first, second = vec(1.5, -0.2, 3.0), vec(0.7, 4.0, 3.0)
    both = torch.ones(3, 2, dtype=torch.bool)
    weight = vec(1.0, 0.5, 2.0)
    one = plackett_luce(torch.stack([first, second], 1), both, weight, total=3.5)
    other = bradley_terry(first, second, vec(1.0, 1.0, 1.0), weight, total=3.5)
    assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-14)
    for name in ("correct", "decided"):
        assert one.metrics[name].item() == pytest.approx(other.metrics[name].item())


def rows_of(scores: Tensor) -> tuple[Tensor, Tensor]:
    rankings = GOLDEN["plackett_luce"]["rankings"]
    places = torch.tensor([ranking + [0] * (5 - len(ranking)) for ranking in rankings])
    mask = torch.tensor([[k < len(ranking) for k in range(5)] for ranking in rankings])
    return scores[places], mask


def test_it_is_choixs_likelihood_with_its_gradient() -> None:
    golden = GOLDEN["plackett_luce"]
    scores = vec(*golden["scores"]).requires_grad_()
    loss = plackett_luce(*rows_of(scores), total=1).loss
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-12)
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx(golden["gradient"], rel=1e-9)


def test_it_is_stationary_where_choix_finds_the_maximum() -> None:
    best = vec(*GOLDEN["plackett_luce"]["best_with_penalty"]).requires_grad_()
    loss = plackett_luce(*rows_of(best), total=1).loss + 0.5 * best.square().sum()
    (slope,) = torch.autograd.grad(loss, best)
    assert slope.abs().max().item() < 1e-6


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e300])
def test_padding_and_holes_are_not_read(rubbish: float) -> None:
    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.tensor([[c == "1" for c in row] for row in ("11111", "11010", "10000", "11100")])
    weight = vec(1.0, 2.0, 3.0, 0.0)

    def run(x: Tensor) -> tuple[float, Tensor]:
        x = x.clone().requires_grad_()
        loss = plackett_luce(x, mask, weight, total=6).loss
        (slope,) = torch.autograd.grad(loss, x)
        return loss.item(), slope

    counted = mask & (weight > 0)[:, None]
    clean, dirty = run(scores), run(scores.masked_fill(~counted, rubbish))
    assert dirty[0] == clean[0]
    assert torch.equal(dirty[1], clean[1])
    assert torch.count_nonzero(dirty[1][~counted]) == 0
    alone = [
        plackett_luce(scores[i : i + 1][:, mask[i]], mask[i : i + 1][:, mask[i]], total=1).loss
        for i in range(3)
    ]
    assert clean[0] == pytest.approx(float(alone[0] + 2 * alone[1] + 3 * alone[2]) / 6, rel=1e-13)
    assert alone[2].item() == 0  # a ranking of one


def test_rankings_split_and_differentiate() -> None:
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor([4, 3, 2, 4, 1, 3])[:, None]
    whole = plackett_luce(scores, mask, total=6)
    parts = [plackett_luce(scores[rows], mask[rows], total=6) for rows in (slice(0, 2), slice(2, 6))]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-14)
    for name, value in whole.metrics.items():
        assert sum(part.metrics[name].item() for part in parts) == pytest.approx(value.item())
    x = scores.clone().requires_grad_()
    (slope,) = torch.autograd.grad(plackett_luce(x, mask, total=6).loss, x)
    assert slope.tolist() == [
        pytest.approx(row, abs=1e-8)
        for row in numeric(lambda s: plackett_luce(s, mask, total=6).loss, scores).tolist()
    ]
    with pytest.raises(ValueError, match="shapes differ"):
        plackett_luce(scores, mask[:, :3], total=6)
    with pytest.raises(ValueError, match="shapes differ"):
        plackett_luce(scores, mask, vec(1.0, 2.0), total=6)


# levels


def test_levels_by_hand() -> None:
    """Score 0, cuts at -ln 3 and ln 3: sigmoid is 3/4 and 1/4, so the levels have 1/4, 1/2, 1/4."""
    cuts = vec(-math.log(3), math.log(3))
    assert level_logprobs(vec(0.0), cuts).exp()[0].tolist() == pytest.approx([0.25, 0.5, 0.25], abs=1e-15)
    scores = vec(0.0).requires_grad_()
    loss, metrics = ordinal(scores, vec(1.0), cuts, total=1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert scores.grad is not None
    assert scores.grad.item() == pytest.approx(0, abs=1e-15)
    assert metrics["rating_error"].item() == pytest.approx(0, abs=1e-15)
    shared = ordinal(vec(0.0), vec(1.25), cuts, total=1)
    assert shared.loss.item() == pytest.approx(0.75 * math.log(2) + 0.25 * math.log(4), abs=1e-14)
    assert shared.metrics["rating_error"].item() == pytest.approx(0.125)


def test_two_levels_are_the_regression() -> None:
    scores, ratings, weight = vec(0.3, -2.0, 5.0), vec(0.2, 1.0, 0.0), vec(1.0, 2.0, 0.5)
    one = ordinal(scores, ratings, vec(0.0), weight, total=3.5)
    other = rating_regression(scores, ratings, weight, total=3.5)
    assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-14)
    assert one.metrics["rating_error"].item() == pytest.approx(other.metrics["rating_error"].item())


def test_it_is_statsmodels_likelihood_and_stationary_at_its_maximum() -> None:
    golden = GOLDEN["ordinal"]
    features = torch.tensor(golden["features"], dtype=torch.float64)
    levels = torch.tensor(golden["levels"])
    scores = features @ vec(*golden["coefficients"])
    found = level_logprobs(scores, vec(*golden["cuts"])).gather(1, levels[:, None])[:, 0]
    assert found.tolist() == pytest.approx(golden["log_likelihood"], rel=1e-10)
    best, cuts = (
        vec(*golden["best_coefficients"]).requires_grad_(),
        vec(*golden["best_cuts"]).requires_grad_(),
    )
    loss = ordinal(features @ best, levels.double(), cuts, total=1).loss
    assert loss.item() == pytest.approx(-golden["best_log_likelihood"], rel=1e-12)
    slopes = torch.autograd.grad(loss, [best, cuts])
    assert max(slope.abs().max().item() for slope in slopes) < 1e-5


def test_levels_sum_to_one_however_far_the_score() -> None:
    cuts = vec(-3.0, -2.999, 0.0, 4.0)
    scores = vec(-800.0, -30.0, 0.0, 30.0, 800.0).requires_grad_()
    logprobs = level_logprobs(scores, cuts)
    assert logprobs.exp().sum(1).tolist() == pytest.approx([1.0] * 5)
    assert bool(torch.isfinite(logprobs).all())
    (slope,) = torch.autograd.grad(logprobs.sum(), scores)
    assert bool(torch.isfinite(slope).all())


def test_ordinal_laws() -> None:
    generator = torch.Generator().manual_seed(4)
    scores = torch.randn(8, generator=generator, dtype=torch.float64)
    levels = torch.rand(8, generator=generator, dtype=torch.float64) * 3
    cuts, weight = vec(-1.0, 0.1, 1.3), vec(1, 2, 0, 1, 0.5, 1, 1, 3)
    whole = ordinal(scores, levels, cuts, weight, total=9.5)
    parts = [ordinal(scores[r], levels[r], cuts, weight[r], total=9.5) for r in (slice(0, 3), slice(3, 8))]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-14)
    hole = scores.clone().index_fill(0, torch.tensor([2]), math.nan).requires_grad_()
    bad = ordinal(hole, levels.index_fill(0, torch.tensor([2]), 99.0), cuts, weight, total=9.5)
    (slope,) = torch.autograd.grad(bad.loss, hole)
    assert bad.loss.item() == whole.loss.item()
    assert slope[2].item() == 0
    for of, other in ((scores, cuts), (cuts, scores)):

        def loss(x: Tensor, of: Tensor = of, other: Tensor = other) -> Tensor:
            pair = (x, other) if of is scores else (other, x)
            return ordinal(pair[0], levels, pair[1], weight, total=9.5).loss

        x = of.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(x), x)
        assert slope.tolist() == pytest.approx(numeric(loss, of).tolist(), abs=1e-8)


def test_what_makes_no_levels_is_refused() -> None:
    for cuts in (vec(0.0, 0.0), vec(1.0, -1.0), vec(), vec(0.0, math.nan)):
        with pytest.raises(ValueError, match="cuts do not increase"):
            ordinal(vec(0.0), vec(0.0), cuts, total=1)
    for level in (-0.1, 2.1, math.nan):
        with pytest.raises(ValueError, match="level is outside 0 to 2"):
            ordinal(vec(0.0), vec(level), vec(-1.0, 1.0), total=1)
    assert soft_pick(vec(1.0, 5.0, 7.0)[None], vec(2.0)).item() == 7.0
