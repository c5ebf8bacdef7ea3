"""Ours and a peer in alternation, and what comes of it: the row of a result."""

from __future__ import annotations

import contextlib
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit import files
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import find_model, read_config
from plaudit.training import machine
from speed import operations
from speed.batches import Batch, unending
from speed.cases import HEAD_BLOCKS, NEW, POLICY_BLOCKS, Case, batch_of, phases_of
from speed.environments import python_of
from speed.operations import Size
from speed.protocol import Worker

HERE = Path(__file__).parent
Start = Callable[[], Worker]
Turn = dict[str, Any]
PEERS = {"transformers": "peer_transformers", "vllm": "peer_vllm", "trl": "peer_trl", "trl-ppo": "peer_ppo"}
PAUSE = 0.5
"""Seconds between turns: the threads of the side that has just worked go to sleep."""


@dataclass(frozen=True, slots=True)
class Timings:
    """What both sides said of each turn, in the order of the rounds; facts: what each said when it was ready."""

    ours: list[Turn]
    peer: list[Turn]
    facts: dict[str, dict[str, Any]]


def alternate(ours: Start, peer: Start, repeats: int, *, together: bool = True, warm: bool = True) -> Timings:
    """Ours, the peer, ours, the peer, so many times each.

    together: both are loaded, take one turn to warm up that does not count, and wait for each other; otherwise each is
    started afresh for each of its turns, since both would not fit into memory (warm: with that first turn; ours always
    has it).
    """
    turns: dict[str, list[Turn]] = {"ours": [], "peer": []}
    facts: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as held:
        running = dict[str, Worker]()
        for _ in range(repeats):
            for side, start in (("ours", ours), ("peer", peer)):
                worker = running.get(side)
                if worker is None:
                    worker = start()
                    held.callback(worker.close)
                    facts[side] = worker.facts
                    if warm or side == "ours":
                        worker.turn()
                    running[side] = worker
                time.sleep(PAUSE)
                turns[side].append(worker.turn())
                if not together:
                    running.pop(side).close()
    return Timings(turns["ours"], turns["peer"], facts)


def ratio_of(ours: Sequence[float], peer: Sequence[float]) -> float:
    """The median of the rounds' ratios: what slows the machine for a while slows both sides of a round."""
    return statistics.median(theirs / mine for mine, theirs in zip(ours, peer, strict=True))


def row_of(
    case: Case, timings: Timings, batch: Batch, phases: list[operations.Phase], calibrated: dict[str, Any]
) -> dict[str, Any]:
    """One row of a result; seconds are medians, memory the most of any turn, in 10^9 bytes."""
    ours, peer = ([turn["seconds"] for turn in side] for side in (timings.ours, timings.peer))
    new = [turn["new_tokens"] for turn in (*timings.ours, *timings.peer) if "new_tokens" in turn]
    if len(set(new)) > 1:
        raise ValueError(f"{case.name}: both sides should draw as many tokens, and drew {sorted(set(new))}")
    tokens = new[0] if new else batch.tokens
    speeds = calibrated["ceilings"]
    # What the machine can do at best, unless both sides were told to keep to float32.
    narrow = case.ours == case.theirs == "float32"
    gemm = speeds["float32"] if narrow else max(speeds["float32"], speeds["bfloat16"])
    least = operations.ceiling(phases, gemm, speeds["copy"])
    medians = {"ours": statistics.median(ours), "peer": statistics.median(peer)}
    return {
        "name": case.name,
        "target": case.target,
        "peer_name": case.peer,
        "precision": {"ours": timings.facts["ours"].get("precision", case.ours), "peer": case.theirs},
        "train": {"ours": case.train, "peer": case.their_train or case.train},
        "batch": case.batch,
        "ours": round(medians["ours"], 4),
        "peer": round(medians["peer"], 4),
        "ratio": round(ratio_of(ours, peer), 3),
        "ratios": [round(theirs / mine, 3) for mine, theirs in zip(ours, peer, strict=True)],
        "peak_rss_gb": {
            side: round(max(turn["peak_rss_gb"] for turn in turns), 3)
            for side, turns in (("ours", timings.ours), ("peer", timings.peer))
        },
        "tokens": tokens,
        "tokens_per_second": {side: round(tokens / seconds, 1) for side, seconds in medians.items()},
        "operations": sum(phase.operations for phase in phases),
        "seconds_at_ceiling": round(least, 4),
        "roofline": {side: round(least / seconds, 3) for side, seconds in medians.items()},
        "timings": {"ours": [round(s, 4) for s in ours], "peer": [round(s, 4) for s in peer]},
        "ceilings": speeds,
        "repeats": len(ours),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {side: facts.get("versions", {}) for side, facts in timings.facts.items()},
        "micro_batch_tokens": timings.facts["ours"].get("micro_batch_tokens"),
    }


