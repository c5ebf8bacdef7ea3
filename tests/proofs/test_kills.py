"""A quickstart killed at any moment and taken up again ends with the very bits of one that nobody touched."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plaudit.feedback.store import Store
from programs import PROGRAM

pytestmark = [pytest.mark.proof, pytest.mark.xdist_group("kills")]

BEGIN = ("quickstart", "--model", "tiny", "--rounds", "2", "--threads", "1", "--out", "run")
SETTINGS = (
    "training_prompts=16",
    "heldout_prompts=6",
    "max_new_tokens=12",
    "reward.prompts_per_step=1",
    "reward.epochs=2",  # 26 steps: the reward model's own checkpoint is reached too
    "policy.steps=5",
    "policy.prompts_per_step=6",
    "policy.samples_per_prompt=2",
    "policy.epochs=2",
    "precision=float32",
)
STEPS = ("sample", "look", "judge", "agree", "reward", "improve", "evaluate")
STAGES = [(round, step) for round in (1, 2) for step in STEPS]
TIMED = {"seconds", "seconds_sampling", "tokens_per_second", "peak_rss_gb"}
"""Fields that say how long it took or how much it held: the only ones that may differ."""


@dataclass(frozen=True, slots=True)
class Unbroken:
    """A finished run that nobody touched, and how long it took: all of it, and each stage."""

    directory: Path
    seconds: float
    stages: dict[tuple[int, str], float]


def start(what: str, directory: Path) -> subprocess.Popen[str]:
    """The command in a process of its own; its directory is "run" there, so that no path tells two runs apart."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    assert directory.name == "run"
    words = (*BEGIN, *SETTINGS) if what == "begin" else (what, "run")
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=directory.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def end(process: subprocess.Popen[str], status: int = 0) -> str:
    """Waits; asserts the exit status; gives what was said."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == status, said
    assert "Traceback" not in said, said
    return said


def kill(process: subprocess.Popen[str]) -> bool:
    """SIGKILL; whether the process was still at work."""
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def finish(directory: Path) -> None:
    """Takes the run up; one that was killed before it had begun says so, and begins again."""
    process = start("resume", directory)
    _, said = process.communicate(timeout=300)
    if process.returncode == 2 and not (directory / "config.yaml").exists():
        assert re.search("start it again|there is no such run", said), said
        process = start("begin", directory)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def journal(directory: Path) -> list[tuple[int, str]]:
    """The transitions that are recorded."""
    try:
        entries = json.loads((directory / "loop.json").read_text(encoding="utf-8"))["transitions"]
    except FileNotFoundError:
        return []
    return [(entry["round"], entry["step"]) for entry in entries]


def until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Returns as soon as it is reached, or the process has ended."""
    while process.poll() is None and not reached():
        time.sleep(0.001)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file that must be equal bit for bit, hidden ones too; those that tell times are compared elsewhere."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
        and path.name not in ("loop.json", "summary.json", "metrics.jsonl", "report.html")
        and not path.name.startswith("feedback.db")
        and "tensorboard" not in path.parts
    }


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if key not in TIMED}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def records(directory: Path) -> dict[str, Any]:
    """The files with times in them, without the times."""
    found: dict[str, Any] = {}
    for name in ("loop.json", "summary.json"):
        for path in sorted(directory.rglob(name)):
            found[str(path.relative_to(directory))] = untimed(json.loads(path.read_text(encoding="utf-8")))
    for path in sorted(directory.rglob("metrics.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        found[str(path.relative_to(directory))] = [untimed(json.loads(line)) for line in lines]
    return found


def said(directory: Path) -> list[tuple[Any, ...]]:
    """The log of judgements, in order."""
    with Store.open(directory / "feedback.db") as store:
        return [
            (e.seq, e.id, e.kind, e.item, e.rater, dict(e.payload), e.presented, e.assignment)
            for e in store.log()
        ]


def assert_same(directory: Path, unbroken: Unbroken) -> None:
    """Weights and files bit for bit, metrics and summary but for their times, every judgement in its place."""
    assert said(directory) == said(unbroken.directory)
    assert records(directory) == records(unbroken.directory)
    assert (directory / "report.html").exists()
    mine, theirs = contents(directory), contents(unbroken.directory)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
    weights = [name for name in mine if name.endswith(".safetensors")]
    assert (
        len(weights) == 2 * (3 + 4) + 1
    )  # a round: reward and its checkpoint, policy and two; the run's model


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Unbroken:
    assert model_cache.is_dir()
    end(
        start("begin", tmp_path_factory.mktemp("warm") / "run")
    )  # files of the system are read, the model is made
    directory = tmp_path_factory.mktemp("unbroken") / "run"
    began = time.monotonic()
    end(start("begin", directory))
    seconds = time.monotonic() - began
    entries = json.loads((directory / "loop.json").read_text(encoding="utf-8"))["transitions"]
    return Unbroken(directory, seconds, {(e["round"], e["step"]): e["seconds"] for e in entries})


def killed_within(directory: Path, stage: int, wait: float) -> bool:
    """Takes the run up (or begins it) and kills it in its stage of this number, so many seconds after the stage
    before was recorded; whether that was the stage under way."""
    process = start("resume" if directory.exists() else "begin", directory)
    until(process, lambda: len(journal(directory)) >= stage and (directory / "prompts").exists())
    time.sleep(wait)
    return kill(process) and len(journal(directory)) == stage


def test_a_run_killed_in_every_stage_ends_with_the_same_bits(tmp_path: Path, unbroken: Unbroken) -> None:
    draw = random.Random(0)
    directory, before = tmp_path / "run", tmp_path / "before"
    for number, stage in enumerate(STAGES):
        if directory.exists():
            shutil.copytree(directory, before)
        for attempt in range(8):
            wait = draw.uniform(0.1, 0.9) * unbroken.stages[stage] / (1 + attempt)
            if killed_within(directory, number, wait):
                break
            shutil.rmtree(directory)  # too late, the stage was over: once more from where it began
            if before.exists():
                shutil.copytree(before, directory)
        else:
            pytest.fail(f"never killed within {stage}")
        shutil.rmtree(before, ignore_errors=True)
    finish(directory)
    assert_same(directory, unbroken)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    tmp_path: Path, unbroken: Unbroken, seed: int
) -> None:
    draw = random.Random(seed)
    directory = tmp_path / "run"
    for _ in range(4):
        process = start("resume" if (directory / "config.yaml").exists() else "begin", directory)
        time.sleep(draw.uniform(0.2, 0.8) * unbroken.seconds)
        kill(process)
    finish(directory)
    assert_same(directory, unbroken)


def test_a_run_killed_while_it_writes_weights_ends_with_the_same_bits(
    tmp_path: Path, unbroken: Unbroken
) -> None:
    draw = random.Random(0)
    directory = tmp_path / "run"
    ppo, stage = directory / "rounds" / "1" / "ppo", STAGES.index((1, "improve"))
    process = start("begin", directory)
    until(process, lambda: len(journal(directory)) == stage)
    hit = 0
    for place in (ppo / "checkpoints", ppo / "checkpoints", ppo / "checkpoints", ppo, ppo):
        before = half_written(place)
        until(process, lambda place=place, before=before: bool(half_written(place) - before))  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.005))
        assert kill(process)
        hit += bool(half_written(directory))
        process = start("resume", directory)
    assert hit, "never killed while a directory was half written"
    end(process)
    assert_same(directory, unbroken)


