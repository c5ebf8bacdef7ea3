"""Proof that the tests can fail: every mutation below, applied to a copy of the package, must be caught.

To add one: a `Mutation` in your room's tuple. `old` must stand exactly once in the file, so that this list cannot
rot; the tests named are run against the copy and must fail as tests do (a copy that cannot be imported proves
nothing). The work tree is never touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

import pytest

REPO = Path(__file__).parents[2]
PACKAGE = REPO / "src" / "plaudit"
AT_ONCE = 2
SECONDS = 300


class Mutation(NamedTuple):
    """file: under src/plaudit; old -> new: the change; why: what a test must notice; tests: under tests/."""

    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]


def _algorithms(file: str, tests: str, *changes: tuple[str, str, str]) -> tuple[Mutation, ...]:
    paths = tuple(f"algorithms/test_{name}.py" for name in tests.split())
    return tuple(Mutation(f"algorithms/{file}.py", old, new, why, paths) for old, new, why in changes)


MASKING = _algorithms(
    "masking",
    "masking",
    ("return torch.where(mask, x,", "return torch.where(~mask, x,", "the mask upside down"),
    ("kept = zero_masked(x, mask)", "kept = x", "the mask dropped from sums"),
    (
        "        return summed / total",
        "        return summed / mask.sum()",
        "the micro-batch's count, not the total",
    ),
    ("count.clamp(min=1)", "mask.numel()", "padding counted in a mean"),
    (
        "masked_mean(x, mask, dim=1).sum()",
        "masked_sum(x, mask, dim=1).sum()",
        "a sequence's sum, not its mean",
    ),
    ("masked_mean(x, mask, dim=1).sum()", "masked_mean(x, mask, dim=0).sum()", "the mean of each place"),
    (
        "(mask.shape[0] if total is None else total)",
        "mask.shape[0]",
        "the micro-batch's count of sequences, not the total",
    ),
    ("(mask.shape[0] if", "(mask.any(dim=1).sum() if", "empty sequences left out of the count"),
    ("masked_mean(x, mask)).square()", "0.0).square()", "a variance about 0"),
    (").square(), mask)", ").square(), mask) * mask.sum() / (mask.sum() - 1)", "unbiased, as LHP is not"),
    (
        "white + mean if keep_mean else white",
        "white if keep_mean else white + mean",
        "the mean on the wrong branch",
    ),
    ("(zero_masked(x, mask) - mean) *", "zero_masked(x, mask) *", "whitening without centring"),
    (
        "torch.rsqrt(masked_var(x, mask) + eps)",
        "torch.reciprocal(masked_var(x, mask) + eps)",
        "variance, not deviation",
    ),
    (
        "zero_masked(white + mean if keep_mean else white, mask)",
        "(white + mean) if keep_mean else white",
        "padding whitened, too",
    ),
)
KL = _algorithms(
    "kl",
    "kl",
    ("return logprobs - ref_logprobs", "return ref_logprobs - logprobs", "k1 in the wrong direction"),
    (".square() / 2", ".square()", "k2 without its half"),
    (
        "log_ratio = ref_logprobs - logprobs",
        "log_ratio = logprobs - ref_logprobs",
        "k3 in the wrong direction",
    ),
    ("torch.expm1(log_ratio) - log_ratio", "torch.expm1(log_ratio) + log_ratio", "k3 with the wrong sign"),
    ("torch.expm1(log_ratio)", "torch.exp(log_ratio)", "k3 without its - 1"),
    ("torch.expm1(log_ratio)", "(torch.exp(log_ratio) - 1)", "k3 that loses its digits near 0"),
    (
        "max(observed / target - 1.0, -clip), clip",
        "max(1.0 - observed / target, -clip), clip",
        "controller reversed",
    ),
    ("min(max(observed / target - 1.0, -clip), clip)", "(observed / target - 1.0)", "the error not clipped"),
    ("error * episodes / horizon", "error / horizon", "episodes forgotten"),
)
ADVANTAGES = _algorithms(
    "advantages",
    "advantages",
    ("gamma * next_value", "next_value", "gamma forgotten in delta"),
    ("gamma * lam * next_advantage", "gamma * next_advantage", "lambda forgotten"),
    ("gamma * lam * next_advantage", "lam * next_advantage", "gamma forgotten in the sum"),
    ("lam: float = 0.95", "lam: float = 1.0", "another default lambda"),
    ("gamma * next_value - values[:, t]", "gamma * next_value + values[:, t]", "the baseline added"),
    ("next_value = next_advantage = torch.zeros_like(values[:, 0])",
     "next_advantage = torch.zeros_like(values[:, 0]); next_value = values[:, -1]", "a bootstrap at the end"),
    ("torch.where(counts, advantage, next_advantage)", "advantage", "holes add a step to the sum"),
    ("next_value = torch.where(counts, values[:, t], next_value)", "next_value = values[:, t]", "holes have values"),
    ("advantages[:, t] = zero_masked(advantage, counts)", "advantages[:, t] = advantage", "advantages in padding"),
    ("rewards, values = zero_masked(rewards, mask), zero_masked(values, mask)", "pass", "rubbish is read"),
    ("return advantages, advantages + values", "return advantages, advantages - values", "returns less the values"),
    ("rewards = -coef * zero_masked", "rewards = coef * zero_masked", "KL rewarded"),
    ("-coef * zero_masked(kl, mask)", "-coef * kl", "KL of padding charged"),
    ("(mask * place).argmax", "(mask * place).argmin", "the score on the wrong token"),
    ("torch.arange(1, mask.shape[1] + 1, device=mask.device)\n    last = (mask * place).argmax(dim=1, keepdim=True)",
     "torch.arange(1, mask.shape[1] + 1, device=mask.device)\n"
     "    last = ((mask * place).argmax(dim=1, keepdim=True) - 1).clamp(min=0)", "the score one token early"),
    ("last = (mask * place).argmax(dim=1, keepdim=True)", "last = mask.sum(1, keepdim=True) - 1",
     "the score's place by counting, which holes break"),
    ("rewards.scatter_add(1,", "rewards.scatter(1,", "the last token's KL overwritten"),
    ("torch.where(finished, scores, torch.full_like(scores, penalty))",
     "torch.where(finished, scores, scores + penalty)", "a penalty added, not put in place"),
    ("torch.where(finished, scores", "torch.where(~finished, scores", "the finished ones punished"),
    ("return above - (_group_sum", "return above + (_group_sum", "the baseline of a group added"),
    ("(_group_sum(above, index, count) / count)[index], index", "above.mean(), index", "one baseline for all groups"),
    ("_, index, count = torch.unique(group, return_inverse=True, return_counts=True)",
     "_, index, count = torch.unique(group, return_inverse=True, return_counts=True); index = index.sort().values",
     "groups that are taken to stand together"),
    ("above = scores - least[index]", "above = scores", "equal scores that rounding tells apart"),
    ('"amin", include_self=False', '"amin", include_self=True', "scores counted from 0"),
    ("(count - 1).clamp(min=1)", "count", "the population's deviation in a group"),
    ("(variance.sqrt()[index] + eps)", "(variance[index] + eps)", "divided by the variance"),
    ("(variance.sqrt()[index] + eps)", "variance.sqrt()[index]", "0 / 0 where all are alike"),
    ("eps: float = 1e-4", "eps: float = 1e-6", "another default eps"),
    ('if scale == "none":\n        return centred', 'if scale == "none":\n        return scores', "no baseline"),
    ("scores.std() + eps", "centred.std() + eps", "the deviation within groups called the batch's"),
    ("scores.std() + eps", "scores.std(correction=0) + eps", "the population's deviation of a batch"),
    ("if len(scores) > 1 else 1.0", "if scores is not None else 1.0", "a batch of one that has no deviation"),
    ("return centred * count[index] / (count - 1)[index]", "return centred", "oneself in one's own baseline"),
    ("centred * count[index] / (count - 1)[index]", "centred * (count - 1)[index] / count[index]",
     "leaving oneself out upside down"),
    ("centred * count[index] / (count - 1)[index]", "centred * (count / (count - 1))[index]",
     "a quotient of counts, which torch rounds to float32"),
    ("(count < 2)", "(count < 1)", "a group of one let in"),
    ("@torch.no_grad()\ndef group_advantages", "def group_advantages", "a gradient through a group"),
    ("@torch.no_grad()\ndef leave_one_out", "def leave_one_out", "a gradient through the others"),
    ("- (longest - buffer)", "- longest", "the penalty begins at the end"),
    ("return -(over / buffer)", "return (over / buffer)", "length rewarded"),
    ("(over / buffer)", "(over / longest)", "a line to another depth"),
    ("(over / buffer).clamp(0.0, 1.0)", "(over / buffer).clamp(max=1.0)", "short completions rewarded"),
    ("(over / buffer).clamp(0.0, 1.0)", "(over / buffer).clamp(min=0.0)", "a penalty without an end"),
    ("if not 1 <= buffer", "if not 0 <= buffer", "a buffer of nothing"),
)  # fmt: skip
POLICY = _algorithms(
    "policy_loss",
    "policy_loss loss_laws",
    ("ratio = _ratio(logprobs - old_logprobs)", "ratio = _ratio(old_logprobs - logprobs)", "the ratio upside down"),
    ("log_ratio.clamp(max=80.0)", "log_ratio", "a ratio that overflows, so that the clip's slope is NaN"),
    ("log_ratio.clamp(max=80.0)", "log_ratio.clamp(max=0.5)", "ratios held where they matter"),
    ("_clipped(ratio, advantages, clip, clip if clip_high is None else clip_high)",
     "_clipped(ratio, advantages, clip, clip)", "clip_high ignored"),
    ("_clipped(ratio, advantages, clip, clip if clip_high is None else clip_high)",
     "_clipped(ratio, advantages, clip if clip_high is None else clip_high, clip)", "clip_high at the wrong end"),
    ("mean = sequence_mean if per_sequence else masked_mean", "mean = masked_mean if per_sequence else sequence_mean",
     "the means exchanged"),
    ("mean = sequence_mean if per_sequence else masked_mean", "mean = masked_mean", "GRPO's mean over tokens"),
    ("torch.minimum(plain, clipped)", "torch.maximum(plain, clipped)", "max for min"),
    ("torch.minimum(plain, clipped)", "clipped", "only the clipped branch"),
    ("torch.minimum(plain, clipped)", "plain", "no clip"),
    ("ratio.clamp(1.0 - low, 1.0 + high)", "ratio.clamp(1.0 - low, 1.0)", "the upper clip lost"),
    ("ratio.clamp(1.0 - low, 1.0 + high)", "ratio.clamp(max=1.0 + high)", "the lower clip lost"),
    ("    per_sequence: bool = False,\n    sampled", "    per_sequence: bool = True,\n    sampled",
     "another default mean"),
    ("LossOutput(-mean(surrogate,", "LossOutput(mean(surrogate,", "the sign of the loss"),
    ("LossOutput(-mean(surrogate, mask, total=total)", "LossOutput(-mean(surrogate, mask)",
     "the micro-batch's own mean"),
    ("(clipped < plain)", "(clipped <= plain)", "a clip counted where there is none"),
    ("mean(k3(old_logprobs, logprobs), mask, total=total),\n            \"ratio_mean\": mean(",
     "mean(k3(logprobs, old_logprobs), mask, total=total),\n            \"ratio_mean\": mean(", "the other KL"),
    ("zero_masked(ratio, mask).max()", "zero_masked(ratio, mask).mean()", "a mean called maximum"),
    ("return logprobs.detach() - zero_masked(sampled_logprobs, mask)",
     "return zero_masked(sampled_logprobs, mask) - logprobs.detach()", "importance upside down"),
    ("weight = gap.exp().clamp(max=importance_cap)", "weight = gap.exp()", "importance without a cap"),
    ("weight = gap.exp().clamp(max=importance_cap)", "weight = gap.exp().clamp(min=importance_cap)",
     "a floor for a cap"),
    ("surrogate = weight * surrogate\n        metrics[\"importance_mean\"] = mean(",
     "metrics[\"importance_mean\"] = mean(", "importance forgotten"),
    ("zero_masked(advantages, mask).detach()\n    old", "zero_masked(advantages, mask)\n    old",
     "a gradient into the advantages"),
)  # fmt: skip
WHOLE_COMPLETIONS = _algorithms(
    "policy_loss",
    "policy_loss loss_laws",
    ('masked_mean if ratio == "mean" else masked_sum', 'masked_sum if ratio == "mean" else masked_mean',
     "sum for mean and mean for sum"),
    ('reduce = masked_mean if ratio == "mean" else masked_sum', "reduce = masked_sum", "GSPO without its root"),
    ("_ratio(reduce(logprobs - old_logprobs, mask, dim=1))", "_ratio(reduce(old_logprobs - logprobs, mask, dim=1))",
     "a completion's ratio upside down"),
    ("_ratio(reduce(logprobs - old_logprobs, mask, dim=1))",
     "masked_mean(_ratio(logprobs - old_logprobs), mask, dim=1)", "the mean of ratios, not the ratio of means"),
    ("_clipped(of_all, advantages, clip, clip if clip_high is None else clip_high)",
     "_clipped(of_all, advantages, clip, clip)", "clip_high of a completion ignored"),
    ("weights = reduce(gap, mask, dim=1)", "weights = masked_sum(gap, mask, dim=1)", "GSPO weighted by the product"),
    ("weights = reduce(gap, mask, dim=1)", "weights = masked_mean(gap, mask, dim=1)", "RLOO weighted by the mean"),
    ("weights = reduce(gap, mask, dim=1)", "weights = gap[:, 0]", "one token's weight for its completion"),
    ("gap, mask, dim=1).exp().clamp(max=importance_cap)", "gap, mask, dim=1).exp()",
     "a completion's importance without a cap"),
    ("        surrogate = weights * surrogate\n", "", "a completion's importance forgotten"),
    ("gap = _gap(old_logprobs, sampled_logprobs, mask)\n        weights",
     "gap = _gap(logprobs, sampled_logprobs, mask)\n        weights", "the policy now in a completion's importance"),
    ("LossOutput(-surrogate.sum() / total", "LossOutput(surrogate.sum() / total", "the sign of a completion's loss"),
    ("LossOutput(-surrogate.sum() / total", "LossOutput(-surrogate.mean()", "the micro-batch's own completions"),
    ("zero_masked(logprobs, mask), advantages.detach()", "zero_masked(logprobs, mask), advantages",
     "a gradient into a completion's advantage"),
    ("    if not bool(mask.any(dim=1).all()):", "    if mask is None:", "a completion without tokens let in"),
    ("    if advantages.shape != mask.shape[:1]:", "    if advantages.shape == mask.shape[:2] == (0, 0):",
     "advantages of another shape let in"),
    ('"clip_fraction": held.sum() / total', '"clip_fraction": held.mean()', "a micro-batch's share of clips"),
    ('"ratio_mean": of_all.sum() / total', '"ratio_mean": of_all.mean()', "a micro-batch's mean ratio"),
    ('"ratio_max": of_all.max()', '"ratio_max": of_all.mean()', "a completion's mean called maximum"),
    ("sequence_mean(k3(old_logprobs, logprobs), mask", "sequence_mean(k3(logprobs, old_logprobs), mask",
     "the other KL of completions"),
    ('metrics["importance_mean"] = weights.sum() / total', 'metrics["importance_mean"] = weights.mean()',
     "a micro-batch's mean importance"),
    ("(weights >= importance_cap)", "(weights <= importance_cap)", "the completions under the cap counted"),
    ("sequence_mean(gap.abs(), mask", "sequence_mean(gap, mask", "differences that cancel"),
)  # fmt: skip
REINFORCE_LOSS = _algorithms(
    "policy_loss",
    "policy_loss loss_laws",
    ("LossOutput(-masked_mean(surrogate", "LossOutput(masked_mean(surrogate", "REINFORCE downhill"),
    ("LossOutput(-masked_mean(surrogate, mask, total=total)", "LossOutput(-masked_mean(surrogate, mask)",
     "REINFORCE over the micro-batch's tokens"),
    ("surrogate = logprobs * zero_masked(", "surrogate = logprobs.exp() * zero_masked(", "p for log p"),
    ("zero_masked(advantages, mask).detach()\n    metrics", "zero_masked(advantages, mask)\n    metrics",
     "a gradient into REINFORCE's advantages"),
    ("    logprobs = zero_masked(logprobs, mask)\n", "", "padding's weight reaches the gradient"),
    ("weight = apart.exp().clamp(max=importance_cap)", "weight = apart.exp()", "a logged token's weight without a cap"),
    ("weight = apart.exp().clamp", "weight = (-apart).exp().clamp", "a logged token's weight upside down"),
    ("surrogate = weight * surrogate\n        metrics[\"importance_mean\"] = masked_mean",
     "metrics[\"importance_mean\"] = masked_mean", "a logged token's weight forgotten"),
    ("(weight >= importance_cap).to(apart.dtype)", "(weight < importance_cap).to(apart.dtype)",
     "the tokens under the cap counted"),
    ("masked_mean(apart.abs(), mask, total=total)", "masked_mean(apart.abs(), mask)", "a difference of a micro-batch"),
)  # fmt: skip
POLICY_PEER = (
    *_algorithms(
        "masking",
        "loss_laws",
        ("return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))", "return x * mask",
         "rubbish reaches the gradients: 0 * nan is nan"),
    ),
    *_algorithms(
        "policy_loss",
        "policy_beside_trl",
        ("ratio.clamp(1.0 - low, 1.0 + high)", "ratio.clamp(1.0 - high, 1.0 + low)", "trl: the clips exchanged"),
        ("mean = sequence_mean if per_sequence else masked_mean", "mean = sequence_mean", "trl: every loss is GRPO's"),
        ("mean = sequence_mean if per_sequence else masked_mean", "mean = masked_mean", "trl: no loss is GRPO's"),
        ("torch.minimum(plain, clipped)", "torch.maximum(plain, clipped)", "trl: max for min"),
        ("gap = _gap(old_logprobs, sampled_logprobs, mask)\n        weight =",
         "gap = _gap(logprobs, sampled_logprobs, mask)\n        weight =", "trl: the policy now in the importance"),
        ('reduce = masked_mean if ratio == "mean" else masked_sum', "reduce = masked_mean", "trl: RLOO with a root"),
        ('reduce = masked_mean if ratio == "mean" else masked_sum', "reduce = masked_sum", "trl: GSPO without a root"),
    ),
    *_algorithms(
        "advantages",
        "policy_beside_trl",
        ("(count - 1).clamp(min=1)", "count", "trl: the population's deviation"),
        ("eps: float = 1e-4", "eps: float = 1e-6", "trl: another eps"),
        ("return centred * count[index] / (count - 1)[index]", "return centred", "trl: RLOO with oneself"),
        ("scores.std() + eps", "centred.std() + eps",
         "trl: the deviation within groups"),
        ("(over / buffer)", "(over / longest)", "trl: another slope"),
    ),
    *_algorithms(
        "policy_loss",
        "policy_gradients",
        ("surrogate = weights * surrogate\n", "surrogate = weights.clamp(max=1.0) * surrogate\n",
         "expected: weights that are cut at 1"),
        ("_ratio(reduce(logprobs - old_logprobs, mask, dim=1))",
         "_ratio(masked_mean(logprobs - old_logprobs, mask, dim=1))", "expected: a completion's tokens averaged"),
        ("surrogate = logprobs * zero_masked(", "surrogate = logprobs.exp() * zero_masked(", "expected: p for log p"),
        ("mean = sequence_mean if per_sequence else masked_mean", "mean = sequence_mean",
         "expected: long paths weigh less"),
    ),
    *_algorithms(
        "advantages",
        "policy_gradients",
        ("return centred * count[index] / (count - 1)[index]", "return centred / (centred.std() + 1e-4)",
         "expected: leave-one-out over a deviation"),
        ('if scale == "none":\n        return centred', 'if scale == "none":\n        return centred * 2',
         "expected: a slope of another length"),
    ),
    *_algorithms(
        "policy_loss",
        "learning",
        ("LossOutput(-mean(surrogate,", "LossOutput(mean(surrogate,", "learning: downhill on tokens"),
        ("LossOutput(-surrogate.sum() / total", "LossOutput(surrogate.sum() / total", "learning: downhill"),
        ("LossOutput(-masked_mean(surrogate", "LossOutput(masked_mean(surrogate", "learning: REINFORCE downhill"),
    ),
    *_algorithms(
        "advantages",
        "learning",
        ("(_group_sum(above, index, count) / count)[index], index", "2 * above, index", "learning: worse is better"),
    ),
)  # fmt: skip
VALUE = _algorithms(
    "value_loss",
    "value_loss loss_laws",
    ("torch.maximum(plain, clipped)", "torch.minimum(plain, clipped)", "min for max"),
    ("torch.maximum(plain, clipped)", "plain", "no clip"),
    ("0.5 * masked_mean(", "masked_mean(", "the half forgotten"),
    ("old_values - clip, old_values + clip", "returns - clip, returns + clip", "clipped about the returns"),
    ("clip: float = 0.2", "clip: float = 0.1", "another default clip"),
    ("torch.maximum(plain, clipped), mask, total=total)", "torch.maximum(plain, clipped), mask)",
     "the micro-batch's own mean"),
    ("(clipped > plain)", "(clipped < plain)", "the wrong clips counted"),
    ("masked_mean(plain.detach(), mask", "masked_mean(clipped.detach(), mask", "a clipped error reported"),
    ("returns = zero_masked(returns, mask).detach()", "returns = zero_masked(returns, mask)",
     "a gradient into the returns"),
    ("1.0 - residual / variance", "residual / variance", "what is not explained"),
    ("variance = masked_var(returns, mask)", "variance = masked_var(values, mask)", "a share of the wrong variance"),
)  # fmt: skip
REWARD_LOSS = _algorithms(
    "reward_loss",
    "reward_loss",
    ("gap = zero_masked(first, counts) - zero_masked(second, counts)",
     "gap = zero_masked(second, counts) - zero_masked(first, counts)", "the sign of Bradley-Terry"),
    ("target * F.softplus(margin - gap) + (1.0 - target) * F", "(1 - target) * F.softplus(margin - gap) + target * F",
     "the soft target exchanged"),
    ("target * F.softplus(margin - gap) +", "target.round() * F.softplus(margin - gap) +", "the soft target made hard"),
    ("(2.0 * target - 1.0) * gap", "gap", "margins without a direction"),
    ("weight * (towards > 0)", "weight * (towards >= 0)", "ties called right"),
    ("(target != 0.5)", "(target >= 0.0)", "ties called decided"),
    ("gap)\n\n    towards", "gap)\n    loss = loss / weight.clamp(min=1e-9)\n\n    towards", "weights forgotten"),
    ("gap)\n\n    towards", "gap)\n    total = counts.sum()\n\n    towards", "the micro-batch's own mean"),
    ("with_logits(scores, ratings,", "with_logits(scores, 1 - ratings,", "ratings exchanged"),
    ("    loss = F.binary_cross_entropy_with_logits(scores, ratings, reduction=\"none\")",
     "    loss = (torch.sigmoid(scores) - ratings).square()", "the square, no proper log-odds gradient"),
    ("(kept >= 0) & (kept <= 1)", "(kept >= -2) & (kept <= 2)", "ratings beyond 1 let in"),
    ("    scores = zero_masked(scores, counts)\n    ratings", "    ratings", "what has no weight is read"),
)  # fmt: skip
NLL = _algorithms(
    "nll_loss",
    "loss_laws",
    ("-masked_mean(logprobs", "masked_mean(logprobs", "the sign of the likelihood"),
    ("masked_mean(logprobs, mask, total=total)", "masked_mean(logprobs, mask)", "the micro-batch's own mean"),
)
LOGPROBS = _algorithms(
    "logprobs",
    "selected_logprobs",
    ("    return logits.div_(temperature)", "    return logits", "temperature forgotten"),
    ("mean_row) / temperature)", "mean_row))", "temperature forgotten in the slope"),
    ("grad[rows].unsqueeze(1) / ctx.temperature", "grad[rows].unsqueeze(1)", "temperature forgotten in the backward"),
    ("logits.scatter_(1, targets.unsqueeze(1), own.unsqueeze(1))", "pass", "the target's logit rounded"),
    ("        logits += bias", "        pass", "the bias forgotten"),
    ("(weight[own].to(wide) - mean_row)", "(mean_row - weight[own].to(wide))", "the slope's sign"),
    ("entropy[rows] = -logits", "entropy[rows] = logits", "the entropy's sign"),
    ("logits.gather(1, own.unsqueeze(1)).squeeze(1)", "logits.amax(1)", "the likeliest, not the chosen"),
    ("            ctx.mark_non_differentiable(entropy)", "            pass", "entropy pretends to have a gradient"),
    ("probs.mul_(-share)", "probs.mul_(share)", "the softmax's sign in the backward"),
    ("logits.addcmul_(probs, entropy[rows].unsqueeze(1))", "pass", "an entropy's slope without its mean"),
    (".div_(-temperature)", ".div_(temperature)", "the sign of the entropy's slope"),
    ("mul_(-of_entropy[rows]", "mul_(of_entropy[rows]", "the entropy's sign in the backward"),
    ("logits -= (probs * logits).sum(-1, keepdim=True)", "pass", "an entropy's gradient that does not sum to 0"),
    (".scatter_add_(1, own, share)", "", "the target forgotten in the backward"),
    ("grad_weight += grad_logits.T", "grad_weight = grad_logits.T", "only the last chunk's gradient"),
    ("grad_bias += grad_logits.sum(0)", "grad_bias = grad_logits.sum(0)", "only the last chunk's bias gradient"),
    ("range(0, hidden.shape[0], ctx.chunk)", "range(0, hidden.shape[0] - ctx.chunk + 1, ctx.chunk)",
     "the last, short chunk forgotten in the backward"),
    ("range(0, hidden.shape[0], chunk)", "range(0, hidden.shape[0], hidden.shape[0] or 1)",
     "no chunks, one dense layer"),
    ("            ctx.save_for_backward(slope)", "            ctx.save_for_backward(slope, hidden, weight)",
     "more kept than the slope"),
    ("with_slope = torch.is_grad_enabled() and hidden.requires_grad and not trained", "with_slope = False",
     "frozen weights multiplied twice"),
)  # fmt: skip

Q_LOSS = _algorithms(
    "q_loss",
    "q_loss loss_laws",
    ('"q_learning": "best"', '"q_learning": "value"', "Q-learning that looks ahead to V"),
    ('"sarsa": "taken"', '"sarsa": "best"', "SARSA that looks ahead to the best"),
    ('"ilql": "value"', '"ilql": "taken"', "ILQL that looks ahead to the logged action"),
    ("rewards[:, t] + gamma * following", "rewards[:, t] + following", "gamma forgotten in a target"),
    ("following = torch.where(counts, ahead[:, t], following)", "following = ahead[:, t]", "holes that are states"),
    ("following = torch.zeros_like(ahead[:, 0])", "following = ahead[:, -1]", "something after the end"),
    ("zero_masked(rewards[:, t] + gamma * following, counts)", "rewards[:, t] + gamma * following",
     "targets in padding"),
    ("(expectile - (gap < 0).to(gap.dtype)).abs()", "(expectile - (gap > 0).to(gap.dtype)).abs()",
     "the expectile upside down"),
    ("(expectile - (gap < 0).to(gap.dtype)).abs()", "torch.full_like(gap, expectile)", "no side favoured"),
    ("    gap = targets - values", "    gap = values - targets", "the gap from the wrong side"),
    ("weight * gap.square()", "weight * gap.abs()", "a quantile for an expectile"),
    ("(q - targets).square()", "(q - targets).abs()", "no square in the Q loss"),
    ("(q - targets).square(), mask, total=total)", "(q - targets).square(), mask)", "the Q loss's own mean"),
    ("q, targets = zero_masked(q, mask), zero_masked(targets, mask).detach()", "pass", "masked Q that is read"),
    ("least = torch.minimum(least, other)", "least = torch.maximum(least, other)", "the larger of two heads"),
    ("least.amax(-1)", "least.mean(-1)", "the mean action for the best"),
    ("@ h.weight.T + h.bias for h", "@ h.weight.T for h", "the best without its bias"),
    ("(head.features * head.weight[actions]).sum(-1) + head.bias[actions]",
     "(head.features * head.weight[actions]).sum(-1)", "a taken Q without its bias"),
    ("actions, bias=head.bias, chunk=chunk)", "actions, chunk=chunk)", "a softmax of Q without its bias"),
    ("torch.exp(beta * advantages).clamp(max=cap)", "torch.exp(beta * advantages)", "weights without a cap"),
    ("torch.exp(beta * advantages)", "torch.exp(-beta * advantages)", "the worse imitated more"),
    ("zero_masked(logprobs, mask), zero_masked(advantages, mask).detach()",
     "zero_masked(logprobs, mask), zero_masked(advantages, mask)", "a gradient into the advantages"),
    ("cap: float = 100.0", "cap: float = 1000.0", "another default cap"),
    ("-1) + beta * advantages, -1)", "-1) - beta * advantages, -1)", "steered to the worse"),
    ("return torch.log_softmax(torch.log_softmax(logits, -1) + beta * advantages, -1)",
     "return torch.log_softmax(logits, -1) + beta * advantages", "a distribution that does not sum to 1"),
)  # fmt: skip
OFF_POLICY = _algorithms(
    "off_policy",
    "off_policy",
    ("return chances / propensities", "return propensities / chances", "weights upside down"),
    ("value = (weights * rewards).sum() / weights.sum()", "value = (weights * rewards).mean()",
     "not normalised by the weights"),
    ("(weights * (rewards - value)).square()", "(weights * rewards).square()", "an error about 0"),
    ("weights * (rewards - q.gather(1, taken)[:, 0])", "weights * rewards", "a correction that counts twice"),
    ("(policy * q).sum(-1) + weights", "q.amax(-1) + weights", "the best action's Q, not the policy's"),
    ("rows.std(correction=1)) / rows.shape[0] ** 0.5", "rows.std(correction=1))", "a deviation for an error"),
    ("(1.0 - share) * best + share / q.shape[-1]", "(1.0 - share) * best + share / (q.shape[-1] - 1)",
     "exploration that does not sum to 1"),
    ("torch.softmax(q / temperature, -1)", "torch.softmax(q * temperature, -1)", "the temperature upside down"),
    ("float(weights.sum()) ** 2 / squares", "float(weights.sum()) / squares", "an effective size without its square"),
    ("if not bool((propensities > 0).all()):", "if bool((propensities < 0).any()):", "a propensity of 0 let in"),
)  # fmt: skip


def _room(file: str, tests: str, *changes: tuple[str, str, str]) -> tuple[Mutation, ...]:
    paths = tuple(f"{test}.py" for test in tests.split())
    return tuple(Mutation(f"{file}.py", old, new, why, paths) for old, new, why in changes)


COLLATE = _room(
    "data/collate",
    "data/test_collate",
    ("predictor[sample, 0] = row * width + len(prompt) - 1", "predictor[sample, 0] = row * width + len(prompt)",
     "the first token predicted by itself"),
    ("torch.arange(start, end - 1)", "torch.arange(start + 1, end)", "tokens predicted by themselves"),
    ("last[sample] = row * width + end - 1", "last[sample] = row * width + end - 2", "the score one token early"),
    ("((key == 0) | (key == query))", "(key >= 0)", "completions that see each other"),
    ("(columns[None, :] <= columns[:, None])", "(columns[None, :] >= 0)", "tokens that see their future"),
    ("torch.arange(len(prompt), len(prompt) + len(completion))", "torch.arange(start, end)",
     "positions that count the completions before"),
    ("shared and used + len(completion) <= max_row", "shared", "rows without a limit"),
    ("flat % width + index * cut", "flat % width + index * width", "places of the uncut rows"),
    ("samples[torch.argsort(place[old[samples]], stable=True)]", "samples[:]", "samples in the order of all rows"),
    ("mask[sample, : len(completion)] = torch.tensor(drawn[sample])",
     "mask[sample, : len(completion)] = ids[row, start:end] != 0",
     "a mask from ids"),
    ("else rows.sort().values", "else rows", "micro-batches that depend on the rows' order"),
    ("widest * (len(groups[-1]) + 1) <= budget", "widest * len(groups[-1]) <= budget", "a row over the budget"),
    ("mask[sample, : len(completion)] = torch.tensor(drawn[sample])", "mask[sample, : len(completion)] = True",
     "observations counted"),
    ("int(self.lengths[samples].max())", "int(self.mask[samples].sum(1).max())", "rows cut to what was drawn"),
    ("(self.lengths[:, None] - 1 - steps)", "(self.mask.sum(1, keepdim=True) - 1 - steps)",
     "a token's own place by counting, which holes break"),
    ("place == (self.mask * place).amax(1, keepdim=True)", "place == self.mask.sum(1, keepdim=True)",
     "the last token by counting, which holes break"),
    ("place == (self.mask * place).amax(1, keepdim=True)", "place == self.lengths[:, None]",
     "the score on an observation, where none counts it"),
    ("    predictor.masked_fill_(~mask, 0)\n", "", "a predictor of what nobody predicts"),
    ("if len(drawn[sample]) != len(completion) or not any(drawn[sample]):", "if not any(drawn[sample]):",
     "an action mask of another length let in"),
    ("lengths=self.lengths[samples]", "lengths=self.lengths", "the lengths of all samples for those of a part"),
)  # fmt: skip
TOKENIZER = _room(
    "data/tokenizer",
    "data/test_tokenizer",
    ("add_generation_prompt=True", "add_generation_prompt=False", "a prompt that does not ask for an answer"),
    (' + "\\0" + str(inner.chat_template)', "", "a fingerprint blind to the template"),
    ("add_special_tokens=False", "add_special_tokens=True", "the first token in every text"),
    ('        while any(marker in message.content for message in dialogue):\n            marker += "-"\n', "",
     "a word of the dialogue's taken for the marker"),
    ("if not found or marker in before:", "if not found:", "an answer that the template doubles"),
    ("(*dialogue[:turn], Message", "(*dialogue[:1], Message", "a dialogue without its middle"),
)  # fmt: skip
LLAMA = _room(
    "models/llama",
    "models/test_parity",
    ("torch.cat([-second, first], dim=-1)", "torch.cat([second, -first], dim=-1)", "rotated the other way"),
    ("1.0 / (self.shape.rope_theta ** (half / self.shape.head_width))",
     "self.shape.rope_theta ** (-half / self.shape.head_width)", "another rounding of the rotary angles"),
    ("t.repeat_interleave(group, dim=1)", "t.repeat(1, group, 1, 1)", "query heads on the wrong key heads"),
    ("        if shape.qk_norm:\n            query", "        if False:\n            query", "Qwen3's norms forgotten"),
    ("bias = self.biases.get(name, None)", "bias = None", "Qwen2's biases forgotten"),
    ("self.norms[name].to(x.dtype), self.shape.norm_eps", "self.norms[name].to(x.dtype), 1e-6",
     "another epsilon in the blocks"),
    ("self.norm.to(stream.dtype), self.shape.norm_eps", "self.norm.to(stream.dtype), 1e-6",
     "another epsilon at the end"),
    ("self.embedding if self.output is None else self.output", "self.embedding", "every model tied"),
    ('config.get("sliding_window", 4096)', 'config.get("sliding_window")', "Mistral's default window overlooked"),
) + _room(
    "models/llama",
    "rollout/test_local",
    ("query.view(rows, shape.kv_heads, group, shape.head_width)",
     "query.view(rows, group, shape.kv_heads, shape.head_width).transpose(1, 2)", "cached heads in another order"),
    ("end = cache.filled + columns", "end = columns", "new keys over the first ones"),
)  # fmt: skip
ADAPTER = _room(
    "models/adapter",
    "models/test_adapter",
    ("block >= self.first", "block > self.first", "the first adapted block left out"),
    ("F.linear(x, a) * (self.alpha / self.rank)", "F.linear(x, a) * self.alpha", "alpha not divided by the rank"),
    ("(self.alpha / self.rank) * (b @ a)", "self.alpha * (b @ a)", "a merge of another scale"),
    ("bound = factor.shape[1] ** -0.5", "bound = factor.shape[0] ** -0.5", "drawn by the rank, not the width"),
    ("if other:", "if False:", "rank-stabilised LoRA and its like taken for LoRA"),
    ('"layers_to_transform": list(range(adapter.first, adapter.depth)),\n', "", "peft adapts all blocks"),
)  # fmt: skip
LOAD = (
    *_room("models/weights", "models/test_parity",
           ("file.get_tensor(name).clone()", "file.get_tensor(name)", "tensors left in the file's map")),
    *_room("models/load", "models/test_adapter",
           ("for index in range(adapter.first, adapter.depth):",
            "for index in range(adapter.first + 1, adapter.depth):",
            "a block left out of the export"),
           ('.to("cpu", source[name].dtype)', '.to("cpu")', "an export of another dtype")),
)  # fmt: skip
BRANCH = _room(
    "models/branch",
    "models/test_branch",
    ("raw * self.gain + self.shift", "raw * self.shift + self.gain", "gain and shift swapped"),
    ("(self.weight.numel() + 1) ** -0.5", "(self.weight.numel() + 1) ** -1", "a variance for a deviation"),
    ("        temperature=temperature,\n        entropy_gradient", "        entropy_gradient", "temperature forgotten"),
    ("stop=branch.exit)", "stop=None)", "no early exit"),
    ("own = hidden.index_select(0, packed.own()[packed.mask])",
     "own = hidden.index_select(0, packed.predictor[packed.mask])",
     "the mean of the states before the tokens"),
    ("branch.head(hidden.index_select(0, packed.own()[packed.mask]))",
     "branch.head(hidden.index_select(0, packed.predictor[packed.mask]))", "a token's share given to the next"),
    ("_spread(own, packed.mask) / packed.mask.sum(1, keepdim=True)", "_spread(own, packed.mask)",
     "shares that sum to more"),
    ("return self.trunk.shape.depth if self.exit is None else self.exit", "return self.trunk.shape.depth",
     "an exit below where the branch begins"),
    ("return scores[:, None] * packed.final()", "return scores[:, None] * (packed.own() == packed.last[:, None])",
     "the score of a completion on an observation"),
) + _room(
    "models/branch",
    "data/test_collate",
    ("return hidden.index_select(0, packed.last)", "return hidden.index_select(0, packed.predictor[:, 0])",
     "the score at the prompt's end"),
)  # fmt: skip
LOCAL = _room(
    "rollout/local",
    "rollout/test_local",
    ("    logits = logits / params.temperature\n", "", "temperature forgotten in the draw"),
    ("right=True", "right=False", "a number at a border given to the token below"),
    ("token = torch.minimum(token, last)", "pass", "a token beyond the last"),
    ("ids[: end + 1]", "ids[: max(end, 1)]", "the end of text left out"),
    ("real[:, None, :] |", "(real | True)[:, None, :] |", "padding that is seen"),
    ("[real.to(trunk.device)[rows],", "[(real | True).to(trunk.device)[rows],", "padding that later tokens see"),
    ("            place = place + 1\n", "", "positions that stand still"),
    ("rng(*keys[prompt], index).random", "rng(*keys[0], index).random", "the same draws for every prompt"),
    ("draws[alive, step]", "draws[alive, 0]", "one draw for all tokens"),
    ("for t in (alive, place, seen, token, going))", "for t in (alive, place.flip(0), seen, token, going))",
     "positions of other rows after some have left"),
    ("ordered.cumsum(-1) - ordered < params.top_p", "ordered.cumsum(-1) < params.top_p",
     "the token that crosses top-p cut"),
    ("keep[:, params.top_k :] = False", "keep[:, params.top_k + 1 :] = False", "one token more than top-k"),
    ("logits[:, ends] = -torch.inf", "pass", "an end of text where it is ignored"),
    ("    def load(self, weights: Adapter | Llama | None, version: str) -> None:",
     "    def load(self, weights: Adapter | Llama | None, version: str) -> None:\n        weights = None",
     "weights that are never loaded"),
)  # fmt: skip
COLLECT = _room(
    "rollout/collect",
    "rollout/test_collect",
    ("at, here[depth] = depth, stream", "here[depth] = stream", "blocks run twice"),
    (
        "token_logprobs(policy, part, temperature=temperature,",
        "token_logprobs(policy, part,",
        "temperature forgotten",
    ),
    (
        "if branch.trunk is reference else (None, 0)",
        "if branch.first in here else (None, 0)",
        "a trained trunk entered from the frozen one's stream",
    ),
    ("shares[index, :steps]", "shares[: len(index), :steps]", "shares given to other samples"),
    ("        action_masks=[s.action_mask for s in samples],\n", "", "observations taken for what was drawn"),
    (
        "zip(samples, drawn, strict=True) for p in compress(s.logprobs, mask)",
        "zip(samples, drawn, strict=True) for p in s.logprobs[: sum(mask)]",
        "log-probabilities beside their tokens",
    ),
)
TRANSCRIPT = _room(
    "rollout/transcript",
    "rollout/test_agent",
    (
        "self.drawn += [False] * len(ids)",
        "self.drawn += [True] * len(ids)",
        "what was said taken for what was drawn",
    ),
    ("return ids[1:] if closed else ids", "return ids", "a turn closed twice"),
    ("return ids[1:] if closed else ids", "return ids[1:]", "a turn never closed"),
    ("self.logprobs += [0.0] * len(ids)", "pass", "log-probabilities that lose their places"),
    ("self.ends.append(len(self.ids) - 1)", "self.ends.append(len(self.ids))", "a reward one token late"),
    ("None if all(self.drawn) else tuple(self.drawn)", "None", "an episode without its mask"),
)
ENVIRONMENT = _room(
    "rollout/environment",
    "rollout/test_environment",
    ("np.full(self.context, self.vocab,", "np.full(self.context, 0,", "a token for nothing"),
    ("int(self.np_random.integers(len(self.prompts)))", "0", "one prompt for every seed"),
    (">= room)", "> room)", "a reply that leaves no room for an answer"),
    (
        "return self._scored - before",
        "return self._scored",
        "a reward a turn that counts the turns before again",
    ),
    (
        "if not (self._over or self.per_turn):",
        "if False:",
        "every turn scored and paid",
    ),
    ("truncated = not whole or", "truncated = False and whole or", "a turn cut by the context called whole"),
    ('"stop" if ended and not truncated else "length"', '"stop"', "a turn that was cut called finished"),
    ("or len(transcript.ends) >= self.turns:", "or len(transcript.ends) > self.turns:", "a turn too many"),
    (
        "if len(self.tokens.messages) > before:\n                break",
        "pass",
        "words beyond the turn's end said in the next",
    ),
    (
        "self.tokens.tokenizer.complete(action)",
        "self.tokens.tokenizer.encode(action)",
        "a turn of text that does not end",
    ),
)
AGENT = _room(
    "rollout/agent",
    "rollout/test_agent",
    ("names=[play.name for play in going],", "", "draws that depend on who still plays"),
    ('(*key, "turn", turn),', '(*key, "turn"),', "the same draws in every turn"),
    ('rng(*key, "environment", name[0])', 'rng(*key, "environment", *name)', "another start for each of a group"),
    ("transcript.cut(last + 1)", "pass", "a completion that ends with what was said last"),
    ("if answer := ids[len(known) :]:\n            break", "answer = ids[len(known) :]",
     "tokens drawn in ignorance of the answer said after it"),
    ("        transcript.draw([token], [logprob])\n", "        transcript.draw([token], [drawn.logprobs[0]])\n",
     "one log-probability for all of a turn"),
    ("        total += reward\n", "        total = reward\n", "a turn's last token's reward for the turn's"),
    ('play.end == "terminated" and transcript', "transcript", "a truncated episode called finished"),
    ("out[row, list(episode.ends)]", "out[row, [place - 1 for place in episode.ends]]", "rewards a token early"),
    ('"terminated" if terminated else "truncated"', '"terminated"', "a truncation called an end"),
    ("if play.end is None and len(play.transcript.all_ids) > context:", "if False:", "an episode beyond the context"),
    ("if not math.isfinite(number):", "if False:", "a reward that is no number"),
    ('(*self._key, "act", self._calls)', '(*self._key, "act")', "an agent that repeats its draws"),
    ("heard = self._transcript.copy()", "heard = self._transcript", "an observation heard twice, by value and by act"),
)  # fmt: skip
PPO = _room(
    "recipes/ppo",
    "recipes/test_ppo_golden",
    ('(config.seed, "epoch", step, epoch)', '(config.seed, "epoch", step, 0)', "every epoch in one order"),
    ("keep_mean=True", "keep_mean=False", "rewards centred"),
    ("whiten(advantages, mask, keep_mean=False)", "whiten(advantages, mask, keep_mean=True)",
     "advantages not centred"),
    ("config.value_coef * critic.loss", "critic.loss", "the value's coefficient forgotten"),
    ("sampled_logprobs=part.cut(experience.sampled_logprobs)", "sampled_logprobs=part.cut(experience.old_logprobs)",
     "importance forgotten"),
    ("policy, temperature=config.temperature, entropy_gradient", "policy, temperature=1.0, entropy_gradient",
     "temperature forgotten in the epochs"),
    ("loss - config.entropy_coef", "loss + config.entropy_coef", "entropy as a cost"),
    ("linear_to_zero(step, config.steps)", "linear_to_zero(0, config.steps)", "a rate that never falls"),
    ('observed=row["kl"]', 'observed=row["approx_kl"]', "the controller watches the wrong KL"),
    ("shaped_rewards(at_end,", "shaped_rewards(scores,", "a penalty that never reaches the reward"),
    ("gamma=config.gamma, lam=config.lam", "gamma=config.gamma", "lambda not passed on"),
) + _room(
    "recipes/ppo",
    "recipes/test_ppo",
    ("at_end, shares = at_end * ~scored,", "at_end, shares = at_end,", "a dense reward with the score on top"),
    ("shares * scored[:, None]", "shares", "shares of what is penalised"),
)  # fmt: skip
ONLINE = _room(
    "training/online",
    "recipes/test_ppo_golden",
    ('rng(seed, "prompts", place // count)', 'rng(seed, "prompts", 0)', "every pass in one order"),
    ("scores, ended(samples, scores.device), penalty=", "scores, torch.ones_like(scores) > 0, penalty=",
     "no penalty"),
) + _room(
    "training/online",
    "recipes/test_ppo",
    ("        checkpoint.load_optimizer(self.optimizer, tensors)\n", "", "moments lost at a resume"),
    ("tensors, self.state = found", "tensors, self.state['step'] = found[0], found[1]['step']",
     "the controller's state lost at a resume"),
    ("branch.load_state(checkpoint.unprefixed(name, tensors))",
     'name == "value" or branch.load_state(checkpoint.unprefixed(name, tensors))', "the value lost at a resume"),
    ("before=step)\n", "before=step + 1)\n", "back to the weights that gave no numbers"),
    ("key=lambda s: (s.prompt, s.index)", "key=lambda s: 0", "samples in the order of the engine"),
)  # fmt: skip
ONLINE_RUN = _room(
    "training/online",
    "training/test_online",
    ("if not self.stopped and not usable:", "if False:", "the last update's weights never looked at"),
    ('rules["patience"] = self.config.steps', "pass", "a reward that cannot rise is waited for"),
    ("if kl.target is None:", "if True:", "a price that is never steered"),
    ("key=lambda s: (s.prompt, s.index))", "key=lambda s: s.prompt)",
     "samples of a prompt in the engine's order"),
    ('rng(*key, "prompts").integers', 'rng(config.seed, "prompts").integers', "every further draw of the same prompts"),
    ("(config.seed, purpose, step, *([again] if again else []))", "(config.seed, purpose, step)",
     "a further draw that is the first"),
    ("max(old, new) if", "old + new if", "a maximum that is a sum"),
    ("old + new / self.minibatches", "old + new", "figures summed over minibatches"),
    ('"stopped": None, **self.state}\n        self._restore(checkpoint.latest(self.directory / "checkpoints"))',
     '"stopped": None, **self.state}', "a run that begins anew each time"),
) + _room(
    "training/online",
    "recipes/test_reinforce recipes/test_grpo",
    ('ESTIMATORS[kl.estimator](', 'ESTIMATORS["k1"](', "one estimator for all"),
    ('if self.place == "loss" and self.estimator == "k1":', "if False:", "k1 in the loss let in"),
    ("everything, given = drawn or (samples, scores)", "everything, given = samples, scores",
     "the reward of the groups that were chosen"),
    ("gold = world.gold.score(everything)", "gold = world.gold.score(samples)", "the gold of other samples"),
)  # fmt: skip
LOGGED = _room(
    "data/logged",
    "data/test_logged",
    ("ratings or won", "won or ratings", "comparisons before ratings"),
    ("pair.target if pair.a == place else 1 - pair.target", "pair.target", "the loser's share for the winner's"),
    ("sum(heard) / len(heard)", "max(heard)", "the kindest rater's word"),
    ('row.get("tokenizer") == tokenizer.fingerprint', "True", "another tokenizer's ids"),
    ('[float("nan")] * len(completion)', "[0.0] * len(completion)", "tokens of unknown origin called certain"),
    ('"stop" if completion[-1] in tokenizer.eos_ids else "length"', '"stop"', "every completion ended"),
    ("if len(scores) == 1:", "if False:", "equal scores let in"),
    ('drawn.get((group.key, text), {})', 'drawn.get((group.key, ""), {})', "log-probabilities of another text"),
    ('if len(row["completion_ids"]) != len(row["logprobs"]):', "if False:", "log-probabilities of other tokens"),
)  # fmt: skip
REINFORCE = _room(
    "recipes/reinforce",
    "recipes/test_reinforce",
    ("others = returns - leave_one_out(returns, group)", "others = leave_one_out(returns, group)",
     "the advantage for the baseline"),
    ("float(returns.mean()) if baseline is None else baseline", "float(returns.mean())", "a baseline that never moves"),
    ("(returns.mean() if config.baseline == \"batch\" else 0.0)", "returns.mean()", "a baseline where none is wanted"),
    ("scores if config.feedback else online", "online", "a penalty on what people have judged"),
    ('coef if config.kl.place == "reward" else 0.0', "coef", "a price paid twice"),
    ("gamma=1.0, lam=1.0)", "gamma=1.0)", "what comes later is worth less"),
    ("worth = (to_go - others[:, None]) * mask", "worth = to_go * mask", "tokens without their baseline"),
    ("whiten(worth, torch.ones_like(worth, dtype=torch.bool)", "whiten(worth, worth > worth.min()",
     "a mean without the worst"),
    ("decay * (before or 0.0) + (1 - decay) * earned", "earned", "a moving mean that forgets at once"),
    ("seen.sampled_logprobs.isnan(), seen.ref_logprobs,", "seen.sampled_logprobs.isnan(), seen.logprobs,",
     "tokens of unknown origin counted as the policy's"),
    ("weight * k3(", "k3(", "a KL as if the policy had drawn"),
    ('row["kl"] = kl_from_logged(seen, config)', "pass", "the KL of the sampler's tokens"),
    ('if self.feedback and self.kl.place == "reward" and self.kl.coef > 0:', "if False:",
     "the KL of what was not drawn in the reward"),
    ("fewest < 2", "fewest < 1", "a completion compared with none"),
    ("for place, p in enumerate(chosen) for s in logged[p].samples]",
     "for place, p in enumerate(sorted(chosen)) for s in logged[p].samples]", "scores of other prompts"),
    ("metrics.history, logged=heard is not None)", "metrics.history)", "patience with logged completions"),
) + _room(
    "recipes/reinforce",
    "recipes/test_online_golden",
    ("scale = tokens / completions if", "scale = 1.0 if", "a mean over tokens for a completion's slope"),
    ("total = completions if whole else tokens", "total = tokens", "completions divided by tokens"),
    ('ratio="product"', 'ratio="mean"', "another ratio of the completion"),
    ("loss - config.entropy_coef", "loss + config.entropy_coef", "entropy as a cost"),
    ("loss + coef * masked_mean(kl", "loss - coef * masked_mean(kl", "KL as a prize"),
    ("torch.autograd.backward(scale * loss)", "torch.autograd.backward(loss)", "a slope of another length"),
)  # fmt: skip
GRPO = _room(
    "recipes/grpo",
    "recipes/test_grpo",
    ("worth - coef * masked_sum(", "worth + coef * masked_sum(", "KL as a prize"),
    ("scale=config.scale)", 'scale="group")', "one scale for all"),
    ("found + overlong_penalty(", "found - overlong_penalty(", "length as a prize"),
    ("groups.amin(1) < groups.amax(1)", "groups.amin(1) <= groups.amax(1)", "groups that teach nothing kept"),
    ("for i in range(n)][:wanted]", "for i in range(n)]", "more groups than were wanted"),
    ("replace(everything[at], prompt=place // n)", "replace(everything[at])", "two groups under one number"),
    ("kept or list(range(wanted))", "kept or list(range(len(everything)))", "every draw kept where none teaches"),
    ("config.dynamic_sampling + 2)", "config.dynamic_sampling + 1)", "a draw too few"),
    ("    given = torch.tensor(scores, dtype=torch.float64)", "    given = torch.tensor(scores)",
     "scores rounded to float32"),
    ('if config.mean_over == "constant" else 1.0', 'if config.mean_over == "tokens" else 1.0',
     "the constant for another mean"),
    ('by_completion = config.ratio == "completion" or', 'by_completion = config.ratio == "token" or',
     "every mean over completions"),
    ("(groups.amin(1) == groups.amax(1))", "(groups.amin(1) != groups.amax(1))", "the other groups counted"),
    ("given[kept], (everything, given), draws)", "given[kept], None, draws)", "the whole draw forgotten"),
) + _room(
    "recipes/grpo",
    "recipes/test_online_golden",
    ('"clip_high": config.clip_high,', '"clip_high": None,', "one clip both ways"),
    ("torch.autograd.backward(constant * loss)", "torch.autograd.backward(loss)", "lengths that were drawn divide"),
    ("loss + coef * mean(kl", "loss + coef * masked_mean(kl", "another mean of the KL"),
    ("loss - config.entropy_coef", "loss + config.entropy_coef", "entropy as a cost"),
    ("part.mask, ratio=\"mean\"", "part.mask, ratio=\"product\"", "another ratio of the completion"),
    ('observed=row["kl"]', 'observed=row["approx_kl"]', "the controller watches the wrong KL"),
)  # fmt: skip
REJECTION = _room(
    "recipes/rejection",
    "recipes/test_rejection",
    ("key=lambda i: -float(earned[i])", "key=lambda i: float(earned[i])", "the worst imitated"),
    ("[:keep]", "[:1]", "one of each, however many are kept"),
    ("part, temperature=config.temperature)", "part)", "temperature forgotten"),
    ("online.rewards_of(scores, samples, config), config.keep", "scores, config.keep", "a missing end forgiven"),
    ("total = float(packed.mask[torch.isin(packed.row, rows)].sum())", "total = float(packed.mask.sum())",
     "the batch's count for the minibatch's"),
    ('places.setdefault(sample.prompt, [])', 'places.setdefault(len(sample.prompt_ids), [])',
     "the best of all prompts together"),
) + _room(
    "rollout/collect",
    "recipes/test_online_golden",
    ("int(mine.sum())", "len(rows)", "rows counted for completions"),
    ("x[self.index] if x.ndim == 1", "x[: len(self.index)] if x.ndim == 1", "advantages of other samples"),
)  # fmt: skip
REWARD = (
    *_room("rollout/collect", "recipes/test_ppo_golden",
           ("int(packed.mask[mine].sum())", "int(packed.mask.sum())", "the batch's count for the minibatch's")),
    *_room("rollout/collect", "recipes/test_ppo",
           ("if branch.adapter is None or branch.first not in self.seen.streams:",
            "if branch.first not in self.seen.streams:", "a trained trunk entered from a frozen stream"),
           ("if not float(gap) <= PREFLIGHT[dtype]:", "if float(gap) <= PREFLIGHT[dtype]:", "preflight turned round"),
           ("(seen.logprobs - seen.sampled_logprobs).abs()", "(seen.logprobs - seen.sampled_logprobs)",
            "differences that cancel")),
    *_room("recipes/reward_model", "recipes/test_reward_model",
           ("head.gain.fill_(1 / spread)", "head.gain.fill_(spread)", "scaled the wrong way"),
           ("-float(raw.mean()) / spread", "-float(raw.mean())", "a shift in the wrong unit"),
           ("reading, effects, totals)", "reading, effects, judgements.totals())", "the micro-batch's own mean"),
           ("            checkpoint.load_optimizer(optimizer, tensors)\n" if False else
            "        checkpoint.load_optimizer(optimizer, tensors)\n", "", "moments lost at a resume")),
    *_room("data/judged", "recipes/test_reward_model",
           ('rng(seed, "heldout", group.key)', 'rng(seed, "heldout", len(group.pairs))',
            "all prompts on one side"),
           ("1.0 if record.choice == 0 else 0.0", "0.0 if record.choice == 0 else 1.0", "the rejected one wanted")),
    *_room("reward/model", "recipes/test_reward_model",
           ("scores[m, index.cpu()] =", "scores[m, : len(index)] =", "scores given to other samples")),
)  # fmt: skip
PREFERENCE_LOSS = _algorithms(
    "preference_loss",
    "preference_loss preference_beside_trl",
    ("return target * (1.0 - 2.0 * label_smoothing) + label_smoothing",
     "return target * (1.0 - label_smoothing) + label_smoothing", "smoothing towards the first"),
    ("return _output(pairs, counts, beta * first, beta * second, _sigmoid_losses, pairs.target, total)\n\n\ndef robust",
     "return _output(pairs, counts, first, second, _sigmoid_losses, pairs.target, total)\n\n\ndef robust",
     "DPO without beta"),
    ("target = (pairs.target - flip) / (1.0 - 2.0 * flip)", "target = smoothed(pairs.target, flip)",
     "smoothing taken for its inverse"),
    ("(pairs.target - flip) / (1.0 - 2.0 * flip)", "(pairs.target - flip)", "robust DPO not divided"),
    ("((gap - (target - 0.5)) / beta).square()", "((gap - (2.0 * target - 1.0)) / beta).square()",
     "twice the gap that IPO asks for"),
    ("((gap - (target - 0.5)) / beta).square()", "(gap - (target - 0.5)).square()", "IPO in another unit"),
    ("        first, second = _per_token(pairs, first, second)\n", "        pass\n", "IPO never averaged"),
    ("wanted = gamma if pairs.margin is None else pairs.margin + gamma",
     "wanted = gamma if pairs.margin is None else pairs.margin", "SimPO's gamma lost beside a margin"),
    ("wanted = gamma if", "wanted = beta * gamma if", "gamma in units of beta"),
    ("nll = -(pairs.target * first + (1.0 - pairs.target) * second)", "nll = -first",
     "ORPO imitates the first, whichever is better"),
    ("nll + lam * _sigmoid_losses(gap, target)", "nll + _sigmoid_losses(gap, target)", "ORPO's lambda forgotten"),
    ("nll + lam * _sigmoid_losses(gap, target)", "lam * _sigmoid_losses(gap, target)", "ORPO without imitation"),
    ("return p - torch.log(-torch.expm1(p))", "return p", "likelihoods for odds"),
    ("mean_logprob.clamp(max=-torch.finfo(mean_logprob.dtype).eps)", "mean_logprob", "infinite odds"),
    ("first / pairs.first_tokens.clamp(min=1), second / pairs.second_tokens.clamp(min=1)",
     "first / pairs.first_tokens.clamp(min=1), second / pairs.first_tokens.clamp(min=1)", "the other's length"),
    ("pairs.first - pairs.ref_first, pairs.second - pairs.ref_second",
     "pairs.first - pairs.ref_second, pairs.second - pairs.ref_first", "references exchanged"),
    ("gap - side * pairs.margin", "gap - pairs.margin", "the first leads, whichever is better"),
    ("gap - side * pairs.margin", "gap + side * pairs.margin", "a lead for the worse one"),
    ("(1.0 - target) * F.logsigmoid(-gap)", "(1.0 - target) * F.logsigmoid(gap)", "the other half of a soft target"),
    ("clean = {name: zero_masked(x, counts) for name, x in fields.items()}", "clean = dict(fields)",
     "pairs without weight are read"),
    ("clean[name] = clean[name].detach().to(pairs.first.dtype)", "clean[name] = clean[name].to(pairs.first.dtype)",
     "a gradient into the reference"),
    ("    return LossOutput(masked_mean(weight * loss, counts, total=total), metrics)",
     "    return LossOutput(masked_mean(weight * loss, counts), metrics)", "the micro-batch's own mean"),
    ("decided, chosen = weight * (side != 0),", "decided, chosen = weight * (side != 2),", "ties counted as decided"),
    ("torch.where(side > 0, first, second).detach()", "first.detach()", "the first's reward for the better one's"),
    ("decided * (towards > 0)", "decided * (towards >= 0)", "equal rewards called correct"),
    (".clamp(min=0)\n\n\ndef kto_loss", "\n\n\ndef kto_loss", "a baseline below 0"),
    ("masked_mean(weight * gap, counts, total=weight.sum())", "masked_mean(weight * gap, counts)",
     "weights that do not level the baseline"),
    ("(reward - beta * baseline.detach())", "(reward - baseline.detach())", "a baseline in nats beside a reward"),
    ("(reward - beta * baseline.detach())", "reward", "no baseline"),
    ("ahead = (2.0 * good - 1.0) *", "ahead = (1.0 - 2.0 * good) *", "the undesirable wanted"),
    ("price = good * desirable_weight + (1.0 - good) * undesirable_weight",
     "price = good * undesirable_weight + (1.0 - good) * desirable_weight", "weights exchanged"),
    ("mean(price * torch.sigmoid(-ahead))", "mean(-price * F.logsigmoid(ahead))", "DPO's shape, not the value's"),
)  # fmt: skip
PREFERENCE = (
    *_room("recipes/dpo", "recipes/test_preference_golden",
           ('rng(config.seed, "preference order", epoch)', 'rng(config.seed, "preference order", 0)',
            "every epoch in one order"),
           ("config.margin * (p.strength or 0)", "config.margin", "one margin for every strength"),
           ("smoothing = 0.0 if config.loss == \"robust\" else config.label_smoothing", "smoothing = 0.0",
            "label smoothing forgotten"),
           ("average = config.loss != \"ipo\" or config.ipo_average", "average = True", "sums averaged"),
           ("ref_first=expected[a]", "ref_first=expected[b]", "another completion's reference"),
           ("total=total,\n            **settings", "total=len(here),\n            **settings",
            "the micro-batch's own mean"),
           ("linear_to_zero(step, len(batches), warmup)", "linear_to_zero(step, len(batches))", "no warm-up"),
           ("weight_decay=config.weight_decay", "weight_decay=0.0", "no weight decay"),
           ("out[start + index] =", "out[start : start + len(index)] =", "sums given to other completions")),
    *_room("recipes/dpo", "recipes/test_dpo",
           ("        checkpoint.load_optimizer(optimizer, tensors)\n", "", "moments lost at a resume"),
           ('tensors["reference"].to(device)', 'torch.zeros_like(tensors["reference"])',
            "the reference lost at a resume"),
           ('config.ties == "half" or', "", "ties dropped in any case"),
           ("start=config.start", "start=None", "the adapter to go on from forgotten")),
    *_room("recipes/kto", "recipes/test_preference_golden",
           ("(batch[(i + k) % len(batch)] for k in range(1, len(batch)))",
            "(batch[(i - k) % len(batch)] for k in range(1, len(batch)))", "the sample before, not the next"),
           ("if s.key != sample.key)", "if s is not sample)", "its own prompt's completion for another's"),
           ("torch.stack([reference[text] for text in others])", "sums_of(others, policy, config)", "no baseline"),
           ("desirable_weight=config.desirable_weight,\n", "", "the weight of the desirable forgotten"),
           ("beta=config.beta", "beta=0.1", "beta not passed on"),
           ("total=len(batch)", "total=len(index)", "the micro-batch's own mean"),
           ("desirable[index]", "desirable[: len(index)]", "labels given to other completions"),
           ("out[at + index] =", "out[at : at + len(index)] =", "sums given to other texts")),
    *_room("recipes/kto", "recipes/test_kto",
           ('"both_bad": (-1, -1)', '"both_bad": (0, 0)', "both bad says nothing"),
           ("last - 2 * place", "last - place", "a ranking's last still counts as good"),
           ("overall >= threshold", "overall > threshold", "a rating at the threshold called bad"),
           ("order[(start + k) % len(order)]", "order[k]", "another place in the order"),
           ("        checkpoint.load_optimizer(optimizer, tensors)\n", "", "moments lost at a resume"),
           ('tensors["reference"].to(device)', 'torch.zeros_like(tensors["reference"])',
            "the reference lost at a resume")),
)  # fmt: skip
PROBE = _room(
    "reward/probe",
    "reward/test_probe",
    ("penalty * weights[:, :-1].square().sum()", "penalty * weights.square().sum()", "a penalty on the bias"),
    ("if f == left_out]", "if f != left_out]", "a penalty chosen on what it was fitted to"),
    ("head.centre.copy_(centre)", "pass", "a head that reads raw states"),
) + _room(
    "reward/judgements",
    "reward/test_probe",
    ("loss = loss + reading.rating_weight * rated", "loss = loss + rated", "ratings without their weight"),
    ("(start + pair.a, start + pair.b, pair.target,", "(start + pair.b, start + pair.a, pair.target,",
     "the wrong one of a pair preferred"),
    ("places.append(places[-1] + len(group.completions))", "places.append(places[-1] + 1)",
     "another prompt's completions"),
)  # fmt: skip
SCORERS = (
    *_room("reward/model", "reward/test_combine",
           ("start=depth, stop=branch.first), branch.first", "start=0, stop=branch.first), branch.first",
            "common blocks run again for each member"),
           ("upward = sorted(range(len(models)), key=lambda m: models[m].branch.first)",
            "upward = list(range(len(models)))", "a member entered above its first block")),
    *_room("reward/combine", "reward/test_combine",
           ("mean - k * deviation(said)", "mean + k * deviation(said)", "a taste for doubt"),
           ("mean - k * deviation(said)", "mean - k * deviation(said) ** 2", "the variance for the deviation"),
           ("return min(said)", "return max(said)", "the best case for the worst"),
           ("tuple([weight * x for x in member] for", "tuple([abs(weight) + x for x in member] for",
            "uncertainty in the unit before the weight"),
           ("tuple(map(self._apply, said.members))", "said.members", "members before the transform"),
           ("if not all(map(math.isfinite, scores)):", "if False:", "an infinity let through")),
    *_room("reward/scores", "reward/test_combine",
           ("for x in numbers) / len(numbers))", "for x in numbers) / (len(numbers) - 1))", "the sample's deviation")),
    *_room("reward/transform", "reward/test_transform",
           ("gain * x + shift", "gain * (x + shift)", "the shift multiplied"),
           ("[math.exp(-_softplus(-z)) for z", "[math.exp(-_softplus(z)) for z", "a sigmoid that falls"),
           ("[-_softplus(-z) for z", "[_softplus(z) for z", "log sigmoid's sign"),
           ("math.log(p) - math.log1p(-p)", "math.log(p)", "log instead of log odds"),
           ("float(x >= at)", "float(x > at)", "a threshold that leaves itself out"),
           ("(b + e / 2) / (len", "b / (len", "equals given the lowest place"),
           ("max(z, 0.0) + math.log1p(math.exp(-abs(z)))", "math.log1p(math.exp(min(z, 700.0)))",
            "an overflow cut off")),
    *_room("reward/open", "reward/test_combine",
           ("if place in within:", "if False:", "a description of itself followed for ever"),
           ("(t.weight, part(t.scorer, t.options))", "(1.0, part(t.scorer, t.options))", "weights not read"),
           ("functools.partial(TRANSFORMS[step.name], **step.given())", "TRANSFORMS[step.name]",
            "a transform without its settings")),
    *_room("reward/rules", "reward/test_rules",
           ("1 - len(set(grams)) / len(grams)", "len(set(grams)) / len(grams)", "variety for repetition"),
           ("found.fullmatch(s.text) if whole", "found.match(s.text) if whole", "a beginning for the whole")),
    *_room("reward/answers", "reward/test_rules",
           ("text[ends[-1] :]", "text[ends[0] :]", "the first answer for the last"),
           ("a == b if x is None or y is None else x == y", "a == b", "numbers compared as words"),
           ("return bool(a) and (", "return (", "an empty answer that is right")),
    *_room("evaluation/evaluate", "evaluation/test_evaluate",
           ("row[\"uncertainty\"] = doubt[i]", "row[\"uncertainty\"] = 0.0", "no doubt")),
    *_room("training/stop", "reward/test_rules",
           ("if constant and len(last) == patience:", "if False:", "a run on a constant reward")),
)  # fmt: skip
JUDGE = (
    *_room("reward/fence", "reward/test_fence",
           ("if key not in seen:", "if True:", "a key that stands in the text"),
           ('"\\0".join(texts).casefold()', '"\\0".join(texts)', "a key in capitals overlooked"),
           ("attempt, draw, len(texts), *texts", "attempt, draw, len(texts)", "one key for all texts"),
           ('"fence", attempt, draw', '"fence", draw', "another attempt with the same key"),
           ("{defused(text)}", "{text}", "control words of a chat template")),
    *_room("reward/verdict", "reward/test_fence",
           ("if not whole or not lines or", "if not lines or", "a 1 that was to be a 10"),
           (".count(key.casefold()) for line in lines) != 1", ".count(key.casefold()) for line in lines) < 1",
            "two verdicts"),
           ("last = lines[-1]", "last = next(line for line in lines if key.casefold() in line.casefold())",
            "a verdict that was taken back"),
           ('head == f"VERDICT {key}" and found in allowed', 'head.startswith("VERDICT") and found in allowed',
            "a verdict with another key"),
           ('head == f"VERDICT {key}" and found in allowed', 'head == f"VERDICT {key}"',
            "a verdict that there is not")),
    *_room("reward/judge", "reward/test_judge",
           ("answer: Choice = 1 - there if isinstance(there, int) else there", "answer: Choice = there",
            "the swap not undone"),
           ('Compared(here if here == answer else "tie", places, cost)', "Compared(here, places, cost)",
            "the first order alone"),
           ("self._pair(request, b, a, attempt)", "self._pair(request, a, b, attempt)", "the same order twice"),
           ("float((choice == 0) == (a < b))", "float((choice == 0) == (a > b))", "the loser's win"),
           ("for other in of_prompt[request]) - 0.5", "for other in of_prompt[request])", "a tie with itself counted"),
           ("for v, share in found.shares.items()) / 10", "for v, share in found.shares.items()) / 11",
            "a rating in another unit"),
           ("distinct = list(dict.fromkeys(items))", "distinct = list(items)", "equal texts asked about twice"),
           ("put.allowed, whole=reply.whole)", "put.allowed)", "a reply that was cut off")),
    *_room("reward/endpoint", "reward/test_judge",
           ("if (known := _kept(path)) is not None:", "if (known := _kept(path)) is not None and False:",
            "everything asked again"),
           ("json.dumps([base_url, request], sort_keys=True)", 'json.dumps([base_url, request["messages"]])',
            "another model's reply"),
           ("if time.monotonic() > until:", "if False:", "an answer that drips for ever"),
           ("min(max(pace, stumble.after), LONGEST_PAUSE)", "min(pace, LONGEST_PAUSE)", "Retry-After not heard"),
           ("self.pause * 2**attempt", "self.pause", "pauses that do not grow"),
           ('text.replace(key, "***") if key else text', "text", "the key in a message"),
           ("if url.userinfo or url.query or url.fragment:", "if url.fragment:", "a secret in the address"),
           ("choice.get(\"finish_reason\") != \"length\"", "True", "a reply that was cut off taken for whole")),
    *_room("reward/local_judge", "reward/test_judge",
           ("logprobs.double().sum(1)", "logprobs.double()[:, 0]", "the first token alone"),
           ('tokenizer.complete(f"VERDICT', 'tokenizer.encode(f"VERDICT', "a 1 that may go on to 10"),
           ('text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 1 else " ")', "pass",
            "special tokens written by a text")),
    *_room("reward/label", "reward/test_label",
           ("if digest not in done]", "]", "what is there asked for again"),
           ("os.truncate(out, len(whole))", "pass", "half a line left in the file"),
           ("if done.keys() - digests:", "if False:", "answers of two judges in one file"),
           ("        c.model,\n", "", "another model's answers kept"),
           ("named.count(0) / len(named)", "named.count(1) / len(named)", "the second place for the first"),
           ("not in ((0, 1), (1, 0), (", "not in ((0, 0), (1, 1), (", "agreement of places for agreement of answers")),
)  # fmt: skip
RATERS = (
    *_room("recipes/reward_model", "recipes/test_reward_raters",
           ('effects.load_state_dict(checkpoint.unprefixed("raters", tensors))', "pass", "habits lost at a resume"),
           ('checkpoint.load_optimizer(habits_optimizer, checkpoint.unprefixed("habits", tensors))', "pass",
            "the habits' moments lost at a resume"),
           ("replace(record, rater=GOLD_RATER)", "record", "gold items of nobody"),
           ("branch.head, reward.criteria = head.merged(), head", "branch.head = head.merged()", "criteria not saved")),
    *_room("reward/judgements", "reward/test_judgements",
           ("reading.margin * strength_share(pair)", "reading.margin", "one margin for all strengths"),
           ("(pair.strength - 1) / 3", "pair.strength / 4", "a margin for the least strength"),
           ("1.0 if pair.shown_first == pair.a else -1.0", "-1.0 if pair.shown_first == pair.a else 1.0",
            "the other side of the screen"),
           ("if listwise and pair.ranking is not None:", "if False:", "a ranking that counts twice"),
           ("list(dict.fromkeys(one.places))", "list(one.places)", "a text against itself"),
           ("- {GOLD_RATER}", "- set()", "gold as a rater")),
    *_room("reward/criteria", "reward/test_probe",
           ("head.bias.copy_(self.shares @ self.bias)", "pass", "a merged head without its bias"),
           ("buffer.copy_(getattr(self, name))", "pass", "a merged head in another unit")),
    *_room("reward/raters", "reward/test_measure_raters",
           ("log_scale = self.log_scale - self.log_scale.mean() if", "log_scale = self.log_scale if",
            "scales that do not sum to zero"),
           ("(self.severity - mean) * share", "self.severity * share", "severities that do not sum to zero"),
           ("sign = torch.where(right < 0, -1.0, 1.0)", "sign = 1.0", "nobody is inverted"),
           ("(self.reliability, RELIABILITY_SD)", "(self.reliability, 100.0)", "no pull towards the crowd")),
    *_room("reward/rater_tables", "reward/test_measure_raters",
           ("1.0 if pair.ranking is None else 2 /", "1.0 if pair.ranking is None else 1.0 or 2 /",
            "a ranking as so many judgements"),
           ("own - crowd * (own @ crowd)", "own - 0 * crowd * (own @ crowd)", "the crowd's taste as one's own"),
           ("if row.rater == GOLD and", "if False and", "gold items that are judged like any")),
    *_room("reward/measure_raters", "reward/test_measure_raters",
           ("opinion = table.gold[table.item] == 0", "opinion = table.gold[table.item] < 9", "a taste in gold items"),
           ("together + z_weights, -1)", "together, -1)", "a quadrature without weights"),
           ("- units[a] - units[b]", "", "copies as their own witnesses"),
           ("repeats = table.repeated(len(effects.names)) > 0", "repeats = table.repeated(len(effects.names)) > 1e9",
            "repeats that say nothing")),
)  # fmt: skip
PERCEPTION = _room(
    "evaluation/perception",
    "evaluation/test_perception",
    ("prompts[(p + int(shift)) % count]", "prompts[p]", "its own prompt for another's"),
    ("np.arange(1, count)", "np.arange(0, count)", "now and then its own prompt"),
    ("surprise=-own", "surprise=own", "the sign of surprise"),
    ("[0.25, 0.75]", "[0.1, 0.9]", "another band"),
    ("-0.5 * (outside / band.width) ** 2", "-(outside / band.width) ** 2", "a curve of another width"),
    ("/ band.gain_width * 2", "/ band.gain_width", "another slope of relevance"),
    ("packed.mask.sum(1).cpu()", "packed.mask.shape[1]", "a mean over padding"),
)
DIAGNOSIS = _room(
    "evaluation/diagnosis",
    "evaluation/test_diagnosis",
    ("if fell > SURE_OF_PEAK * gold.error and rose > 0:", "if fell > SURE * gold.error and rose > 0:",
     "noise called reward hacking"),
    ("gold.error and rose > 0:", "gold.error:", "a fall of both called reward hacking"),
    ("peak = max(ends, key=gold.level)", "peak = min(ends, key=gold.level)", "the trough for the peak"),
    ("at = gold.steps[peak - 1]", "at = gold.steps[-1]", "the wrong step named"),
    ("window = self.values[max(0, end - self.width) : end]", "window = self.values[:end]", "levels over the whole run"),
    ("(2 * len(steps))) * math.sqrt(2 / self.width)", "(2 * len(steps)))", "a mean as noisy as a step"),
    ("if _finite(row.get(name))", "if name in row", "holes read as numbers"),
    ("entropy.last < 0.4 * entropy.first", "entropy.last > 0.4 * entropy.first", "entropy that holds called collapse"),
    ("and explained.last < 0", "and explained.last > 0", "a good critic called bad"),
)  # fmt: skip
FEEDBACK = (
    *_room("feedback/queries", "feedback/test_feedback_store",
           ("undo.c.seq > rule.c.seq", "undo.c.seq < rule.c.seq", "a restored rater stays away"),
           (", ~superseded, ", ", ", "what was corrected still counts"),
           ("later.c.supersedes == events.c.id, within(later)", "later.c.supersedes == events.c.id",
            "a later correction changes an older snapshot"),
           ('rule.c.kind == "retract_rater", within(rule)', 'rule.c.kind == "retract_rater"',
            "a later retraction changes an older snapshot"),
           (".where(known(raters), known(author))", ".where(known(author))", "forgotten judgements still count"),
           (".where(known(raters), known(author))", ".where(known(raters))", "an author's words outlive the author")),
    *_room("feedback/store", "feedback/test_feedback_store",
           ("if (old.rater, old.item) != (event.rater, event.item):", "if old.item != event.item:",
            "one rater corrects another"),
           ("forgotten or same_content(event, known)", "True", "another event under a known id"),
           ("queries.refuse_retracted(self.connection, event.rater)", "pass", "a retracted rater goes on"),
           ("        self.last += 1\n", "        self.last += 2\n", "a gap in the log"),
           ("            privacy.erase(connection, rater, seq)\n", "", "a rater forgotten in name alone")),
    *_room("feedback/agreement", "feedback/test_feedback_agreement",
           ('codes = names if level == "nominal" else order', "codes = order", "a tie taken for both bad"),
           ("if r != rater]", "]", "a majority with the rater in it"),
           ('event.payload["choice"] == event.presented[0]', 'event.payload["choice"] == 0',
            "the first completion, not the one shown first"),
           ("+ square / (4 * n * n)", "", "an interval too narrow for few"),
           ("times[item, rater] += 1", "times[item, rater] = 1", "a second judgement over the first")),
    *_room("feedback/dawid_skene", "feedback/test_dawid_skene",
           ("np.einsum(\"ik,irl->rkl\", posterior, counts)", "np.einsum(\"ik,irl->rlk\", posterior, counts)",
            "given and true classes exchanged"),
           ("np.maximum(log_prior, -1e100) + told", "told", "rare classes as likely as frequent ones"),
           ("posterior.sum(0) + smoothing", "posterior.sum(0) * 0 + 1", "all classes alike")),
    *_room("feedback/panel", "feedback/test_feedback_panel",
           ("overall[presented[0]] += self.side_bias", "overall[0] += self.side_bias",
            "a bias for the first completion, not the first shown"),
           ("frozenset(lexicon()) - training_words(seed) if", "training_words(seed) if", "seen words for unseen"),
           ("TRAINING_COLUMNS = range(7)", "TRAINING_COLUMNS = range(8)", "a judge among the raters"),
           ('["compound"]) + 1) / 2', '["compound"]))', "valence from -1 to 1")),
)  # fmt: skip
ILQL = (
    *_room("recipes/ilql", "recipes/test_ilql_golden",
           ("torch.minimum(*(action_values", "torch.maximum(*(action_values", "the larger of the slow heads"),
           ("        slow = heads.slow(states)\n", "        slow = heads.online(states)\n", "no slow heads"),
           ("== mask.sum(1, keepdim=True) - 1\n    targets", "== 0\n    targets", "the reward on the first token"),
           ("+ config.cql_coef * cql", "", "the CQL term forgotten"),
           ("+ config.bc_coef * of_policy.loss", "+ of_policy.loss", "the weight of imitation forgotten"),
           ("(taken - values).to", "(values - taken).to", "the advantage's sign"),
           ("            heads.follow(config.polyak)\n", "", "slow heads that stand still"),
           ("expectile=config.expectile", "expectile=0.5", "the expectile forgotten"),
           ("gamma=config.gamma", "gamma=1.0", "gamma forgotten"),
           ("q, cql = of_q[0].loss + of_q[1].loss", "q, cql = of_q[0].loss", "one head of two learned")),
    *_room("recipes/ilql", "recipes/test_ilql",
           ("    heads.load_state_dict(checkpoint", "    dict(checkpoint", "heads not restored"),
           ('done, measured = int(state["step"]), state["measured"]', 'done = int(state["step"])',
            "what was measured forgotten"),
           ('"model": written.trunk', '"model": model.trunk', "heads said to read the base")),
    *_room("models/q_heads", "recipes/test_ilql_golden",
           ("slow.lerp_(fast, rate)", "slow.lerp_(fast, 1 - rate)", "slow heads that are fast"),
           ("F.relu(F.linear(", "F.gelu(F.linear(", "other features"),
           ("    return F.rms_norm(states.to(dtype), (states.shape[-1],))", "    return states.to(dtype)",
            "states at the trunk's own scale")),
    *_room("models/q_heads", "recipes/test_ilql",
           ("torch.minimum(first, second) - ", "first - ", "steered by one head"),
           ("for h in self.slow(states))", "for h in self.online(states))", "steered by the fast heads"),
           ("if reads != (", "if None is (", "another model's states let in")),
    *_room("rollout/local", "recipes/test_ilql",
           ("logits = self.steer(hidden, logits)", "self.steer(hidden, logits)", "a steer that is not turned")),
    *_room("data/episodes", "recipes/test_ilql",
           ("yield record.completion, scale * (score - centre)", "yield record.completion, scale * score - centre",
            "a centre in the reward's unit"),
           ('"both_bad": (-1.0, -1.0)', '"both_bad": (0.0, 0.0)', "both bad taken for a tie"),
           ("0: (1.0, -1.0), 1: (-1.0, 1.0)", "1: (1.0, -1.0), 0: (-1.0, 1.0)", "the rejected rewarded"),
           ("1.0 - 2.0 * place / (count - 1)", "1.0 - 2.0 * place / count", "a ranking that does not reach -1"),
           ("ids.get((key, text)) or tokenizer", "tokenizer", "sampled ids not used")),
)  # fmt: skip
BANDIT = (
    *_room("recipes/bandit", "recipes/test_bandit",
           (".gather(1, labels[index][:, None])[:, 0]", "[:, 0]", "the first label learned for all"),
           ("out = rating_regression(own, rewards[index].to(own.dtype), total=len(batch))",
            "out = rating_regression(own, rewards[index].to(own.dtype), total=len(index))", "the micro-batch's mean"),
           ('online.read(directory / "log.jsonl", int(state["logged"]))', "pass", "the log not restored"),
           ('int(state["logged"]))', "10**9)", "rows after the checkpoint kept")),
    *_room("rollout/classify", "recipes/test_bandit",
           ("chances.double().cumsum(0)", "torch.full_like(chances, 1 / len(chances)).double().cumsum(0)",
            "labels drawn blindly"),
           ("float(chances[i, label])", "float(chances[i].max())", "another label's propensity")),
    *_room("rollout/choose", "recipes/test_bandit",
           ('rng(self.seed, "bandit contexts", round)', 'rng(self.seed, "bandit contexts")',
            "every round the same texts"),
           ("own = [float(chances[n, label])", "own = [1.0 + 0 * float(chances[n, label])",
            "choices logged as certain")),
    *_room("data/choices", "recipes/test_bandit",
           ("not 0 < propensity <= 1", "not 0 <= propensity <= 1", "a propensity of 0 let in"),
           ("not 0 <= reward <= 1", "reward < 0", "rewards beyond 1 let in"),
           ("of_both[c.who, c.label] / of_who[c.who]", "1 / len({x.label for x in found})", "frequencies not counted")),
    *_room("models/label_head", "recipes/test_bandit",
           ('(about.get("tokenizer"), about.get("trunk")) != (', "None is (", "another model's states let in")),
)  # fmt: skip
TRAINING = (
    *_room("training/metrics", "recipes/test_ppo",
           ('if row["step"] <= done', 'if row["step"] < done', "a row lost at a resume")),
    *_room("training/optim", "recipes/test_ppo_golden",
           ("eps=1e-5", "eps=1e-8", "another epsilon in Adam")),
    *_room("training/optim", "training/test_optim",
           ("nn.utils.clip_grad_norm_(parameters, max_grad_norm)",
            "nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])",
            "gradients not clipped")),
)  # fmt: skip
OPTIM = _room(
    "training/optim",
    "training/test_optim",
    ("math.sqrt(1 - beta2**taken) / (1 - beta1**taken)", "1 / (1 - beta1**taken)", "TensorFlow's rate uncorrected"),
    ("below = state[\"exp_avg_sq\"].sqrt()", "below = (state[\"exp_avg_sq\"] / (1 - beta2**taken)).sqrt().mul_("
     "math.sqrt(1 - beta2**taken)).add_(group[\"eps\"] * (math.sqrt(1 - beta2**taken) - 1))",
     "torch's epsilon in TensorFlow's Adam"),
    ("parameter.grad.add(parameter, alpha=group[\"weight_decay\"])", "parameter.grad", "L2 forgotten"),
    ('{"params": decayed, "weight_decay": weight_decay}', '{"params": decayed, "weight_decay": 0.0}',
     "no decay at all"),
    ("if id(p) not in known], \"weight_decay\": 0.0}", "if id(p) not in known], \"weight_decay\": weight_decay}",
     "biases and norms decayed"),
    ('own = OWN[config.name] | {name: value for name, value in given.items() if name != "name"}',
     "own = OWN[config.name]", "settings never passed on"),
    ("torch.optim.Adam(\n", "torch.optim.AdamW(\n", "decoupled decay in Adam"),
    ('"rmsprop": {"beta2": 0.99,', '"rmsprop": {"beta2": 0.9,', "another default in RMSprop"),
    ("rho=own[\"beta2\"]", "rho=0.9", "Adadelta's rho fixed"),
    ("alpha=own[\"beta2\"], eps=own[\"eps\"], momentum=own[\"momentum\"]", "alpha=own[\"beta2\"], eps=own[\"eps\"]",
     "RMSprop's momentum forgotten"),
    ("(1 - math.cos(math.pi * left)) / 2", "math.sin(math.pi * left / 2)", "another curve than the cosine"),
    ("end ** (1 - left)", "1 + (end - 1) * (1 - left) ** 2", "another curve than the exponential"),
    ('"linear": lambda left, end: end + (1 - end) * left', '"linear": lambda left, end: max(end, left)',
     "a line that is cut, not scaled"),
    ("SCHEDULES[name](linear_to_zero(step, total, warmup), end)", "SCHEDULES[name](linear_to_zero(step, total), end)",
     "a schedule that forgets its warm-up"),
    ("parameter.grad.add_(parameter.sign(), alpha=l1)", "parameter.grad.add_(parameter, alpha=l1)", "L2 for L1"),
    ("for parameter in matrices(parameters):", "for parameter in parameters:", "L1 on biases and norms"),
)  # fmt: skip
MIXTURE = _room(
    "training/mixture",
    "training/test_mixture",
    ("size ** (1 / temperature)", "size ** temperature", "the temperature upside down"),
    ("min(count, limit) for count", "max(count, limit) for count", "a limit from below"),
    ("max(loss - goal, 0.0)", "(loss - goal)", "an excess below 0"),
    ("max(loss - goal, 0.0)", "max(goal - loss, 0.0)", "the excess turned round"),
    ("grown = [weight * math.exp", "grown = [math.exp", "weights that forget those before"),
    ("w * ratio**strength", "w / ratio**strength", "quick learners favoured"),
    ("(1 - floor) * weight / total + floor / len(weights)", "weight / total + floor / len(weights)",
     "weights that sum to more than 1"),
    ('rng(seed, "mixture", step)', 'rng(seed, "mixture")', "every step the same tasks"),
    ('rng(seed, "mixture order", name, turn)', 'rng(seed, "mixture order", name)', "every turn in one order"),
    ("        after[name] += 1\n", "        after[name] += 2\n", "examples skipped"),
    ("names = sorted(sizes)", "names = list(sizes)", "draws that depend on the files' order"),
    ("ratio_weights([begun[name] for name in names]", "ratio_weights([weights[name] for name in names]",
     "ratios that add up"),
)  # fmt: skip
DROPOUT = (
    *_room("models/dropout", "models/test_dropout",
           ("x / (1 - dropout.rate)", "x", "what is left is not scaled"),
           ("draw >= dropout.rate", "draw < dropout.rate", "the rate turned round"),
           ("torch_seed(*key, *place)", "torch_seed(*key)", "the same mask in every place"),
           ("for row in rows)", "for row in range(len(rows)))", "rows numbered by micro-batch"),
           ("torch.rand(length, x.shape[2], generator=generator, device=x.device)",
            "torch.rand(x.shape[2], x.shape[1], generator=generator, device=x.device).T[:length]",
            "draws that depend on padding")),
    *_room("models/llama", "recipes/test_sft_golden",
           ("drop(x, context.dropout, self.index, name)", "x", "no dropout before an adapter"),
           ('drop(attended, whole, self.index, "attention")', "attended", "no dropout after attention"),
           ('drop(made, whole, self.index, "mlp")', "made", "no dropout after the MLP"),
           ("context.dropout if adapter is None else None", "context.dropout", "an adapter's stream dropped, too")),
)  # fmt: skip
SFT = (
    *_room("recipes/sft", "recipes/test_sft_golden",
           ("(config.seed, \"dropout\", step)", "(config.seed, \"dropout\", 0)", "the same dropout at every step"),
           ('row["l1_norm"] = add_l1(parameters, config.l1)', 'row["l1_norm"] = add_l1(parameters, 0.0)', "no L1"),
           ("end=config.rate_end", "end=0.0", "a rate that falls to 0"),
           ("weight_decay=config.weight_decay", "weight_decay=0.0", "no weight decay"),
           ("/ sum(counts.values())", "/ sum(counts.values()) * 1.001", "a held-out loss a little off"),
           ("weights = next_weights(", "_ = next_weights(", "weights that never change")),
    *_room("recipes/sft", "recipes/test_sft_training",
           ("best, weights, taken = Best(**state[\"best\"]), state[\"weights\"], state[\"taken\"]",
            "weights, taken = state[\"weights\"], state[\"taken\"]", "the best forgotten at a resume"),
           ("best, weights, taken = Best(**state[\"best\"]), state[\"weights\"], state[\"taken\"]",
            "best, taken = Best(**state[\"best\"]), state[\"taken\"]", "the weights forgotten at a resume"),
           ("best, weights, taken = Best(**state[\"best\"]), state[\"weights\"], state[\"taken\"]",
            "best, weights = Best(**state[\"best\"]), state[\"weights\"]", "the place in each task forgotten"),
           ("        checkpoint.load_optimizer(optimizer, tensors)\n", "", "moments lost at a resume"),
           ("if due or (better and config.keep == \"best\"):", "if due:", "a best model never saved"),
           ("checkpoint.at(directory / \"checkpoints\", best.step)",
            "checkpoint.at(directory / \"checkpoints\", int(metrics.history[-1][\"step\"]))", "the last for the best"),
           ("best.since >= config.patience", "best.since > config.patience", "one measurement too patient"),
           ("sorted(zip(task_names(config.data), config.data, strict=True))",
            "zip(task_names(config.data), config.data, strict=True)", "the order of files tells")),
    *_room("training/stop", "recipes/test_sft_training",
           ("if loss < best.loss else", "if loss <= best.loss else", "an equal loss called lower"),
           ("replace(best, since=best.since + 1)", "replace(best, since=1)", "a patience without end")),
    *_room("training/checkpoint", "recipes/test_sft_training",
           ("if spare is None or old != _place(directory, spare):", "if True:", "the best checkpoint pruned")),
    *_room("data/demonstrations", "recipes/test_sft_training",
           ("stream[at + 1 : at + 1 + window]", "stream[at + 1 : at + window]", "a token of each piece left out"),
           ("min(window, context - 1)", "window", "pieces too long for the model")),
)  # fmt: skip
RANKINGS = _algorithms(
    "reward_loss",
    "rankings_and_levels",
    ("F.softplus(margin - gap)", "F.softplus(-margin - gap)", "a margin that makes it easier"),
    ("F.softplus(margin + gap)", "F.softplus(gap - margin)", "a margin for the first alone"),
    ("torch.where(mask, scores, low).flip(1), dim=1).flip(1)", "torch.where(mask, scores, low), dim=1)",
     "the worst chosen first"),
    ("torch.where(mask, scores, low)", "torch.where(mask, scores, 0 * low)", "padding among the choices"),
    ("loss = -ranking_logprobs(scores, mask)", "loss = ranking_logprobs(scores, mask)", "the sign of Plackett-Luce"),
    ("mask = mask & counts[:, None]", "pass", "a ranking without weight is read"),
    (".triu(diagonal=1)", ".triu()", "each answer against itself"),
    ("above = scores[..., None] - cuts", "above = cuts - scores[..., None]", "levels upside down"),
    ("F.pad(torch.log(-torch.expm1(-gaps)), (1, 1))", "0.0", "levels between cuts too likely"),
    ("share = levels - below", "share = 0 * levels", "a fraction cut off"),
    ("error = (expected - levels).abs() / len(cuts)", "error = (expected - levels).abs()", "an error in levels"),
    ("-soft_pick(level_logprobs(scores, cuts), levels)", "-soft_pick(level_logprobs(scores, cuts), levels.round())",
     "a soft level made hard"),
)  # fmt: skip
RATER_LOSS = _algorithms(
    "rater_loss",
    "rater_loss",
    ("choice_logprobs(scale * towards * gap - margin, careless, towards * side)",
     "choice_logprobs(scale * towards * gap - margin, careless, side)", "a side that does not turn with the choice"),
    ("choice_logprobs(scale * towards * gap - margin,", "choice_logprobs(scale.abs() * towards * gap - margin,",
     "nobody is inverted"),
    ("_mixed(F.logsigmoid(side), F", "_mixed(F.logsigmoid(0 * side), F", "careless without a side"),
    ("careless.clamp(min=tiny).log() + guess, (1.0 - careless)",
     "(1 - careless).clamp(min=tiny).log() + guess, careless", "the careless and the careful exchanged"),
    ("(1.0 - decided) * tie", "(1.0 - decided) * choice", "ties as evidence of carelessness"),
    ("guess = -torch.lgamma(mask.sum(1)", "guess = -torch.lgamma(mask.shape[1] + 0 * mask.sum(1)",
     "padding among a guess's rankings"),
    ("ranking_logprobs(scale[:, None] * scores, mask)", "ranking_logprobs(scores, mask)",
     "scale forgotten in rankings"),
    ("scale * (scores - severity)", "scale * scores - severity", "a severity in the rater's unit"),
    ("scale * (scores - severity)", "scale * (scores + severity)", "the severe taken for lenient"),
    ("torch.where((careless > 0) & (careless < 1), mixed, exact)", "mixed", "a floor under the careful"),
)  # fmt: skip

MUTATIONS: tuple[Mutation, ...] = (
    *RATERS, *RATER_LOSS, *RANKINGS, *MASKING, *KL, *ADVANTAGES, *POLICY, *VALUE, *REWARD_LOSS, *NLL,
    *LOGPROBS, *COLLATE, *TOKENIZER, *LLAMA, *ADAPTER, *LOAD, *BRANCH, *LOCAL, *COLLECT, *PPO, *ONLINE,
    *REWARD, *PROBE, *PERCEPTION, *DIAGNOSIS, *FEEDBACK, *TRAINING, *OPTIM, *MIXTURE, *DROPOUT, *SFT,
    *WHOLE_COMPLETIONS, *REINFORCE_LOSS, *REINFORCE, *POLICY_PEER, *TRANSCRIPT, *ENVIRONMENT, *AGENT, *PREFERENCE_LOSS,
    *PREFERENCE, *Q_LOSS, *OFF_POLICY, *ILQL, *BANDIT, *SCORERS, *JUDGE, *ONLINE_RUN, *LOGGED, *GRPO,
    *REJECTION,
)  # fmt: skip


def mutated(mutation: Mutation) -> str:
    """The file's text after the change. Fails where `old` does not stand exactly once."""
    text = (PACKAGE / mutation.file).read_text()
    count = text.count(mutation.old)
    if count != 1:
        pytest.fail(
            f"{mutation.file} has {mutation.old!r} {count} times, not once; mend the list", pytrace=False
        )
    return text.replace(mutation.old, mutation.new)


