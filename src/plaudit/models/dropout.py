"""Dropout whose draws are keyed, so that a killed run and another split into micro-batches drop the same numbers.

For supervised training alone: reinforcement learning compares a policy with itself, and has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.data.collate import PADDING, Packed
from plaudit.randomness import torch_seed
from plaudit.tensors import Key


@dataclass(frozen=True, slots=True)
class Dropout:
    """What one forward pass leaves out: each number with probability `rate`, the others divided by 1 - rate
    (Srivastava et al. 2014, section 10: nothing is to be scaled when nothing is dropped).

    keys, lengths: of each row, what its draws depend on and how many columns it has without its padding.
    """

    rate: float
    keys: tuple[Key, ...]
    lengths: tuple[int, ...]


def row_dropout(rate: float, part: Packed, rows: Tensor, key: Key) -> Dropout | None:
    """The dropout of some rows of a batch; None where the rate is 0.

    rows: their numbers in the whole batch; key: the whole batch's. A row's draws depend on the key, its number, the
    place in the model and the column, so completions that share a prompt share what is dropped of it.
    """
    if rate == 0:
        return None
    lengths = (part.segments != PADDING).sum(1).tolist()
    return Dropout(rate, tuple((*key, int(row)) for row in rows), tuple(lengths))


def drop(x: Tensor, dropout: Dropout | None, *place: int | str) -> Tensor:
    """x [R, S, width], or [1, N, width] of rows without their padding, with some of its numbers left out; as it is
    where there is no dropout. place: in the model."""
    if dropout is None:
        return x
    keep = torch.ones(x.shape, dtype=torch.bool, device=x.device)
    generator = torch.Generator(device=x.device)
    start = 0
    for row, (key, length) in enumerate(zip(dropout.keys, dropout.lengths, strict=True)):
        generator.manual_seed(torch_seed(*key, *place))
        # Drawn for the row's own length: its padding is another in another micro-batch.
        draw = torch.rand(length, x.shape[2], generator=generator, device=x.device)
        own = keep[row, :length] if len(x) == len(dropout.keys) else keep[0, start : start + length]
        own.copy_(draw >= dropout.rate)
        start += length
    return torch.where(keep, x / (1 - dropout.rate), torch.zeros((), dtype=x.dtype, device=x.device))
