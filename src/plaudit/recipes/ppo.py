"""Proximal policy optimisation from a reward (Schulman et al. 2017; Ziegler et al. 2019; Huang et al. 2024).

One frozen trunk serves policy, reference, value and reward; read `run` from top to bottom.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit import files
from plaudit.algorithms.advantages import gae, replace_missing_eos, shaped_rewards
from plaudit.algorithms.kl import adaptive_coefficient, k1
from plaudit.algorithms.masking import masked_mean, whiten
from plaudit.algorithms.policy_loss import ppo_policy_loss
from plaudit.algorithms.value_loss import clipped_value_loss, explained_variance
from plaudit.config import Config as Base
from plaudit.data.collate import micro_batches
from plaudit.data.formats import read_prompts
from plaudit.models.branch import Branch, ScalarHead, token_logprobs, token_values
from plaudit.models.load import Model, load_model, make_adapter
from plaudit.randomness import rng, torch_seed
from plaudit.reward.model import RewardModel
from plaudit.reward.open import is_function, open_scorer
from plaudit.reward.scores import Scores, figures_of, scored
from plaudit.rollout.collect import Forward, forward, preflight
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Experience, Sample, SamplingParams, Scorer
from plaudit.training import checkpoint, machine
from plaudit.training.metrics import Metrics
from plaudit.training.optim import adam, linear_to_zero, take_step
from plaudit.training.policy import AdapterConfig as PolicyAdapter
from plaudit.training.policy import make_policy, write_policy
from plaudit.training.stop import reason_to_stop
from plaudit.types import UserError


class AdapterConfig(PolicyAdapter):
    """value_blocks: top blocks of the value's own adapter (0: all), where no reward model gives it one."""

    blocks: int = Field(default=16, ge=0)
    value_blocks: int = Field(default=6, ge=0)


class KLConfig(Base):
    """coef: of the per-token k1 in the reward; target: nats a token (None: coef stays fixed)."""

    coef: float = Field(default=0.05, ge=0)
    target: float | None = Field(default=None, gt=0)
    horizon: float = Field(default=10_000.0, gt=0)


class StopConfig(Base):
    """max_kl and min_entropy in nats a token."""

    max_kl: float = 1.0
    min_entropy: float = 0.05
    max_length_growth: float = 4.0
    patience: int = Field(default=20, ge=1)


