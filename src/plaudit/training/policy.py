"""What every recipe that trains a language model does with it: make it trainable, and write the result."""

from __future__ import annotations

import copy
from pathlib import Path

from pydantic import Field

from plaudit import files
from plaudit.config import Config
from plaudit.models.adapter import save_adapter
from plaudit.models.branch import Branch
from plaudit.models.llama import Llama
from plaudit.models.load import Model, export, make_adapter, open_adapter


class AdapterConfig(Config):
    """rank 0 trains the whole model; alpha: the update's scale is alpha / rank; blocks: top blocks (0: all)."""

    rank: int = Field(default=16, ge=0)
    alpha: float = Field(default=32.0, gt=0)
    blocks: int = Field(default=0, ge=0)


def check_start(start: str | None, adapter: AdapterConfig) -> None:
    """ValueError for settings of which one has an adapter to go on from and the other trains none."""
    if start is not None and adapter.rank == 0:
        raise ValueError("start is an adapter, and adapter.rank 0 trains the whole model without one")


def make_policy(model: Model, adapter: AdapterConfig, *, seed: int, start: str | None = None) -> Branch:
    """An adapter on the model's frozen trunk (fresh, or the one in the directory `start`), or (rank 0) a copy of the
    whole trunk that is trained.

    The bare trunk stays what it was: the reference. UserError where `start` holds no adapter that fits.
    """
    trunk = model.trunk
    if adapter.rank == 0:
        return Branch(whole_copy(trunk))
    if start is not None:
        return Branch(trunk, open_adapter(Path(start), trunk))
    fresh = make_adapter(trunk, rank=adapter.rank, alpha=adapter.alpha, blocks=adapter.blocks, seed=seed)
    return Branch(trunk, fresh)


def whole_copy(trunk: Llama) -> Llama:
    """A copy to be trained whole: its weights in float32 or wider, its products in the trunk's own dtype."""
    copied = copy.deepcopy(trunk).to(trunk.wide).requires_grad_(True)
    copied.products = trunk.dtype
    return copied


def write_policy(policy: Branch, model: Model, directory: Path) -> None:
    """In a run's directory: adapter/ (peft's format, where there is one) and model/, which transformers loads."""
    if policy.adapter is not None:
        with files.new_directory(directory / "adapter") as place:
            save_adapter(policy.adapter, place, base=str(model.directory))
            about = {"base_model": str(model.directory), "trunk": model.trunk.fingerprint()}
            files.write_json(place / "policy.json", about)
    export(model, directory / "model", policy.adapter, None if policy.adapter else policy.trunk)
