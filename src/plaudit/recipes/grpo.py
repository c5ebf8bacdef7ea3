"""Group relative policy optimisation and its variants: the other completions of a prompt are the baseline.

Shao et al. 2024 (GRPO); Liu et al. 2025 (Dr. GRPO); Yu et al. 2025 (DAPO); Zheng et al. 2025 (GSPO). The variants
are settings: configs/grpo.yaml, dr_grpo.yaml, dapo.yaml, gspo.yaml. Read `run` from top to bottom.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit import files
from plaudit.algorithms.advantages import group_advantages, overlong_penalty
from plaudit.algorithms.masking import masked_mean, masked_sum, sequence_mean
from plaudit.algorithms.policy_loss import ppo_policy_loss, sequence_policy_loss
from plaudit.evaluation.profile_page import page_if
from plaudit.evaluation.run_report import write_run_report
from plaudit.models.branch import Branch
from plaudit.models.load import Model
from plaudit.phases import phase
from plaudit.randomness import torch_seed
from plaudit.reward.scores import figures_of
from plaudit.rollout.collect import Forward, preflight
from plaudit.tensors import Sample
from plaudit.training import online
from plaudit.training.ahead import Ahead
from plaudit.training.learner import Learner, Meter
from plaudit.training.metrics import Metrics
from plaudit.training.online import Drawn, KLConfig, PolicyGradientConfig, World, kl_of
from plaudit.training.optim import linear_to_zero
from plaudit.training.policy import make_policy, write_policy


class GroupKL(KLConfig):
    """As the others, with GRPO's own defaults."""

    coef: float = Field(default=0.04, ge=0)
    place: Literal["reward", "loss"] = "loss"
    estimator: Literal["k1", "k2", "k3"] = "k3"


class Config(PolicyGradientConfig):
    """Settings of the grpo recipe; each is described in docs/configs.md."""

    samples_per_prompt: int = Field(default=8, ge=2)
    kl: GroupKL = GroupKL()
    scale: Literal["group", "batch", "none"] = "group"
    mean_over: Literal["completions", "tokens", "constant"] = "completions"
    ratio: Literal["token", "completion"] = "token"
    clip: float = Field(default=0.2, gt=0)
    clip_high: float | None = Field(default=None, gt=0)
    dynamic_sampling: int = Field(default=0, ge=0)
    overlong_buffer: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _variants_fit(self) -> Config:
        if self.ratio == "completion" and self.mean_over != "completions":
            raise ValueError("ratio completion has one loss a completion; set mean_over: completions")
        if self.overlong_buffer > 0 and self.environment is not None:
            raise ValueError(
                "overlong_buffer is of one completion, and an environment's episodes have several turns"
            )
        if self.overlong_buffer > self.max_new_tokens:
            raise ValueError("overlong_buffer is more than max_new_tokens")
        return self


