"""The engine in the same process: a static cache, the prompt of a group computed once, keyed randomness.

What a sample draws depends on the key, its prompt's number and its own index: position t reads the t-th number of
`rng(*key, prompt, index)`. Neither the batch it ran in nor the order of admission changes its draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from plaudit.data.tokenizer import Tokenizer
from plaudit.models.adapter import Adapter
from plaudit.models.llama import Cache, Llama
from plaudit.randomness import rng
from plaudit.tensors import FinishReason, Key, Sample, SamplingParams
from plaudit.types import UserError

Steer = Callable[[Tensor, Tensor], Tensor]
"""(states [B, width], logits [B, V]) -> logits [B, V] of another distribution, which is drawn from and reported."""


class LocalEngine:
    """Samples from a trunk with an adapter (plaudit.tensors.Engine)."""

    def __init__(
        self, trunk: Llama, tokenizer: Tokenizer, *, max_batch: int = 64, steer: Steer | None = None
    ) -> None:
        """max_batch: how many sequences are drawn at once. steer: what the logits become before the temperature."""
        self.trunk, self.tokenizer, self.max_batch, self.steer = trunk, tokenizer, max_batch, steer
        self.adapter: Adapter | None = None
        self.version = "start"
        self._output = self._wide_output()

    def load(self, weights: Adapter | Llama | None, version: str) -> None:
        """Sample with this adapter on the trunk, with another trunk, or (None) with the bare trunk."""
        if isinstance(weights, Llama):
            self.trunk, self.adapter = weights, None
            self._output = self._wide_output()
        else:
            self.adapter = weights
        self.version = version

    def _wide_output(self) -> Tensor:
        """The output layer in float32 (or wider): a bfloat16 logit near 40 is rounded to the nearest 1/4, which
        would draw from a distribution 0.04 nats a token away from the trainer's."""
        weight = self.trunk.output_weight.detach()
        return weight.to(torch.promote_types(weight.dtype, torch.float32))

    def check(self, prompt_ids: Sequence[Sequence[int]], params: SamplingParams) -> None:
        """UserError for a prompt that leaves no room."""
        context = self.trunk.shape.context
        for number, ids in enumerate(prompt_ids):
            if not 0 < len(ids) <= context - params.max_new_tokens:
                raise UserError(
                    f"has {len(ids)} tokens; with {params.max_new_tokens} new ones the model takes {context}",
                    where=f"prompt {number + 1}",
                    fix="shorten the prompt or max_new_tokens",
                )

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        key: Key,
        *,
        names: Sequence[Key] | None = None,
    ) -> Iterator[Sample]:
        """n completions of each prompt, batch by batch. UserError for a prompt that leaves no room.

        names: what each prompt is called in its draws' key, where its number would not do.
        """
        self.check(prompt_ids, params)
        keys = [(*key, *name) for name in (names or [(number,) for number in range(len(prompt_ids))])]
        order = sorted(range(len(prompt_ids)), key=lambda p: (len(prompt_ids[p]), p))
        wanted = [(prompt, index) for prompt in order for index in range(n)]
        for start in range(0, len(wanted), self.max_batch):
            yield from self._batch(prompt_ids, wanted[start : start + self.max_batch], params, keys)

    @torch.no_grad()
    def _batch(
        self,
        prompt_ids: Sequence[Sequence[int]],
        members: list[tuple[int, int]],
        params: SamplingParams,
        keys: Sequence[Key],
    ) -> Iterator[Sample]:
        trunk, steps = self.trunk, params.max_new_tokens
        prompts = list(dict.fromkeys(prompt for prompt, _ in members))
        lengths = torch.tensor([len(prompt_ids[p]) for p in prompts])
        width = int(lengths.max())
        # 1. The prompts, left-padded, each once; then the cache's rows are repeated for the samples of a prompt.
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt_ids[prompt]) :] = torch.tensor(list(prompt_ids[prompt]))
        columns = torch.arange(width)
        real = columns >= (width - lengths)[:, None]
        positions = (columns - (width - lengths)[:, None]).clamp(min=0)
        mask = (columns[None, :] <= columns[:, None]) & real[:, None, :] | torch.eye(width, dtype=torch.bool)
        cache = Cache.empty(trunk.shape, len(prompts), width + steps, dtype=trunk.dtype, device=trunk.device)
        ids, positions, mask = (t.to(trunk.device) for t in (ids, positions, mask))
        context = trunk.context(positions, mask, cache)
        hidden = trunk.finish(trunk.run(trunk.embed(ids), context, self.adapter)[:, -1])
        cache.filled = width
        rows = torch.tensor([prompts.index(prompt) for prompt, _ in members], device=trunk.device)
        cache, hidden = cache.select(rows), hidden[rows]
        seen = torch.cat(
            [real.to(trunk.device)[rows], torch.ones(len(rows), steps, dtype=torch.bool).to(trunk.device)], 1
        )
        place = lengths.to(trunk.device)[rows]

        # 2. Token after token for all rows; those that have ended leave when they are half of the batch.
        uniforms = np.stack([rng(*keys[prompt], index).random(steps) for prompt, index in members])
        draws = torch.from_numpy(uniforms).to(trunk.device)
        ends = torch.tensor(self.tokenizer.eos_ids, device=trunk.device)
        tokens = torch.zeros(len(members), steps, dtype=torch.long, device=trunk.device)
        logprobs = torch.zeros(len(members), steps, dtype=torch.float64, device=trunk.device)
        alive = torch.arange(len(members), device=trunk.device)
        going = torch.ones(len(members), dtype=torch.bool, device=trunk.device)
        for step in range(steps):
            token, logprob = draw(self._logits(hidden, ends, params), draws[alive, step], params)
            tokens[alive, step], logprobs[alive, step] = token, logprob.double()
            going = going & ~torch.isin(token, ends)
            if step + 1 == steps or not bool(going.any()):
                break
            if int(going.sum()) <= len(alive) // 2:
                kept = torch.nonzero(going)[:, 0]
                alive, place, seen, token, going = (t[kept] for t in (alive, place, seen, token, going))
                cache = cache.select(kept)
            context = trunk.context(place[:, None], seen[:, None, : width + step + 1], cache)
            hidden = trunk.finish(trunk.run(trunk.embed(token[:, None]), context, self.adapter)[:, 0])
            cache.filled += 1
            place = place + 1
        for row, (prompt, index) in enumerate(members):
            yield self._as_sample(prompt, index, prompt_ids[prompt], tokens[row], logprobs[row], params)

    def _logits(self, hidden: Tensor, ends: Tensor, params: SamplingParams) -> Tensor:
        logits = hidden.to(self._output.dtype) @ self._output.T
        if self.steer is not None:
            logits = self.steer(hidden, logits)
        if params.ignore_eos:
            logits[:, ends] = -torch.inf
        return logits

    def _as_sample(
        self,
        prompt: int,
        index: int,
        prompt_ids: Sequence[int],
        tokens: Tensor,
        logprobs: Tensor,
        params: SamplingParams,
    ) -> Sample:
        ids = tokens.tolist()
        end = next((place for place, token in enumerate(ids) if token in self.tokenizer.eos_ids), None)
        reason: FinishReason = "length" if end is None else "stop"
        ids = ids if end is None else ids[: end + 1]
        return Sample(
            prompt=prompt,
            index=index,
            prompt_ids=tuple(prompt_ids),
            completion_ids=tuple(ids),
            text=self.tokenizer.decode(ids),
            logprobs=tuple(logprobs[: len(ids)].tolist()),
            finish_reason=reason,
            policy_version=self.version,
            params=params,
            tokenizer=self.tokenizer.fingerprint,
        )


