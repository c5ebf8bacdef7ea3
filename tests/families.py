"""Random models of every family that our forward has, made and saved by transformers, with all that may vary."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from plaudit.models import tiny
from plaudit.models.llama import FAMILIES

SIZES: dict[str, Any] = {
    "vocab_size": 714,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "rope_theta": 5000.0,
    "rms_norm_eps": 3e-5,
}


def make(family: str, directory: Path, **changes: Any) -> Path:
    """A random model that transformers made and saved, with the tiny model's tokenizer beside it."""
    import transformers

    sizes = SIZES | {"tie_word_embeddings": True} | changes
    if "rope_parameters" in changes:
        del sizes["rope_theta"]
    if family == "mistral":
        sizes = {"sliding_window": None} | sizes
    if family == "qwen2":
        del sizes["head_dim"]
    config = getattr(transformers, f"{family.capitalize()}Config")(**sizes)
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # norms and biases start at 1 and 0, where a forgotten one would not be seen
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(str(directory))
    for path in tiny.make(directory.parent / "tokenizer").glob("tokenizer*"):
        shutil.copy(path, directory)
    (directory / "generation_config.json").write_text('{"eos_token_id": 1}')
    return directory


def rope(kind: str, **numbers: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 5000.0, "factor": 8.0} | numbers}


LONGER = {
    "linear": rope("linear"),
    "llama3": rope(
        "llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
    "yarn": rope("yarn", original_max_position_embeddings=64),
    "yarn of other borders": rope(
        "yarn", original_max_position_embeddings=300, beta_fast=6.0, beta_slow=0.9, truncate=False, mscale=0.7,
        mscale_all_dim=0.3,
    ),
    "yarn that says its attention": rope("yarn", attention_factor=1.3),
}  # fmt: skip
"""Rotary tables for texts longer than those of the first training, whose numbers differ within 40 tokens."""
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {"tie_word_embeddings": tied}) for family in FAMILIES for tied in (True, False)),
    *(("llama", changes) for changes in LONGER.values()),
    ("qwen2", LONGER["yarn"]),
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True}),
    ("qwen3", {"attention_bias": True}),
    ("gemma", {"attention_bias": True, "hidden_act": "gelu"}),
    ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    ("mistral", {"sliding_window": 40}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}),
]


def called(variant: tuple[str, dict[str, Any]]) -> str:
    family, changes = variant
    return f"{family} {', '.join(map(str, changes.values()))}"[:60]
