"""What the recipes that learn from their own samples share: what is drawn, how it is scored, what is logged."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import gymnasium
import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit.algorithms.advantages import replace_missing_eos
from plaudit.algorithms.kl import ESTIMATORS, adaptive_coefficient, k1
from plaudit.algorithms.masking import masked_mean
from plaudit.config import Config as Base
from plaudit.config import Score
from plaudit.data.formats import read_prompts
from plaudit.models.adapter import Adapter
from plaudit.models.branch import Branch
from plaudit.models.load import Model, load_model
from plaudit.phases import phase
from plaudit.randomness import rng, torch_seed
from plaudit.reward.early import early
from plaudit.reward.model import RewardModel
from plaudit.reward.open import open_scorer
from plaudit.reward.scores import Scores, figures_of, scored
from plaudit.rollout.agent import Agent, episodes
from plaudit.rollout.collect import Forward, forward
from plaudit.rollout.environment import open_environments
from plaudit.rollout.local import LocalEngine
from plaudit.rollout.samples import EngineName, TextEngine, check_prompts
from plaudit.rollout.vllm import VllmEngine
from plaudit.tensors import Sample, SamplingParams, Scorer
from plaudit.training import machine
from plaudit.training.policy import AdapterConfig, check_start, make_policy
from plaudit.types import Prompt

AT_ONCE = 64
"""Completions that are drawn, or episodes that are played, at a time; it changes no draw."""


class OnlineAdapter(AdapterConfig):
    """Fewer blocks than elsewhere: those below are computed once for policy, reference and reward."""

    blocks: int = Field(default=16, ge=0)


class KLConfig(Base):
    """coef: of the penalty a token, by the estimator, in the reward or in the loss; target: nats a token (None: coef
    stays fixed)."""

    coef: float = Field(default=0.05, ge=0)
    place: Literal["reward", "loss"] = "reward"
    estimator: Literal["k1", "k2", "k3"] = "k1"
    target: float | None = Field(default=None, gt=0)
    horizon: float = Field(default=10_000.0, gt=0)

    @model_validator(mode="after")
    def _has_a_slope(self) -> KLConfig:
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError(
                "k1's slope is 0 on average, so in the loss it holds nothing; take k2 or k3 there"
            )
        if self.target is not None and self.coef == 0:
            raise ValueError("target steers coef by a factor, and 0 stays 0; set kl.coef")
        return self


class StopConfig(Base):
    """max_kl and min_entropy in nats a token."""

    max_kl: float = 1.0
    min_entropy: float = 0.05
    max_length_growth: float = 4.0
    patience: int = Field(default=20, ge=1)


class OnlineConfig(Base):
    """Settings that every recipe has that learns from its own samples."""

    model: str = "smollm2"
    prompts: str | None = None
    reward: str | None = None
    environment: str | None = None
    turns: int = Field(default=16, ge=1)
    gold: str | None = None
    start: str | None = None
    reference: Literal["model", "start"] = "model"
    seed: int = 0
    steps: int = Field(default=100, ge=1)
    prompts_per_step: int = Field(default=16, ge=1)
    samples_per_prompt: int = Field(default=4, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    missing_eos_penalty: Score | None = -1.0
    epochs: int = Field(default=1, ge=1)
    minibatches: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    adapter: OnlineAdapter = OnlineAdapter()
    stop: StopConfig = StopConfig()
    lag: int = Field(default=0, ge=0, le=16)
    engine: EngineName = "local"
    precision: machine.Precision = "auto"
    micro_batch_tokens: machine.MicroBatchTokens = 0
    threads: int = Field(default=0, ge=0)
    profile: bool = False
    checkpoint_every: int = Field(default=10, ge=1)

    @property
    def needs(self) -> tuple[str, ...]:
        """Settings that must be given."""
        return () if self.environment is not None else ("prompts", "reward")

    @model_validator(mode="after")
    def _settings_fit(self) -> OnlineConfig:
        for name in self.needs:
            if getattr(self, name) is None:
                raise ValueError(f"{name} is not set")
        if self.environment is not None and (self.prompts is not None or self.reward is not None):
            raise ValueError("an environment asks and rewards by itself; leave prompts and reward out")
        check_start(self.start, self.adapter)
        if self.start is None and self.reference == "start":
            raise ValueError("reference start wants a start")
        return self


class PolicyGradientConfig(OnlineConfig):
    """Settings of the recipes that follow a policy gradient, beside those."""

    importance_cap: float = Field(default=2.0, gt=0)
    entropy_coef: float = Field(default=0.0, ge=0)
    kl: KLConfig = KLConfig()

    @model_validator(mode="after")
    def _controller_is_steady(self) -> PolicyGradientConfig:
        samples = self.prompts_per_step * self.samples_per_prompt
        if self.kl.target is not None and self.kl.horizon <= 0.2 * samples:
            raise ValueError("kl.horizon must be more than a fifth of the samples of a step")
        return self


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step learns from: its samples by prompt, and what the scorer said of them. said: None where the rollout's
    own pass reads the reward, of a model on the same trunk or of an environment."""

    samples: list[Sample]
    said: Scores | None = None


