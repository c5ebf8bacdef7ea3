"""A very small Llama made from scratch, with a tokenizer of its own: for tests, where no answer makes sense."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from plaudit import files

WORDS = (
    "I you we they he she it my your our the a an and or but so to of in on at for with about from is are was be "
    "have has had do did not can will would should could may what when where who how why which there here this that "
    "these those one two some any all more very really just only also now then today morning evening night week day "
    "time work home friend family food water rain sun weather train car dog cat book music film game money job "
    "school city street house garden kitchen coffee tea bread dinner lunch breakfast sleep walk run talk think feel "
    "know want need like make take give get go come see hear say tell ask try start stop keep help find lose win "
    "good great happy love nice best better wonderful excellent fun enjoy hope glad thanks kind beautiful perfect "
    "amazing delicious friendly calm safe proud laugh smile joy warm welcome brilliant awesome sweet lovely fine "
    "bad sad hate awful terrible worst worse angry sick hurt pain fear afraid lonely tired broken wrong sorry lost "
    "fail failed problem trouble worry worried cry cold ugly horrible boring annoying stupid useless stress dead"
)
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "dtype": "float32",
}


def make(parent: Path, seed: int = 0) -> Path:
    """The tiny model's directory below parent, made if it is not there."""
    directory = parent / f"tiny-{seed}"
    if (directory / "config.json").exists():
        return directory
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([" " + " ".join(WORDS.split()), WORDS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", chat_template=TEMPLATE
    )
    config = CONFIG | {"vocab_size": len(tokenizer)}
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator) * 0.05

    width, mlp, kv = 64, 128, 32
    tensors = {
        "model.embed_tokens.weight": normal(len(tokenizer), width),
        "model.norm.weight": torch.ones(width),
    }
    for block in range(4):
        prefix = f"model.layers.{block}."
        for name, rows in (("q", width), ("k", kv), ("v", kv), ("o", width)):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = normal(rows, width)
        for name, size in (("gate", (mlp, width)), ("up", (mlp, width)), ("down", (width, mlp))):
            tensors[f"{prefix}mlp.{name}_proj.weight"] = normal(*size)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(width)
    with files.new_directory(directory) as place:
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(str(place))
        files.write_text(place / "generation_config.json", json.dumps({"eos_token_id": 1}) + "\n")
        files.write_text(place / "config.json", json.dumps(config, indent=2) + "\n")
    return directory
