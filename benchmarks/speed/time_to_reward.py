"""Minutes from the same start to the same held-out reward at the same KL limit: our GRPO against trl's.

Both learn LoRA adapters of one rank on the same blocks from the same prompts with the same reward function, learning
rate, group size and KL coefficient. Every few steps each side writes its policy (the clock stands still meanwhile),
and one judge, our engine in float32, samples from it on prompts that nobody trains on: the mean reward, and the mean
KL from the start in nats a token. A side has arrived when its reward is at the goal and its KL within the limit.
"""

from __future__ import annotations

import datetime
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from plaudit import files
from plaudit.data.collate import pack
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import find_model, load_model, read_config
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import SamplingParams
from plaudit.training import machine
from speed import results
from speed.batches import Batch, Ids, prompts, unending
from speed.environments import python_of
from speed.harness import Start, calibrate, starter
from speed.positive import positivity

TRAINING, HELDOUT, EACH = 128, 64, 4
"""Prompts to learn from and to be judged by, and completions of each of the latter."""
STEP, GROUP, NEW = 4, 8, 32
"""Prompts a step, completions a prompt, tokens a completion."""
RISE, LIMIT = 0.25, 0.15
"""The goal: so much above the start's held-out reward (positivity is -1 to 1). The limit: nats a token."""
RATE, COEF = 3e-4, 0.04
EVERY, MOST = 5, 120
"""Steps between two looks, and at most."""
SEEDS = (0, 1, 2)
LEAST = 4.0
Judge = Callable[[Path], tuple[float, float]]


def judge_of(start: Path, heldout: list[Ids]) -> Judge:
    """The held-out reward of a policy's directory, and its KL from the start, both on the same draws."""
    reference = load_model(str(start), torch.float32)

    def judge(directory: Path) -> tuple[float, float]:
        model = load_model(str(directory), torch.float32)
        engine = LocalEngine(model.trunk, model.tokenizer)
        drawn = list(engine.sample(heldout, EACH, SamplingParams(max_new_tokens=NEW), ("heldout",)))
        packed = pack([s.prompt_ids for s in drawn], [s.completion_ids for s in drawn])
        with torch.no_grad():
            before = token_logprobs(Branch(reference.trunk), packed).logprobs[packed.mask].sum()
        kl = (sum(sum(s.logprobs) for s in drawn) - float(before)) / sum(len(s.logprobs) for s in drawn)
        return statistics.fmean(positivity(s.text) for s in drawn), kl

    return judge


def climb(start: Start, judge: Judge, goal: float, limit: float, most: int) -> dict[str, Any]:
    """Steps until the side has arrived, at most so many. minutes: None where it has not; curve: at each look the
    step, the minutes, the reward and the KL."""
    worker, seconds, curve, peak = start(), 0.0, list[list[float]](), 0.0
    try:
        for step in range(1, most + 1):
            turn = worker.turn()
            seconds, peak = seconds + turn["seconds"], max(peak, turn["peak_rss_gb"])
            if "saved" not in turn:
                continue
            reward, kl = judge(Path(turn["saved"]))
            curve.append([step, round(seconds / 60, 3), round(reward, 4), round(kl, 4)])
            print(curve[-1], file=sys.stderr, flush=True)
            if reward >= goal and kl <= limit:
                break
    finally:
        worker.close()
    arrived = bool(curve) and curve[-1][2] >= goal and curve[-1][3] <= limit
    return {
        "minutes": curve[-1][1] if arrived else None,
        "curve": curve,
        "peak_rss_gb": round(peak, 3),
        "micro_batch_tokens": worker.facts.get("micro_batch_tokens"),
    }


def plan_of(source: Path, batch: Batch, threads: int, seed: int, every: int) -> dict[str, Any]:
    depth = int(read_config(source)["num_hidden_layers"])
    return {
        "work": "grpo", "model": str(source), "threads": threads, "ids": batch.ids, "samples": GROUP, "new": NEW,
        "train": "top", "layers": list(range(depth - 16, depth)), "reward": "positive", "at_once": STEP,
        "learning_rate": RATE, "seed": seed, "save_every": every, "steps": MOST,
    }  # fmt: skip


def run(quick: bool, out: Path | None, threads: int = 0, seeds: Sequence[int] = SEEDS) -> None:
    """Measure, and write each seed into time_to_reward.json as soon as it is there (with quick: the first one alone,
    two looks, time_to_reward.quick.json)."""
    threads = threads or machine.available_cores()
    calibrated = calibrate(threads)
    source = unending(find_model("smollm2"))
    both = prompts(Tokenizer.load(source), TRAINING + HELDOUT, 1, NEW)
    batch = Batch(both.records[:TRAINING], both.ids[:TRAINING], both.rows[:TRAINING], 0)
    judge = judge_of(source, [row["prompt"] for row in both.ids[TRAINING:]])
    began, _ = judge(source)
    every, most = (1, 2) if quick else (EVERY, MOST)
    python, path = (
        python_of("trl"),
        (out or results.place(machine.fast_bfloat16())) / f"time_to_reward{'.quick' * quick}.json",
    )
    for seed in seeds[:1] if quick else seeds:
        plan = plan_of(source, batch, threads, seed, every)
        row: dict[str, Any] = {"seed": seed}
        for side, who, module, precision in (
            ("ours", Path(sys.executable), "ours", "auto"),
            ("peer", python, "peer_trl", "bfloat16" if machine.fast_bfloat16() else "float32"),
        ):
            with tempfile.TemporaryDirectory(prefix="plaudit-speed-") as place:
                start = starter(who, module, plan | {"precision": precision}, batch, Path(place))
                row[side] = climb(start, judge, began + RISE, LIMIT, most)
        times = [row[side]["minutes"] for side in ("ours", "peer")]
        row["ratio"] = round(times[1] / times[0], 3) if None not in times else None
        write(path, row, began, calibrated)


def write(path: Path, row: dict[str, Any], began: float, calibrated: dict[str, Any]) -> None:
    """A seed takes the place of the same one measured earlier towards the same goal; medians are over the
    seeds, where every one has arrived."""
    told = {"began": round(began, 4), "goal": round(began + RISE, 4), "limit": LIMIT, "learning_rate": RATE}
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = earlier["rows"] if earlier.items() >= told.items() else []
    rows = sorted([*(r for r in kept if r["seed"] != row["seed"]), row], key=lambda r: r["seed"])

    def median(values: list[float | None]) -> float | None:
        return None if None in values else statistics.median(v for v in values if v is not None)

    minutes = {side: median([r[side]["minutes"] for r in rows]) for side in ("ours", "peer")}
    files.write_json(
        path,
        {
            "name": "time_to_reward",
            **minutes,
            "ratio": median([r["ratio"] for r in rows]),
            "peak_rss_gb": {side: max(r[side]["peak_rss_gb"] for r in rows) for side in ("ours", "peer")},
            **told,
            "least": LEAST,
            **calibrated,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "command": "python -m benchmarks time_to_reward",
            "rows": rows,
        },
    )
    print(f"minutes: ours {minutes['ours']}, peer {minutes['peer']}; written: {path}")
