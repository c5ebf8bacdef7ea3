"""Completions of a file of prompts, one JSON a sample: what `plaudit generate` calls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from plaudit import files
from plaudit.data.formats import read_prompts
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.foreign import Foreign, find_any, load_any
from plaudit.models.load import Model, load_model, open_adapter
from plaudit.models.q_heads import Steering, load_heads
from plaudit.rollout.foreign import ForeignEngine
from plaudit.rollout.local import LocalEngine
from plaudit.rollout.samples import EngineName, TextEngine
from plaudit.rollout.vllm import VllmEngine
from plaudit.tensors import Sample, SamplingParams
from plaudit.types import Prompt, UserError, prompt_to_json


def generate(
    model: str,
    prompts: Path,
    out: Path,
    params: SamplingParams,
    *,
    n: int = 1,
    seed: int = 0,
    adapter: Path | None = None,
    steer: Path | None = None,
    steer_beta: float = 4.0,
    engine: EngineName = "local",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, int]:
    """Write n completions of each prompt as JSONL, in the prompts' order; the file appears whole or not at all.

    adapter: a LoRA adapter in peft's format to sample with. steer: an ilql run's directory, of whose model/ the
    model must be: its Q heads tilt every draw towards what is worth more, by steer_beta. engine: our own (transformers'
    for families that ours lacks), or vLLM, which does not steer and draws other samples of the same seed. What is drawn
    depends on the seed, the prompt's number and the sample's index alone. Returns the counts: prompts, samples, tokens.
    UserError for a model, an adapter, heads or prompts that cannot be read, for a prompt that leaves no room, and
    for a place that cannot be written.
    """
    files.check_place(out, prompts)
    if not math.isfinite(params.temperature):
        raise UserError(f"is {params.temperature}", where="temperature", fix="give a number, 0 or more")
    if not math.isfinite(steer_beta):
        raise UserError(f"is {steer_beta}", where="steer-beta", fix="give a number; 0 does not steer")
    if steer is not None and adapter is not None:
        raise UserError(
            "the model of an ilql run has its adapter in it", where="adapter", fix="give --steer alone"
        )
    asked = read_prompts(prompts)
    if engine == "vllm":
        if steer is not None:
            raise UserError("vLLM does not steer", where="engine", fix="use engine local")
        drawer = _vllm(model, asked, params, adapter, dtype)
    else:
        loaded = load_any(model, dtype, device)
        drawer = _engine(loaded, model, adapter, None if steer is None else (steer, steer_beta))
    ids = [drawer.tokenizer.render(prompt) for prompt in asked]
    drawn = drawer.sample(ids, n, params, (seed, "generate"))
    samples = sorted(watched(drawn, len(asked) * n, "generate"), key=lambda s: (s.prompt, s.index))
    files.write_rows(out, (sample_row(sample, asked[sample.prompt], seed) for sample in samples))
    tokens = sum(len(sample.completion_ids) for sample in samples)
    return {"prompts": len(asked), "samples": len(samples), "tokens": tokens}


def _engine(
    model: Model | Foreign, name: str, adapter: Path | None, steer: tuple[Path, float] | None
) -> TextEngine:
    """The engine for a model in memory, with its adapter or its steering in place."""
    if isinstance(model, Foreign):
        if adapter is not None or steer is not None:
            what = "has neither adapters nor steering, since it goes through transformers"
            raise UserError(what, where=name, fix="leave them out, or use a model of our own forward")
        foreign = ForeignEngine(model)
        foreign.load(None, name)
        return foreign
    steering = None if steer is None else Steering(load_heads(steer[0], model), steer[1])
    engine = LocalEngine(model.trunk, model.tokenizer, steer=steering)
    if adapter is not None:
        engine.load(open_adapter(adapter, model.trunk), f"{name} with {adapter}")
    else:
        engine.load(None, name if steer is None else f"{name} steered by {steer[1]:g}")
    return engine


def _vllm(
    name: str, asked: Sequence[Prompt], params: SamplingParams, adapter: Path | None, dtype: torch.dtype
) -> TextEngine:
    """vLLM with the model, of whatever family, and its adapter in place."""
    directory = find_any(name)
    tokenizer = Tokenizer.load(directory)
    ids = [tokenizer.render(prompt) for prompt in asked]
    context = max(map(len, ids)) + params.max_new_tokens
    weights = None if adapter is None else open_adapter(adapter, load_model(name, dtype).trunk)
    rank = 0 if weights is None else weights.rank
    engine = VllmEngine(directory, tokenizer, dtype=dtype, context=context, rank=rank, memory=0.9)
    engine.load(weights, name if adapter is None else f"{name} with {adapter}")
    return engine


def sample_row(sample: Sample, prompt: Prompt, seed: int) -> dict[str, Any]:
    """A sample as JSON: the prompt as it was given, and all that its use for training needs.

    completion_ids: with the end-of-text token where it was drawn; logprobs: one a token, nats, at the temperature.
    UserError where these are no numbers.
    """
    if not all(map(math.isfinite, sample.logprobs)):
        what = "gives probabilities that are no numbers"
        raise UserError(what, where=sample.policy_version or "the model", fix="its weights are broken")
    return {
        "prompt": prompt_to_json(prompt),
        "completion": sample.text,
        "completion_ids": list(sample.completion_ids),
        "logprobs": list(sample.logprobs),
        "finish_reason": sample.finish_reason,
        "index": sample.index,
        "policy_version": sample.policy_version,
        "tokenizer": sample.tokenizer,
        "seed": seed,
        "sampling": asdict(sample.params),
    }


def watched(samples: Iterable[Sample], total: int, title: str) -> Iterator[Sample]:
    """The samples as they come, with a bar and an estimate of the time left for whoever watches at a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(samples, total=total, description=title)
