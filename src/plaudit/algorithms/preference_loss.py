"""What a policy learns from people's preferences directly, without a reward model and without sampling.

Everything here is a function of completion log-probabilities, summed over tokens. A policy's implied reward is
what such a loss pushes apart: beta * (log pi - log pi_ref) for DPO, robust DPO, IPO (there of a token, on average)
and KTO, beta * the mean log pi a token for SimPO, the log-odds of that mean for ORPO.

Of a comparison it is said with which probability the first is the better one (`Pairs.target`). So a tie is 0.5,
several raters are their share, and label smoothing is a target moved towards 0.5 (`smoothed`): one thing, not three.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.masking import check_same_shape, masked_mean, zero_masked


class Pairs(NamedTuple):
    """N comparisons, each of a first and a second completion of one prompt. Every field is [N].

    first, second: the policy's log-probability of the completion, summed over its tokens, nats, with gradient.
    target: in 0 to 1, the probability that the first is the better one.
    ref_first, ref_second: the reference's sums, where a loss has a reference; no gradient goes there.
    first_tokens, second_tokens: how many tokens were summed, where a loss averages.
    margin: >= 0, by how much the better one's implied reward should lead, in the reward's unit; None: 0.
    weight: >= 0; a pair with weight 0 is not read, whatever else stands there. None: 1.
    """

    first: Tensor
    second: Tensor
    target: Tensor
    ref_first: Tensor | None = None
    ref_second: Tensor | None = None
    first_tokens: Tensor | None = None
    second_tokens: Tensor | None = None
    margin: Tensor | None = None
    weight: Tensor | None = None


def smoothed(target: Tensor, label_smoothing: float) -> Tensor:
    """The target when each label is wrong with this probability: (1 - 2 e) target + e. Any shape.

    `dpo_loss` of it is conservative DPO. A tie stays a tie. Raises ValueError unless 0 <= e < 0.5.
    Source: Mitchell 2023 (A note on DPO with noisy preferences & relationship to IPO).
    """
    _check_share("label_smoothing", label_smoothing)
    return target * (1.0 - 2.0 * label_smoothing) + label_smoothing


def dpo_loss(pairs: Pairs, *, total: float | Tensor, beta: float = 0.1) -> LossOutput:
    """Sum over pairs of weight * cross-entropy(target, sigmoid(z)), divided by total.

    z = r_first - r_second - s * margin, r = beta * (log pi - log pi_ref), s = sign(target - 0.5).
    total: the whole batch's sum of weights (> 0; the count of pairs where there are none): micro-batches and
    ranks then sum to the whole. beta: > 0, the price of a nat of KL; the smaller, the further the policy goes.

    metrics, detached, weighted like the loss and divided by total, that sum over micro-batches: `decided`, the
    pairs that are no ties; over these `correct` (the better one has the higher reward; equal is not correct),
    `reward_chosen`, `reward_rejected` and `margin`, their difference. After summing, divide them by `decided`.

    Raises ValueError where shapes differ, something needed is None, or a counted target or margin is out of range.
    Source: Rafailov et al. 2023, equation 7; with a soft target Mitchell 2023; with a margin Amini et al. 2024
    (DPO with an offset), whose offset it is.
    """
    pairs, counts = _readable(pairs, "ref_first", "ref_second")
    first, second = _log_ratios(pairs)
    return _output(pairs, counts, beta * first, beta * second, _sigmoid_losses, pairs.target, total)


def robust_dpo_loss(
    pairs: Pairs, *, total: float | Tensor, beta: float = 0.1, flip: float = 0.1
) -> LossOutput:
    """DPO's loss made unbiased where each label was flipped with probability `flip` (0 <= flip < 0.5).

    dpo_loss with the target (target - flip) / (1 - 2 flip), which undoes `smoothed` and goes beyond 0 and 1: its
    mean over the flips is dpo_loss of the true label. It is not bounded below: where the policy is very sure of a
    pair, it may be negative. A tie stays a tie. Arguments, metrics and errors as in `dpo_loss`.
    Source: Chowdhury et al. 2024 (Provably robust DPO), the loss called rDPO.
    """
    _check_share("flip", flip)
    pairs, counts = _readable(pairs, "ref_first", "ref_second")
    first, second = _log_ratios(pairs)
    target = (pairs.target - flip) / (1.0 - 2.0 * flip)
    return _output(pairs, counts, beta * first, beta * second, _sigmoid_losses, target, total)


def ipo_loss(pairs: Pairs, *, total: float | Tensor, beta: float = 0.1) -> LossOutput:
    """Sum over pairs of weight * (h - (target - 0.5 + s * margin) / beta)^2, divided by total.

    h: the first's log-ratio to the reference less the second's. With `first_tokens` and `second_tokens` each
    log-ratio is its mean over tokens, as IPO's authors computed their results (so they told trl, which averages);
    without, it is the sum, as the paper prints it: then long completions have far larger squares. Target 1 asks for
    h = 1 / (2 beta); a soft one for its expectation, which has the gradient of the expected loss; a tie for 0.

    Metrics have rewards beta * log-ratio (mean or sum). total, the other metrics and errors as in `dpo_loss`.
    Source: Azar et al. 2023 (IPO), equation 17.
    """
    averaged = () if pairs.first_tokens is None else ("first_tokens", "second_tokens")
    pairs, counts = _readable(pairs, "ref_first", "ref_second", *averaged)
    first, second = _log_ratios(pairs)
    if averaged:
        first, second = _per_token(pairs, first, second)

    def squares(gap: Tensor, target: Tensor) -> Tensor:
        return ((gap - (target - 0.5)) / beta).square()

    return _output(pairs, counts, beta * first, beta * second, squares, pairs.target, total)


def simpo_loss(pairs: Pairs, *, total: float | Tensor, beta: float = 2.0, gamma: float = 1.0) -> LossOutput:
    """dpo_loss with the reward beta * the mean log-probability a token, a margin of gamma more, and no reference.

    z = r_first - r_second - s * (gamma + margin). total, metrics and errors as in `dpo_loss`.
    Source: Meng et al. 2024 (SimPO), equation 6; beta 2 and gamma 1 are theirs for Llama 3. trl's
    `simpo_gamma` is this gamma.
    """
    pairs, counts = _readable(pairs, "first_tokens", "second_tokens")
    first, second = _per_token(pairs, pairs.first, pairs.second)
    wanted = gamma if pairs.margin is None else pairs.margin + gamma
    pairs = pairs._replace(margin=torch.zeros_like(pairs.target) + wanted)
    return _output(pairs, counts, beta * first, beta * second, _sigmoid_losses, pairs.target, total)


def orpo_loss(pairs: Pairs, *, total: float | Tensor, lam: float = 0.1) -> LossOutput:
    """Sum over pairs of weight * (NLL + lam * cross-entropy(target, sigmoid(z))), divided by total; no reference.

    NLL: - the mean log-probability a token of the better completion (with a soft target, of both by their shares).
    z: the log of the ratio of the odds of first and second, less s * margin, with odds = P / (1 - P) and P = exp of
    the mean log-probability a token, held below 1. lam: the odds' weight beside imitation.

    Metrics have the log-odds as rewards, and `nll`, which sums over micro-batches like the loss. total, the other
    metrics and errors as in `dpo_loss`.
    Source: Hong et al. 2024 (ORPO), equations 3 to 7. trl's NLL is of prompt and completion together and of all
    tokens of a micro-batch; the paper's, and ours, is of the completion, each sequence's mean weighing the same.
    """
    pairs, counts = _readable(pairs, "first_tokens", "second_tokens")
    first, second = _per_token(pairs, pairs.first, pairs.second)
    nll = -(pairs.target * first + (1.0 - pairs.target) * second)

    def losses(gap: Tensor, target: Tensor) -> Tensor:
        return nll + lam * _sigmoid_losses(gap, target)

    out = _output(pairs, counts, _log_odds(first), _log_odds(second), losses, pairs.target, total)
    weight = torch.ones_like(nll) if pairs.weight is None else pairs.weight
    return LossOutput(
        out.loss, {**out.metrics, "nll": masked_mean(weight * nll.detach(), counts, total=total)}
    )


PAIRED: dict[str, Callable[..., LossOutput]] = {
    "dpo": dpo_loss,
    "robust": robust_dpo_loss,
    "ipo": ipo_loss,
    "simpo": simpo_loss,
    "orpo": orpo_loss,
}


def kto_baseline(logprobs: Tensor, ref_logprobs: Tensor, weight: Tensor | None = None) -> Tensor:
    """max(0, weighted mean of log pi - log pi_ref): a scalar without gradient, nats.

    logprobs, ref_logprobs: [N], sums over the tokens of completions that were written for *other* prompts than the
    one they follow here. It estimates how far the policy has moved from the reference, whatever it is asked. It is
    no sum over micro-batches: hand over the whole batch. weight: as in `Pairs`.
    Raises ValueError where shapes differ. Source: Ethayarajh et al. 2024 (KTO), section 4, z_0.
    """
    weight = torch.ones_like(logprobs) if weight is None else weight
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, weight=weight)
    counts = weight != 0
    gap = zero_masked(logprobs.detach(), counts) - zero_masked(ref_logprobs.detach(), counts)
    return masked_mean(weight * gap, counts, total=weight.sum()).clamp(min=0)


def kto_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    desirable: Tensor,
    baseline: Tensor,
    weight: Tensor | None = None,
    *,
    total: float | Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """Sum of weight * lambda * (1 - sigmoid(s * beta * (log pi - log pi_ref - baseline))), divided by total.

    logprobs, ref_logprobs: [N], sums over each completion's tokens, nats. desirable: [N] bool; s is 1 and lambda
    desirable_weight where it is True, else -1 and undesirable_weight. baseline: a scalar, `kto_baseline` of the
    whole batch; no gradient goes there. weight, total: as in `dpo_loss`, with samples for pairs.

    metrics, detached, weighted like the loss (lambda left out) and divided by total, that sum over micro-batches:
    `correct` (the reward is on its side of the baseline), `desirable` and `undesirable` (shares), and over these
    `reward_desirable` and `reward_undesirable`, beta * log-ratio: after summing, divide them by the shares.

    Raises ValueError where shapes differ or `desirable` is not boolean.
    Source: Ethayarajh et al. 2024 (KTO), section 4, L_KTO. trl's baseline is a micro-batch's; here the whole batch's.
    """
    weight = torch.ones_like(logprobs) if weight is None else weight
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, desirable=desirable, weight=weight)
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable is {desirable.dtype}, not bool")
    counts = weight != 0
    reward = beta * (zero_masked(logprobs, counts) - zero_masked(ref_logprobs, counts).detach())
    good = desirable.to(reward.dtype)
    ahead = (2.0 * good - 1.0) * (reward - beta * baseline.detach())
    price = good * desirable_weight + (1.0 - good) * undesirable_weight

    def mean(x: Tensor) -> Tensor:
        return masked_mean(weight * x, counts, total=total)

    kept = reward.detach()
    metrics = {
        "correct": mean((ahead.detach() > 0).to(reward.dtype)),
        "desirable": mean(good),
        "undesirable": mean(1.0 - good),
        "reward_desirable": mean(kept * good),
        "reward_undesirable": mean(kept * (1.0 - good)),
    }
    return LossOutput(mean(price * torch.sigmoid(-ahead)), metrics)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share < 0.5:
        raise ValueError(f"{name} is {share}, not within 0 to 0.5 (0.5 left out)")


def _readable(pairs: Pairs, *needed: str) -> tuple[Pairs, Tensor]:
    """The pairs with a 0 wherever the weight is 0, so that nothing is read there, and which pairs count [N]."""
    for name in needed:
        if getattr(pairs, name) is None:
            raise ValueError(f"{name} is needed")
    fields = {name: x for name, x in pairs._asdict().items() if x is not None}
    check_same_shape(**fields)
    counts = torch.ones_like(pairs.target, dtype=torch.bool) if pairs.weight is None else pairs.weight != 0
    clean = {name: zero_masked(x, counts) for name, x in fields.items()}
    for name in clean.keys() - {"first", "second"}:
        clean[name] = clean[name].detach().to(pairs.first.dtype)
    if not bool(((clean["target"] >= 0) & (clean["target"] <= 1)).all()):
        raise ValueError("a target is outside 0 to 1")
    if "margin" in clean and not bool((clean["margin"] >= 0).all()):
        raise ValueError("a margin is negative")
    for name in clean.keys() & {"first_tokens", "second_tokens"}:
        if not bool((clean[name][counts] >= 1).all()):
            raise ValueError(f"{name}: a completion has no tokens")
    return pairs._replace(**clean), counts


def _log_ratios(pairs: Pairs) -> tuple[Tensor, Tensor]:
    assert pairs.ref_first is not None
    assert pairs.ref_second is not None
    return pairs.first - pairs.ref_first, pairs.second - pairs.ref_second


def _per_token(pairs: Pairs, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    assert pairs.first_tokens is not None
    assert pairs.second_tokens is not None
    return first / pairs.first_tokens.clamp(min=1), second / pairs.second_tokens.clamp(min=1)


def _log_odds(mean_logprob: Tensor) -> Tensor:
    """log(P / (1 - P)) of P = exp(mean_logprob); at 1, where the odds are infinite, as near to it as the dtype is."""
    p = mean_logprob.clamp(max=-torch.finfo(mean_logprob.dtype).eps)
    return p - torch.log(-torch.expm1(p))


def _sigmoid_losses(gap: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of sigmoid(gap), linear in the target, which may lie outside 0 to 1."""
    return -target * F.logsigmoid(gap) - (1.0 - target) * F.logsigmoid(-gap)


def _output(
    pairs: Pairs,
    counts: Tensor,
    first: Tensor,
    second: Tensor,
    losses: Callable[[Tensor, Tensor], Tensor],
    target: Tensor,
    total: float | Tensor,
) -> LossOutput:
    """The loss of rewards first and second [N], given the loss [N] of (gap less margin, target), and its metrics."""
    side = torch.sign(pairs.target - 0.5)
    gap = first - second
    loss = losses(gap if pairs.margin is None else gap - side * pairs.margin, target)
    weight = torch.ones_like(gap) if pairs.weight is None else pairs.weight
    decided, chosen = weight * (side != 0), torch.where(side > 0, first, second).detach()
    towards = side * gap.detach()
    metrics = {
        "decided": masked_mean(decided, counts, total=total),
        "correct": masked_mean(decided * (towards > 0), counts, total=total),
        "reward_chosen": masked_mean(decided * chosen, counts, total=total),
        "reward_rejected": masked_mean(decided * (chosen - towards), counts, total=total),
        "margin": masked_mean(decided * towards, counts, total=total),
    }
    return LossOutput(masked_mean(weight * loss, counts, total=total), metrics)