CHECK_ORIGIN = """
from pathlib import Path

def pytest_sessionstart(session):
    import plaudit
    here = Path(__file__).resolve().parent
    assert Path(plaudit.__file__).resolve().parent == here / "plaudit", plaudit.__file__
"""


class Result(NamedTuple):
    """status: pytest's exit status, None where it took too long; said: what it printed."""

    status: int | None
    said: str


class Stem:
    """tests/proofs/stem.py, one job at a time."""

    def __init__(self) -> None:
        own = {
            "PYTEST_ADDOPTS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "400",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(REPO / "tests" / "proofs" / "stem.py")],
            cwd=REPO, env=os.environ | own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, tests: Sequence[str], room: Path, mutation: Mutation | None = None, seconds: float = SECONDS
    ) -> Result:
        """Copy the package into the room, change it, and run the tests against the copy (and the copy alone)."""
        shutil.copytree(PACKAGE, room / "plaudit", ignore=shutil.ignore_patterns("__pycache__"))
        (room / "check_origin.py").write_text(CHECK_ORIGIN)
        if mutation:
            (room / "plaudit" / mutation.file).write_text(mutated(mutation))
        options = ["-x", "-p", "no:cacheprovider", "-p", "check_origin", "-m", "not proof", "--tb=no"]
        options += ["--basetemp", str(room / "tmp")]
        arguments = [*options, *(f"tests/{test}" for test in tests)]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(
            json.dumps({"room": str(room), "arguments": arguments, "seconds": seconds}) + "\n"
        )
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())["status"]
        said = (room / "out").read_text(errors="replace")
        shutil.rmtree(room, ignore_errors=True)
        return Result(status, said)

    def close(self) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()


