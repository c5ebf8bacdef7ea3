"""A loop that is killed at ten random moments ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from plaudit import files
from plaudit.loop.drawing import read_rows
from plaudit.randomness import rng
from programs import PROGRAM

KILLS = 10
SETTINGS = (
    "model=tiny", "max_new_tokens=8", "collect.enough=24", "collect.prompts=12", "policy.steps=2",
    "policy.prompts_per_step=4", "policy.samples_per_prompt=2", "policy.kl_horizon=20", "gate.prompts=16",
    "stop.rounds=2", "threads=1",
)  # fmt: skip


def start(out: Path) -> subprocess.Popen[bytes]:
    config = out.parent / "loop.yaml"
    config.write_text("recipe: loop\nsources: {panel: 1.0}\n")
    words = [sys.executable, "-c", PROGRAM, "loop", "run", str(config), *SETTINGS, "--out", str(out)]
    return subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def came_to(out: Path) -> dict[str, Any]:
    """All that a loop has come to, times apart."""
    names = ("samples.jsonl", "asked.jsonl", "contest.jsonl", "gate.jsonl", "events.jsonl")
    found: dict[str, Any] = {
        str(path.relative_to(out)): files.digest(path)
        for path in out.rglob("*")
        if (path.name in names or path.suffix == ".safetensors") and "checkpoints" not in path.parts
    }
    entries = json.loads((out / "loop.json").read_text())["transitions"]
    for entry in entries:
        if entry["step"] in ("collect", "agree", "reward", "evaluate", "gate", "publish"):
            found[f"{entry['round']} {entry['step']}"] = entry["result"]
    return found


@pytest.mark.proof
def test_kills_change_nothing(tmp_path: Path, say: Any) -> None:
    whole, broken = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    for out in (whole, broken):
        out.parent.mkdir()
    began = time.monotonic()
    assert start(whole).wait() == 0
    takes = time.monotonic() - began

    draw, killed, steps = rng(0, "loop kills"), 0, set[str]()
    while killed < KILLS:
        running = start(broken)
        try:
            running.wait(float(draw.uniform(0.25, 0.6)) * takes)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            killed += 1
            if (broken / "status.json").exists():
                at = json.loads((broken / "status.json").read_text())["at"]
                steps.add("-" if at is None else f"{at['round']} {at['step']}")
        else:
            assert running.returncode == 0
            break
    assert start(broken).wait() == 0
    assert killed >= 3
    assert came_to(broken) == came_to(whole)
    events = [row["event"] for row in read_rows(broken / "rounds/2/events.jsonl")]
    assert len(set(events)) == len(events)
    say(f"killed {killed} times, in {', '.join(sorted(steps))}")
