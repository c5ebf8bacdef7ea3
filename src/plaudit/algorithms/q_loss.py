"""Learning action values from logged text: implicit language Q-learning (ILQL), Q-learning and SARSA.

A state is the prompt with the completion's tokens so far, an action the next token, r_t the reward that came with
it. Each Q head maps a state's features to one number a word; no more than [chunk, vocabulary] of them exists at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.logprobs import selected_logprobs
from plaudit.algorithms.masking import check_same_shape, masked_mean, zero_masked


class Linear(NamedTuple):
    """One Q head on N states: Q(s, a) = features[s] . weight[a] + bias[a].

    features: [N, m]; weight: [V, m]; bias: [V].
    """

    features: Tensor
    weight: Tensor
    bias: Tensor


class Worth(NamedTuple):
    """What the state before each token is worth, [B, T], three ways; Qbar are the target heads.

    value: V(s). best: max over a of Qbar(s, a). taken: Qbar(s, a) of the token that was logged.
    """

    value: Tensor
    best: Tensor
    taken: Tensor


TARGETS = {"ilql": "value", "q_learning": "best", "sarsa": "taken"}
"""Which worth of the next state a target looks ahead to."""


def action_values(head: Linear, actions: Tensor) -> Tensor:
    """Q(s, a) of one action a state. -> [N], with gradient. actions: [N] int64 in [0, V). Source: the definition."""
    return (head.features * head.weight[actions]).sum(-1) + head.bias[actions]


def action_logprobs(head: Linear, actions: Tensor, *, chunk: int = 512) -> Tensor:
    """log softmax Q(s, .) of one action a state, `chunk` states at a time. -> [N], nats, with gradient.

    actions: [N] int64 in [0, V). Raises ValueError on shapes that do not fit.
    Source: Boltzmann's policy of Q; computed by `logprobs.selected_logprobs`.
    """
    return selected_logprobs(head.features, head.weight, actions, bias=head.bias, chunk=chunk)[0]


@torch.no_grad()
def best_values(heads: Sequence[Linear], *, chunk: int = 512) -> Tensor:
    """max over a of the least of the heads' Q(s, a). -> [N], without gradient. Raises ValueError without a head.

    Source: Watkins & Dayan 1992; the least of two heads, against the maximum's optimism, is clipped double
    Q-learning (Fujimoto et al. 2018, equation 10).
    """
    if not heads:
        raise ValueError("there is no head")
    found = []
    for start in range(0, heads[0].features.shape[0], chunk):
        dense = [h.features[start : start + chunk] @ h.weight.T + h.bias for h in heads]
        least = dense[0]
        for other in dense[1:]:
            least = torch.minimum(least, other)
        found.append(least.amax(-1))
    return torch.cat(found) if found else heads[0].features.new_zeros(0)


@torch.no_grad()
def td_targets(kind: str, rewards: Tensor, worth: Worth, mask: Tensor, *, gamma: float) -> Tensor:
    """r_t + gamma times the worth of the next state; 0 where mask is False. -> [B, T], without gradient.

    kind: "ilql" looks ahead to V(s'), "q_learning" to max over a' of Qbar(s', a'), "sarsa" to Qbar(s', a') of the
    logged a'. rewards, mask and worth's: [B, T]. The state after the last counted token is worth 0. The mask may
    have holes (observation tokens): the next state is the next counted one, and a hole's reward is not read.
    Raises ValueError where shapes differ, KeyError for another kind.

    Source: Snell et al. 2022 (ILQL), section 4, after Kostrikov et al. 2022 (IQL), equation 6; Watkins & Dayan 1992;
    Rummery & Niranjan 1994.
    """
    ahead: Tensor = getattr(worth, TARGETS[kind])
    check_same_shape(rewards=rewards, worth=ahead, mask=mask)
    targets = torch.zeros_like(ahead)
    following = torch.zeros_like(ahead[:, 0])
    for t in range(mask.shape[1] - 1, -1, -1):
        counts = mask[:, t]
        targets[:, t] = zero_masked(rewards[:, t] + gamma * following, counts)
        following = torch.where(counts, ahead[:, t], following)
    return targets


def q_loss(q: Tensor, targets: Tensor, mask: Tensor, *, total: float | Tensor) -> LossOutput:
    """Sum over counted tokens of (Q(s_t, a_t) - target_t)^2, divided by total.

    q: [B, T], with gradient; targets: [B, T], from `td_targets`; total: the whole batch's count of tokens (> 0).
    metrics, detached, that sum over micro-batches: `q`, the mean of q. Raises ValueError where shapes differ.
    Source: Kostrikov et al. 2022, equation 6; Snell et al. 2022 sum it over the two heads.
    """
    check_same_shape(q=q, targets=targets, mask=mask)
    q, targets = zero_masked(q, mask), zero_masked(targets, mask).detach()
    loss = masked_mean((q - targets).square(), mask, total=total)
    return LossOutput(loss, {"q": masked_mean(q.detach(), mask, total=total)})


def expectile_loss(
    values: Tensor, targets: Tensor, mask: Tensor, *, expectile: float, total: float | Tensor
) -> LossOutput:
    """Sum over counted tokens of |expectile - 1(u < 0)| u^2, u = target - value, divided by total.

    values: [B, T], V(s_t) with gradient; targets: [B, T], Qbar(s_t, a_t), taken as given. expectile: in (0, 1); at
    0.5 it is half the square, and V tends to the mean of Q over the logged actions; towards 1, to their maximum.
    metrics, detached, that sum over micro-batches: `value` and `advantage`, the means of V and of Qbar - V.
    Raises ValueError where shapes differ or expectile is not within 0 to 1.
    Source: Kostrikov et al. 2022, equation 5; Newey & Powell 1987.
    """
    if not 0 < expectile < 1:
        raise ValueError(f"expectile {expectile} is not within 0 to 1")
    check_same_shape(values=values, targets=targets, mask=mask)
    values, targets = zero_masked(values, mask), zero_masked(targets, mask).detach()
    gap = targets - values
    weight = (expectile - (gap < 0).to(gap.dtype)).abs()
    metrics = {
        "value": masked_mean(values.detach(), mask, total=total),
        "advantage": masked_mean(gap.detach(), mask, total=total),
    }
    return LossOutput(masked_mean(weight * gap.square(), mask, total=total), metrics)


def cql_loss(logprobs: Tensor, mask: Tensor, *, total: float | Tensor) -> LossOutput:
    """Sum over counted tokens of logsumexp_a Q(s_t, a) - Q(s_t, a_t), divided by total.

    It holds down what was never logged, of which the data say nothing. logprobs: [B, T], the taken actions' under
    softmax Q (`action_logprobs`), with gradient: the cross-entropy is this very difference. metrics: `cql`, the same
    number detached. Raises ValueError where shapes differ.
    Source: Kumar et al. 2020 (CQL(H)), equation 4; Snell et al. 2022, section 4.
    """
    loss = -masked_mean(logprobs, mask, total=total)
    return LossOutput(loss, {"cql": loss.detach()})


def awac_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    beta: float,
    total: float | Tensor,
    cap: float = 100.0,
) -> LossOutput:
    """- sum over counted tokens of min(exp(beta A_t), cap) log pi(a_t | s_t), divided by total.

    logprobs: [B, T], the policy's, with gradient; advantages: [B, T], Qbar - V, taken as given. beta 0 is plain
    behaviour cloning, whatever the advantages are. metrics, detached, that sum over micro-batches: `nll` (the
    unweighted loss) and `weight` (the mean weight). Raises ValueError where shapes differ.
    Source: Nair et al. 2020 (AWAC), equation 13; the cap of 100 is IQL's (Kostrikov et al. 2022, section 4.3).
    """
    check_same_shape(logprobs=logprobs, advantages=advantages, mask=mask)
    logprobs, advantages = zero_masked(logprobs, mask), zero_masked(advantages, mask).detach()
    weight = torch.exp(beta * advantages).clamp(max=cap)
    metrics = {
        "nll": -masked_mean(logprobs.detach(), mask, total=total),
        "weight": masked_mean(weight, mask, total=total),
    }
    return LossOutput(-masked_mean(weight * logprobs, mask, total=total), metrics)


def steered_logprobs(logits: Tensor, advantages: Tensor, *, beta: float) -> Tensor:
    """log pi(a | s) of pi(a | s) proportional to pi_beta(a | s) exp(beta (Q(s, a) - V(s))). -> [..., V], nats.

    logits: [..., V], of the behaviour policy pi_beta, normalised or not; advantages: [..., V], Q - V. Any number
    that is the same for all actions cancels, V(s) too, so that Q alone gives the same. beta: 1 / the reward's
    unit; 0 leaves the behaviour policy as it is. Raises ValueError where shapes differ.
    Source: Snell et al. 2022, section 4 (policy extraction); Peng et al. 2019 (AWR), equation 6.
    """
    check_same_shape(logits=logits, advantages=advantages)
    return torch.log_softmax(torch.log_softmax(logits, -1) + beta * advantages, -1)