NONSENSE = "NameError|UnboundLocalError|AttributeError|TypeError|SyntaxError|ImportError"
"""What a typing slip raises. A test that meets one of these has not judged the change."""

Outcome = Callable[[Mutation], Result]


@pytest.fixture(scope="module")
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """What became of a mutation. Those selected are run ahead, a few at a time; under xdist, one when asked for."""
    rooms = tmp_path_factory.mktemp("mutations")
    at_once = 1 if "PYTEST_XDIST_WORKER" in os.environ else AT_ONCE
    stems = Queue[Stem]()
    for _ in range(at_once):
        stems.put(Stem())

    def one(mutation: Mutation) -> Result:
        stem = stems.get()
        try:
            return stem.run(mutation.tests, rooms / str(MUTATIONS.index(mutation)), mutation)
        finally:
            stems.put(stem)

    calls = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = [call.params["mutation"] for call in calls if call and "mutation" in call.params]
    ahead = [] if "PYTEST_XDIST_WORKER" in os.environ else list(dict.fromkeys(chosen))
    pool = ThreadPoolExecutor(at_once)
    futures = {mutation: pool.submit(one, mutation) for mutation in ahead}
    yield lambda mutation: futures[mutation].result() if mutation in futures else one(mutation)
    pool.shutdown(cancel_futures=True)
    while not stems.empty():
        stems.get().close()


