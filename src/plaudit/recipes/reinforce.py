"""REINFORCE with a baseline, RLOO and REINFORCE++: policy gradients without a critic.

From a reward, or straight from people's scores of logged completions, without a reward model.
Williams 1992; Ahmadian et al. 2024 (RLOO); Hu 2025 (REINFORCE++). Read `run` from top to bottom.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit import files
from plaudit.algorithms import LossOutput
from plaudit.algorithms.advantages import gae, leave_one_out, shaped_rewards
from plaudit.algorithms.kl import k3
from plaudit.algorithms.masking import masked_mean, masked_sum, whiten
from plaudit.algorithms.policy_loss import ppo_policy_loss, reinforce_loss, sequence_policy_loss
from plaudit.data.logged import Logged, read_logged
from plaudit.evaluation.profile_page import page_if
from plaudit.evaluation.run_report import write_run_report
from plaudit.models.branch import Branch
from plaudit.models.load import Model
from plaudit.phases import phase
from plaudit.randomness import torch_seed
from plaudit.rollout.collect import Forward, Part, preflight
from plaudit.tensors import Sample
from plaudit.training import online
from plaudit.training.ahead import Ahead
from plaudit.training.learner import Learner, Meter
from plaudit.training.metrics import Metrics
from plaudit.training.online import Drawn, PolicyGradientConfig, kl_of
from plaudit.training.optim import linear_to_zero
from plaudit.training.policy import make_policy, write_policy
from plaudit.types import UserError


class Config(PolicyGradientConfig):
    """Settings of the reinforce recipe; each is described in docs/configs.md."""

    feedback: list[str] = Field(default=[])
    samples: list[str] = Field(default=[])
    baseline: Literal["moving", "batch", "leave_one_out", "none"] = "moving"
    baseline_decay: float = Field(default=0.9, ge=0, lt=1)
    action: Literal["completion", "token"] = "completion"
    whiten: bool = False
    loss: Literal["plain", "clipped"] = "plain"
    clip: float = Field(default=0.2, gt=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.feedback or self.environment is not None else ("prompts", "reward")

    @model_validator(mode="after")
    def _baseline_has_others(self) -> Config:
        if self.baseline == "leave_one_out" and not self.feedback and self.samples_per_prompt < 2:
            raise ValueError("baseline leave_one_out wants samples_per_prompt of 2 or more")
        if self.feedback and not self.prompts is self.reward is self.environment is None:
            raise ValueError("feedback holds prompts and scores; leave prompts, reward and environment out")
        if self.feedback and self.kl.place == "reward" and self.kl.coef > 0:
            raise ValueError(
                "the policy draws none of what feedback judges, so the KL is no part of what it earns; "
                "set kl.place: loss and kl.estimator: k2"
            )
        if self.feedback and self.lag:
            raise ValueError("the policy draws nothing where feedback is learned from; set lag: 0")
        if self.samples and not self.feedback:
            raise ValueError("samples are looked up for feedback, and none is named")
        return self


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary."""
    # 1. The frozen trunk, which is the reference; the policy on it; and what people have said, where they teach it.
    world = online.open_world(config, model)
    trunk, tokenizer = world.model.trunk, world.model.tokenizer
    logged = None
    if config.feedback:
        logged = read_logged(config.feedback, config.samples, tokenizer, context=trunk.shape.context)
        check_logged(logged, config)
    seed = torch_seed(config.seed, "policy adapter")

    def as_it_begins() -> Branch:
        return make_policy(world.model, config.adapter, seed=seed, start=config.start)

    learner = Learner(
        directory,
        lambda: {"policy": as_it_begins()},
        config,
        {"kl_coef": config.kl.coef, "baseline": None},
    )
    policy = learner.branches["policy"]
    # From what logged completions of unknown origin were drawn, where it is not the reference.
    begun = as_it_begins() if logged is not None and config.start and config.reference == "model" else None

    sampling = Ahead(lambda acting, step: online.draw(world, acting, step, config, "reinforce"), learner)
    log = Metrics(
        directory,
        total=config.steps,
        done=learner.done,
        title="reinforce",
        profile=page_if(config.profile),
    )
    with log as metrics, sampling:
        for step in range(learner.done, config.steps):
            if learner.stopped:
                break
            began = time.monotonic()

            # 2. Completions: drawn from the policy, or the next logged ones with their scores.
            if logged is None:
                drawn, heard = sampling.of(step), None
            else:
                drawn, heard = judged_of_step(logged, step, config)
            samples = drawn.samples
            sampled = time.monotonic()

            # 3. One pass for the policy's log-probabilities, the reference's, and scores.
            seen = online.look(world, samples, config, policy=policy)
            if heard is None:
                scores, said = online.scores_of(drawn, seen)
                if step == 0:
                    preflight(seen, trunk.dtype)
            else:
                scores = torch.tensor(heard, dtype=seen.logprobs.dtype, device=seen.logprobs.device)
                said = {}
                first = seen.ref_logprobs
                if begun is not None:
                    first = online.look(world, samples, config, policy=begun).logprobs
                seen = with_known_sampler(seen, first)
            row = online.describe(world, samples, seen, scores) | said
            if heard is not None:
                row["kl"] = kl_from_logged(seen)
            if learner.must_stop(step, row, metrics.history, logged=heard is not None):
                break

            # 4. What each token is worth, beside a baseline that it cannot move.
            coef = float(learner.state["kl_coef"])
            advantages, earned = advantages_of(seen, scores, samples, learner.state["baseline"], coef, config)
            row |= {"return": earned, "advantage_std": float(advantages[seen.packed.mask].std(correction=0))}

            # 5. Epochs over the batch; the baseline and the KL coefficient for the next.
            rate = config.learning_rate * linear_to_zero(step, config.steps)
            row |= update(seen, advantages, learner, step, rate, coef, config)
            row |= {"learning_rate": rate, "kl_coef": coef}
            before = learner.state["baseline"]
            decay = 0.0 if before is None else config.baseline_decay
            learner.state["baseline"] = decay * (before or 0.0) + (1 - decay) * earned
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


