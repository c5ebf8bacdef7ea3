"""A branch is a model as an algorithm sees it: a trunk, perhaps an adapter on it, perhaps a scalar head.

Policy, reference, value and reward are branches. Branches of one frozen trunk share what they have in common: the
blocks below the first adapted one are computed once, without gradients, and each branch goes on from there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plaudit.algorithms.logprobs import selected_logprobs
from plaudit.data.collate import Packed
from plaudit.models.adapter import Adapter
from plaudit.models.attention import Tiles, tiles_of
from plaudit.models.dropout import Dropout
from plaudit.models.llama import Llama

Pool = Literal["last", "mean"]


class ScalarHead(nn.Module):
    """hidden -> one number: (weight . (hidden - centre) / scale + bias) * gain + shift, in float32.

    Zero at first for a value head (Ziegler et al. 2019); normal with std 1/sqrt(width + 1) and bias 0 for a reward
    head (Stiennon et al. 2020, appendix B.1). The buffers are not learned: centre and scale (0 and 1 at first) even
    out the few very large dimensions that every trunk has; gain and shift normalise a trained reward.
    """

    centre: Tensor
    scale: Tensor
    gain: Tensor
    shift: Tensor

    def __init__(self, width: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros((), dtype=dtype))
        self.register_buffer("centre", torch.zeros(width, dtype=dtype))
        self.register_buffer("scale", torch.ones(width, dtype=dtype))
        self.register_buffer("gain", torch.ones((), dtype=dtype))
        self.register_buffer("shift", torch.zeros((), dtype=dtype))

    def initialise(self, seed: int) -> ScalarHead:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(self.weight.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            self.weight.copy_(draw * (self.weight.numel() + 1) ** -0.5)
        return self

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [...]."""
        even = (hidden.to(self.weight.dtype) - self.centre) / self.scale
        raw = even @ self.weight + self.bias
        return raw * self.gain + self.shift


