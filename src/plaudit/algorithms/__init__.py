"""Pure functions of tensors and keyword floats: no config, no I/O, torch and nothing else."""

from typing import NamedTuple

from torch import Tensor


class LossOutput(NamedTuple):
    """A scalar to minimise, and detached scalars to log."""

    loss: Tensor
    metrics: dict[str, Tensor]
