"""From scores to what each token is worth: shaped rewards, advantages within a group, and GAE.

All of these are data for a loss: they carry no gradient.
"""

from typing import Literal

import torch
from torch import Tensor

from plaudit.algorithms.masking import check_same_shape, zero_masked

ROUNDING = 16
"""Steps of its dtype by which two scores may differ and be called equal."""


def replace_missing_eos(scores: Tensor, finished: Tensor, *, penalty: float) -> Tensor:
    """The score, or the penalty in its place where a completion did not end by itself. [B] -> [B].

    scores: [B]; finished: [B] bool, True where the end-of-text token was drawn.
    Raises ValueError where the shapes differ or finished is not boolean.

    Source: DESIGN, PPO detail 6; Huang et al. 2024 (summarize_from_feedback_details), where it is -1: a fixed
    number, not a subtraction, so that a good unfinished completion is no better than a bad one.
    """
    check_same_shape(scores=scores, mask=finished)
    return torch.where(finished, scores, torch.full_like(scores, penalty))


def overlong_penalty(lengths: Tensor, *, longest: int, buffer: int) -> Tensor:
    """0 up to longest - buffer tokens, then in a line down to -1 at longest. [B] -> [B] float32.

    lengths: [B], counts of tokens; longest, buffer: tokens. Added to the score, it prices a completion that comes
    near the limit before it is cut. Raises ValueError where buffer is not within 1 to longest.

    Source: Yu et al. 2025 (DAPO), equation 13 (soft overlong punishment).
    """
    if not 1 <= buffer <= longest:
        raise ValueError(f"a buffer of {buffer} tokens is not within 1 to {longest}")
    over = lengths.to(torch.float32) - (longest - buffer)
    return -(over / buffer).clamp(0.0, 1.0)


@torch.no_grad()
def group_advantages(
    scores: Tensor, group: Tensor, *, scale: Literal["group", "batch", "none"] = "group", eps: float = 1e-4
) -> Tensor:
    """Each score less its group's mean, divided by a standard deviation. [B] -> [B].

    scores: [B]; group: [B] long, equal for completions of one prompt. scale: by the group's own deviation (GRPO), the
    whole batch's, or not at all (Dr. GRPO: dividing favours prompts on which all answers are nearly alike). The
    deviation is the sample's (n - 1), as in the released code; a group whose scores are equal has advantages 0.
    Raises ValueError where the shapes differ.

    Source: Shao et al. 2024 (DeepSeekMath), section 4.1.2; Liu et al. 2025 ("Understanding R1-Zero-like training"),
    for "none"; eps as in trl.
    """
    check_same_shape(scores=scores, group=group)
    centred, index, count = _centred(scores, group)
    if scale == "none":
        return centred
    if scale == "batch":
        return centred / (scores.std() + eps if len(scores) > 1 else 1.0)
    variance = _group_sum(centred.square(), index, count) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt()[index] + eps)


@torch.no_grad()
def leave_one_out(scores: Tensor, group: Tensor) -> Tensor:
    """Each score less the mean of the others of its group: an unbiased baseline. [B] -> [B].

    scores: [B]; group: [B] long, equal for completions of one prompt.
    Raises ValueError where the shapes differ or a group has one member.
    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO), equation 7.
    """
    check_same_shape(scores=scores, group=group)
    centred, index, count = _centred(scores, group)
    if bool((count < 2).any()):
        raise ValueError("a group of one completion leaves none to compare it with")
    return centred * count[index] / (count - 1)[index]  # s - (S - s) / (n - 1) is (s - S / n) n / (n - 1)


def _centred(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each score less its group's mean; which group each is in, numbered from 0, [B]; how many each has, [groups].

    Scores are first counted from their group's least, so that equal ones give an exact 0 and not the rounding error
    of their mean, which a small deviation, or Adam, would blow up to a lesson. So do scores that differ from the least
    by rounding alone: one text, sampled twice, has its log-probabilities from two places of a batch, which differ in
    their last bits.
    """
    index: Tensor
    count: Tensor
    _, index, count = torch.unique(group, return_inverse=True, return_counts=True)
    least = scores.new_zeros(len(count)).scatter_reduce(0, index, scores, "amin", include_self=False)
    above = scores - least[index]
    above = above.masked_fill(above <= ROUNDING * torch.finfo(scores.dtype).eps * scores.abs(), 0)
    return above - (_group_sum(above, index, count) / count)[index], index, count


def _group_sum(x: Tensor, index: Tensor, count: Tensor) -> Tensor:
    return torch.zeros(len(count), dtype=x.dtype, device=x.device).index_add(0, index, x)


@torch.no_grad()
def shaped_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, coef: float) -> Tensor:
    """-coef * kl on each counted token, and the score on top at the last of them; 0 elsewhere. -> [B, T].

    scores: [B]; kl: [B, T], per token, in nats (see `kl.k1`); mask: [B, T]. Nothing is reduced.
    Raises ValueError where the shapes do not fit or a row counts no token (its score would vanish).

    Source: Ziegler et al. 2019, equation 2, R(x, y) = r(x, y) - beta log(pi(y|x) / rho(y|x)), spread over the
    tokens as in lm-human-preferences (`compute_rewards`).
    """
    check_same_shape(kl=kl, mask=mask)
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores {tuple(scores.shape)} do not fit a mask of {tuple(mask.shape)}")
    if not bool(mask.any(dim=1).all()):
        raise ValueError("a completion has no counted token for its score to sit on")
    rewards = -coef * zero_masked(kl, mask)
    place = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (mask * place).argmax(dim=1, keepdim=True)
    return rewards.scatter_add(1, last, scores.to(rewards.dtype).unsqueeze(1))


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation. -> (advantages [B, T], returns [B, T]), both 0 where mask is False.

    rewards, values, mask: [B, T]. values[:, t] is the value before token t is drawn. An episode ends at its
    last counted token, with nothing after it (zero bootstrap). The mask may have holes (observation tokens):
    they are skipped, so the step after a counted token is the next counted one, and what stands in a hole
    (rewards too) is not read. returns = advantages + values, the target of the value loss. gamma 1: an
    episode's reward is not worth less for a longer completion. Raises ValueError where shapes differ.

    Source: Schulman et al. 2016 (GAE), equation 16; Schulman et al. 2017 (PPO), equations 11 and 12:
    A_t = sum over l of (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t.
    """
    check_same_shape(rewards=rewards, values=values, mask=mask)
    rewards, values = zero_masked(rewards, mask), zero_masked(values, mask)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in range(mask.shape[1] - 1, -1, -1):
        counts = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = zero_masked(advantage, counts)
        next_advantage = torch.where(counts, advantage, next_advantage)
        next_value = torch.where(counts, values[:, t], next_value)
    return advantages, advantages + values
