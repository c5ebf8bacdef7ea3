"""The engine for models that go through transformers' own forward: slower than `LocalEngine`, with the same draws.

Position t of a sample reads the t-th number of `rng(*key, prompt, index)`; a prompt is computed once for all of its
samples. Prompts of several lengths stand in one batch, padded on the left, where attention alone carries the past; a
model with another memory (a convolution's, a state space's) gets prompts of one length at a time, without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plaudit.models.adapter import Adapter
from plaudit.models.foreign import Foreign
from plaudit.models.llama import Llama
from plaudit.randomness import rng
from plaudit.rollout.local import draw
from plaudit.rollout.samples import as_sample, check_prompts, keys_of
from plaudit.tensors import Key, Sample, SamplingParams
from plaudit.types import UserError


class ForeignEngine:
    """Samples from transformers' own model (plaudit.tensors.Engine)."""

    def __init__(self, model: Foreign, *, max_batch: int = 64) -> None:
        """max_batch: how many sequences are drawn at once."""
        self.model, self.tokenizer, self.max_batch = model, model.tokenizer, max_batch
        self.context, self.version = model.context, "start"

    def load(self, weights: Adapter | Llama | None, version: str) -> None:
        """The model stays as it is, under this version's name; it has no other weights."""
        if weights is not None:
            raise ValueError("a model that goes through transformers takes no other weights")
        self.version = version

    def check(self, prompt_ids: Sequence[Sequence[int]], params: SamplingParams) -> None:
        """UserError for a prompt that leaves no room."""
        check_prompts(prompt_ids, params, self.context)

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        key: Key,
        *,
        names: Sequence[Key] | None = None,
    ) -> Iterator[Sample]:
        """n completions of each prompt, batch by batch. UserError for a prompt that leaves no room."""
        self.check(prompt_ids, params)
        keys = keys_of(len(prompt_ids), key, names)
        order = sorted(range(len(prompt_ids)), key=lambda p: (len(prompt_ids[p]), p))
        one_length = not _attends_only(self.model.inner.config)
        for _, group in groupby(order, key=lambda p: len(prompt_ids[p]) if one_length else 0):
            wanted = [(prompt, index) for prompt in group for index in range(n)]
            for start in range(0, len(wanted), self.max_batch):
                members = wanted[start : start + self.max_batch]
                uniforms = np.stack([rng(*keys[p], i).random(params.max_new_tokens) for p, i in members])
                drawn = self._batch(prompt_ids, [p for p, _ in members], params, torch.from_numpy(uniforms))
                for (prompt, index), ids, logprobs in zip(members, *drawn, strict=True):
                    yield as_sample(
                        prompt,
                        index,
                        prompt_ids[prompt],
                        ids.tolist(),
                        logprobs.tolist(),
                        tokenizer=self.tokenizer,
                        version=self.version,
                        params=params,
                    )

    @torch.no_grad()
    def _batch(
        self, prompt_ids: Sequence[Sequence[int]], chosen: list[int], params: SamplingParams, draws: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities [B, max_new_tokens] of one completion of each chosen prompt, from draws of that
        shape; what stands behind an end of text means nothing."""
        device, steps = self.model.device, params.max_new_tokens
        # 1. Each prompt once, padded on the left; then a row for each sample.
        prompts = list(dict.fromkeys(chosen))
        width = max(len(prompt_ids[p]) for p in prompts)
        ids = torch.tensor([[0] * (width - len(prompt_ids[p])) + list(prompt_ids[p]) for p in prompts])
        lengths = torch.tensor([len(prompt_ids[p]) for p in prompts])
        mask = (torch.arange(width) >= (width - lengths)[:, None]).long().to(device)
        logits, cache = self._forward(ids.to(device), mask, None)
        rows = torch.tensor([prompts.index(p) for p in chosen], device=device)
        cache.reorder_cache(rows)
        logits, mask = logits[rows], mask[rows]

        # 2. Token after token for all rows, until all have ended.
        ends = torch.tensor(self.tokenizer.eos_ids, device=device)
        draws = draws.to(device)
        tokens = torch.zeros(len(chosen), steps, dtype=torch.long, device=device)
        logprobs = torch.zeros(len(chosen), steps, dtype=torch.float64, device=device)
        going = torch.ones(len(chosen), dtype=torch.bool, device=device)
        for step in range(steps):
            if params.ignore_eos:
                logits[:, ends] = -torch.inf
            token, logprob = draw(logits, draws[:, step], params)
            tokens[:, step], logprobs[:, step] = token, logprob.double()
            going = going & ~torch.isin(token, ends)
            if step + 1 == steps or not bool(going.any()):
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            logits, cache = self._forward(token[:, None], mask, cache)
        return tokens, logprobs

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits [B, V] of the last of these ids [B, S], in float32 or wider, and the cache with them in it; mask
        [B, all so far], 1 where no padding is."""
        takes, given = self.model.takes, {"input_ids": ids, "use_cache": True}
        if not bool(mask.all()):
            given["attention_mask"] = mask
            if "position_ids" in takes:
                given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in takes:
            given["logits_to_keep"] = 1
        name = "cache_params" if "cache_params" in takes else "past_key_values"
        if cache is not None:
            given[name] = cache
        out = self.model.inner(**given)
        cache, logits = getattr(out, name, None), out.logits[:, -1]
        if not hasattr(cache, "reorder_cache"):
            raise UserError(
                f"model type {self.model.inner.config.model_type!r} keeps its past in a way of its own",
                where=str(self.model.directory),
                fix="use another model",
            )
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), cache


def _attends_only(config: Any) -> bool:
    """Whether attention alone carries the past, so that padding can be masked."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

    layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    return all(
        isinstance(x, DynamicLayer) and not isinstance(x, LinearAttentionCacheLayerMixin) for x in layers
    )
