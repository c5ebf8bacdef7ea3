"""Weights in and out of safetensors. Nothing pickled is ever loaded.

Tensors are copied out of the file's map: a mapped tensor's alignment differs from run to run, and alignment
changes the bits of a matrix product.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from plaudit.types import UserError


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file, each in memory of its own. UserError when it is missing or corrupt."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise UserError("is missing", where=str(path)) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"is not a readable safetensors file ({error})", where=str(path)) from None


def read_sharded(directory: Path) -> dict[str, Tensor]:
    """The tensors of a model directory: model.safetensors, or the shards that its index names."""
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.exists():
        return read_safetensors(whole)
    if index.exists():
        try:
            names = sorted(
                set(map(Path, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            )
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"is not a weight index ({error})", where=str(index)) from None
        tensors: dict[str, Tensor] = {}
        for name in names:
            if Path(name.name) != name:
                raise UserError(f"names a shard outside its directory: {str(name)!r}", where=str(index))
            tensors |= read_safetensors(directory / name)
        return tensors
    pickled = next(iter([*directory.glob("*.bin"), *directory.glob("*.pt")]), None)
    if pickled is not None:
        raise UserError(
            f"holds {pickled.name}, which is pickled and could run code",
            where=str(directory),
            fix="convert it to safetensors",
        )
    raise UserError("holds no model.safetensors", where=str(directory))
