"""How the cost of one of our steps grows with what it is given, and that memory does not grow with the steps.

An SFT step of the shipped recipe, four ways: more sequences, longer ones, a higher LoRA rank, larger models (random
weights of known shapes); seconds are medians, each beside a straight line fitted to them. Then 500 steps of GRPO on a
very small model, with the memory held after each.
"""

from __future__ import annotations

import datetime
import json
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from plaudit import files
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.llama import Llama, Shape
from plaudit.models.load import find_model, read_config, trunk_names
from plaudit.training import machine
from speed import operations, results
from speed.batches import Batch, prompts, sequences, unending
from speed.harness import calibrate, starter
from speed.operations import Size

SEQUENCES = (4, 8, 16, 32)
LENGTHS = (64, 128, 256, 512)
RANKS = (8, 16, 32, 64, 128)
SHAPES = {
    "half of 135M": {"num_hidden_layers": 15},
    "135M": {},
    "360M": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_attention_heads": 15,
        "num_hidden_layers": 32,
        "num_key_value_heads": 5,
    },
}
"""Beside SmolLM2-135M's own config."""
STEPS = 500
SETTLED = 100
"""Steps after which nothing new is allocated: caches of the allocator and of libraries have filled."""


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The least-squares line through the points: slope, intercept, and the share of the variance that it explains."""
    slope, intercept = np.polyfit(np.asarray(x, dtype=float), np.asarray(y, dtype=float), 1)
    left = np.asarray(y) - (slope * np.asarray(x, dtype=float) + intercept)
    whole = float(((np.asarray(y) - np.mean(y)) ** 2).sum())
    r2 = 1.0 - float((left**2).sum()) / whole if whole > 0 else 1.0
    return {"slope": float(slope), "intercept": float(intercept), "r2": round(r2, 4)}


def random_model(source: Path, changed: dict[str, int], place: Path) -> Path:
    """A directory with the source's tokenizer and random weights of another shape."""
    config = read_config(source) | changed
    directory = place / "-".join(str(value) for value in changed.values() or ["same"])
    directory.mkdir()
    with torch.device("meta"):
        trunk = Llama(Shape.of(config, "config.json"))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(one.shape) if one.ndim == 1 else torch.randn(one.shape, generator=generator) * 0.02
        for name, one in trunk_names(trunk).items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            shutil.copyfile(path, directory / path.name)
    files.write_json(directory / "config.json", config)
    return directory


def seconds_of(model: Path, batch: Batch, threads: int, repeats: int, **told: Any) -> float:
    """The median of so many steps, after one to warm up."""
    plan = {"work": "sft", "model": str(model), "threads": threads, "ids": batch.ids, "precision": "auto"}
    with tempfile.TemporaryDirectory(prefix="plaudit-growth-") as place:
        worker = starter(Path(sys.executable), "ours", plan | {"train": "lora"} | told, batch, Path(place))()
        try:
            worker.turn()
            return float(statistics.median(worker.turn()["seconds"] for _ in range(repeats)))
        finally:
            worker.close()


def memory_of(steps: int, threads: int) -> list[float]:
    """What our process holds after each step of GRPO on the tiny model, in 10^9 bytes."""
    model = find_model("tiny")
    batch = prompts(Tokenizer.load(model), 4, 8, 32)
    plan = {"work": "grpo", "model": str(model), "threads": threads, "ids": batch.ids, "precision": "float32"}
    plan |= {"train": "full", "samples": 8, "new": 32}
    with tempfile.TemporaryDirectory(prefix="plaudit-growth-") as place:
        worker = starter(Path(sys.executable), "ours", plan, batch, Path(place))()
        try:
            return [round(worker.turn()["rss_gb"], 4) for _ in range(steps)]
        finally:
            worker.close()


def series(threads: int, quick: bool) -> list[dict[str, Any]]:
    """The four ways; x is what grows."""
    source = unending(find_model("smollm2"))
    tokenizer, repeats = Tokenizer.load(source), 1 if quick else 3

    def few(values: Sequence[int]) -> Sequence[int]:
        return values[:: len(values) - 1] if quick else values

    made = list[dict[str, Any]]()

    def add(name: str, unit: str, x: Sequence[float], y: Sequence[float], labels: Sequence[str] = ()) -> None:
        made.append({"name": name, "unit": unit, "x": list(x), "seconds": [round(s, 4) for s in y]})
        made[-1] |= {"labels": list(labels), "fit": line(x, y)}
        print(json.dumps(made[-1]), file=sys.stderr, flush=True)

    batches = [sequences(tokenizer, mixed=False, length=128, count=count) for count in few(SEQUENCES)]
    times = [seconds_of(source, batch, threads, repeats) for batch in batches]
    add("sequences of 128 tokens", "tokens", [batch.tokens for batch in batches], times)
    batches = [sequences(tokenizer, mixed=False, length=length) for length in few(LENGTHS)]
    times = [seconds_of(source, batch, threads, repeats) for batch in batches]
    add("eight sequences, longer and longer", "tokens", [batch.tokens for batch in batches], times)
    batch = sequences(tokenizer, mixed=False, length=128)
    times = [seconds_of(source, batch, threads, repeats, rank=rank) for rank in few(RANKS)]
    add("LoRA rank, 8 x 128 tokens", "rank", few(RANKS), times)
    work, times = [], []
    for changed in SHAPES.values():
        with tempfile.TemporaryDirectory(prefix="plaudit-growth-") as place:
            model = random_model(source, changed, Path(place))
            size = Size.of(read_config(model))
            passes = (
                operations.forward(size, batch.rows),
                operations.backward(size, batch.rows, adapted=size.depth),
            )
            work.append(sum(phase.operations for phase in passes) / 1e12)
            times.append(seconds_of(model, batch, threads, repeats))
    add("models, 8 x 128 tokens", "10^12 operations", work, times, list(SHAPES))
    return made


def run(quick: bool, out: Path | None, threads: int = 0) -> None:
    """Measure, and write growth.json (with quick: growth.quick.json)."""
    threads = threads or machine.available_cores()
    calibrated = calibrate(threads)
    found = {"name": "growth", "date": datetime.datetime.now(datetime.UTC).date().isoformat(), **calibrated}
    found |= {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "series": series(threads, quick),
    }
    held = memory_of(STEPS // 10 if quick else STEPS, threads)
    settled = min(SETTLED, len(held) // 2)
    fit = line(range(settled, len(held)), held[settled:])
    found["memory"] = {
        "work": "grpo on the tiny model, 4 prompts x 8",
        "rss_gb": held,
        "settled": settled,
        "fit": fit,
    }
    files.write_json(
        (out or results.place(machine.fast_bfloat16())) / ("growth.quick.json" if quick else "growth.json"),
        found,
    )
