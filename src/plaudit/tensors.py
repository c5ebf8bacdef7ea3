"""What crosses rooms as tensors, and the two protocols that everything learns through.

One mask convention everywhere: True counts. Token ids are stored once and never re-rendered from text.
Losses see completion tokens only: `[samples, T]`, right-padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from plaudit.types import Prompt

FinishReason = Literal["stop", "length"]
Key = tuple[int | str, ...]
"""What a draw depends on: (seed, purpose, round, step, ...). See `plaudit.randomness`."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are drawn. For training keep top_k 0 and top_p 1.

    temperature: logits are divided by it, in every log-probability too; 0 takes the likeliest token.
    ignore_eos: go on to max_new_tokens, with the end-of-text token never drawn.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion as it was drawn.

    prompt: which of the given prompts; index: which of its n samples.
    logprobs: one a completion token, nats, of the distribution that it was drawn from (temperature applied,
    before top-k and top-p). The end-of-text token, where drawn, is part of completion_ids.
    action_mask: one a completion token, False where it was said to the policy and not drawn by it (an observation
    between two turns); its logprob is 0 and never read. None: every token was drawn.
    policy_version and tokenizer fingerprint say whose tokens these are.
    asked: the prompt before it was rendered, where whoever made the sample knew it: a judge reads it.
    rewards: where it was drawn as an episode, what the environment gave, one a completion token: each turn's reward at
    the turn's last token, 0 elsewhere.
    """

    prompt: int
    index: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: str
    params: SamplingParams
    tokenizer: str
    action_mask: tuple[bool, ...] | None = None
    asked: Prompt | None = None
    rewards: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Experience:
    """One batch of rollouts with all that a policy-gradient step reads. B samples, T completion tokens.

    mask [B, T] bool; old_logprobs, ref_logprobs, sampled_logprobs, values, rewards, advantages, returns:
    [B, T] float, zero where the mask is False; scores [B]: the scorer's, before shaping.
    old_logprobs are the trainer's own, so that the first ratio is exactly 1; sampled_logprobs the engine's.
    """

    mask: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    sampled_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    scores: Tensor


class Engine(Protocol):
    """Draws completions from a policy."""

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        key: Key,
        *,
        names: Sequence[Key] | None = None,
    ) -> Iterator[Sample]:
        """n completions of each prompt, in completion order. What is drawn depends on the key, the prompt, what it is
        called in the key (names; None: its number) and the sample's index alone."""
        ...

    def load(self, weights: Any, version: str) -> None:
        """From now on sample from these weights, under this version's name."""
        ...


class Scorer(Protocol):
    """Gives each sample one number, higher is better: a reward model, a rule, a judge, a service."""

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One finite float a sample, in order."""
        ...