def check_logged(logged: Sequence[Logged], config: Config) -> None:
    """UserError where a setting does not go with what was judged."""
    where = ", ".join(config.feedback)
    fewest, most = (pick(len(one.samples) for one in logged) for pick in (min, max))
    if config.baseline == "leave_one_out" and fewest < 2:
        raise UserError(
            "has a prompt with one judged completion, which baseline leave_one_out has nothing to compare with",
            where=where,
            fix="judge two or more of each, or set baseline: batch",
        )
    if config.kl.target is not None and config.kl.horizon <= 0.2 * most * config.prompts_per_step:
        raise UserError(
            f"has {most} judged completions of a prompt, too many a step for kl.horizon {config.kl.horizon:g}",
            where=where,
            fix="raise kl.horizon or lower prompts_per_step",
        )


def judged_of_step(logged: Sequence[Logged], step: int, config: Config) -> tuple[Drawn, tuple[float, ...]]:
    """All judged completions of the prompts of this step, and their scores."""
    chosen = online.prompts_of_step(len(logged), step, config.prompts_per_step, config.seed)
    samples = [replace(s, prompt=place) for place, p in enumerate(chosen) for s in logged[p].samples]
    return Drawn(samples), tuple(score for p in chosen for score in logged[p].scores)


def with_known_sampler(seen: Forward, first: Tensor) -> Forward:
    """Tokens of which nothing says how likely they were count as drawn from the policy as it began; first [B, T]: its
    log-probabilities."""
    known = torch.where(seen.sampled_logprobs.isnan(), first, seen.sampled_logprobs)
    return replace(seen, sampled_logprobs=known)


def kl_from_logged(seen: Forward) -> float:
    """KL(policy || reference), nats a token, where the logged completions stand. The policy did not draw their tokens,
    so that the mean of k1 would be about minus the KL the other way round; k3, weighed by how much likelier the
    policy is to draw the token, has the right mean and is never negative. The weights are divided by their mean,
    which is 1 but for chance and for what was learned from these very tokens; a cap would read a large KL as small.
    It reads high where few completions are gone over often: the policy has moved most on these very tokens."""
    weight = (seen.logprobs - seen.sampled_logprobs).exp()
    return float(
        masked_mean(weight * k3(seen.logprobs, seen.ref_logprobs), seen.packed.mask)
        / masked_mean(weight, seen.packed.mask)
    )


