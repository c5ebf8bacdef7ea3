"""Proof that the tests can fail: every mutation below, applied to a copy of the package, must be caught.

To add one: a `Mutation` in your room's tuple. `old` must stand exactly once in the file, so that this list cannot
rot; the tests named are run against the copy and must fail as tests do (a copy that cannot be imported proves
nothing). The work tree is never touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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
)  # fmt: skip
POLICY = _algorithms(
    "policy_loss",
    "policy_loss loss_laws",
    ("torch.exp(logprobs - old_logprobs)", "torch.exp(old_logprobs - logprobs)", "the ratio upside down"),
    ("torch.minimum(plain, clipped)", "torch.maximum(plain, clipped)", "max for min"),
    ("torch.minimum(plain, clipped)", "clipped", "only the clipped branch"),
    ("torch.minimum(plain, clipped)", "plain", "no clip"),
    ("ratio.clamp(1.0 - clip, 1.0 + clip)", "ratio.clamp(1.0 - clip, 1.0)", "the upper clip lost"),
    ("ratio.clamp(1.0 - clip, 1.0 + clip)", "ratio.clamp(max=1.0 + clip)", "the lower clip lost"),
    ("clip: float = 0.2", "clip: float = 0.3", "another default clip"),
    ("LossOutput(-masked_mean(surrogate,", "LossOutput(masked_mean(surrogate,", "the sign of the loss"),
    ("LossOutput(-masked_mean(surrogate, mask, total=total)", "LossOutput(-masked_mean(surrogate, mask)",
     "the micro-batch's own mean"),
    ("    logprobs, advantages = zero_masked(logprobs, mask),", "    logprobs, advantages = logprobs,",
     "rubbish reaches the gradient"),
    ("(clipped < plain)", "(clipped <= plain)", "a clip counted where there is none"),
    ("k3(old_logprobs, logprobs)", "k3(logprobs, old_logprobs)", "the other KL"),
    ("zero_masked(ratio, mask).max()", "zero_masked(ratio, mask).mean()", "a mean called maximum"),
    ("gap = old_logprobs - zero_masked(sampled_logprobs, mask).detach()",
     "gap = zero_masked(sampled_logprobs, mask).detach() - old_logprobs", "importance upside down"),
    (".clamp(max=importance_cap)", "", "importance without a cap"),
    (".clamp(max=importance_cap)", ".clamp(min=importance_cap)", "a floor for a cap"),
    ("surrogate = weight * surrogate", "pass", "importance forgotten"),
    ("zero_masked(sampled_logprobs, mask).detach()", "zero_masked(sampled_logprobs, mask)",
     "a gradient into the sampler"),
    ("zero_masked(advantages, mask).detach()", "zero_masked(advantages, mask)", "a gradient into the advantages"),
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
    ("mask[sample, : len(completion)] = True", "mask[sample, : len(completion)] = ids[row, start:end] != 0",
     "a mask from ids"),
    ("else rows.sort().values", "else rows", "micro-batches that depend on the rows' order"),
    ("widest * (len(groups[-1]) + 1) <= budget", "widest * len(groups[-1]) <= budget", "a row over the budget"),
)  # fmt: skip
TOKENIZER = _room(
    "data/tokenizer",
    "data/test_tokenizer",
    ("add_generation_prompt=True", "add_generation_prompt=False", "a prompt that does not ask for an answer"),
    (' + "\\0" + str(inner.chat_template)', "", "a fingerprint blind to the template"),
    ("add_special_tokens=False", "add_special_tokens=True", "the first token in every text"),
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
    ("rng(*key, prompt, index).random", "rng(*key, index).random", "the same draws for every prompt"),
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
    ("token_logprobs(policy, part, temperature=temperature,", "token_logprobs(policy, part,", "temperature forgotten"),
    ("if branch.trunk is reference else (None, 0)", "if branch.first in here else (None, 0)",
     "a trained trunk entered from the frozen one's stream"),
    ("shares[index, :steps]", "shares[: len(index), :steps]", "shares given to other samples"),
)  # fmt: skip
PPO = _room(
    "recipes/ppo",
    "recipes/test_ppo_golden",
    ('rng(config.seed, "epoch", step, epoch)', 'rng(config.seed, "epoch", step, 0)', "every epoch in one order"),
    ('rng(config.seed, "prompts", place // count)', 'rng(config.seed, "prompts", 0)', "every pass in one order"),
    ("keep_mean=True", "keep_mean=False", "rewards centred"),
    ("whiten(advantages, mask, keep_mean=False)", "whiten(advantages, mask, keep_mean=True)",
     "advantages not centred"),
    ("total = float(packed.mask[torch.isin(packed.row, rows)].sum())", "total = float(packed.mask.sum())",
     "the batch's count for the minibatch's"),
    ("config.value_coef * critic.loss", "critic.loss", "the value's coefficient forgotten"),
    ("sampled_logprobs=cut(experience.sampled_logprobs)", "sampled_logprobs=cut(experience.old_logprobs)",
     "importance forgotten"),
    ("                    temperature=config.temperature,\n                    entropy_gradient",
     "                    entropy_gradient", "temperature forgotten in the epochs"),
    ("loss - config.entropy_coef", "loss + config.entropy_coef", "entropy as a cost"),
    ("linear_to_zero(step, config.steps)", "linear_to_zero(0, config.steps)", "a rate that never falls"),
    ('observed=row["kl"]', 'observed=row["approx_kl"]', "the controller watches the wrong KL"),
    ("replace_missing_eos(scores, scored, penalty=config.missing_eos_penalty)", "scores", "no penalty"),
    ("shaped_rewards(at_end,", "shaped_rewards(scores,", "a penalty that never reaches the reward"),
    ("gamma=config.gamma, lam=config.lam", "gamma=config.gamma", "lambda not passed on"),
) + _room(
    "recipes/ppo",
    "recipes/test_ppo",
    ("at_end = at_end * ~scored", "pass", "a dense reward with the score on top"),
    ("rewards + shares * scored[:, None]", "rewards + shares", "shares of what is penalised"),
    ("if branch.adapter is None or branch.first not in seen.streams:", "if branch.first not in seen.streams:",
     "a trained trunk entered from a frozen stream"),
    ("        checkpoint.load_optimizer(optimizer, tensors)\n", "", "moments lost at a resume"),
    ('float(state["kl_coef"])', "config.kl.coef", "the controller's state lost at a resume"),
    ('value.load_state(checkpoint.unprefixed("value", tensors))', "pass", "the value lost at a resume"),
    ("restore(before=step)", "restore()", "back to the weights that gave no numbers"),
    ("key=lambda s: (s.prompt, s.index)", "key=lambda s: 0", "samples in the order of the engine"),
)  # fmt: skip
REWARD = (
    *_room("rollout/collect", "recipes/test_ppo",
           ("if not float(gap) <= PREFLIGHT[dtype]:", "if float(gap) <= PREFLIGHT[dtype]:", "preflight turned round"),
           ("(seen.logprobs - seen.sampled_logprobs).abs()", "(seen.logprobs - seen.sampled_logprobs)",
            "differences that cancel")),
    *_room("recipes/reward_model", "recipes/test_reward_model",
           ("head.gain.fill_(1 / spread)", "head.gain.fill_(spread)", "scaled the wrong way"),
           ("-float(raw.mean()) / spread", "-float(raw.mean())", "a shift in the wrong unit"),
           ("reading, effects, totals)", "reading, effects, judgements.totals())", "the micro-batch's own mean"),
           ("            checkpoint.load_optimizer(optimizer, tensors)\n" if False else
            "        checkpoint.load_optimizer(optimizer, tensors)\n", "", "moments lost at a resume")),
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
    *_room("data/judged", "recipes/test_reward_model",
           ('rng(seed, "heldout", group.key)', 'rng(seed, "heldout", len(group.pairs))',
            "all prompts on one side"),
           ("1.0 if record.choice == 0 else 0.0", "0.0 if record.choice == 0 else 1.0", "the rejected one wanted")),
    *_room("reward/model", "recipes/test_reward_model",
           ("scores[index.cpu()] =", "scores[: len(index)] =", "scores given to other samples")),
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
TRAINING = (
    *_room("training/metrics", "recipes/test_ppo",
           ('if row["step"] <= done', 'if row["step"] < done', "a row lost at a resume")),
    *_room("training/optim", "recipes/test_ppo",
           ("eps=1e-5", "eps=1e-8", "another epsilon in Adam"),
           ("nn.utils.clip_grad_norm_(parameters, max_grad_norm)",
            "nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])",
            "gradients not clipped")),
)  # fmt: skip

MUTATIONS: tuple[Mutation, ...] = (
    *MASKING, *KL, *ADVANTAGES, *POLICY, *VALUE, *REWARD_LOSS, *RANKINGS, *RATER_LOSS, *NLL, *LOGPROBS,
    *COLLATE, *TOKENIZER, *LLAMA, *ADAPTER, *LOAD, *BRANCH, *LOCAL, *COLLECT, *PPO, *REWARD, *PROBE, *PERCEPTION,
    *FEEDBACK, *TRAINING,
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


def run(
    tests: tuple[str, ...], room: Path, mutation: Mutation | None = None
) -> subprocess.CompletedProcess[str]:
    """Copy the package into the room, change it, and run the tests against the copy (and the copy alone)."""
    shutil.copytree(PACKAGE, room / "plaudit", ignore=shutil.ignore_patterns("__pycache__"))
    (room / "check_origin.py").write_text(CHECK_ORIGIN)
    if mutation:
        (room / "plaudit" / mutation.file).write_text(mutated(mutation))
    environment = os.environ | {
        "PYTHONPATH": str(room),
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "400",
    }
    options = ["-x", "-p", "no:cacheprovider", "-p", "check_origin", "-m", "not proof", "--tb=no"]
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)]
    try:
        return subprocess.run(
            command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    finally:
        shutil.rmtree(room)


NONSENSE = "NameError|UnboundLocalError|AttributeError|TypeError|SyntaxError|ImportError"
"""What a typing slip raises. A test that meets one of these has not judged the change."""

Outcome = Callable[[Mutation], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """What became of a mutation. Those selected are run ahead, a few at a time; under xdist, one when asked for."""
    rooms = tmp_path_factory.mktemp("mutations")

    def one(mutation: Mutation) -> subprocess.CompletedProcess[str]:
        return run(mutation.tests, rooms / str(MUTATIONS.index(mutation)), mutation)

    if "PYTEST_XDIST_WORKER" in os.environ:
        yield one
        return
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = [call.params["mutation"] for call in calls if call and "mutation" in call.params]
    pool = ThreadPoolExecutor(AT_ONCE)
    futures = {mutation: pool.submit(one, mutation) for mutation in dict.fromkeys(chosen)}
    yield lambda mutation: futures[mutation].result()
    pool.shutdown(cancel_futures=True)


def names(mutation: Mutation) -> str:
    return f"{mutation.file}: {mutation.why}"


def test_every_mutation_still_has_its_place() -> None:
    """Quick, so that whoever changes a line learns at once that the list names it."""
    for mutation in MUTATIONS:
        assert mutated(mutation)
        for test in mutation.tests:
            assert (REPO / "tests" / test).is_file(), test
    assert len(set(map(names, MUTATIONS))) == len(MUTATIONS)


def test_a_line_that_is_gone_is_told_apart_from_one_that_is_caught() -> None:
    gone = MUTATIONS[0]._replace(old="a line of last year")
    with pytest.raises(
        pytest.fail.Exception, match=r"masking.py has 'a line of last year' 0 times, not once"
    ):
        mutated(gone)


@pytest.mark.proof
def test_the_copy_passes_unmutated(tmp_path: Path) -> None:
    tests = dict.fromkeys(test for mutation in MUTATIONS for test in mutation.tests)
    result = run(tuple(tests), tmp_path / "clean")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.proof
@pytest.mark.parametrize("mutation", MUTATIONS, ids=names)
def test_mutation_is_caught(mutation: Mutation, outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    result = outcome(mutation)
    said = result.stdout + result.stderr
    assert result.returncode != 0, f"not caught: {mutation.old!r} -> {mutation.new!r}"
    assert result.returncode == 1, f"it broke the run, which proves nothing:\n{said}"
    caught = re.search(r"^FAILED \S*?(\w+\.py::.+?)(?: - (.*))?$", result.stdout, re.MULTILINE)
    assert caught, f"no test is named:\n{said}"
    assert not re.match(NONSENSE, caught.group(2) or ""), (
        f"not a change that anyone could make: {caught.group(2)}"
    )
    with capsys.disabled():
        print(f"\n  {names(mutation)}: caught by {caught.group(1)}", end="")
