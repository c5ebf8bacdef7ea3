"""What a reward model learns from: comparisons (Bradley-Terry) and ratings, on one latent scale.

Both read a score s as a log-odds. Of two answers, the first is preferred with probability sigmoid(s1 - s2);
an answer alone is rated sigmoid(s). A score learned from one kind of judgement can thus be refined by the
other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.masking import check_same_shape, masked_mean, zero_masked


def bradley_terry(
    first: Tensor, second: Tensor, target: Tensor, weight: Tensor | None = None, *, total: float | Tensor
) -> LossOutput:
    """Sum over pairs of weight * cross-entropy(target, sigmoid(first - second)), divided by total.

    first, second: [N], scores. target: [N] in 0 to 1, the probability that the first is the better one: 1
    where it was chosen, 0 where the second was, 0.5 a tie, 1 - e with label smoothing e, the share of raters
    where several judged. weight: [N] >= 0, None is 1; a pair with weight 0 is not read, whatever its scores
    are. total: the whole batch's sum of weights (> 0; the count of pairs where there are none): micro-batches
    and ranks then sum to the whole.

    metrics, detached, weighted like the loss, that sum over micro-batches: `correct` and `decided` (shares of
    total; ties are not decided; equal scores are not correct), so that accuracy is correct / decided after
    the summing; `margin`, the mean of (2 target - 1)(first - second).

    Raises ValueError where shapes differ or a counted target is outside 0 to 1.
    Source: Bradley & Terry 1952; Ouyang et al. 2022 (InstructGPT), equation 1, is the case of target 1.
    """
    weight = torch.ones_like(first) if weight is None else weight
    check_same_shape(first=first, second=second, target=target, weight=weight)
    counts = weight != 0
    gap = zero_masked(first, counts) - zero_masked(second, counts)
    target = _probabilities("target", target, counts, gap.dtype)
    loss = F.binary_cross_entropy_with_logits(gap, target, reduction="none")

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


def _probabilities(name: str, x: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
    kept = zero_masked(x, counts).detach().to(dtype)
    if not bool(((kept >= 0) & (kept <= 1)).all()):
        raise ValueError(f"a {name} is outside 0 to 1")
    return kept