def half_written(place: Path) -> set[Path]:
    """What is being written, or was when the writer was killed."""
    try:
        return {
            path
            for path in place.rglob(".new.*")
            if path.name.startswith((".new.step-", ".new.adapter", ".new.model"))
        }
    except FileNotFoundError:
        return set()


def test_a_run_killed_before_it_has_begun_says_so_and_begins_again(
    tmp_path: Path, unbroken: Unbroken
) -> None:
    directory = tmp_path / "run"
    process = start("begin", directory)
    until(process, directory.exists)
    kill(process)
    if (directory / "config.yaml").exists():  # the kill came late: take back what had not been there
        shutil.rmtree(directory)
        directory.mkdir()
        (directory / "machine.json").write_text("{}\n")
        (directory / ".new.config.yaml.abcd_123").write_text("recipe: qui")
    said = end(start("resume", directory), status=2)
    assert "was stopped before it began" in said
    assert "start it again" in said
    end(start("begin", directory))
    assert_same(directory, unbroken)


@pytest.mark.parametrize("step", ["judge", "reward", "improve"])
def test_an_interrupted_run_can_be_taken_up(tmp_path: Path, unbroken: Unbroken, step: str) -> None:
    directory, stage = tmp_path / "run", STAGES.index((1, step))
    process = start("begin", directory)
    until(process, lambda: len(journal(directory)) == stage)
    time.sleep(0.5 * unbroken.stages[1, step])
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.endswith("plaudit: interrupted; go on with `plaudit resume run`\n")
    assert "Traceback" not in said
    assert len(journal(directory)) < len(STAGES)
    assert not half_written(directory)  # nothing was cut off, so nothing is left beside
    end(start("begin", directory))  # the same command goes on
    assert_same(directory, unbroken)
