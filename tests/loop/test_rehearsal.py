"""Real rehearsals of tiny runs: what is seen of them, that they are stopped in time, and that nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from little_data import WORDS, demonstrations, preferences
from plaudit.cli import main
from plaudit.loop import estimate, rehearsal
from plaudit.loop.prediction import Prediction
from plaudit.loop.rehearsal import DoesNotFit, Timeline
from plaudit.types import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ["model=tiny", "precision=float32", "threads=1"]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands are called in tmp_path, and what is temporary stands in here."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    return place


def test_ppo_is_rehearsed(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.0)  # once is enough here
    seen: list[Prediction] = []
    described = estimate.described

    def told(asked: estimate.Asked, found: Prediction) -> list[str]:
        seen.append(found)
        return described(asked, found)

    monkeypatch.setattr(estimate, "described", told)
    Path("prompts.txt").write_text("\n".join(WORDS) + "\n")
    words = ["prompts=prompts.txt", "reward=plaudit.reward.rules:length", "steps=40", "prompts_per_step=2"]
    words += ["samples_per_prompt=2", "max_new_tokens=6", "adapter.blocks=2"]
    assert main(["doctor", str(CONFIGS / "ppo.yaml"), *SMALL, *words]) == 0
    said = capsys.readouterr()
    (found,) = seen
    assert found.steps == 40
    assert found.total == found.setup + found.stepping + found.finish
    assert min(found.setup, found.stepping, found.finish) > 0
    assert 100e6 < found.memory < 2e9  # torch alone is more than 100 MB, and nothing here is large
    assert found.disk > 2e5
    assert found.length is not None
    assert 1 <= found.length <= 6
    for name in ("set up", "steps", "finish", "in all", "at the most", "memory", "disk", "assumed"):
        assert name in said.out
    assert "2 of 40 steps" in said.err
    assert {path.name for path in Path().iterdir()} == {"prompts.txt", "scratch"}
    assert not list(scratch.glob("plaudit*"))


def test_sft_is_rehearsed_on_a_part(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.0)
    seen: list[Timeline] = []

    def watched(*given: Any, **named: Any) -> Timeline:
        found = rehearsal.rehearse(*given, **named)
        seen.append(found)
        return found

    monkeypatch.setattr(estimate, "rehearse", watched)
    words = [f"data=[{demonstrations(tmp_path, 120)}]", "batch_size=4", "heldout=0.1"]
    assert main(["doctor", str(CONFIGS / "sft.yaml"), *SMALL, *words]) == 0
    assert [len(timeline.steps) for timeline in seen] == [2, 6]
    for timeline in seen:
        marks = [0.0, timeline.ready, *timeline.steps, timeline.saved, timeline.end]
        assert marks == sorted(marks, key=lambda x: x or 0.0)
        assert timeline.checkpoint > 1e4
        assert timeline.disk > timeline.checkpoint
    assert not list(scratch.glob("plaudit*"))
    assert "of the data" in capsys.readouterr().err


def test_a_run_that_wants_too_much_is_stopped(
    scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data=[{preferences(tmp_path)}]", "micro_batch_tokens=300", "--memory", "0.1"]
    assert main(["doctor", str(CONFIGS / "dpo.yaml"), *SMALL, *words]) == 2
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("no      memory          more than 0.1 GB, where 0.1 GB are to be had")
    assert said[1].startswith("--      change          a smaller micro_batch_tokens is not enough")
    assert not list(scratch.glob("plaudit*"))


def test_a_run_is_stopped_when_the_machine_has_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([10**10, 10**9, -1])
    monkeypatch.setattr(rehearsal, "available", lambda: next(left))
    with pytest.raises(DoesNotFit):
        rehearsal.rehearse("recipe: sft\n", tmp_path, limit=10**12, say=lambda _: None)
    assert next(left, None) is None


def test_a_peak_is_of_the_process_and_not_of_its_parent() -> None:
    """A child's ru_maxrss begins with that of whoever started it."""
    ballast = b"x" * 300_000_000
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        time.sleep(0.5)
        assert 1e6 < rehearsal.peak_of(child.pid) < 1e8
        child.kill()
    assert rehearsal.peak_of(child.pid) == 0
    assert rehearsal.peak_of(os.getpid()) > len(ballast)


@pytest.mark.parametrize(
    ("status", "log", "error", "says"),
    [
        (2, "hello\nplaudit: x: is wrong; mend it\n", UserError, "^x: is wrong; mend it$"),
        (2, "plaudit: out of memory; lower micro_batch_tokens\n", DoesNotFit, "0.0 GB"),
        (-signal.SIGKILL, "", DoesNotFit, "0.0 GB"),
        (1, "Traceback\nplaudit: this is a bug", RuntimeError, "status 1:\nTraceback"),
    ],
)
def test_what_ends_badly_says_why(status: int, log: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        rehearsal._check(status, log, 5)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["none.yaml"], "none.yaml: cannot be read"),
        ([str(CONFIGS / "sft.yaml"), "epoch=1"], "unknown setting 'epoch'; did you mean 'epochs'?"),
        (
            [str(CONFIGS / "sft.yaml"), "data=[none.jsonl]"],
            "none.jsonl: there is no such file; check the path",
        ),
        (["--memory", "3"], "--memory: is of a run; name its CONFIG.yaml, too"),
        ([str(CONFIGS / "sft.yaml"), "recipe=none"], "unknown recipe 'none'"),
    ],
)
def test_bad_words_are_told_in_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert line in said.err


def test_what_the_run_refuses_is_told_in_its_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = demonstrations(tmp_path)
    assert main(["doctor", str(CONFIGS / "dpo.yaml"), *SMALL, f"data=[{data}]"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"plaudit: {data}: record 1: is a demonstration, not a comparison")


def test_ctrl_c_leaves_nothing_behind(scratch: Path, tmp_path: Path) -> None:
    words = ["doctor", str(CONFIGS / "sft.yaml"), *SMALL, f"data=[{demonstrations(tmp_path)}]", "epochs=9"]
    code = "import sys; from plaudit.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 120
        while not list(scratch.glob("*/run/machine.json")) and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.02)
        mine = [pid for pid in processes_of(scratch) if pid != process.pid]
        assert mine
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, said.splitlines()[-1]) == ("", "plaudit: interrupted")
    assert not list(scratch.glob("plaudit*"))
    assert not processes_of(scratch)


def processes_of(scratch: Path) -> list[int]:
    """The processes whose command names the place."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(scratch).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
