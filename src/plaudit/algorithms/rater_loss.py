"""What a reward model learns where it is known who judged: each rater's habits beside the crowd's scale.

A judgement is careless with the rater's probability `careless`, and says then nothing of the answers; else it
follows the score at the rater's own `scale`, which is negative where a rater has the question upside down:

    P(first is better) = careless * sigmoid(side) + (1 - careless) * sigmoid(scale * (s1 - s2) + side)

Source: a two-parameter item-response model (Birnbaum 1968) with a guessing floor, as in Raykar et al. 2010
("Learning from crowds") and Whitehill et al. 2009 (GLAD), its items' difficulties being the reward's.

All tensors of a rater are given a judgement: [N], that of the one who made it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.masking import check_same_shape, masked_mean, zero_masked
from plaudit.algorithms.reward_loss import level_logprobs, ranking_logprobs, soft_pick


def rater_bradley_terry(
    first: Tensor,
    second: Tensor,
    target: Tensor,
    careless: Tensor,
    scale: Tensor,
    side: Tensor,
    weight: Tensor | None = None,
    *,
    total: float | Tensor,
    margin: Tensor | None = None,
) -> LossOutput:
    """Sum over pairs of weight * -log P(choice by its rater), divided by total.

    first, second, target, weight, total, margin: [N], as in `bradley_terry`. careless: in 0 to 1. scale: of the
    crowd's log-odds. side: the rater's pull towards what stands first on the screen, signed for this pair: + where
    the first stood first, - where the second did, 0 where it is not known.

    A tie is read as the crowd's, CE(1/2, sigmoid(first - second)): it says that the two are near, and nothing of
    who says so. Soft targets lie between: |2 target - 1| of a choice and the rest of a tie. With careless 0, scale 1
    and side 0 it is `bradley_terry`, but for a margin beside a soft target: the margin is the choice's, and a tie's
    share gets none.

    metrics: as in `bradley_terry`, of the crowd's gap. Raises ValueError where shapes differ, a counted target or
    careless is outside 0 to 1, or a margin is below 0. Source: above; the margin as in `bradley_terry`.
    """
    weight = torch.ones_like(first) if weight is None else weight
    margin = torch.zeros_like(first) if margin is None else margin
    given = {"first": first, "second": second, "target": target, "weight": weight, "margin": margin}
    check_same_shape(**given, careless=careless, scale=scale, side=side)
    counts = weight != 0
    gap = zero_masked(first, counts) - zero_masked(second, counts)
    target, margin = (zero_masked(x, counts).detach().to(gap.dtype) for x in (target, margin))
    careless, scale, side = (zero_masked(x, counts) for x in (careless, scale, side))
    if not bool(((target >= 0) & (target <= 1)).all()):
        raise ValueError("a target is outside 0 to 1")
    if not bool((margin >= 0).all()):
        raise ValueError("a margin is below 0")

    towards = torch.where(target < 0.5, -1.0, 1.0).to(gap.dtype)
    choice = choice_logprobs(scale * towards * gap - margin, careless, towards * side)
    tie = (F.logsigmoid(gap) + F.logsigmoid(-gap)) / 2
    decided = (2.0 * target - 1.0).abs()
    loss = -(decided * choice + (1.0 - decided) * tie)

    ahead = (2.0 * target - 1.0) * gap.detach()
    metrics = {
        "correct": masked_mean(weight * (ahead > 0), counts, total=total),
        "decided": masked_mean(weight * (target != 0.5), counts, total=total),
        "margin": masked_mean(weight * ahead, counts, total=total),
    }
    return LossOutput(masked_mean(weight * loss, counts, total=total), metrics)


def choice_logprobs(log_odds: Tensor, careless: Tensor, side: Tensor) -> Tensor:
    """log(careless * sigmoid(side) + (1 - careless) * sigmoid(log_odds + side)); shapes that broadcast.

    log_odds, side: towards what was chosen. careless: in 0 to 1 (else ValueError), exact at both ends.
    Source: above.
    """
    return _mixed(F.logsigmoid(side), F.logsigmoid(log_odds + side), careless)


def rater_plackett_luce(
    scores: Tensor,
    mask: Tensor,
    careless: Tensor,
    scale: Tensor,
    weight: Tensor | None = None,
    *,
    total: float | Tensor,
) -> LossOutput:
    """Sum over rankings of weight * -log(careless / K! + (1 - careless) P(ranking of scale * scores)), over total.

    scores, mask: [N, K]; weight, total: as in `plackett_luce`; careless, scale: [N]. A careless ranking of K answers
    is any of the K! alike. metrics: of the crowd's scores, as in `plackett_luce`. Raises ValueError where shapes
    differ or careless is outside 0 to 1. Source: `plackett_luce`, with the mixture above.
    """
    weight = torch.ones_like(scores[:, 0]) if weight is None else weight
    check_same_shape(weight=weight, careless=careless, scale=scale, a_score_a_row=scores[:, 0])
    counts = weight != 0
    mask = mask & counts[:, None]
    careless, scale = zero_masked(careless, counts), zero_masked(scale, counts)
    scores = zero_masked(scores, mask)
    guess = -torch.lgamma(mask.sum(1).to(scores.dtype) + 1.0)
    loss = -_mixed(guess, ranking_logprobs(scale[:, None] * scores, mask), careless)

    scores = scores.detach()
    both = (mask[:, :, None] & mask[:, None, :]).triu(diagonal=1)
    ahead = scores[:, :, None] > scores[:, None, :]
    metrics = {
        "correct": masked_mean(weight * (both & ahead).sum((1, 2)), counts, total=total),
        "decided": masked_mean(weight * both.sum((1, 2)), counts, total=total),
    }
    return LossOutput(masked_mean(weight * loss, counts, total=total), metrics)


def rater_ordinal(
    scores: Tensor,
    levels: Tensor,
    cuts: Tensor,
    careless: Tensor,
    scale: Tensor,
    severity: Tensor,
    guess: Tensor,
    weight: Tensor | None = None,
    *,
    total: float | Tensor,
) -> LossOutput:
    """Sum over samples of weight * -log P(level by its rater), divided by total, where

        P(level = k) = careless * guess_k + (1 - careless) * P(level = k | scale * (score - severity))

    scores, levels, weight: [N], cuts: [K - 1], total: as in `ordinal`. careless, scale, severity: [N]; severity is in
    units of the score, and a severe rater's levels are lower. guess: [K], how a careless rater spreads levels, which
    sum to 1. With careless 0, scale 1 and severity 0 it is `ordinal`; its metric is that of the crowd.

    Raises ValueError as `ordinal` does, or where careless is outside 0 to 1. Source: Linacre 1989 (many-facet Rasch:
    severity) with Samejima 1969 (the graded response model) and the mixture above.
    """
    weight = torch.ones_like(scores) if weight is None else weight
    given = {"scores": scores, "levels": levels, "weight": weight}
    check_same_shape(**given, careless=careless, scale=scale, severity=severity)
    counts = weight != 0
    scores, careless, scale, severity = (zero_masked(x, counts) for x in (scores, careless, scale, severity))
    levels = zero_masked(levels, counts).detach().to(scores.dtype)
    loss = -rating_logprobs(scale * (scores - severity), levels, cuts, careless, guess)
    expected = torch.sigmoid(scores.detach()[:, None] - cuts.detach()).sum(1)
    error = (expected - levels).abs() / len(cuts)
    return LossOutput(
        masked_mean(weight * loss, counts, total=total),
        {"rating_error": masked_mean(weight * error, counts, total=total)},
    )


def rating_logprobs(scores: Tensor, levels: Tensor, cuts: Tensor, careless: Tensor, guess: Tensor) -> Tensor:
    """log(careless * guess_level + (1 - careless) * P(level | score)); scores (the rater's own), levels and careless:
    shapes that broadcast; cuts: as in `level_logprobs`. Raises ValueError as `rater_ordinal`. Source: as there."""
    mixed = _mixed(guess.clamp(min=1e-9).log(), level_logprobs(scores, cuts), careless[..., None])
    return soft_pick(mixed, levels.expand(mixed.shape[:-1]))


def _mixed(guess: Tensor, careful: Tensor, careless: Tensor) -> Tensor:
    """log(careless * exp(guess) + (1 - careless) * exp(careful)), exact where careless is 0 or 1; outside it is a
    ValueError."""
    if not bool(((careless >= 0) & (careless <= 1)).all()):
        raise ValueError("a careless is outside 0 to 1")
    tiny = torch.finfo(careful.dtype).tiny
    mixed = torch.logaddexp(
        careless.clamp(min=tiny).log() + guess, (1.0 - careless).clamp(min=tiny).log() + careful
    )
    exact = torch.where(careless <= 0, careful, guess)
    return torch.where((careless > 0) & (careless < 1), mixed, exact)