def advantages_of(
    seen: Forward,
    scores: Tensor,
    samples: Sequence[Sample],
    baseline: float | None,
    coef: float,
    config: Config,
) -> tuple[Tensor, float]:
    """[B, T], and the mean return a completion. baseline: the moving one, None in the first step.

    action "completion": the whole completion is one action, worth its score less the KL of all its tokens (RLOO).
    "token": each token is worth what comes from it on, its own KL included (REINFORCE++).
    """
    mask = seen.packed.mask
    price = coef if config.kl.place == "reward" else 0.0
    kl = kl_of(seen.logprobs, seen.ref_logprobs, config.kl)[online.twins(samples, mask.device)]
    if config.feedback:  # a person who judged a completion has seen how it ends
        rewards = shaped_rewards(scores, kl, mask, coef=price)
    else:
        at_end, along = online.placed_rewards(seen, scores, samples, config)
        rewards = shaped_rewards(at_end, kl, mask, coef=price) + along
    returns = masked_sum(rewards, mask, dim=1)
    if config.baseline == "leave_one_out":
        group = torch.tensor([s.prompt for s in samples], device=mask.device)
        others = returns - leave_one_out(returns, group)
    elif config.baseline == "moving":
        others = torch.full_like(returns, float(returns.mean()) if baseline is None else baseline)
    else:
        others = (returns.mean() if config.baseline == "batch" else 0.0) + torch.zeros_like(returns)
    if config.action == "completion":
        worth = returns - others
        if config.whiten:
            worth = whiten(worth, torch.ones_like(worth, dtype=torch.bool), keep_mean=False)
        return worth[:, None] * mask, float(returns.mean())
    to_go, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)
    worth = (to_go - others[:, None]) * mask
    return whiten(worth, mask, keep_mean=False) if config.whiten else worth, float(returns.mean())


@phase("learning")
def update(
    seen: Forward, advantages: Tensor, learner: Learner, step: int, rate: float, coef: float, config: Config
) -> dict[str, float]:
    """All epochs of one step; returns the last one's figures."""
    policy = learner.branches["policy"]
    meter, norm = Meter(1), 0.0
    for epoch in range(config.epochs):
        meter = Meter(min(config.minibatches, seen.packed.rows))
        key = config.seed, "epoch", step, epoch
        for rows, tokens, completions in seen.packed.minibatches(config.minibatches, *key):
            whole = config.loss == "clipped" and config.action == "completion"
            total = completions if whole else tokens
            # The plain slope is that of a completion's expected return: a sum over its tokens, not their mean.
            scale = tokens / completions if config.loss == "plain" else 1.0
            for part in seen.parts(rows, config.micro_batch_tokens):
                now = part.logprobs(
                    policy, temperature=config.temperature, entropy_gradient=config.entropy_coef > 0
                )
                logprobs = now.logprobs.to(advantages.dtype)
                out = policy_loss(logprobs, part, advantages, total, config)
                loss = out.loss
                if config.entropy_coef > 0:
                    loss = loss - config.entropy_coef * masked_mean(now.entropies, part.mask, total=total)
                if config.kl.place == "loss" and coef > 0:
                    kl = kl_of(logprobs, part.cut(seen.ref_logprobs), config.kl)
                    loss = loss + coef * masked_mean(kl, part.mask, total=total)
                torch.autograd.backward(scale * loss)
                meter.add(policy_loss=scale * out.loss, **out.metrics)
            norm = learner.update(rate)
    return meter.row | {"grad_norm": norm}


def policy_loss(logprobs: Tensor, part: Part, advantages: Tensor, total: int, config: Config) -> LossOutput:
    """The config's loss of one micro-batch, weighed by how likely its tokens were where they were drawn."""
    sampled, cap = part.cut(part.seen.sampled_logprobs), config.importance_cap
    mine = part.cut(advantages)
    if config.loss == "plain":
        return reinforce_loss(
            logprobs, mine, part.mask, total=total, sampled_logprobs=sampled, importance_cap=cap
        )
    old = part.cut(part.seen.logprobs)
    if config.action == "token":
        return ppo_policy_loss(
            logprobs, old, mine, part.mask, total=total, clip=config.clip,
            sampled_logprobs=sampled, importance_cap=cap,
        )  # fmt: skip
    return sequence_policy_loss(
        logprobs, old, masked_mean(mine, part.mask, dim=1), part.mask, total=total, ratio="product",
        clip=config.clip, sampled_logprobs=sampled, importance_cap=cap,
    )  # fmt: skip
