"""The heads of value-based learning: two Q heads, their slow copies (targets) and a V head, beside one another.

They read the states that a branch's output layer reads. A head costs vocabulary x width numbers, four of them with
the targets; V is a `ScalarHead`. In a run's heads/ they stand as safetensors, with a JSON that says whose states
they read.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from plaudit import files
from plaudit.algorithms.q_loss import Linear, steered_logprobs
from plaudit.models.branch import ScalarHead
from plaudit.models.load import Model
from plaudit.models.weights import read_safetensors
from plaudit.types import UserError


class QHead(nn.Module):
    """state -> one number a word: linear on the state (hidden 0), or on `hidden` rectified features of it."""

    def __init__(self, width: int, vocab: int, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.zeros(hidden, width, dtype=dtype)) if hidden else None
        self.inner_bias = nn.Parameter(torch.zeros(hidden, dtype=dtype)) if hidden else None
        self.weight = nn.Parameter(torch.zeros(vocab, hidden or width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(vocab, dtype=dtype))

    def initialise(self, seed: int) -> QHead:
        """Inner weights normal with std sqrt(2 / width) (He et al. 2015); the last layer's a tenth of 1/sqrt(in + 1),
        so that the first Q are near 0, as V's are, and the twins differ."""
        generator = torch.Generator().manual_seed(seed)

        def normal(parameter: nn.Parameter, std: float) -> None:
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(draw * std)

        with torch.no_grad():
            if self.inner is not None:
                normal(self.inner, (2 / self.inner.shape[1]) ** 0.5)
            normal(self.weight, 0.1 * (self.weight.shape[1] + 1) ** -0.5)
        return self

    def on(self, states: Tensor) -> Linear:
        """The head on these states [N, width], which are scaled to a root mean square of 1."""
        even = scaled(states, self.weight.dtype)
        if self.inner is not None and self.inner_bias is not None:
            even = F.relu(F.linear(even, self.inner, self.inner_bias))
        return Linear(even, self.weight, self.bias)


class QHeads(nn.Module):
    """Two Q heads, their targets and V."""

    def __init__(
        self, width: int, vocab: int, *, hidden: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.twins = nn.ModuleList(QHead(width, vocab, hidden, dtype) for _ in range(2))
        self.targets = copy.deepcopy(self.twins).requires_grad_(False)
        self.value = ScalarHead(width, dtype=dtype)

    def initialise(self, seed: int) -> QHeads:
        """Fresh twins, targets equal to them, V at 0."""
        for number, head in enumerate(self.twins):
            cast(QHead, head).initialise(seed + number)
        self.targets.load_state_dict(self.twins.state_dict())
        return self

    def online(self, states: Tensor) -> list[Linear]:
        return [cast(QHead, head).on(states) for head in self.twins]

    def slow(self, states: Tensor) -> list[Linear]:
        return [cast(QHead, head).on(states) for head in self.targets]

    def values(self, states: Tensor) -> Tensor:
        """V of states [N, width] -> [N]."""
        found: Tensor = self.value(scaled(states, self.value.weight.dtype))
        return found

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        """Polyak averaging: every target goes `rate` of the way to its twin."""
        for slow, fast in zip(self.targets.parameters(), self.twins.parameters(), strict=True):
            slow.lerp_(fast, rate)

    def parameters_to_learn(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    @torch.no_grad()
    def advantages(self, states: Tensor) -> Tensor:
        """The least of the targets' Q, minus V, of every word. [N, width] -> [N, vocab]."""
        first, second = (h.features @ h.weight.T + h.bias for h in self.slow(states))
        return torch.minimum(first, second) - self.values(states)[:, None]


class Steering:
    """What a sampling engine steers by: the behaviour policy's logits, tilted by beta times the advantages."""

    def __init__(self, heads: QHeads, beta: float) -> None:
        self.heads, self.beta = heads, beta

    def __call__(self, states: Tensor, logits: Tensor) -> Tensor:
        """states [B, width], logits [B, V] -> log-probabilities [B, V]."""
        return steered_logprobs(logits, self.heads.advantages(states).to(logits.dtype), beta=self.beta)


def scaled(states: Tensor, dtype: torch.dtype) -> Tensor:
    """States with a root mean square of 1: a trunk's own scale is another for every trunk."""
    return F.rms_norm(states.to(dtype), (states.shape[-1],))


def save_heads(heads: QHeads, directory: Path, facts: dict[str, Any]) -> None:
    """Write heads.safetensors and heads.json; facts say what they were trained on, and as what."""
    with files.new_directory(directory) as place:
        tensors = {name: t.detach().to("cpu").contiguous() for name, t in heads.state_dict().items()}
        save_file(tensors, place / "heads.safetensors")
        files.write_json(place / "heads.json", {"hidden": heads.hidden, **facts})


def load_heads(run: Path, model: Model) -> QHeads:
    """The heads of a run, on the model that the run wrote. UserError where there are none, or the two do not belong."""
    path = run / "heads" / "heads.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        hidden, reads = int(about["hidden"]), (str(about["tokenizer"]), str(about["model"]))
    except OSError:
        raise UserError(
            "holds no Q heads", where=str(run), fix="name the directory of an ilql run that has finished"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"does not describe Q heads ({error})", where=str(path)) from None
    trunk = model.trunk
    if reads != (model.tokenizer.fingerprint, trunk.fingerprint()):
        raise UserError(
            "its Q heads read another model's states", where=str(run), fix=f"sample from {run / 'model'}"
        )
    heads = QHeads(trunk.shape.width, trunk.shape.vocab, hidden=hidden, dtype=trunk.wide)
    try:
        heads.load_state_dict(read_safetensors(run / "heads" / "heads.safetensors"))
    except RuntimeError as error:  # a tensor is missing, too many or misshapen
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"does not fit this model ({reason})", where=str(run / "heads")) from None
    return heads.to(trunk.device).requires_grad_(False)
