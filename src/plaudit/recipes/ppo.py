"""Proximal policy optimisation from a reward (Schulman et al. 2017; Ziegler et al. 2019; Huang et al. 2024).

One frozen trunk serves policy, reference, value and reward; read `run` from top to bottom.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit import files
from plaudit.algorithms.advantages import gae, shaped_rewards
from plaudit.algorithms.masking import masked_mean, whiten
from plaudit.algorithms.policy_loss import ppo_policy_loss
from plaudit.algorithms.value_loss import clipped_value_loss, explained_variance
from plaudit.evaluation.profile_page import page_if
from plaudit.evaluation.run_report import write_run_report
from plaudit.models.branch import Branch, ScalarHead
from plaudit.models.load import Model, make_adapter
from plaudit.phases import phase
from plaudit.randomness import torch_seed
from plaudit.reward.model import RewardModel
from plaudit.reward.open import is_function
from plaudit.rollout.collect import Forward, preflight
from plaudit.tensors import Experience, Sample, Scorer
from plaudit.training import online
from plaudit.training.ahead import Ahead
from plaudit.training.learner import Learner, Meter
from plaudit.training.metrics import Metrics
from plaudit.training.online import OnlineAdapter, PolicyGradientConfig, kl_of
from plaudit.training.optim import linear_to_zero
from plaudit.training.policy import make_policy, whole_copy, write_policy
from plaudit.types import UserError


class AdapterConfig(OnlineAdapter):
    """value_blocks: top blocks of the value's own adapter (0: all), where no reward model gives it one."""

    value_blocks: int = Field(default=6, ge=0)


