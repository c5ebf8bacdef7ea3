"""From samples to Experience: one pass of the trunk serves reference, policy, value and reward.

Before the first update `preflight` holds the trainer's log-probabilities against the sampler's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from plaudit.algorithms.masking import masked_mean
from plaudit.data.collate import Packed, micro_batches, pack
from plaudit.models.adapter import Adapter
from plaudit.models.branch import Branch, Outputs, sight, token_logprobs, token_shares, token_values
from plaudit.models.llama import Llama
from plaudit.phases import during, phase
from plaudit.tensors import Sample
from plaudit.types import UserError

PREFLIGHT = {torch.bfloat16: 0.03, torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest mean |trainer - sampler| log-probability, nats a token. bfloat16: rounding alone makes 0.02 of it on a
135M model whose logits reach 40."""


@dataclass(frozen=True, slots=True)
class Forward:
    """What the models say of a batch before any update. B samples, T tokens; zero where packed.mask is False.

    streams: by depth, the trunk's stream [R, S, width] after that many blocks, for the epochs that follow.
    logprobs, ref_logprobs, sampled_logprobs, entropies, values [B, T]; shares [B, T], what each token
    adds to the score by a reward branch, or what an environment gave at it, None without either; values are 0 without
    a value branch.
    """

    packed: Packed
    streams: dict[int, Tensor]
    logprobs: Tensor
    ref_logprobs: Tensor
    sampled_logprobs: Tensor
    entropies: Tensor
    values: Tensor
    shares: Tensor | None

    def parts(self, rows: Tensor, budget: int) -> Iterator[Part]:
        """These rows in micro-batches of at most `budget` columns."""
        for micro in micro_batches(self.packed, budget, rows):
            yield Part(self, *self.packed.take(micro), micro)


@dataclass(frozen=True, slots=True)
class Part:
    """A micro-batch of a rollout: some rows of it, and the samples [b] (index) that stand in them."""

    seen: Forward
    packed: Packed
    index: Tensor
    rows: Tensor

    @property
    def mask(self) -> Tensor:
        return self.packed.mask

    def cut(self, x: Tensor) -> Tensor:
        """What belongs to this part of [B, ...] or [B, T, ...] of the whole rollout."""
        return x[self.index] if x.ndim == 1 else x[self.index, : self.mask.shape[1]]

    @phase("learning: policy")
    def logprobs(self, policy: Branch, *, temperature: float, entropy_gradient: bool = False) -> Outputs:
        """The policy's now, [b, t], with gradient."""
        return token_logprobs(
            policy,
            self.packed,
            temperature=temperature,
            entropy_gradient=entropy_gradient,
            **self._stream(policy),
        )

    @phase("learning: value")
    def values(self, value: Branch) -> Tensor:
        """The value head's now, [b, t], with gradient."""
        return token_values(value, self.packed, **self._stream(value))

    def _stream(self, branch: Branch) -> dict[str, Any]:
        """Where the rollout's own pass can be gone on from; a trunk of its own changes in its lower blocks, too."""
        if branch.adapter is None or branch.first not in self.seen.streams:
            return {}
        stream = self.seen.streams[branch.first][self.rows, : self.packed.ids.shape[1]]
        return {"stream": stream, "depth": branch.first}


