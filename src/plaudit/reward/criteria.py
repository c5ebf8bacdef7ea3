"""Several criteria on one trunk: a linear head each, and the score their weighted sum, which is a linear head again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from plaudit.models.branch import ScalarHead
from plaudit.models.weights import read_safetensors

FILE = "criteria.safetensors"


class CriteriaHead(ScalarHead):
    """hidden -> the weighted sum of the criteria's numbers; `each` gives them apart, in log-odds.

    weight [C, width], bias [C]; shares [C]: of the criteria in the sum. Centre, scale, gain and shift as in ScalarHead.
    """

    shares: Tensor

    def __init__(
        self, width: int, shares: Mapping[str, float], *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(width, dtype=dtype)
        self.names = tuple(shares)
        self.weight = nn.Parameter(torch.zeros(len(shares), width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(len(shares), dtype=dtype))
        self.register_buffer("shares", torch.tensor(list(shares.values()), dtype=dtype))

    def initialise(self, seed: int) -> CriteriaHead:
        """Each criterion's weights normal with std 1/sqrt(width + 1), as a ScalarHead's."""
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(self.weight.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            self.weight.copy_(draw / math.sqrt(self.weight.shape[1] + 1))
        return self

    def each(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [..., C], before gain and shift."""
        even = (hidden.to(self.weight.dtype) - self.centre) / self.scale
        return even @ self.weight.T + self.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [...]."""
        return (self.each(hidden) @ self.shares) * self.gain + self.shift

    def by_name(self) -> dict[str, float]:
        """Each criterion's share of the score."""
        return dict(zip(self.names, self.shares.tolist(), strict=True))

    def merged(self) -> ScalarHead:
        """The same numbers from one head."""
        head = ScalarHead(self.weight.shape[1], dtype=self.weight.dtype).to(self.weight.device)
        with torch.no_grad():
            head.weight.copy_(self.shares @ self.weight)
            head.bias.copy_(self.shares @ self.bias)
            for name, buffer in head.named_buffers():
                buffer.copy_(getattr(self, name))
        return head

    def save(self, directory: Path) -> None:
        """Write the criteria's heads beside the merged one; their names are in the facts."""
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()},
            directory / FILE,
        )


def load_criteria(
    directory: Path, shares: Mapping[str, float], width: int, dtype: torch.dtype
) -> CriteriaHead:
    """What `save` wrote; shares by name, as the reward model's facts give them."""
    head = CriteriaHead(width, shares, dtype=dtype)
    head.load_state_dict(read_safetensors(directory / FILE))
    return head.requires_grad_(False)
