"""How fast each pair of a head's numbers turns with a token's place (Su et al. 2021), and how far texts longer than
those a model was first trained on slow it: linear (Chen et al. 2023), yarn (Peng et al. 2023), and Llama 3.1's own.

The order of operations is transformers' (modeling_rope_utils.py): another rounds otherwise, and more so the further
into a text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

Kind = Literal["linear", "llama3", "yarn"]
SCALINGS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Scaling:
    """factor: how much longer texts may be than `original`, those of the first training, tokens.

    slow, fast: how often a pair turns in such a text, between which the scaling fades: pairs that turn less often than
    slow are scaled in full, those that turn more often than fast not at all (linear scales all alike). attention: what
    the rotary tables are multiplied by. whole: yarn's borders are whole pairs.
    """

    kind: Kind
    factor: float
    original: int
    slow: float
    fast: float
    attention: float
    whole: bool

    @classmethod
    def of(cls, rope: dict[str, Any], context: int) -> Scaling | None:
        """From a config's `rope_parameters`; None where nothing is scaled. KeyError for a number that is missing."""
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in SCALINGS:
            return None
        factor = float(rope["factor"])
        attention, slow, fast = 1.0, 0.0, 0.0
        if kind == "llama3":
            slow, fast = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        if kind == "yarn":
            slow, fast = float(rope.get("beta_slow") or 1), float(rope.get("beta_fast") or 32)
            attention = _yarn_attention(rope, factor)
        return cls(
            kind=cast(Kind, kind),
            factor=factor,
            original=int(rope.get("original_max_position_embeddings") or context),
            slow=slow,
            fast=fast,
            attention=attention,
            whole=bool(rope.get("truncate", True)),
        )


def _yarn_attention(rope: dict[str, Any], factor: float) -> float:
    """Peng et al. 2023, equation 22; DeepSeek's two scales in its place where both are given."""

    def scale(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    over, under = rope.get("mscale"), rope.get("mscale_all_dim")
    return scale(float(over)) / scale(float(under)) if over and under else scale(1.0)


def frequencies(
    width: int, theta: float, scaling: Scaling | None, device: torch.device | str = "cpu"
) -> Tensor:
    """[width / 2] float32: the angle a token by which each pair of a head of this width turns."""
    period = theta ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    plain = 1.0 / period
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(plain, scaling)
    return _yarn(period, width, theta, scaling)


def _llama3(plain: Tensor, scaling: Scaling) -> Tensor:
    length = 2 * math.pi / plain
    shortest, longest = scaling.original / scaling.fast, scaling.original / scaling.slow
    faded = (scaling.original / length - scaling.slow) / (scaling.fast - scaling.slow)
    between = (1 - faded) * plain / scaling.factor + faded * plain
    scaled = torch.where(length > longest, plain / scaling.factor, plain)
    return torch.where((length >= shortest) & (length <= longest), between, scaled)


def _yarn(period: Tensor, width: int, theta: float, scaling: Scaling) -> Tensor:
    def pair(turns: float) -> float:
        return width * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.fast), pair(scaling.slow)
    if scaling.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last += 0.001 * (first == last)
    ramp = (torch.arange(width // 2, dtype=torch.float32, device=period.device) - first) / (last - first)
    kept = 1 - ramp.clamp(0, 1)
    return 1.0 / (scaling.factor * period) * (1 - kept) + 1.0 / period * kept
