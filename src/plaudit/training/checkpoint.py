"""Checkpoints: all that a step needs to be taken again, in safetensors and JSON, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from plaudit import files
from plaudit.models.weights import read_safetensors
from plaudit.phases import phase
from plaudit.training import machine
from plaudit.types import UserError

RELEASE_EVERY = 60.0
"""Seconds between two times at the least that free memory goes back: the next step pays for fetching it again."""


@phase("checkpoint")
def save(
    directory: Path,
    step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    *,
    keep: int = 2,
    spare: int | None = None,
) -> None:
    """Write directory/step-N at once; then drop all but the newest `keep` and the one of step `spare`. What memory is
    free by then goes back to the system, unless some did a moment ago."""
    with files.new_directory(_place(directory, step)) as place:
        save_file(
            {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()},
            place / "tensors.safetensors",
        )
        files.write_json(place / "state.json", {"step": step, **state})
    for old in _steps(directory)[:-keep]:
        if spare is None or old != _place(directory, spare):
            shutil.rmtree(old)
    machine.release(every=RELEASE_EVERY)


def latest(directory: Path, before: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint (before this step, if one is named), None where there is none."""
    steps = [p for p in _steps(directory) if before is None or p.name < _place(directory, before).name]
    return _read(steps[-1]) if steps else None


def at(directory: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of the checkpoint of this step."""
    return _read(_place(directory, step))


def _read(place: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = place / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict) or "step" not in state:
            raise ValueError("it names no step")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), fix=f"remove {place.name}") from None
    return read_safetensors(place / "tensors.safetensors"), state


def _place(directory: Path, step: int) -> Path:
    return directory / f"step-{step:06d}"


def _steps(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step-*") if path.is_dir())


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by flat names; its hyperparameters are the config's."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": value for index, slots in state.items() for key, value in slots.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            slots.setdefault(int(index), {})[key] = value
    tree = optimizer.state_dict()
    tree["state"] = slots
    optimizer.load_state_dict(tree)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")
    }
