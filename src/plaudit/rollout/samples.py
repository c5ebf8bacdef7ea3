"""What every engine does before and after it draws: is there room, what are the keys, and what was it that was said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from plaudit.data.tokenizer import Tokenizer
from plaudit.tensors import Engine, FinishReason, Key, Sample, SamplingParams
from plaudit.types import UserError

EngineName = Literal["local", "vllm"]


class TextEngine(Engine, Protocol):
    """An engine that knows whose tokens it draws, under which name, and how many a text may have."""

    tokenizer: Tokenizer
    version: str

    @property
    def context(self) -> int:
        """Tokens a text, the prompt counted."""
        ...

    def check(self, prompt_ids: Sequence[Sequence[int]], params: SamplingParams) -> None:
        """UserError for a prompt that leaves no room."""
        ...


def check_prompts(prompt_ids: Sequence[Sequence[int]], params: SamplingParams, context: int) -> None:
    """UserError for a prompt that leaves no room in so many tokens."""
    for number, ids in enumerate(prompt_ids):
        if not 0 < len(ids) <= context - params.max_new_tokens:
            raise UserError(
                f"has {len(ids)} tokens; with {params.max_new_tokens} new ones the model takes {context}",
                where=f"prompt {number + 1}",
                fix="shorten the prompt or max_new_tokens",
            )


def keys_of(count: int, key: Key, names: Sequence[Key] | None) -> list[Key]:
    """Each prompt's part of its draws' keys: its name, or its number."""
    return [(*key, *name) for name in (names or [(number,) for number in range(count)])]


def as_sample(
    prompt: int,
    index: int,
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    logprobs: Sequence[float],
    *,
    tokenizer: Tokenizer,
    version: str,
    params: SamplingParams,
) -> Sample:
    """A sample of what was drawn, up to the first end-of-text token, which is part of it."""
    end = next((place for place, token in enumerate(ids) if token in tokenizer.eos_ids), None)
    reason: FinishReason = "length" if end is None else "stop"
    count = len(ids) if end is None else end + 1
    return Sample(
        prompt=prompt,
        index=index,
        prompt_ids=tuple(prompt_ids),
        completion_ids=tuple(ids[:count]),
        text=tokenizer.decode(ids[:count]),
        logprobs=tuple(logprobs[:count]),
        finish_reason=reason,
        policy_version=version,
        params=params,
        tokenizer=tokenizer.fingerprint,
    )
