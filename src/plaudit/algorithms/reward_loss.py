"""What a reward model learns from: comparisons, rankings and ratings, on one latent scale.

All read a score s as a log-odds. Of two answers, the first is preferred with probability sigmoid(s1 - s2); a
ranking is a row of such choices of the best among those that are left; an answer alone is rated sigmoid(s), or
above a cut-point c with probability sigmoid(s - c). A score learned from one kind of judgement can thus be refined
by another. Who judged is no matter here; `rater_loss` asks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.masking import check_same_shape, masked_mean, zero_masked


def bradley_terry(
    first: Tensor,
    second: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    total: float | Tensor,
    margin: Tensor | None = None,
) -> LossOutput:
    """Sum over pairs of weight * cross-entropy(target, sigmoid(first - second)), divided by total.

    first, second: [N], scores. target: [N] in 0 to 1, the probability that the first is the better one: 1
    where it was chosen, 0 where the second was, 0.5 a tie, 1 - e with label smoothing e, the share of raters
    where several judged. weight: [N] >= 0, None is 1; a pair with weight 0 is not read, whatever its scores
    are. total: the whole batch's sum of weights (> 0; the count of pairs where there are none): micro-batches
    and ranks then sum to the whole. margin: [N] >= 0, None is 0: by how much the better one's score must be ahead,
    as -log sigmoid(gap - margin) for the choice of the first and -log sigmoid(-gap - margin) for the second's; give
    a tie 0. With margins a score's difference is no longer a log-odds.

    metrics, detached, weighted like the loss, that sum over micro-batches: `correct` and `decided` (shares of
    total; ties are not decided; equal scores are not correct), so that accuracy is correct / decided after
    the summing; `margin`, the mean of (2 target - 1)(first - second).

    Raises ValueError where shapes differ, a counted target is outside 0 to 1 or a counted margin below 0.
    Source: Bradley & Terry 1952; Ouyang et al. 2022 (InstructGPT), equation 1, is the case of target 1; the margin
    is Touvron et al. 2023 (Llama 2), equation 2.
    """
    weight = torch.ones_like(first) if weight is None else weight
    margin = torch.zeros_like(first) if margin is None else margin
    check_same_shape(first=first, second=second, target=target, weight=weight, margin=margin)
    counts = weight != 0
    gap = zero_masked(first, counts) - zero_masked(second, counts)
    target = _probabilities("target", target, counts, gap.dtype)
    margin = _margins(margin, counts, gap.dtype)
    loss = target * F.softplus(margin - gap) + (1.0 - target) * F.softplus(margin + gap)

    towards = (2.0 * target - 1.0) * gap.detach()
    metrics = {
        "correct": masked_mean(weight * (towards > 0), counts, total=total),
        "decided": masked_mean(weight * (target != 0.5), counts, total=total),
        "margin": masked_mean(weight * towards, counts, total=total),
    }
    return LossOutput(masked_mean(weight * loss, counts, total=total), metrics)


def rating_regression(
    scores: Tensor, ratings: Tensor, weight: Tensor | None = None, *, total: float | Tensor
) -> LossOutput:
    """Sum over samples of weight * cross-entropy(rating, sigmoid(score)), divided by total.

    scores: [N]. ratings: [N] in 0 to 1. weight, total: as in `bradley_terry`.

    Cross-entropy with the rating as a soft target, because (1) it is a proper scoring rule: the expected loss
    is least where sigmoid(score) is the mean rating, as with the square; (2) the score is a log-odds, the
    scale of Bradley-Terry, so that both kinds of judgement can train one head; (3) its gradient,
    sigmoid(score) - rating, does not die where the sigmoid is flat, as that of (sigmoid(score) - rating)^2
    does.

    metrics, detached, that sum over micro-batches to the mean of `rating_error`, |sigmoid(score) - rating|.
    Raises ValueError where shapes differ or a counted rating is outside 0 to 1.
    Source: Gneiting & Raftery 2007, section 3 (the logarithmic score); Papke & Wooldridge 1996
    (Bernoulli quasi-likelihood for shares).
    """
    weight = torch.ones_like(scores) if weight is None else weight
    check_same_shape(scores=scores, ratings=ratings, weight=weight)
    counts = weight != 0
    scores = zero_masked(scores, counts)
    ratings = _probabilities("rating", ratings, counts, scores.dtype)
    loss = F.binary_cross_entropy_with_logits(scores, ratings, reduction="none")
    error = (torch.sigmoid(scores.detach()) - ratings).abs()
    return LossOutput(
        masked_mean(weight * loss, counts, total=total),
        {"rating_error": masked_mean(weight * error, counts, total=total)},
    )


def plackett_luce(
    scores: Tensor, mask: Tensor, weight: Tensor | None = None, *, total: float | Tensor
) -> LossOutput:
    """Sum over rankings of weight * -log P(ranking), divided by total; the best is chosen of all, then the best of
    those that are left, and so on:

        log P = sum over places k of s_k - logsumexp of s_j over j >= k

    scores: [N, K], each row's in order of its ranking, the best first. mask: [N, K], True counts; padding (or a
    hole) is not read. weight: [N] >= 0, None is 1; a ranking with weight 0 is not read. total: the whole batch's
    sum of weights. Of two answers it is Bradley-Terry; a ranking of one says nothing and costs 0.

    metrics, detached, that sum over micro-batches: `correct` and `decided` (pairs in the right order, and all pairs
    of the rankings, over total; equal scores are not correct).

    Raises ValueError where shapes differ. Source: Plackett 1975; Luce 1959; for reward models Zhu, Jiao & Jordan
    2023, equation 4.
    """
    weight = torch.ones_like(scores[:, 0]) if weight is None else weight
    check_same_shape(scores=scores, mask=mask)
    check_same_shape(weight=weight, a_score_a_row=scores[:, 0])
    counts = weight != 0
    mask = mask & counts[:, None]
    loss = -ranking_logprobs(scores, mask)

    scores = zero_masked(scores, mask).detach()
    both = (mask[:, :, None] & mask[:, None, :]).triu(diagonal=1)
    ahead = scores[:, :, None] > scores[:, None, :]
    metrics = {
        "correct": masked_mean(weight * (both & ahead).sum((1, 2)), counts, total=total),
        "decided": masked_mean(weight * both.sum((1, 2)), counts, total=total),
    }
    return LossOutput(masked_mean(weight * loss, counts, total=total), metrics)


def ranking_logprobs(scores: Tensor, mask: Tensor) -> Tensor:
    """log P of each ranking by Plackett and Luce, [N]; scores, mask: [N, K] as in `plackett_luce`.

    Nothing counted gives 0. Raises ValueError where shapes differ. Source: as there.
    """
    check_same_shape(scores=scores, mask=mask)
    scores = zero_masked(scores, mask)
    # Padding as the lowest finite number: -inf would make the gradient of an empty rest NaN.
    low = torch.full_like(scores, torch.finfo(scores.dtype).min / 4)
    left = torch.logcumsumexp(torch.where(mask, scores, low).flip(1), dim=1).flip(1)
    return zero_masked(scores - left, mask).sum(1)


def ordinal(
    scores: Tensor, levels: Tensor, cuts: Tensor, weight: Tensor | None = None, *, total: float | Tensor
) -> LossOutput:
    """Sum over samples of weight * -log P(level), divided by total, where P(level >= k) = sigmoid(score - cut_k).

    scores: [N]. levels: [N] in 0 to K - 1; a fraction is a soft target, shared between the two levels beside it
    (2.4 is 0.6 of level 2 and 0.4 of level 3). cuts: [K - 1], increasing, cut_k between level k - 1 and level k.
    weight, total: as in `bradley_terry`. With K = 2, the one cut at 0 and the rating as the level it is
    `rating_regression`.

    metrics, detached, that sum over micro-batches to the mean of `rating_error`, |expected level - level| / (K - 1).
    Raises ValueError where shapes differ, cuts do not increase, or a counted level is outside 0 to K - 1.
    Source: McCullagh 1980, equation 2.4 (proportional odds); Samejima 1969 (the graded response model).
    """
    weight = torch.ones_like(scores) if weight is None else weight
    check_same_shape(scores=scores, levels=levels, weight=weight)
    counts = weight != 0
    scores = zero_masked(scores, counts)
    levels = zero_masked(levels, counts).detach().to(scores.dtype)
    loss = -soft_pick(level_logprobs(scores, cuts), levels)
    expected = torch.sigmoid(scores.detach()[:, None] - cuts.detach()).sum(1)
    error = (expected - levels).abs() / len(cuts)
    return LossOutput(
        masked_mean(weight * loss, counts, total=total),
        {"rating_error": masked_mean(weight * error, counts, total=total)},
    )


def level_logprobs(scores: Tensor, cuts: Tensor) -> Tensor:
    """log P of each of K levels, [..., K]; scores: [...], cuts: [K - 1] as in `ordinal`, or each score's, [..., K - 1].

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): no difference of near numbers is taken.
    Raises ValueError where cuts do not increase. Source: as `ordinal`.
    """
    gaps = cuts.diff()
    if not cuts.dim() or not cuts.shape[-1] or not bool((gaps > 0).all()):
        raise ValueError("cuts do not increase")
    above = scores[..., None] - cuts
    none = torch.zeros_like(above[..., :1])
    reached = torch.cat([none, F.logsigmoid(above)], dim=-1)
    not_passed = torch.cat([F.logsigmoid(-above), none], dim=-1)
    between = F.pad(torch.log(-torch.expm1(-gaps)), (1, 1))
    return reached + not_passed + between


def soft_pick(logprobs: Tensor, levels: Tensor) -> Tensor:
    """The [..., K] log-probabilities at levels [...] from 0 to K - 1; a fraction mixes its two neighbours linearly.

    Raises ValueError where a level is outside. Source: the cross-entropy of a target of two points.
    """
    last = logprobs.shape[-1] - 1
    if not bool(((levels >= 0) & (levels <= last)).all()):
        raise ValueError(f"a level is outside 0 to {last}")
    below = levels.floor().clamp(max=max(last - 1, 0))
    share = levels - below
    place = below.long()[..., None]
    at = logprobs.gather(-1, place)[..., 0]
    above = logprobs.gather(-1, (place + 1).clamp(max=last))[..., 0]
    return (1.0 - share) * at + share * above


def _margins(margin: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
    kept = zero_masked(margin, counts).detach().to(dtype)
    if not bool((kept >= 0).all()):
        raise ValueError("a margin is below 0")
    return kept


def _probabilities(name: str, x: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
    kept = zero_masked(x, counts).detach().to(dtype)
    if not bool(((kept >= 0) & (kept <= 1)).all()):
        raise ValueError(f"a {name} is outside 0 to 1")
    return kept
