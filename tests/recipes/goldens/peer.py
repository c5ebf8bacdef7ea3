"""What the recorded trajectories have in common: tokens as a recipe drew them, and a model of transformers and peft
that learns from them, one sample at a time, without padding, packing or streams."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from plaudit.models.adapter import save_adapter
from plaudit.models.load import load_model, make_adapter
from plaudit.randomness import rng, torch_seed
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Key, Sample
from tiny_models import transformers_model

Recorded = dict[str, Any]


def record_tokens(
    recipe: ModuleType, config: Any, directory: Path, change: Callable[[Sample, Key], Sample]
) -> list[tuple[Key, list[Recorded]]]:
    """Every draw of a run, with its key; change: what is done to a sample before the recipe sees it."""
    draws: list[tuple[Key, list[Recorded]]] = []
    sample = LocalEngine.sample

    def watched(self: LocalEngine, prompts: Any, n: int, params: Any, key: Key) -> Iterator[Sample]:
        found = [change(s, key) for s in sample(self, prompts, n, params, key)]
        kept = [
            {
                "prompt": s.prompt,
                "index": s.index,
                "prompt_ids": s.prompt_ids,
                "completion_ids": s.completion_ids,
                "logprobs": s.logprobs,
                "finish_reason": s.finish_reason,
            }
            for s in sorted(found, key=lambda s: (s.prompt, s.index))
        ]
        draws.append((key, kept))
        yield from found

    LocalEngine.sample = watched  # type: ignore[method-assign, assignment]
    try:
        recipe.run(config, directory)
    finally:
        LocalEngine.sample = sample  # type: ignore[method-assign]
    return draws


def cut_short(sample: Sample, key: Key) -> Sample:
    """Log-probabilities to 4 digits; after the first step an end of text in two of three, anywhere."""
    ids, logprobs = list(sample.completion_ids), [round(x, 4) for x in sample.logprobs]
    draw = rng(*key, "cut", sample.prompt, sample.index)
    if key[2] != 0 and draw.random() < 0.67 and sample.finish_reason == "length":
        at = int(draw.integers(len(ids)))
        ids, logprobs = [*ids[:at], 1], [*logprobs[:at], round(-6.5 - 0.8 * draw.random(), 4)]
    return replace(
        sample,
        completion_ids=tuple(ids),
        logprobs=tuple(logprobs),
        finish_reason="stop" if ids[-1] == 1 else "length",
    )


def peft_model(config: Any, name: str, blocks: int, directory: Path, depth: int | None = None) -> Any:
    """transformers' tiny model in float64 with a peft adapter that begins as the recipe's. depth: of the last block
    that it adapts (None: of all)."""
    import peft

    model = load_model("tiny", torch.float64)
    adapter = make_adapter(
        model.trunk, rank=config.adapter.rank, alpha=config.adapter.alpha, blocks=blocks,
        seed=torch_seed(config.seed, f"{name} adapter"), depth=depth,
    )  # fmt: skip
    (directory / name).mkdir(parents=True)
    save_adapter(adapter, directory / name, base="tiny")
    base = transformers_model(model.directory, torch.float64)
    return peft.PeftModel.from_pretrained(
        base, str(directory / name), is_trainable=True, autocast_adapter_dtype=False
    ).double()


def reading_model(config: Any, name: str, directory: Path) -> tuple[Any, int | None]:
    """A model that is read after config.exit of its blocks, with an adapter where one is asked for; and after how many
    that is, None where it is read at its end."""
    bare = load_model("tiny", torch.float64)
    depth = bare.trunk.shape.depth
    leave = max(1, round(config.exit * depth))
    if not config.adapter.rank:
        model = transformers_model(bare.directory, torch.float64)
    else:
        model = peft_model(config, name, config.adapter.blocks, directory, leave)
    return model, None if leave == depth else leave


def pooled_state(
    model: Any, before: Sequence[int], after: Sequence[int], leave: int | None, pool: str
) -> Tensor:
    """[width]: of the tokens after, their last state or the mean of theirs. Where the model is left before its end the
    states have length 1 a dimension; at its end its own norm has seen to that."""
    ids = torch.tensor([[*before, *after]])
    states = model(ids, output_hidden_states=True).hidden_states[-1 if leave is None else leave][0]
    if leave is not None:
        states = states / (states.square().mean(-1, keepdim=True) + torch.finfo(states.dtype).eps).sqrt()
    pooled: Tensor = states[-1] if pool == "last" else states[len(before) :].mean(0)
    return pooled


def logprobs_of(model: Any, sample: Recorded, temperature: float) -> tuple[Tensor, Tensor]:
    """Of each completion token, and the entropy that it was drawn at."""
    ids = [*sample["prompt_ids"], *sample["completion_ids"]]
    logits = model(torch.tensor([ids])).logits[0] / temperature
    everything = torch.log_softmax(logits[len(sample["prompt_ids"]) - 1 : -1], -1)
    chosen = torch.stack([row[t] for row, t in zip(everything, sample["completion_ids"], strict=True)])
    return chosen, -(everything.exp() * everything).sum(-1)


def take_step(
    optimizer: torch.optim.Optimizer, trained: Sequence[torch.nn.Parameter], rate: float, max_norm: float
) -> float:
    """The gradients' norm before they are scaled down to max_norm and followed."""
    norm = math.sqrt(math.fsum(float(p.grad.square().sum()) for p in trained if p.grad is not None))
    for parameter in trained:
        if parameter.grad is not None and norm > max_norm:
            parameter.grad.mul_(max_norm / (norm + 1e-6))
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return norm


def by_prompt(samples: Sequence[Recorded]) -> list[list[int]]:
    """Places of the samples of each prompt as it was asked: a minibatch is made of whole prompts, and one that is asked
    twice counts twice."""
    groups: list[list[int]] = []
    for i, sample in enumerate(samples):
        before = samples[i - 1]
        if i and sample["prompt"] == before["prompt"] and sample["index"] > before["index"]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def steered(coef: float, kl: float, config: Any, episodes: int) -> float:
    """The next price of the KL."""
    if config.kl.target is None:
        return coef
    return float(coef * (1 + min(max(kl / config.kl.target - 1, -0.2), 0.2) * episodes / config.kl.horizon))