def names(mutation: Mutation) -> str:
    return f"{mutation.file}: {mutation.why}"


def test_every_mutation_still_has_its_place() -> None:
    """Quick, so that whoever changes a line learns at once that the list names it."""
    for mutation in MUTATIONS:
        assert mutated(mutation)
        for test in mutation.tests:
            assert (REPO / "tests" / test).is_file(), test
    assert len(set(map(names, MUTATIONS))) == len(MUTATIONS)


def test_no_room_hides_another() -> None:
    """A second tuple of the same name would take the first one's mutations away, and nothing would fail."""
    rooms = re.findall(r"^([A-Z_]+) = (?:_algorithms|_room|\()", Path(__file__).read_text(), re.MULTILINE)
    assert len(rooms) > 30
    assert len(set(rooms)) == len(rooms)
    listed = set(re.findall(r"\*([A-Z_]+)\b", Path(__file__).read_text().split("MUTATIONS: tuple", 1)[1]))
    assert set(rooms) <= listed


def test_a_line_that_is_gone_is_told_apart_from_one_that_is_caught() -> None:
    gone = MUTATIONS[0]._replace(old="a line of last year")
    with pytest.raises(
        pytest.fail.Exception, match=r"masking.py has 'a line of last year' 0 times, not once"
    ):
        mutated(gone)


