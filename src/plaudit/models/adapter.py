"""Low-rank adapters (Hu et al. 2021, LoRA): y = W x + (alpha / rank) B A x, with W frozen.

The file format is peft's. Adapters are arguments of a forward pass, so several share one trunk in memory.
Their weights are float32 (or wider, if the trunk is) and are cast to the trunk's dtype for the product.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from plaudit import files
from plaudit.models.weights import read_safetensors
from plaudit.types import UserError

OTHER_KINDS = (
    "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out", "lora_bias",
    "layer_replication", "exclude_modules", "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
)  # fmt: skip
"""Settings of peft's that make of a LoRA adapter something else than W x + (alpha / r) B A x."""
PLAIN = {"peft_type": "LORA", "bias": "none"}


class Adapter(nn.Module):
    """A and B for each adapted linear map of blocks first to depth - 1."""

    def __init__(
        self,
        sizes: dict[str, tuple[int, int]],
        *,
        first: int,
        depth: int,
        rank: int,
        alpha: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """sizes: (out, in) of each adapted linear map, by its name in transformers."""
        super().__init__()
        self.first, self.depth, self.rank, self.alpha = first, depth, rank, alpha
        self.targets = tuple(sizes)
        self.factors = nn.ParameterDict()
        for block in range(first, depth):
            for name, (out, into) in sizes.items():
                self.factors[f"{block}_{name}_A"] = nn.Parameter(torch.zeros(rank, into, dtype=dtype))
                self.factors[f"{block}_{name}_B"] = nn.Parameter(torch.zeros(out, rank, dtype=dtype))

    def initialise(self, seed: int) -> Adapter:
        """A uniform within 1/sqrt(in) (Kaiming with a = sqrt(5), as in peft), B zero: at first no change."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, factor in self.factors.items():
                if name.endswith("_A"):
                    bound = factor.shape[1] ** -0.5
                    draw = torch.rand(factor.shape, generator=generator, dtype=torch.float64)
                    factor.copy_(((2 * draw - 1) * bound).to(factor))
                else:
                    factor.zero_()
        return self

    def covers(self, block: int, name: str) -> bool:
        return block >= self.first and name in self.targets

    def delta(self, block: int, name: str, x: Tensor) -> Tensor:
        """(alpha / rank) B A x for one linear map; x [..., in] -> [..., out]."""
        a, b = self.factors[f"{block}_{name}_A"].to(x.dtype), self.factors[f"{block}_{name}_B"].to(x.dtype)
        return F.linear(F.linear(x, a) * (self.alpha / self.rank), b)

    def merged(self, block: int, name: str, weight: Tensor) -> Tensor:
        """weight + (alpha / rank) B A, added in float32 (float64 stays); in the weight's own dtype."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        a, b = self.factors[f"{block}_{name}_A"].to(wide), self.factors[f"{block}_{name}_B"].to(wide)
        summed: Tensor = weight.to(wide) + (self.alpha / self.rank) * (b @ a)
        return summed.to(weight.dtype)


def save_adapter(adapter: Adapter, directory: Path, base: str) -> None:
    """Write peft's adapter_config.json and adapter_model.safetensors into an existing directory."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(adapter.targets),
        "layers_to_transform": list(range(adapter.first, adapter.depth)),
        "layers_pattern": "layers",
    }
    files.write_text(directory / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    tensors = {}
    for name, factor in adapter.factors.items():
        block, rest = name.split("_", 1)
        module, side = rest.rsplit("_", 1)
        tensors[f"base_model.model.{_hf_module(int(block), module)}.lora_{side}.weight"] = (
            factor.detach().contiguous()
        )
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def load_adapter(
    directory: Path, sizes: dict[str, tuple[int, int]], depth: int, dtype: torch.dtype
) -> Adapter:
    """An adapter from peft's files, for a trunk with these linear maps. UserError when they do not fit."""
    path = directory / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        targets: Sequence[str] = list(config["target_modules"])
        kind = {name: config.get(name, plain) for name, plain in PLAIN.items()}
        blocks = sorted(config.get("layers_to_transform") or range(depth))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"is not a LoRA adapter's config ({error})", where=str(path)) from None
    other = [f"{name} {config[name]!r}" for name in OTHER_KINDS if config.get(name)]
    other += [f"{name} {kind[name]!r}" for name, plain in PLAIN.items() if kind[name] != plain]
    if other:
        raise UserError(f"{other[0]} is not supported", where=str(path), fix="use a plain LoRA adapter")
    unknown = sorted(set(targets) - set(sizes))
    if unknown or blocks != list(range(blocks[0], depth)):
        raise UserError(f"adapts {unknown or blocks}, which this model does not have", where=str(path))
    kept = {name: sizes[name] for name in sizes if name in targets}
    adapter = Adapter(kept, first=blocks[0], depth=depth, rank=rank, alpha=alpha, dtype=dtype)
    tensors = read_safetensors(directory / "adapter_model.safetensors")
    with torch.no_grad():
        for name, factor in adapter.factors.items():
            block, rest = name.split("_", 1)
            module, side = rest.rsplit("_", 1)
            key = f"base_model.model.{_hf_module(int(block), module)}.lora_{side}.weight"
            found = tensors.pop(key, None)
            if found is None or found.shape != factor.shape:
                raise UserError(f"has no {key} of shape {tuple(factor.shape)}", where=str(directory))
            factor.copy_(found)
    if tensors:
        raise UserError(f"holds {min(tensors)}, which its config does not name", where=str(directory))
    return adapter


def _hf_module(block: int, name: str) -> str:
    part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"model.layers.{block}.{part}.{name}"
