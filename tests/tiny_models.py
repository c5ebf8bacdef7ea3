"""Small random models, adapters and samples that the tests of several rooms build on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit.data.tokenizer import Tokenizer
from plaudit.models.adapter import Adapter
from plaudit.models.branch import Branch, ScalarHead
from plaudit.models.llama import Llama
from plaudit.models.load import make_adapter
from plaudit.randomness import rng
from plaudit.tensors import FinishReason, Sample, SamplingParams


def random_adapter(trunk: Llama, *, rank: int = 4, blocks: int = 0, seed: int = 0) -> Adapter:
    """An adapter that changes something: its B is not zero."""
    adapter = make_adapter(trunk, rank=rank, alpha=2.0 * rank, blocks=blocks, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, factor in adapter.factors.items():
            if name.endswith("_B"):
                factor.copy_(torch.randn(factor.shape, generator=generator, dtype=torch.float64) * 0.1)
    return adapter


def random_head(trunk: Llama, seed: int = 0) -> ScalarHead:
    head = ScalarHead(trunk.shape.width, dtype=trunk.wide).initialise(seed)
    with torch.no_grad():
        head.bias.fill_(0.3)
    return head


def random_branch(trunk: Llama, *, blocks: int = 0, seed: int = 0, head: bool = True) -> Branch:
    adapter = random_adapter(trunk, blocks=blocks, seed=seed)
    return Branch(trunk, adapter, random_head(trunk, seed) if head else None)


def random_ids(seed: int, count: int, low: int, high: int, *, vocab: int = 700) -> list[list[int]]:
    """Lists of ids of lengths low to high; 0, the tiny model's PAD, is among the ids."""
    draw = rng("ids", seed)
    return [draw.integers(0, vocab, int(draw.integers(low, high + 1))).tolist() for _ in range(count)]


def as_samples(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], tokenizer: Tokenizer | None = None
) -> list[Sample]:
    """Samples with these ids; a completion that ends with the tiny model's end-of-text token has stopped."""
    samples = []
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        reason: FinishReason = "stop" if completion[-1] == 1 else "length"
        samples.append(
            Sample(
                prompt=number,
                index=0,
                prompt_ids=tuple(prompt),
                completion_ids=tuple(completion),
                text=tokenizer.decode(completion) if tokenizer else "",
                logprobs=tuple(-1.0 for _ in completion),
                finish_reason=reason,
                policy_version="test",
                params=SamplingParams(max_new_tokens=len(completion)),
                tokenizer=tokenizer.fingerprint if tokenizer else "",
            )
        )
    return samples


def exact_norm(module: Any) -> Any:
    """transformers' RMS norm, which goes through float32, written out in the dtype that it is given."""

    gemma = type(module).__name__ == "GemmaRMSNorm"
    epsilon, offset = (module.eps, 1.0) if gemma else (module.variance_epsilon, 0.0)

    def forward(hidden: Tensor) -> Tensor:
        scale = (hidden.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
        out: Tensor = hidden / scale * (module.weight + offset)
        return out

    return forward


def transformers_model(directory: Path, dtype: torch.dtype) -> Any:
    """transformers' own model of a directory; in float64 all of its norms are float64, too."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=dtype, local_files_only=True).eval()
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = exact_norm(module)
    return model