@dataclass(frozen=True, slots=True)
class Groups:
    """A step's completions. samples: whole groups, numbered by prompt; scores: [B] theirs, None where the rollout's
    own pass gives them. everything: all that was drawn, with scores, where the samples are a choice from it.
    draws: how many times; said: what the scorer said beside its scores, on average over the draws."""

    samples: list[Sample]
    scores: Tensor | None = None
    everything: tuple[list[Sample], Tensor] | None = None
    draws: int = 1
    said: dict[str, float] = field(default_factory=dict)


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary."""
    # 1. The frozen trunk, which is the reference, and the policy on it.
    world = online.open_world(config, model)
    seed = torch_seed(config.seed, "policy adapter")
    learner = Learner(
        directory,
        lambda: {"policy": make_policy(world.model, config.adapter, seed=seed, start=config.start)},
        config,
        {"kl_coef": config.kl.coef},
    )
    policy = learner.branches["policy"]

    sampling = Ahead(lambda acting, step: groups_of_step(world, acting, step, config), learner)
    log = Metrics(
        directory, total=config.steps, done=learner.done, title="grpo", profile=page_if(config.profile)
    )
    with log as metrics, sampling:
        for step in range(learner.done, config.steps):
            if learner.stopped:
                break
            began = time.monotonic()

            # 2. Groups of completions; with dynamic sampling those whose scores differ.
            drawn = sampling.of(step)
            samples, known = drawn.samples, drawn.scores
            sampled = time.monotonic()

            # 3. One pass for the policy's log-probabilities, the reference's, and scores.
            seen = online.look(world, samples, config, policy=policy, reward=known is None)
            if known is None:
                scores, said = online.scores_of(Drawn(samples), seen)
            else:
                scores, said = known.to(seen.logprobs), drawn.said
            if step == 0:
                preflight(seen, world.model.trunk.dtype)
            row = online.describe(world, samples, seen, scores, drawn=drawn.everything) | said
            row |= {
                "draws": float(drawn.draws),
                "equal_groups": equal_groups(drawn.everything or (samples, scores), config),
            }
            if learner.must_stop(step, row, metrics.history):
                break

            # 4. Each completion beside the others of its prompt.
            coef = float(learner.state["kl_coef"])
            advantages = advantages_of(seen, scores, samples, coef, config)

            # 5. Epochs over the batch, and the KL coefficient for the next.
            rate = config.learning_rate * linear_to_zero(step, config.steps)
            row |= update(seen, advantages, learner, step, rate, coef, config)
            row |= {"learning_rate": rate, "kl_coef": coef}
            learner.state["kl_coef"] = online.next_price(
                coef, config.kl, observed=row["kl"], episodes=len(samples)
            )

            # 6. Say so, then save: what a kill cuts off between the two comes again.
            row |= online.timing(began, sampled, int(seen.packed.mask.sum()))
            metrics.log(step + 1, row, online.shown(row))
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                learner.save(step + 1)

    # 7. The policy as an adapter (peft's format) and as a whole model that transformers loads.
    learner.finish()
    write_policy(policy, world.model, directory)
    summary = learner.summary(metrics.history)
    write_run_report(directory, summary)
    files.write_json(directory / "summary.json", summary)
    return summary


def groups_of_step(world: World, policy: Branch, step: int, config: Config) -> Groups:
    """This step's groups of completions.

    With dynamic sampling, groups whose completions all earn the same teach nothing and are drawn anew, from other
    prompts, at most so many times (Yu et al. 2025, section 3.2); what is still missing then is left out, unless
    nothing would be left.
    """
    first = online.draw(world, policy, step, config, "grpo")
    if config.dynamic_sampling == 0:
        if first.said is None:
            return Groups(first.samples)
        known = torch.tensor(first.said.scores, dtype=torch.float64)
        return Groups(first.samples, known, said=figures_of(first.said))
    n, wanted = config.samples_per_prompt, len(first.samples)
    everything, scores, kept, said = list[Sample](), list[float](), list[int](), list[dict[str, float]]()
    for draws in range(1, config.dynamic_sampling + 2):
        more = first if draws == 1 else online.draw(world, policy, step, config, "grpo", again=draws - 1)
        judged = more.said or online.judge(world, more.samples)
        scores += judged.scores
        said.append(figures_of(judged))
        everything += more.samples
        worth = earned(torch.tensor(scores, dtype=torch.float64), everything, config)
        groups = worth.view(-1, n)
        unlike = torch.nonzero(groups.amin(1) < groups.amax(1))[:, 0].tolist()
        kept = [group * n + i for group in unlike for i in range(n)][:wanted]
        if len(kept) == wanted:
            break
    kept = kept or list(range(wanted))
    given = torch.tensor(scores, dtype=torch.float64)
    samples = [replace(everything[at], prompt=place // n) for place, at in enumerate(kept)]
    figures = {name: sum(one[name] for one in said) / len(said) for name in said[0]}
    return Groups(samples, given[kept], (everything, given), draws, figures)


def equal_groups(drawn: tuple[Sequence[Sample], Tensor], config: Config) -> float:
    """The share of groups drawn whose completions all earn the same, and so teach nothing."""
    samples, scores = drawn
    groups = earned(scores, samples, config).view(-1, config.samples_per_prompt)
    return float((groups.amin(1) == groups.amax(1)).double().mean())


def earned(scores: Tensor, samples: Sequence[Sample], config: Config) -> Tensor:
    """[B]: the score, or the penalty for a missing end, and the price of coming near the limit."""
    found = online.rewards_of(scores, samples, config)
    if config.overlong_buffer == 0:
        return found
    lengths = torch.tensor([len(s.completion_ids) for s in samples], device=scores.device)
    return found + overlong_penalty(lengths, longest=config.max_new_tokens, buffer=config.overlong_buffer)


def advantages_of(
    seen: Forward, scores: Tensor, samples: Sequence[Sample], coef: float, config: Config
) -> Tensor:
    """[B]: what each completion earned, less its KL where that is in the reward, beside the others of its group."""
    worth = earned(scores, samples, config)
    if config.kl.place == "reward":
        kl = kl_of(seen.logprobs, seen.ref_logprobs, config.kl)[online.twins(samples, scores.device)]
        worth = worth - coef * masked_sum(kl, seen.packed.mask, dim=1)
    group = torch.tensor([s.prompt for s in samples], device=scores.device)
    return group_advantages(worth, group, scale=config.scale)


@phase("learning")
def update(
    seen: Forward, advantages: Tensor, learner: Learner, step: int, rate: float, coef: float, config: Config
) -> dict[str, float]:
    """All epochs of one step; returns the last one's figures."""
    policy = learner.branches["policy"]
    by_completion = config.ratio == "completion" or config.mean_over == "completions"
    meter, norm = Meter(1), 0.0
    for epoch in range(config.epochs):
        meter = Meter(min(config.minibatches, seen.packed.rows))
        key = config.seed, "epoch", step, epoch
        for rows, tokens, completions in seen.packed.minibatches(config.minibatches, *key):
            total = completions if by_completion else tokens
            mean = sequence_mean if by_completion else masked_mean
            # Dr. GRPO divides by what does not depend on the lengths that were drawn.
            constant = (
                tokens / (completions * config.max_new_tokens) if config.mean_over == "constant" else 1.0
            )
            for part in seen.parts(rows, config.micro_batch_tokens):
                now = part.logprobs(
                    policy, temperature=config.temperature, entropy_gradient=config.entropy_coef > 0
                )
                logprobs, old = now.logprobs.to(advantages.dtype), part.cut(seen.logprobs)
                weighed: dict[str, Any] = {
                    "total": total,
                    "clip": config.clip,
                    "clip_high": config.clip_high,
                    "sampled_logprobs": part.cut(seen.sampled_logprobs),
                    "importance_cap": config.importance_cap,
                }
                mine = part.cut(advantages)
                if config.ratio == "completion":
                    out = sequence_policy_loss(logprobs, old, mine, part.mask, ratio="mean", **weighed)
                else:
                    spread = mine[:, None].expand_as(logprobs)
                    out = ppo_policy_loss(
                        logprobs, old, spread, part.mask, per_sequence=by_completion, **weighed
                    )
                loss = out.loss
                if config.entropy_coef > 0:
                    loss = loss - config.entropy_coef * mean(now.entropies, part.mask, total=total)
                if config.kl.place == "loss" and coef > 0:
                    kl = kl_of(logprobs, part.cut(seen.ref_logprobs), config.kl)
                    loss = loss + coef * mean(kl, part.mask, total=total)
                torch.autograd.backward(constant * loss)
                meter.add(policy_loss=constant * out.loss, **out.metrics)
            norm = learner.update(rate)
    return meter.row | {"grad_norm": norm}