@dataclass(frozen=True, slots=True)
class World:
    """What a policy acts in: the model with its frozen trunk, prompts as they were asked and as ids, and who scores
    what it says; or rooms, copies of a text environment, which ask and score themselves. anchor: the reference's
    adapter on that trunk; None: the bare trunk is the reference."""

    model: Model
    asked: list[Prompt]
    prompts: list[list[int]]
    scorer: Scorer | None
    gold: Scorer | None
    engine: TextEngine
    params: SamplingParams
    rooms: list[gymnasium.Env[Any, Any]] = field(default_factory=list)
    anchor: Adapter | None = None

    @property
    def reward_branch(self) -> Branch | None:
        """A reward model's branch on the same trunk: the rollout's own pass then scores, too."""
        return self.scorer.branch if isinstance(self.scorer, RewardModel) else None


def open_world(config: OnlineConfig, model: Model | None = None) -> World:
    """All that stands before the first step. UserError for whatever of it is missing or does not fit."""
    device, dtype = machine.prepare(config.precision, config.threads)
    model = model or load_model(config.model, dtype, device)
    asked = [] if config.prompts is None else read_prompts(config.prompts)
    prompts = [model.tokenizer.render(prompt) for prompt in asked]
    params = SamplingParams(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    check_prompts(prompts, params, model.context)
    engine = open_engine(config, model, prompts)
    scorer, gold = (
        None if spec is None else open_scorer(spec, model) for spec in (config.reward, config.gold)
    )
    at_once = min(AT_ONCE, config.prompts_per_step * config.samples_per_prompt)
    rooms = [] if config.environment is None else open_environments(config.environment, at_once)
    anchor = None
    if config.reference == "start":
        seed = torch_seed(config.seed, "policy adapter")
        anchor = make_policy(model, config.adapter, seed=seed, start=config.start).adapter
        assert anchor is not None
        anchor.requires_grad_(False)
    return World(model, asked, prompts, scorer, gold, engine, params, rooms, anchor)


def open_engine(config: OnlineConfig, model: Model, prompts: Sequence[Sequence[int]]) -> TextEngine:
    """What the policy's samples are drawn with. UserError where vLLM is asked for and missing."""
    if config.engine == "local":
        return LocalEngine(model.trunk, model.tokenizer, max_batch=AT_ONCE)
    whole, longest = config.adapter.rank == 0, max(map(len, prompts), default=model.context)
    return VllmEngine(
        model.directory,
        model.tokenizer,
        dtype=model.trunk.wide if whole else model.trunk.dtype,
        context=min(model.context, longest + config.max_new_tokens),
        rank=config.adapter.rank,
        trunk=model.trunk if whole else None,
        max_batch=AT_ONCE,
    )


@phase("sampling")
def draw(
    world: World, policy: Branch, step: int, config: OnlineConfig, purpose: str, again: int = 0
) -> Drawn:
    """samples_per_prompt completions of each prompt of this step, by prompt; or so many episodes from each of as many
    starts. What scores them by itself does so here. again: which further draw of the same step; its prompts are drawn
    afresh."""
    world.engine.load(policy.adapter or policy.trunk, version=f"step-{max(0, step - config.lag)}")
    key: tuple[int | str, ...] = (config.seed, purpose, step, *([again] if again else []))
    starts, n = config.prompts_per_step, config.samples_per_prompt
    if world.rooms:
        agent = Agent(world.engine, world.params)
        played = episodes(agent, world.rooms, starts, n, key=key, turns=config.turns)
        return Drawn([episode.sample for episode in played])
    if again == 0:
        chosen = prompts_of_step(len(world.prompts), step, starts, config.seed)
    else:
        chosen = rng(*key, "prompts").integers(len(world.prompts), size=starts).tolist()
    coming = world.engine.sample([world.prompts[p] for p in chosen], n, world.params, key)
    with early(world.scorer) as hear:
        drawn = [hear(replace(sample, asked=world.asked[chosen[sample.prompt]])) for sample in coming]
    samples = sorted(drawn, key=lambda s: (s.prompt, s.index))
    scores_apart = world.scorer is not None and world.reward_branch is None
    return Drawn(samples, judge(world, samples) if scores_apart else None)


def prompts_of_step(count: int, step: int, size: int, seed: int) -> list[int]:
    """Which prompts a step samples: all prompts come once before any comes again, in a keyed order."""
    orders: dict[int, Any] = {}
    for place in range(step * size, (step + 1) * size):
        orders.setdefault(place // count, rng(seed, "prompts", place // count).permutation(count))
    return [int(orders[place // count][place % count]) for place in range(step * size, (step + 1) * size)]


@phase("look")
def look(
    world: World,
    samples: Sequence[Sample],
    config: OnlineConfig,
    *,
    policy: Branch,
    value: Branch | None = None,
    reward: bool = True,
) -> Forward:
    """One pass for the trainer's log-probabilities, the reference's, values, and scores where a reward model is on the
    same trunk (unless reward is False, since they are known)."""
    return forward(
        samples,
        reference=world.model.trunk,
        anchor=world.anchor,
        policy=policy,
        value=value,
        reward=world.reward_branch if reward else None,
        temperature=config.temperature,
        budget=config.micro_batch_tokens,
        most=max(1, len(samples) // config.minibatches),
    )


def scores_of(drawn: Drawn, seen: Forward) -> tuple[Tensor, dict[str, float]]:
    """[B]: the scorer's numbers, taken from the rollout's own pass where the reward model was part of it, or the
    environment's; and what a scorer says beside them that is worth logging, such as an ensemble's mean uncertainty."""
    if drawn.said is None:
        assert seen.shares is not None
        scores = seen.shares.sum(1)
        played = any(sample.rewards is not None for sample in drawn.samples)
        return scores if played else scores[twins(drawn.samples, scores.device)], {}
    said = drawn.said
    scores = torch.tensor(said.scores, dtype=seen.logprobs.dtype, device=seen.logprobs.device)
    return scores, figures_of(said)


def judge(world: World, samples: Sequence[Sample]) -> Scores:
    """What the scorer says of the samples; or what the environment gave for the episodes."""
    if world.rooms:
        return Scores([math.fsum(sample.rewards or ()) for sample in samples])
    assert world.scorer is not None
    return scored(world.scorer, samples)


def ended(samples: Sequence[Sample], device: torch.device) -> Tensor:
    """[B] bool: which completions ended by themselves."""
    return torch.tensor([s.finish_reason == "stop" for s in samples], device=device)


def rewards_of(scores: Tensor, samples: Sequence[Sample], config: OnlineConfig) -> Tensor:
    """[B]: what each completion earns: its score, or the penalty for a missing end in its place. An environment has
    seen how its episodes end, and what it gives stays."""
    if config.missing_eos_penalty is None or config.environment is not None:
        return scores
    return replace_missing_eos(scores, ended(samples, scores.device), penalty=config.missing_eos_penalty)


def twins(samples: Sequence[Sample], device: torch.device) -> Tensor:
    """[B] long: of each sample the first of its prompt that says the very same. What a pass gives for one text in two
    places of a batch differs by rounding, and beside a baseline of nearly equals that would be a lesson."""
    first: dict[tuple[int, tuple[int, ...]], int] = {}
    found = [first.setdefault((s.prompt, s.completion_ids), place) for place, s in enumerate(samples)]
    return torch.tensor(found, device=device)


def placed_rewards(
    seen: Forward, scores: Tensor, samples: Sequence[Sample], config: OnlineConfig, *, dense: bool = False
) -> tuple[Tensor, Tensor]:
    """([B], [B, T]): what each completion earns at its end, and what its tokens earn where they stand: each turn's
    reward where an environment gave it, a reward model's shares where these are asked for (dense). What has its shares
    has nothing more at its end; what is penalised there has no shares."""
    at_end = rewards_of(scores, samples, config)
    if config.environment is None and not dense:
        return at_end, torch.zeros_like(seen.logprobs)
    assert seen.shares is not None
    kept = config.environment is not None or config.missing_eos_penalty is None
    spread = ended(samples, at_end.device) | kept
    return at_end * ~spread, seen.shares * spread[:, None]


def next_price(coef: float, kl: KLConfig, *, observed: float, episodes: int) -> float:
    """The KL coefficient for the next step, where it is steered. observed: nats a token."""
    if kl.target is None:
        return coef
    return adaptive_coefficient(
        coef, observed=observed, target=kl.target, episodes=episodes, horizon=kl.horizon
    )


def kl_of(logprobs: Tensor, ref_logprobs: Tensor, kl: KLConfig) -> Tensor:
    """[B, T], nats a token, by the estimator that the config names."""
    return ESTIMATORS[kl.estimator](logprobs, ref_logprobs)


def describe(
    world: World,
    samples: Sequence[Sample],
    seen: Forward,
    scores: Tensor,
    *,
    drawn: tuple[Sequence[Sample], Tensor] | None = None,
) -> dict[str, float]:
    """What the batch says of the policy before this step's update. kl: mean k1 a token, nats.

    drawn: all that the policy drew, with scores, where the batch is a choice from it: what the policy earns and how
    long it talks is read from all.
    """
    mask = seen.packed.mask
    everything, given = drawn or (samples, scores)
    row = {
        "reward": float(given.mean()),
        "reward_std": float(given.std(correction=0)),
        "kl": float(masked_mean(k1(seen.logprobs, seen.ref_logprobs), mask)),
        "entropy": float(masked_mean(seen.entropies, mask)),
        "eos_rate": float(ended(everything, mask.device).double().mean()),
        "length": sum(sum(s.action_mask or [True] * len(s.completion_ids)) for s in everything)
        / len(everything),
    }
    if world.gold is not None:
        gold = scored(world.gold, everything).scores
        row["gold"] = sum(gold) / len(gold)
    return row


def shown(row: dict[str, float]) -> str:
    """A step in one line."""
    return (
        f"reward {row['reward']:+.3f}  kl {row['kl']:.3f}  entropy {row['entropy']:.2f}  "
        f"length {row['length']:.0f}  eos {row['eos_rate']:.2f}  {row['tokens_per_second']:.0f} tok/s"
    ) + "  every score is the same" * (row["reward_std"] == 0)


def timing(began: float, sampled: float, tokens: int) -> dict[str, float]:
    """How long a step took, of that how long it waited for its samples and for whoever scores them by text (seconds),
    and how many tokens a second it learned from."""
    seconds = time.monotonic() - began
    return {
        "seconds": seconds,
        "seconds_sampling": sampled - began,
        "tokens_per_second": tokens / seconds,
    }
