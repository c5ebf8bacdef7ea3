"""Values of labels for a text: a linear head on a branch's pooled state, kept in a directory of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from plaudit import files
from plaudit.data.collate import Packed, micro_batches, pack
from plaudit.models.adapter import load_adapter, save_adapter
from plaudit.models.branch import Branch, pooled_states
from plaudit.models.load import Model, linear_sizes
from plaudit.models.weights import read_safetensors
from plaudit.types import UserError


class LabelHead(nn.Module):
    """state -> one log-odds a label: weight . (state - centre) / scale + bias, all 0 at first.

    centre and scale are not learned: they even out the few very large dimensions that every trunk has.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, width: int, labels: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(labels, width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(labels, dtype=dtype))
        self.register_buffer("centre", torch.zeros(width, dtype=dtype))
        self.register_buffer("scale", torch.ones(width, dtype=dtype))

    def even_out(self, states: Tensor) -> None:
        """Take centre and scale from these states [N, width]."""
        self.centre.copy_(states.mean(0))
        self.scale.copy_(states.std(0, correction=0).clamp(min=1e-6))

    def forward(self, states: Tensor) -> Tensor:
        """[N, width] -> [N, labels]."""
        even = (states.to(self.weight.dtype) - self.centre) / self.scale
        return even @ self.weight.T + self.bias


class Classifier:
    """Q(x, a) = sigmoid of the head's number of label a for text x: the reward that is expected of choosing it."""

    def __init__(
        self, branch: Branch, head: LabelHead, labels: Sequence[str], model: Model, *, budget: int = 4096
    ) -> None:
        """budget: columns a forward pass, padding counted."""
        self.branch, self.head, self.labels, self.model = branch, head, tuple(labels), model
        self.budget = budget

    def packed(self, texts: Sequence[Sequence[int]]) -> Packed:
        """Texts as ids, each after an end-of-text token, as a document follows another."""
        start = [self.model.tokenizer.eos_ids[0]]
        return pack([start] * len(texts), texts, max_row=0, device=self.model.trunk.device)

    @torch.no_grad()
    def states(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """[N, width]: what the head reads of each text."""
        trunk = self.model.trunk
        out = torch.zeros(len(texts), trunk.shape.width, dtype=trunk.wide, device=trunk.device)
        if texts:
            packed = self.packed(texts)
            for rows in micro_batches(packed, self.budget):
                part, index = packed.take(rows)
                out[index] = pooled_states(self.branch, part)
        return out

    @torch.no_grad()
    def values(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """[N, labels] in 0 to 1. UserError for one that is not a number."""
        found = torch.sigmoid(self.head(self.states(texts)))
        if not bool(torch.isfinite(found).all()):
            raise UserError(
                "a value is not a number", where="classifier", fix="train it again at a lower rate"
            )
        return found

    def save(self, directory: Path, facts: dict[str, Any]) -> None:
        """Write adapter (peft's format, where there is one), head and facts."""
        with files.new_directory(directory) as place:
            if self.branch.adapter is not None:
                save_adapter(self.branch.adapter, place, base=str(self.model.directory))
            tensors = {k: v.to("cpu").contiguous() for k, v in self.head.state_dict().items()}
            save_file(tensors, place / "head.safetensors")
            about = {
                "labels": list(self.labels),
                "base_model": str(self.model.directory),
                "tokenizer": self.model.tokenizer.fingerprint,
                "trunk": self.model.trunk.fingerprint(),
                "adapter": self.branch.adapter is not None,
                "exit": self.branch.exit,
                "pool": self.branch.pool,
            }
            files.write_json(place / "classifier.json", about | facts)


def load_classifier(directory: Path, model: Model) -> Classifier:
    """The classifier in a directory, on the trunk it was trained on. UserError where the two do not belong."""
    about = describe(directory)
    trunk = model.trunk
    if (about.get("tokenizer"), about.get("trunk")) != (model.tokenizer.fingerprint, trunk.fingerprint()):
        raise UserError(
            "was trained on another model", where=str(directory), fix=f"use {about.get('base_model')}"
        )
    leave, adapter = about.get("exit"), None
    if about.get("adapter"):
        depth = trunk.shape.depth if leave is None else leave
        adapter = load_adapter(directory, linear_sizes(trunk), depth, trunk.wide).to(trunk.device)
        adapter.requires_grad_(False)
    head = LabelHead(trunk.shape.width, len(about["labels"]), dtype=trunk.wide).to(trunk.device)
    try:
        head.load_state_dict(read_safetensors(directory / "head.safetensors"))
    except RuntimeError as error:  # a tensor is missing, too many or misshapen
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"does not fit this model ({reason})", where=str(directory / "head.safetensors")
        ) from None
    branch = Branch(trunk, adapter, exit=leave, pool=about.get("pool", "mean"))
    return Classifier(branch, head.requires_grad_(False), about["labels"], model)


def describe(directory: Path) -> dict[str, Any]:
    """The facts kept with a classifier. UserError where the directory holds none."""
    path = directory / "classifier.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, dict) or not isinstance(about.get("labels"), list):
            raise ValueError("it names no labels")
    except OSError:
        raise UserError(
            "holds no classifier", where=str(directory), fix="train one with the bandit recipe"
        ) from None
    except ValueError as error:
        raise UserError(f"does not describe a classifier ({error})", where=str(path)) from None
    return about