@pytest.mark.proof
def test_the_copy_passes_unmutated(tmp_path: Path) -> None:
    tests = dict.fromkeys(test for mutation in MUTATIONS for test in mutation.tests)
    stem = Stem()
    result = stem.run(tuple(tests), tmp_path / "clean", seconds=20 * SECONDS)
    stem.close()
    assert result.status == 0, result.said


@pytest.mark.proof
@pytest.mark.parametrize("mutation", MUTATIONS, ids=names)
def test_mutation_is_caught(mutation: Mutation, outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    result = outcome(mutation)
    assert result.status is not None, f"took longer than {SECONDS} s: {mutation.old!r} -> {mutation.new!r}"
    assert result.status != 0, f"not caught: {mutation.old!r} -> {mutation.new!r}"
    assert result.status == 1, f"it broke the run, which proves nothing:\n{result.said}"
    caught = re.search(r"^FAILED \S*?(\w+\.py::.+?)(?: - (.*))?$", result.said, re.MULTILINE)
    assert caught, f"no test is named:\n{result.said}"
    assert not re.match(NONSENSE, caught.group(2) or ""), (
        f"not a change that anyone could make: {caught.group(2)}"
    )
    with capsys.disabled():
        print(f"\n  {names(mutation)}: caught by {caught.group(1)}", end="")