class Config(Base):
    """Settings of the ppo recipe; each is described in docs/configs.md."""

    model: str = "smollm2"
    prompts: str
    reward: str
    start: str | None = None
    seed: int = 0
    steps: int = Field(default=100, ge=1)
    prompts_per_step: int = Field(default=16, ge=1)
    samples_per_prompt: int = Field(default=4, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    missing_eos_penalty: float | None = -1.0
    dense_reward: bool = False
    whiten_rewards: bool = False
    epochs: int = Field(default=4, ge=1)
    minibatches: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, ge=0)
    clip: float = Field(default=0.2, gt=0)
    value_clip: float = Field(default=0.2, gt=0)
    value_coef: float = Field(default=0.1, ge=0)
    entropy_coef: float = Field(default=0.0, ge=0)
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    importance_cap: float = Field(default=2.0, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    adapter: AdapterConfig = AdapterConfig()
    kl: KLConfig = KLConfig()
    stop: StopConfig = StopConfig()
    micro_batch_tokens: int = Field(default=4096, ge=1)
    precision: machine.Precision = "auto"
    threads: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _settings_fit(self) -> Config:
        if self.start is not None and self.adapter.rank == 0:
            raise ValueError("start is an adapter, and adapter.rank 0 trains the whole model without one")
        if (
            self.kl.target is not None
            and self.kl.horizon <= 0.2 * self.prompts_per_step * self.samples_per_prompt
        ):
            raise ValueError("kl.horizon must be more than a fifth of the samples of a step")
        if self.dense_reward and is_function(self.reward):
            raise ValueError("dense_reward wants a reward model; a function scores whole completions")
        return self


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary."""
    # 1. The frozen trunk, and on it policy, value and reward. The bare trunk is the reference.
    device, dtype = machine.prepare(config.precision, config.threads)
    model = model or load_model(config.model, dtype, device)
    prompts = read_prompts(config.prompts)
    prompt_ids = [model.tokenizer.render(prompt) for prompt in prompts]
    scorer = load_scorer(config, model)
    policy, value = make_branches(config, model, scorer)
    parameters = policy.parameters() + value.parameters()
    optimizer = adam(parameters, learning_rate=config.learning_rate)
    engine = LocalEngine(policy.trunk, model.tokenizer, max_batch=64)
    params = SamplingParams(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    engine.check(prompt_ids, params)

    # 2. Go on from the latest checkpoint.
    def restore(before: int | None = None) -> dict[str, Any]:
        if (found := checkpoint.latest(directory / "checkpoints", before)) is None:
            return {"step": 0, "kl_coef": config.kl.coef, "stopped": None}
        tensors, state = found
        policy.load_state(checkpoint.unprefixed("policy", tensors))
        value.load_state(checkpoint.unprefixed("value", tensors))
        checkpoint.load_optimizer(optimizer, tensors)
        return state

    state = restore()
    done, coef, stopped = int(state["step"]), float(state["kl_coef"]), state["stopped"]

    def save(step: int) -> None:
        tensors = checkpoint.prefixed("policy", policy.state()) | checkpoint.prefixed("value", value.state())
        tensors |= checkpoint.optimizer_tensors(optimizer)
        checkpoint.save(directory / "checkpoints", step, tensors, {"kl_coef": coef, "stopped": stopped})

    with Metrics(directory, total=config.steps, done=done, title="ppo") as metrics:
        for step in range(done, config.steps):
            if stopped is not None:
                break
            began = time.monotonic()

            # 3. Sample: n completions of each prompt of this step.
            engine.load(policy.adapter or policy.trunk, version=f"step-{step}")
            chosen = prompts_of_step(len(prompt_ids), step, config)
            key = (config.seed, "ppo", step)
            drawn = engine.sample([prompt_ids[p] for p in chosen], config.samples_per_prompt, params, key)
            samples = sorted(drawn, key=lambda s: (s.prompt, s.index))
            samples = [replace(s, asked=prompts[chosen[s.prompt]]) for s in samples]
            sampled = time.monotonic()

            # 4. One pass for the trainer's log-probabilities, the reference's, values and scores.
            branch = scorer.branch if isinstance(scorer, RewardModel) else None
            seen = forward(
                samples,
                reference=model.trunk,
                policy=policy,
                value=value,
                reward=branch,
                temperature=config.temperature,
                budget=config.micro_batch_tokens,
            )
            if seen.shares is None:
                said = scored(scorer, samples)
                scores = _as_tensor(said.scores, seen)
            else:
                said, scores = Scores([]), seen.shares.sum(1)
            if step == 0:
                preflight(seen, model.trunk.dtype)

            # 5. Rewards, advantages, returns.
            experience = experience_from(seen, scores, samples, coef, config)
            row = describe(experience, seen, samples) | figures_of(said)
            stopped = reason_to_stop([*metrics.history, row], **config.stop.model_dump())
            if stopped is not None:
                if not math.isfinite(row["kl"] + row["entropy"]):
                    # Weights that give no numbers are of no use: the last saved before them are, or the start.
                    policy, value = make_branches(config, model, scorer)
                    stopped += f" (the model is that of step {restore(before=step)['step']})"
                save(step)
                break

            # 6. Epochs over the batch, and the KL coefficient for the next.
            rate = config.learning_rate * linear_to_zero(step, config.steps)
            row |= update(seen, experience, policy, value, optimizer, parameters, step, rate, config)
            row |= {"learning_rate": rate, "kl_coef": coef}
            if config.kl.target is not None:
                coef = adaptive_coefficient(
                    coef,
                    observed=row["kl"],
                    target=config.kl.target,
                    episodes=len(samples),
                    horizon=config.kl.horizon,
                )

            # 7. Say so, then save: what a kill cuts off between the two comes again.
            now = time.monotonic()
            row |= {"seconds": now - began, "seconds_sampling": sampled - began}
            row["tokens_per_second"] = float(seen.packed.mask.sum()) / (now - began)
            metrics.log(step + 1, row, shown(row))
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                save(step + 1)
        taken = metrics.history[-1]["step"] if metrics.history else 0

    # 8. The policy as an adapter (peft's format) and as a whole model that transformers loads.
    write_policy(policy, model, directory)
    summary = {"steps": taken, "stopped": stopped, "last": metrics.history[-1] if metrics.history else None}
    files.write_json(directory / "summary.json", summary)
    return summary


def load_scorer(config: Config, model: Model) -> Scorer:
    """As reward/open.py; one that can be dense, where it is to be."""
    scorer = open_scorer(config.reward, model)
    if config.dense_reward and not isinstance(scorer, RewardModel):
        raise UserError(
            "scores whole completions, so that no token has a share for dense_reward",
            where=config.reward,
            fix="name one reward model's directory, or set dense_reward: false",
        )
    if config.dense_reward and isinstance(scorer, RewardModel) and scorer.branch.pool != "mean":
        raise UserError(
            "scores a completion's last token, so that no other has a share for dense_reward",
            where=config.reward,
            fix="train it with pool: mean, or set dense_reward: false",
        )
    return scorer


def make_branches(config: Config, model: Model, scorer: Scorer) -> tuple[Branch, Branch]:
    """Policy and value: adapters on the model's trunk, or (rank 0) whole copies of it that are trained, in float32
    or wider, since a bfloat16 weight swallows small steps.

    The value's adapter begins as the reward's where there is a reward model on the same tokenizer, its head at
    zero (Ziegler et al. 2019), so that the first values are 0.
    """
    trunk, a = model.trunk, config.adapter
    head = ScalarHead(trunk.shape.width, dtype=trunk.wide).to(trunk.device)
    policy = make_policy(model, a, seed=torch_seed(config.seed, "policy adapter"), start=config.start)
    if a.rank == 0:
        return policy, Branch(copy.deepcopy(trunk).to(trunk.wide).requires_grad_(True), head=head)
    if isinstance(scorer, RewardModel) and scorer.branch.adapter is not None:
        value_adapter = copy.deepcopy(scorer.branch.adapter).requires_grad_(True)
    else:
        seed = torch_seed(config.seed, "value adapter")
        value_adapter = make_adapter(trunk, rank=a.rank, alpha=a.alpha, blocks=a.value_blocks, seed=seed)
    leave = scorer.branch.exit if isinstance(scorer, RewardModel) else None
    return policy, Branch(trunk, value_adapter, head, exit=leave)


def prompts_of_step(count: int, step: int, config: Config) -> list[int]:
    """Which prompts a step samples: all prompts come once before any comes again, in a keyed order."""
    wanted = range(step * config.prompts_per_step, (step + 1) * config.prompts_per_step)
    orders: dict[int, Any] = {}
    for place in wanted:
        orders.setdefault(place // count, rng(config.seed, "prompts", place // count).permutation(count))
    return [int(orders[place // count][place % count]) for place in wanted]


def _as_tensor(scores: Sequence[float], seen: Forward) -> Tensor:
    return torch.tensor(scores, dtype=seen.values.dtype, device=seen.values.device)


def experience_from(
    seen: Forward, scores: Tensor, samples: Sequence[Sample], coef: float, config: Config
) -> Experience:
    """KL in the reward, the score on the last token or its shares on all, generalised advantages, whitened."""
    mask = seen.packed.mask
    scored = torch.ones(len(samples), dtype=torch.bool, device=mask.device)
    at_end = scores
    if config.missing_eos_penalty is not None:
        scored = torch.tensor([s.finish_reason == "stop" for s in samples], device=mask.device)
        at_end = replace_missing_eos(scores, scored, penalty=config.missing_eos_penalty)
    shares = seen.shares if config.dense_reward else None
    if shares is not None:
        at_end = at_end * ~scored  # what has its shares has nothing more at its end
    rewards = shaped_rewards(at_end, k1(seen.logprobs, seen.ref_logprobs), mask, coef=coef)
    if shares is not None:
        rewards = rewards + shares * scored[:, None]
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


def update(
    seen: Forward,
    experience: Experience,
    policy: Branch,
    value: Branch,
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    step: int,
    rate: float,
    config: Config,
) -> dict[str, float]:
    """All epochs of one step. Losses are divided by the minibatch's count of tokens, so that the split into
    micro-batches changes nothing. Returns the last epoch's figures."""
    packed = seen.packed
    last: dict[str, float] = {}
    for epoch in range(config.epochs):
        order = torch.from_numpy(rng(config.seed, "epoch", step, epoch).permutation(packed.rows))
        last = {}
        minibatches = min(config.minibatches, packed.rows)
        for rows in order.to(packed.ids.device).tensor_split(minibatches):
            total = float(packed.mask[torch.isin(packed.row, rows)].sum())
            for micro in micro_batches(packed, config.micro_batch_tokens, rows):
                part, index = packed.take(micro)
                steps, columns = part.mask.shape[1], part.ids.shape[1]

                def cut(x: Tensor, index: Tensor = index, steps: int = steps) -> Tensor:
                    return x[index, :steps]

                def stream(branch: Branch, micro: Tensor = micro, columns: int = columns) -> dict[str, Any]:
                    if branch.adapter is None or branch.first not in seen.streams:
                        return {}  # a trunk of its own, whose lower blocks change, too
                    return {"stream": seen.streams[branch.first][micro, :columns], "depth": branch.first}

                now = token_logprobs(
                    policy,
                    part,
                    temperature=config.temperature,
                    entropy_gradient=config.entropy_coef > 0,
                    **stream(policy),
                )
                actor = ppo_policy_loss(
                    now.logprobs.to(experience.advantages.dtype),
                    cut(experience.old_logprobs),
                    cut(experience.advantages),
                    part.mask,
                    total=total,
                    clip=config.clip,
                    sampled_logprobs=cut(experience.sampled_logprobs),
                    importance_cap=config.importance_cap,
                )
                critic = clipped_value_loss(
                    token_values(value, part, **stream(value)),
                    cut(experience.values),
                    cut(experience.returns),
                    part.mask,
                    total=total,
                    clip=config.value_clip,
                )
                loss = actor.loss + config.value_coef * critic.loss
                if config.entropy_coef > 0:
                    loss = loss - config.entropy_coef * masked_mean(now.entropies, part.mask, total=total)
                torch.autograd.backward(loss)
                of_value = {f"value_{name.removeprefix('value_')}": x for name, x in critic.metrics.items()}
                losses = {"policy_loss": actor.loss.detach(), "value_loss": critic.loss.detach()}
                for name, number in {**losses, **actor.metrics, **of_value}.items():
                    old = last.get(name, 0.0)
                    last[name] = (
                        max(old, float(number))
                        if name.endswith("_max")
                        else old + float(number) / minibatches
                    )
            norm = take_step(optimizer, parameters, learning_rate=rate, max_grad_norm=config.max_grad_norm)
            last["grad_norm"] = norm
    return last


def describe(experience: Experience, seen: Forward, samples: Sequence[Sample]) -> dict[str, float]:
    """What the batch says of the policy before this step's update. kl: mean k1 a token, nats."""
    mask = experience.mask
    return {
        "reward": float(experience.scores.mean()),
        "reward_std": float(experience.scores.std(correction=0)),
        "shaped_return": float(experience.rewards.sum(1).mean()),
        "kl": float(masked_mean(k1(experience.old_logprobs, experience.ref_logprobs), mask)),
        "entropy": float(masked_mean(seen.entropies, mask)),
        "eos_rate": sum(s.finish_reason == "stop" for s in samples) / len(samples),
        "length": float(mask.sum(1).to(torch.float64).mean()),
        "explained_variance": float(explained_variance(experience.values, experience.returns, mask)),
    }


def shown(row: dict[str, float]) -> str:
    """A step in one line."""
    return (
        f"reward {row['reward']:+.3f}  kl {row['kl']:.3f}  entropy {row['entropy']:.2f}  "
        f"clip {row['clip_fraction']:.2f}  value error {row['value_error']:.2f}  eos {row['eos_rate']:.2f}  "
        f"{row['tokens_per_second']:.0f} tok/s" + "  every score is the same" * (row["reward_std"] == 0)
    )
