"""The engine in the same process: one batch that rows enter and leave, prompts computed once, keyed randomness.

What a sample draws depends on the key, its prompt's number and its own index: position t reads the t-th number of
`rng(*key, prompt, index)`. Neither the batch it ran in nor the order of admission changes its draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from plaudit.data.tokenizer import Tokenizer
from plaudit.models.adapter import Adapter
from plaudit.models.decode import Cache, Decoder
from plaudit.models.llama import Llama
from plaudit.phases import during, phase
from plaudit.randomness import rng
from plaudit.rollout.samples import as_sample, check_prompts, keys_of
from plaudit.tensors import Key, Sample, SamplingParams

Steer = Callable[[Tensor, Tensor], Tensor]
"""(states [B, width], logits [B, V]) -> logits [B, V] of another distribution, which is drawn from and reported."""

PROMPT_TOKENS = 4096
"""Prompts are computed so many tokens at a time at most; a longer one by itself."""
BLOCK = 256
"""A draw looks for its token among the sums of so many, then within one of them."""


class LocalEngine:
    """Samples from a trunk with an adapter (plaudit.tensors.Engine)."""

    def __init__(
        self, trunk: Llama, tokenizer: Tokenizer, *, max_batch: int = 64, steer: Steer | None = None
    ) -> None:
        """max_batch: how many sequences are drawn at once. steer: what the logits become before the temperature.
        Products are computed in the trunk's dtype, and so they are for trunks that are loaded later."""
        self.trunk, self.tokenizer, self.max_batch, self.steer = trunk, tokenizer, max_batch, steer
        self.dtype = trunk.dtype
        self.adapter: Adapter | None = None
        self.version = "start"
        self._decoder: Decoder | None = None

    def load(self, weights: Adapter | Llama | None, version: str) -> None:
        """Sample with this adapter on the trunk, with another trunk, or (None) with the bare trunk. A trunk that was
        trained in place is loaded again."""
        if isinstance(weights, Llama):
            self.trunk, self.adapter, self._decoder = weights, None, None
        else:
            self.adapter = weights
        self.version = version

    def _laid_out(self) -> Decoder:
        """The trunk as sampling reads it, once; the adapter as it is now."""
        if self._decoder is None:
            self._decoder = Decoder.of(self.trunk, self.dtype)
        return self._decoder.adapted(self.adapter, self.trunk)

    @property
    def context(self) -> int:
        """Tokens a text, the prompt counted."""
        return self.trunk.shape.context

    def check(self, prompt_ids: Sequence[Sequence[int]], params: SamplingParams) -> None:
        """UserError for a prompt that leaves no room."""
        check_prompts(prompt_ids, params, self.context)

    @torch.no_grad()
    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        key: Key,
        *,
        names: Sequence[Key] | None = None,
    ) -> Iterator[Sample]:
        """n completions of each prompt, each as it ends. UserError for a prompt that leaves no room.

        names: what each prompt is called in its draws' key, where its number would not do. Short prompts go first,
        so that rows of one length stand together; where an eighth of the batch has ended, others take its place.
        """
        self.check(prompt_ids, params)
        keys = keys_of(len(prompt_ids), key, names)
        order = sorted(range(len(prompt_ids)), key=lambda p: (len(prompt_ids[p]), p))
        waiting = Waiting([(prompt, index) for prompt in order for index in range(n)], prompt_ids)
        decoder = self._laid_out()
        rows = Rows.none(decoder, min(self.max_batch, len(waiting.members)), params, self.tokenizer.eos_ids)
        while waiting.left or rows.count:
            free = rows.slots - rows.count
            if (waiting.left and free >= max(1, self.max_batch // 8)) or not rows.count:
                rows.enter(decoder, waiting, free, keys)
            with during("sampling: output"):
                logits = decoder.output(rows.hidden)
            if self.steer is not None:
                logits = self.steer(rows.hidden, logits)
            for number, tokens, logprobs in rows.draw(logits):
                prompt, index = waiting.members[number]
                yield as_sample(
                    prompt,
                    index,
                    prompt_ids[prompt],
                    tokens,
                    logprobs,
                    tokenizer=self.tokenizer,
                    version=self.version,
                    params=params,
                )
            if rows.count:
                rows.go_on(decoder)


@dataclass(slots=True)
class Waiting:
    """Samples that have not begun, in their order: (prompt, index) each, all of a prompt side by side.

    held: prompts that were computed and have samples still to come: their keys and values, and the state after them.
    """

    members: list[tuple[int, int]]
    prompt_ids: Sequence[Sequence[int]]
    begun: int = 0
    held: dict[int, tuple[Cache, int, Tensor]] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return len(self.members) - self.begun

    def next(self, most: int) -> list[int]:
        """Which samples begin now, at most so many; their prompts' tokens fit into one pass."""
        taken, tokens = list[int](), 0
        prompts = set(self.held)
        for number in range(self.begun, min(self.begun + most, len(self.members))):
            prompt = self.members[number][0]
            if prompt not in prompts:
                tokens += len(self.prompt_ids[prompt])
                if taken and tokens > PROMPT_TOKENS:
                    break
                prompts.add(prompt)
            taken.append(number)
        self.begun += len(taken)
        return taken

    def compute(self, decoder: Decoder, prompts: Sequence[int]) -> None:
        """Keys, values and last states of those prompts that are not held yet."""
        new = [prompt for prompt in prompts if prompt not in self.held]
        if new:
            found, states = decoder.prefill([self.prompt_ids[prompt] for prompt in new])
            self.held |= {prompt: (found, row, states[row]) for row, prompt in enumerate(new)}

    def forget(self) -> None:
        """What no sample waits for."""
        coming = self.members[self.begun][0] if self.left else None
        self.held = {prompt: found for prompt, found in self.held.items() if prompt == coming}


@dataclass(slots=True)
class Rows:
    """The rows that are drawn now, B of up to `slots`: row r stands in the cache's slot r.

    hidden [B, width]: the state that predicts each row's next token; number [B]: which sample it is; length [B]: how
    many columns of the cache it fills; drawn [B]: how many tokens it has. uniforms, tokens, logprobs [slots, steps].
    """

    params: SamplingParams
    ends: Tensor
    slots: int
    cache: Cache
    hidden: Tensor
    number: Tensor
    length: Tensor
    drawn: Tensor
    uniforms: Tensor
    tokens: Tensor
    logprobs: Tensor

    @classmethod
    def none(cls, decoder: Decoder, slots: int, params: SamplingParams, ends: Sequence[int]) -> Rows:
        device, steps = decoder.norm.device, params.max_new_tokens

        def whole(*size: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return cls(
            params=params,
            ends=torch.tensor(list(ends), device=device),
            slots=slots,
            cache=Cache.empty(decoder.shape, slots, 0, dtype=decoder.dtype, device=device),
            hidden=whole(0, decoder.shape.width, dtype=decoder.norm.dtype),
            number=whole(0),
            length=whole(0),
            drawn=whole(0),
            uniforms=whole(slots, steps, dtype=torch.float64),
            tokens=whole(slots, steps),
            logprobs=whole(slots, steps, dtype=torch.float64),
        )

    @property
    def count(self) -> int:
        return len(self.number)

    @phase("sampling: prompts")
    def enter(self, decoder: Decoder, waiting: Waiting, free: int, keys: Sequence[Key]) -> None:
        """The next samples begin, behind the rows that stand."""
        taken = waiting.next(free)
        prompts = [waiting.members[number][0] for number in taken]
        waiting.compute(decoder, list(dict.fromkeys(prompts)))
        lengths = [len(waiting.prompt_ids[prompt]) for prompt in prompts]
        self.cache.reserve(max(lengths) + 1, self.count)
        start, device = self.count, self.hidden.device
        for found in dict.fromkeys(id(waiting.held[prompt][0]) for prompt in prompts):
            mine = [waiting.held[prompt] for prompt in prompts if id(waiting.held[prompt][0]) == found]
            self.cache.put(start, mine[0][0], torch.tensor([row for _, row, _ in mine], device=device))
            start += len(mine)
        steps = self.params.max_new_tokens
        draws = np.stack(
            [
                rng(*keys[waiting.members[number][0]], waiting.members[number][1]).random(steps)
                for number in taken
            ]
        )
        self.uniforms[self.count : start] = torch.from_numpy(draws).to(device)
        self.hidden = torch.cat([self.hidden, *(waiting.held[prompt][2][None] for prompt in prompts)])
        self.number = torch.cat([self.number, torch.tensor(taken, device=device)])
        self.length = torch.cat([self.length, torch.tensor(lengths, device=device)])
        self.drawn = torch.cat([self.drawn, torch.zeros(len(taken), dtype=torch.long, device=device)])
        waiting.forget()

    @phase("sampling: draw")
    def draw(self, logits: Tensor) -> list[tuple[int, list[int], list[float]]]:
        """One token a row; then the rows that have ended leave: each one's number, tokens, log-probabilities."""
        if self.params.ignore_eos:
            logits[:, self.ends] = -torch.inf
        rows = torch.arange(self.count, device=logits.device)
        token, logprob = draw(logits, self.uniforms[rows, self.drawn], self.params)
        self.tokens[rows, self.drawn] = token
        self.logprobs[rows, self.drawn] = logprob.double()
        self.drawn += 1
        over = torch.isin(token, self.ends) | (self.drawn == self.params.max_new_tokens)
        if not bool(over.any()):
            return []
        left = []
        for row in torch.nonzero(over)[:, 0].tolist():
            steps = int(self.drawn[row])
            left.append(
                (
                    int(self.number[row]),
                    self.tokens[row, :steps].tolist(),
                    self.logprobs[row, :steps].tolist(),
                )
            )
        self._leave(over)
        return left

    def _leave(self, over: Tensor) -> None:
        """The last rows that go on take the places of those that are over."""
        count = int((~over).sum())
        holes = torch.nonzero(over[:count])[:, 0]
        moved = count + torch.nonzero(~over[count:])[:, 0]
        if len(holes):
            self.cache.move(moved, holes)
            for tensor in (
                self.hidden, self.number, self.length, self.drawn, self.uniforms, self.tokens, self.logprobs
            ):  # fmt: skip
                tensor[holes] = tensor[moved]
        self.hidden, self.number = self.hidden[:count], self.number[:count]
        self.length, self.drawn = self.length[:count], self.drawn[:count]

    @phase("sampling: tokens")
    def go_on(self, decoder: Decoder) -> None:
        """The states after the tokens that were drawn last."""
        rows = torch.arange(self.count, device=self.hidden.device)
        self.cache.reserve(int(self.length.max()) + 1, self.count)
        self.hidden = decoder.step(self.tokens[rows, self.drawn - 1], self.length, self.cache)
        self.length += 1


def draw(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token a row by inversion of the cumulative distribution, and its log-probability at the temperature.

    logits [B, V] float; uniforms [B] in [0, 1). top-k and top-p cut what may be drawn, not what is reported.
    """
    if params.temperature == 0:
        token = logits.argmax(-1)
        return token, (logits.gather(1, token[:, None]) - logits.logsumexp(-1, keepdim=True))[:, 0]
    scaled = logits - logits.amax(-1, keepdim=True)
    if params.temperature != 1:
        scaled /= params.temperature
    likelihood = scaled.exp()
    sums = _block_sums(likelihood)
    total = sums.sum(-1)
    if params.top_k > 0 or params.top_p < 1:
        likelihood = _cut(likelihood, total, params)
        sums = _block_sums(likelihood)
    token = _invert(likelihood, sums, uniforms)
    return token, (scaled.gather(1, token[:, None])[:, 0].double() - total.log()).to(logits.dtype)


def _block_sums(likelihood: Tensor) -> Tensor:
    """[B, V] -> [B, ceil(V / BLOCK)] float64."""
    whole = likelihood.shape[1] // BLOCK * BLOCK
    sums = likelihood[:, :whole].reshape(len(likelihood), -1, BLOCK).sum(-1) if whole else likelihood[:, :0]
    if whole < likelihood.shape[1]:
        sums = torch.cat([sums, likelihood[:, whole:].sum(-1, keepdim=True)], dim=1)
    return sums.double()


def _invert(likelihood: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
    """[B]: the token at which each row's cumulative sum passes the uniform's share of the whole; first which block of
    tokens, then which of them. What has no likelihood is never taken, whatever is rounded."""
    block, before = _passes(sums, uniforms.double() * sums.sum(-1))
    place = block[:, None] * BLOCK + torch.arange(BLOCK, device=likelihood.device)
    inside = likelihood.gather(1, place.clamp(max=likelihood.shape[1] - 1)).double()
    within, _ = _passes(inside, (uniforms.double() * sums.sum(-1) - before).clamp(min=0.0))
    # Beyond the vocabulary its last word stands again; and where nothing is a number, some token it must be.
    return (block * BLOCK + within).clamp(max=likelihood.shape[1] - 1)


def _passes(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulative sum of weights [B, K] first exceeds the target [B], 0 or more; and the sum before it."""
    cumulative = weights.cumsum(-1)
    found = torch.searchsorted(cumulative, target[:, None], right=True)
    # Rounding may carry the target to the very end: the last that has any weight is meant then.
    last = weights.shape[1] - 1 - (weights > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
    found = torch.minimum(found, last)
    return found[:, 0], (cumulative.gather(1, found) - weights.gather(1, found))[:, 0]


def _cut(likelihood: Tensor, total: Tensor, params: SamplingParams) -> Tensor:
    """Zero what top-k and top-p exclude; the likeliest token always stays. As many of the likeliest are sorted as
    top-k keeps, or as top-p needs."""
    size = likelihood.shape[1]
    count = min(size, params.top_k or BLOCK)
    while True:
        ordered, index = likelihood.topk(count, dim=-1)
        before = ordered.double().cumsum(-1) - ordered
        if count in (size, params.top_k) or bool((before[:, -1] >= params.top_p * total).all()):
            break
        count = min(size, 4 * count)
    keep = before < params.top_p * total[:, None]
    keep[:, 0] = True
    return torch.zeros_like(likelihood).scatter(-1, index, ordered * keep)