@torch.no_grad()
def forward(
    samples: Sequence[Sample],
    *,
    reference: Llama,
    anchor: Adapter | None = None,
    policy: Branch,
    value: Branch | None,
    reward: Branch | None,
    temperature: float,
    budget: int,
    most: int = sys.maxsize,
) -> Forward:
    """Run every branch over the samples, `budget` columns at a time. Branches on the reference's trunk go on
    from its stream; others (full fine-tuning) are run whole. anchor: an adapter that is part of the reference. most:
    samples that share a row at most (see `pack`)."""
    packed = pack(
        [s.prompt_ids for s in samples],
        [s.completion_ids for s in samples],
        action_masks=[s.action_mask for s in samples],
        together=[s.prompt for s in samples],
        most=most,
        device=reference.device,
    )
    against = Branch(reference, anchor)
    branches = [branch for branch in (policy, value, reward, against) if branch is not None]
    shared = sorted({b.first for b in branches if b.trunk is reference})
    width = (packed.rows, packed.ids.shape[1], reference.shape.width)
    # The final stream serves a bare reference alone and is not kept.
    kept = [depth for depth in shared if depth < reference.shape.depth]
    streams = {d: torch.zeros(width, dtype=reference.wide, device=reference.device) for d in kept}
    per_token = {
        name: torch.zeros(packed.mask.shape, dtype=reference.wide, device=reference.device)
        for name in ("logprobs", "ref_logprobs", "entropies", "values")
    }
    given = [s.rewards for s in samples if s.rewards is not None]
    shares = torch.zeros_like(per_token["values"])
    if given:
        shares += by_token(given, samples, packed)
    for rows in micro_batches(packed, budget):
        part, index = packed.take(rows)
        context = reference.context(part.positions, sight(part))
        at, stream = 0, reference.embed(part.ids)
        here: dict[int, Tensor] = {}
        for depth in shared:
            with during("look: trunk"):
                stream = reference.run(stream, context, start=at, stop=depth)
            at, here[depth] = depth, stream
            if depth in streams:
                streams[depth][rows, : part.ids.shape[1]] = stream

        def begin(branch: Branch, here: dict[int, Tensor] = here) -> tuple[Tensor | None, int]:
            return (here[branch.first], branch.first) if branch.trunk is reference else (None, 0)

        steps = part.mask.shape[1]
        stream_, depth_ = begin(against)
        with during("look: reference"):
            ref = token_logprobs(against, part, temperature=temperature, stream=stream_, depth=depth_)
        stream_p, depth_p = begin(policy)
        with during("look: policy"):
            now = token_logprobs(
                policy, part, temperature=temperature, entropy=True, stream=stream_p, depth=depth_p
            )
        per_token["ref_logprobs"][index, :steps] = ref.logprobs
        per_token["logprobs"][index, :steps] = now.logprobs
        per_token["entropies"][index, :steps] = now.entropies
        if value is not None:
            stream_v, depth_v = begin(value)
            with during("look: value"):
                here_v = token_values(value, part, stream=stream_v, depth=depth_v)
            per_token["values"][index, :steps] = here_v.to(reference.wide)
        if reward is not None:
            stream_r, depth_r = begin(reward)
            with during("look: reward"):
                here_r = token_shares(reward, part, stream=stream_r, depth=depth_r)
            shares[index, :steps] = here_r.to(reference.wide)
    return Forward(
        packed=packed,
        streams=streams,
        sampled_logprobs=by_token([s.logprobs for s in samples], samples, packed).to(reference.wide),
        shares=None if reward is None and not given else shares,
        **per_token,
    )


def by_token(figures: Sequence[Sequence[float]], samples: Sequence[Sample], packed: Packed) -> Tensor:
    """One figure a completion token of each sample as [B, T] float64, 0 where the mask is False."""
    out = torch.zeros(packed.mask.shape, dtype=torch.float64, device=packed.mask.device)
    drawn = [s.action_mask or (True,) * len(s.completion_ids) for s in samples]
    flat = [p for own, mask in zip(figures, drawn, strict=True) for p in compress(own, mask)]
    return out.masked_scatter(packed.mask, torch.tensor(flat, dtype=torch.float64, device=packed.mask.device))


def preflight(seen: Forward, dtype: torch.dtype) -> None:
    """Refuse to start where trainer and sampler disagree about the tokens that were just sampled."""
    gap = masked_mean((seen.logprobs - seen.sampled_logprobs).abs(), seen.packed.mask)
    if not float(gap) <= PREFLIGHT[dtype]:
        raise UserError(
            f"trainer and sampler differ by {float(gap):.4f} nats a token, more than {PREFLIGHT[dtype]}",
            where="preflight",
            fix="set precision: float32" if dtype == torch.bfloat16 else "please report it",
        )