@dataclass(slots=True)
class Branch:
    """One model: its trunk (frozen where an adapter is), its adapter, its head.

    exit: the head reads the stream after so many blocks (None: after all of them and the final norm). What a text
    says is plainest half-way up, and a branch that leaves there costs half as much.
    pool: what `final_scores` reads, the completion's last token or the mean over its tokens.
    """

    trunk: Llama
    adapter: Adapter | None = None
    head: ScalarHead | None = None
    exit: int | None = None
    pool: Pool = "last"

    @property
    def first(self) -> int:
        """The first block that differs from the trunk's own; all blocks are the trunk's where nothing adapts."""
        if any(p.requires_grad for p in self.trunk.parameters()):
            return 0
        if self.adapter is None:
            return self.trunk.shape.depth if self.exit is None else self.exit
        return self.adapter.first

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """What is the branch's own, by name: the adapter or the whole trainable trunk, and the head."""
        if self.adapter is not None:
            yield "adapter", self.adapter
        elif any(p.requires_grad for p in self.trunk.parameters()):
            yield "trunk", self.trunk
        if self.head is not None:
            yield "head", self.head

    def snapshot(self) -> Branch:
        """The same model as it is now, whatever becomes of this one: a frozen trunk is shared, all else copied."""
        frozen = not any(p.requires_grad for p in self.trunk.parameters())
        return replace(
            self,
            trunk=self.trunk if frozen else copy.deepcopy(self.trunk),
            adapter=copy.deepcopy(self.adapter),
            head=copy.deepcopy(self.head),
        )

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser changes."""
        return [p for _, module in self.modules() for p in module.parameters() if p.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """All tensors of the branch's own, by dotted name."""
        return {
            f"{name}.{key}": t for name, module in self.modules() for key, t in module.state_dict().items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, module in self.modules():
            prefix = f"{name}."
            own = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
            module.load_state_dict(own)


@dataclass(frozen=True, slots=True)
class Outputs:
    """Per completion token [B, T], zero where the mask is False; logprobs and entropies in nats, the latter NaN where
    they were not asked for."""

    logprobs: Tensor
    entropies: Tensor


def sight(packed: Packed) -> Tensor | Tiles:
    """Who sees whom, in the form that attention is fastest in: tiles on a CPU, a mask [R, S, S] elsewhere."""
    return tiles_of(packed.segments) if packed.segments.device.type == "cpu" else packed.visible()


def lower_stream(trunk: Llama, packed: Packed, depth: int) -> Tensor:
    """The stream [R, S, width] after the trunk's first `depth` blocks, without gradients."""
    with torch.no_grad():
        context = trunk.context(packed.positions, sight(packed))
        return trunk.run(trunk.embed(packed.ids), context, stop=depth)


def hidden_states(
    branch: Branch,
    packed: Packed,
    stream: Tensor | None = None,
    depth: int = 0,
    dropout: Dropout | None = None,
) -> Tensor:
    """What the output layer and the head read, [R * S, width]; from a stream already at `depth`, if given. dropout:
    in the branch's own blocks; the frozen ones below them have none."""
    trunk = branch.trunk
    if stream is None:
        depth, stream = 0, trunk.embed(packed.ids)
        if branch.first > 0:
            depth, stream = branch.first, lower_stream(trunk, packed, branch.first)
    context = replace(trunk.context(packed.positions, sight(packed)), dropout=dropout)
    out = trunk.run(stream, context, branch.adapter, start=depth, stop=branch.exit)
    out = trunk.finish(out) if branch.exit is None else F.rms_norm(out, (trunk.shape.width,))
    return out.reshape(-1, trunk.shape.width)


def token_logprobs(
    branch: Branch,
    packed: Packed,
    *,
    temperature: float = 1.0,
    stream: Tensor | None = None,
    depth: int = 0,
    entropy: bool = False,
    entropy_gradient: bool = False,
    dropout: Dropout | None = None,
) -> Outputs:
    """Log-probability of every completion token, and where it is asked for the entropy, with or without gradient.

    The one place that knows of padding, packing and shared prompts; the output layer is computed on completion
    tokens only. stream: the trunk's, after `depth` blocks that the branch does not adapt. dropout: in supervised
    training alone.
    """
    hidden = hidden_states(branch, packed, stream, depth, dropout)
    states = hidden.index_select(0, packed.predictor[packed.mask])
    logprobs, entropies = selected_logprobs(
        states,
        branch.trunk.output_weight,
        packed.tokens[packed.mask],
        temperature=temperature,
        entropy=entropy,
        entropy_gradient=entropy_gradient,
        products=branch.trunk.dtype,
    )
    return Outputs(_spread(logprobs, packed.mask), _spread(entropies, packed.mask))


def token_values(branch: Branch, packed: Packed, *, stream: Tensor | None = None, depth: int = 0) -> Tensor:
    """[B, T]: the head's value of the state before each completion token, zero where the mask is False."""
    assert branch.head is not None
    hidden = hidden_states(branch, packed, stream, depth)
    return _spread(branch.head(hidden.index_select(0, packed.predictor[packed.mask])), packed.mask)


def final_scores(branch: Branch, packed: Packed, *, stream: Tensor | None = None, depth: int = 0) -> Tensor:
    """[B]: the head's number of each completion, at its last token or of its tokens' mean (branch.pool)."""
    assert branch.head is not None
    scores: Tensor = branch.head(pooled_states(branch, packed, stream=stream, depth=depth))
    return scores


def token_shares(branch: Branch, packed: Packed, *, stream: Tensor | None = None, depth: int = 0) -> Tensor:
    """[B, T]: what each completion token adds to the final score, zero where the mask is False; a row's sum is the
    score.

    The head is linear, so its number of the tokens' mean is the mean of its numbers of the tokens; each depends on
    the text up to its token alone. Where the last token is scored, the last that the mask counts has all.
    """
    assert branch.head is not None
    if branch.pool == "last":
        scores = final_scores(branch, packed, stream=stream, depth=depth)
        return scores[:, None] * packed.final()
    hidden = hidden_states(branch, packed, stream, depth)
    own = branch.head(hidden.index_select(0, packed.own()[packed.mask]))
    return _spread(own, packed.mask) / packed.mask.sum(1, keepdim=True)


def pooled_states(branch: Branch, packed: Packed, *, stream: Tensor | None = None, depth: int = 0) -> Tensor:
    """[B, width]: what the head reads of each completion, by branch.pool: its last token, whoever said it, or the
    mean of the tokens that the mask counts."""
    hidden = hidden_states(branch, packed, stream, depth)
    if branch.pool == "last":
        return hidden.index_select(0, packed.last)
    spread = torch.zeros(*packed.mask.shape, hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
    own = hidden.index_select(0, packed.own()[packed.mask])
    spread = spread.masked_scatter(packed.mask[..., None], own)
    return spread.sum(1) / packed.mask.sum(1, keepdim=True)


def _spread(flat: Tensor, mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