def calibrate(threads: int) -> dict[str, Any]:
    """This machine and its ceilings, measured in a process of its own."""
    command = [sys.executable, "-m", "speed.calibrate", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(
    case: Case, *, repeats: int, threads: int, model: str = "smollm2"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of a result, and the machine. UserError for data or a peer's environment that cannot be had."""
    source = unending(find_model(model))
    size, tokenizer = Size.of(read_config(source)), Tokenizer.load(source)
    batch = batch_of(case, tokenizer)
    phases = phases_of(case, batch.rows, size)
    python = python_of(case.peer)
    threads = threads or machine.available_cores()
    calibrated = calibrate(threads)
    with tempfile.TemporaryDirectory(prefix="plaudit-speed-") as place:
        shared = plan_of(case, batch, source, size, threads)
        ours, peer = (
            starter(who, module, shared | own(case, side), batch, Path(place) / side)
            for side, who, module in (
                ("ours", Path(sys.executable), "ours"),
                ("peer", python, PEERS[case.peer]),
            )
        )
        timings = alternate(ours, peer, repeats, together=case.together, warm=case.warm)
    return row_of(case, timings, batch, phases, calibrated), calibrated["machine"]


def plan_of(case: Case, batch: Batch, source: Path, size: Size, threads: int) -> dict[str, Any]:
    """What both sides are told."""
    drawn = case.work in ("rollout", "rollout_group", "grpo", "ppo")
    top = {"grpo": POLICY_BLOCKS, "ppo": POLICY_BLOCKS, "reward": HEAD_BLOCKS}.get(case.work, size.depth)
    return {
        "work": case.work,
        "model": str(source),
        "threads": threads,
        "ids": batch.ids,
        "samples": len(batch.rows[0].completions) if drawn else 1,
        "new": NEW,
        "epochs": 4,
        "layers": list(range(size.depth - top, size.depth)) if case.train == "top" else [],
        "value_layers": list(range(size.depth - HEAD_BLOCKS, size.depth)) if case.train == "top" else [],
    }


def own(case: Case, side: str) -> dict[str, str]:
    """What each side is told for itself."""
    if side == "ours":
        return {"precision": case.ours, "train": case.train}
    return {"precision": case.theirs, "train": case.their_train or case.train}


def starter(python: Path, module: str, plan: dict[str, Any], batch: Batch, place: Path) -> Start:
    """Starts a worker with a plan, each time in a scratch directory of its own."""
    count = 0

    def start() -> Worker:
        nonlocal count
        count += 1
        scratch = place / str(count)
        scratch.mkdir(parents=True)
        records = scratch / "batch.jsonl"
        files.write_rows(records, batch.records)
        told = plan | {"batch": str(records), "scratch": str(scratch)}
        files.write_json(scratch / "plan.json", told)
        env = {
            "OMP_NUM_THREADS": str(plan["threads"]),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        paths = [str(HERE.parent)] + ([str(p) for p in sys.path if p] if module == "ours" else [])
        env["PYTHONPATH"] = ":".join(paths)
        return Worker(
            [str(python), "-m", f"speed.{module}", str(scratch / "plan.json")], scratch / "log.txt", env
        )

    return start