def draw(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token a row by inversion of the cumulative distribution, and its log-probability at the temperature.

    logits [B, V] float; uniforms [B] in [0, 1). top-k and top-p cut what may be drawn, not what is reported.
    """
    if params.temperature == 0:
        token = logits.argmax(-1)
        return token, torch.log_softmax(logits, -1).gather(1, token[:, None])[:, 0]
    logits = logits / params.temperature
    logprobs = torch.log_softmax(logits, -1)
    probabilities = logprobs.exp()
    if params.top_k > 0 or params.top_p < 1:
        probabilities = _cut(probabilities, params)
    cumulative = probabilities.cumsum(-1)
    target = uniforms.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True)[:, 0]
    # Rounding may carry the target to the very end: the last token that has any probability is meant then.
    last = cumulative.shape[1] - 1 - (probabilities > 0).flip(-1).to(torch.uint8).argmax(-1)
    token = torch.minimum(token, last)
    return token, logprobs.gather(1, token[:, None])[:, 0]


def _cut(probabilities: Tensor, params: SamplingParams) -> Tensor:
    """Zero what top-k and top-p exclude; the likeliest token always stays."""
    ordered, index = probabilities.sort(-1, descending=True)
    keep = ordered.cumsum(-1) - ordered < params.top_p
    if params.top_k > 0:
        keep[:, params.top_k :] = False
    keep[:, 0] = True
    return torch.zeros_like(probabilities).scatter(-1, index, ordered * keep)