class Config(PolicyGradientConfig):
    """Settings of the ppo recipe; each is described in docs/configs.md."""

    epochs: int = Field(default=4, ge=1)
    adapter: AdapterConfig = AdapterConfig()
    dense_reward: bool = False
    whiten_rewards: bool = False
    clip: float = Field(default=0.2, gt=0)
    value_clip: float = Field(default=0.2, gt=0)
    value_coef: float = Field(default=0.1, ge=0)
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)

    @model_validator(mode="after")
    def _reward_is_dense(self) -> Config:
        if self.dense_reward and self.reward is not None and is_function(self.reward):
            raise ValueError("dense_reward wants a reward model; a function scores whole completions")
        if self.dense_reward and self.environment is not None:
            raise ValueError("dense_reward wants a reward model; an environment rewards turns")
        return self


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary."""
    # 1. The frozen trunk, and on it policy, value and reward. The bare trunk is the reference.
    world = online.open_world(config, model)
    check_dense(config, world.scorer)
    state = {"kl_coef": config.kl.coef}
    learner = Learner(directory, lambda: make_branches(config, world.model, world.scorer), config, state)
    policy, value = learner.branches["policy"], learner.branches["value"]

    sampling = Ahead(lambda acting, step: online.draw(world, acting, step, config, "ppo"), learner)
    log = Metrics(
        directory, total=config.steps, done=learner.done, title="ppo", profile=page_if(config.profile)
    )
    with log as metrics, sampling:
        for step in range(learner.done, config.steps):
            if learner.stopped:
                break
            began = time.monotonic()

            # 2. Sample: n completions of each prompt of this step.
            drawn = sampling.of(step)
            samples = drawn.samples
            sampled = time.monotonic()

            # 3. One pass for the trainer's log-probabilities, the reference's, values and scores.
            seen = online.look(world, samples, config, policy=policy, value=value)
            scores, said = online.scores_of(drawn, seen)
            if step == 0:
                preflight(seen, world.model.trunk.dtype)

            # 4. Rewards, advantages, returns.
            coef = float(learner.state["kl_coef"])
            experience = experience_from(seen, scores, samples, coef, config)
            row = online.describe(world, samples, seen, scores) | said
            row["shaped_return"] = float(experience.rewards.sum(1).mean())
            row["explained_variance"] = float(
                explained_variance(experience.values, experience.returns, experience.mask)
            )
            if learner.must_stop(step, row, metrics.history):
                break

            # 5. Epochs over the batch, and the KL coefficient for the next.
            rate = config.learning_rate * linear_to_zero(step, config.steps)
            row |= update(seen, experience, learner, step, rate, coef, config)
            row |= {"learning_rate": rate, "kl_coef": coef}
            learner.state["kl_coef"] = online.next_price(
                coef, config.kl, observed=row["kl"], episodes=len(samples)
            )

            # 6. Say so, then save: what a kill cuts off between the two comes again.
            row |= online.timing(began, sampled, int(seen.packed.mask.sum()))
            metrics.log(step + 1, row, shown(row))
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                learner.save(step + 1)

    # 7. The policy as an adapter (peft's format) and as a whole model that transformers loads.
    learner.finish()
    write_policy(policy, world.model, directory)
    summary = learner.summary(metrics.history)
    write_run_report(directory, summary)
    files.write_json(directory / "summary.json", summary)
    return summary


def check_dense(config: Config, scorer: Scorer | None) -> None:
    """UserError where a dense reward is wanted of a scorer that has none."""
    if not config.dense_reward:
        return
    if not isinstance(scorer, RewardModel):
        raise UserError(
            "scores whole completions, so that no token has a share for dense_reward",
            where=str(config.reward),
            fix="name one reward model that was trained on the policy's model, or set dense_reward: false",
        )
    if scorer.branch.pool != "mean":
        raise UserError(
            "scores a completion's last token, so that no other has a share for dense_reward",
            where=str(config.reward),
            fix="train it with pool: mean, or set dense_reward: false",
        )


def make_branches(config: Config, model: Model, scorer: Scorer | None) -> dict[str, Branch]:
    """Policy and value: adapters on the model's trunk, or (rank 0) whole copies of it that are trained.

    The value's adapter begins as the reward's where there is a reward model on the same tokenizer, its head at
    zero (Ziegler et al. 2019), so that the first values are 0.
    """
    trunk, a = model.trunk, config.adapter
    head = ScalarHead(trunk.shape.width, dtype=trunk.wide).to(trunk.device)
    policy = make_policy(model, a, seed=torch_seed(config.seed, "policy adapter"), start=config.start)
    if a.rank == 0:
        return {"policy": policy, "value": Branch(whole_copy(trunk), head=head)}
    if isinstance(scorer, RewardModel) and scorer.branch.adapter is not None:
        adapter = copy.deepcopy(scorer.branch.adapter).requires_grad_(True)
    else:
        seed = torch_seed(config.seed, "value adapter")
        adapter = make_adapter(trunk, rank=a.rank, alpha=a.alpha, blocks=a.value_blocks, seed=seed)
    leave = scorer.branch.exit if isinstance(scorer, RewardModel) else None
    return {"policy": policy, "value": Branch(trunk, adapter, head, exit=leave)}


def experience_from(
    seen: Forward, scores: Tensor, samples: Sequence[Sample], coef: float, config: Config
) -> Experience:
    """KL in the reward, the score on the last token, its shares on all or each turn's on its last, generalised
    advantages, whitened."""
    mask = seen.packed.mask
    at_end, along = online.placed_rewards(seen, scores, samples, config, dense=config.dense_reward)
    in_reward = coef if config.kl.place == "reward" else 0.0
    kl = kl_of(seen.logprobs, seen.ref_logprobs, config.kl)
    rewards = shaped_rewards(at_end, kl, mask, coef=in_reward) + along
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, keep_mean=True)
    advantages, returns = gae(rewards, seen.values, mask, gamma=config.gamma, lam=config.lam)
    return Experience(
        mask=mask,
        old_logprobs=seen.logprobs,
        ref_logprobs=seen.ref_logprobs,
        sampled_logprobs=seen.sampled_logprobs,
        values=seen.values,
        rewards=rewards,
        advantages=whiten(advantages, mask, keep_mean=False),
        returns=returns,
        scores=scores,
    )


@phase("learning")
def update(
    seen: Forward,
    experience: Experience,
    learner: Learner,
    step: int,
    rate: float,
    coef: float,
    config: Config,
) -> dict[str, float]:
    """All epochs of one step. Losses are divided by the minibatch's count of tokens, so that the split into
    micro-batches changes nothing. Returns the last epoch's figures."""
    policy, value = learner.branches["policy"], learner.branches["value"]
    meter, norm = Meter(1), 0.0
    for epoch in range(config.epochs):
        meter = Meter(min(config.minibatches, seen.packed.rows))
        for rows, total, _ in seen.packed.minibatches(config.minibatches, config.seed, "epoch", step, epoch):
            for part in seen.parts(rows, config.micro_batch_tokens):
                now = part.logprobs(
                    policy, temperature=config.temperature, entropy_gradient=config.entropy_coef > 0
                )
                logprobs = now.logprobs.to(experience.advantages.dtype)
                actor = ppo_policy_loss(
                    logprobs,
                    part.cut(experience.old_logprobs),
                    part.cut(experience.advantages),
                    part.mask,
                    total=total,
                    clip=config.clip,
                    sampled_logprobs=part.cut(experience.sampled_logprobs),
                    importance_cap=config.importance_cap,
                )
                loss = actor.loss
                if config.entropy_coef > 0:
                    loss = loss - config.entropy_coef * masked_mean(now.entropies, part.mask, total=total)
                if config.kl.place == "loss" and coef > 0:
                    kl = kl_of(logprobs, part.cut(experience.ref_logprobs), config.kl)
                    loss = loss + coef * masked_mean(kl, part.mask, total=total)
                # Each is sent back by itself, so that the policy's activations are gone when the value's arise.
                torch.autograd.backward(loss)
                critic = clipped_value_loss(
                    part.values(value),
                    part.cut(experience.values),
                    part.cut(experience.returns),
                    part.mask,
                    total=total,
                    clip=config.value_clip,
                )
                torch.autograd.backward(config.value_coef * critic.loss)
                meter.add(policy_loss=actor.loss, **actor.metrics, value_loss=critic.loss)
                meter.add(**{f"value_{k.removeprefix('value_')}": x for k, x in critic.metrics.items()})
            norm = learner.update(rate)
    return meter.row | {"grad_norm": norm}


def shown(row: dict[str, float]) -> str:
    """A step in one line."""
    return (
        f"reward {row['reward']:+.3f}  kl {row['kl']:.3f}  entropy {row['entropy']:.2f}  "
        f"clip {row['clip_fraction']:.2f}  value error {row['value_error']:.2f}  eos {row['eos_rate']:.2f}  "
        f"{row['tokens_per_second']:.0f} tok/s" + "  every score is the same" * (row["reward_std"] == 0)
    )
