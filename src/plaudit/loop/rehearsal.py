"""A run cut short, in a process of its own, watched from outside: what a prediction is made of.

The run's directory stands in a temporary place and goes with it. What is watched: metrics.jsonl (it appears when all is
set up; a line is a step), checkpoints, the process's memory. A process that comes too near to what the machine can give
is killed, before the system swaps or kills others.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.types import UserError

CHILD = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: whoever watches is killed, and so is this
from plaudit.cli import main
status = main(sys.argv[2:])
torch = sys.modules.get("torch")
if torch is not None and torch.cuda.is_available():
    with open(sys.argv[1], "w") as file:
        file.write(str(torch.cuda.max_memory_reserved()))
sys.exit(status)
"""
"""The first argument is where a GPU's peak is written, the others are the command's."""
LOOK_EVERY = 0.05
"""Seconds between two looks at a run."""
SPARE = 0.03
"""The share of the machine's memory that is left to the rest of the system."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Timeline:
    """What was seen of a run that ended well.

    Seconds since its start: ready (all is set up), steps (each step's end), saved (the last checkpoint stood; None:
    there was none), end. Bytes: memory (the most), gpu (the most that torch reserved; None: no GPU), disk (all that it
    wrote), checkpoint (the last one). length: tokens a completion on average, None where none is drawn.
    """

    ready: float
    steps: tuple[float, ...]
    saved: float | None
    end: float
    memory: int
    disk: int
    checkpoint: int = 0
    gpu: int | None = None
    length: float | None = None

    @property
    def last(self) -> float:
        """The end of the last step; where there was none, of the setup."""
        return self.steps[-1] if self.steps else self.ready


class DoesNotFit(Exception):
    """The run was stopped, or died, for want of memory. used: the most it was seen to hold, in bytes."""

    def __init__(self, used: int) -> None:
        super().__init__(f"{used / 1e9:.1f} GB")
        self.used = used


def rehearse(settings: str, place: Path, *, limit: int, say: Say) -> Timeline:
    """`plaudit train` on these settings (YAML), in an empty directory.

    limit: bytes that it may hold. DoesNotFit where it wants more; UserError with the run's own words where the config
    or the data is at fault.
    """
    (place / "config.yaml").write_text(settings, encoding="utf-8")
    run, log, scratch = place / "run", place / "log.txt", place / "tmp"
    scratch.mkdir()
    command = ["train", str(place / "config.yaml"), "--out", str(run)]
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as told:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, str(place / "gpu"), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=told,
            env=os.environ | {"TMPDIR": str(scratch)},
            start_new_session=True,  # Ctrl-C is for the one who watches, who ends this one and what it started
        )
        try:
            seen = _Seen(began)
            while process.poll() is None:
                seen.look(run, process.pid, say)
                if seen.memory > limit or available() < 0:
                    raise DoesNotFit(seen.memory)
                time.sleep(LOOK_EVERY)
            end = time.monotonic() - began
            seen.look(run, None, say)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    _check(process.returncode, log.read_text(encoding="utf-8", errors="replace"), seen.memory)
    gpu = place / "gpu"
    saved = sorted((run / "checkpoints").glob("step-*"))
    return Timeline(
        ready=seen.ready or end,
        steps=tuple(seen.steps),
        saved=seen.saved,
        end=end,
        memory=seen.memory or _children_peak(),
        disk=size_of(run),
        checkpoint=size_of(saved[-1]) if saved else 0,
        gpu=int(gpu.read_text()) if gpu.exists() else None,
        length=mean_length(run / "metrics.jsonl"),
    )


class _Seen:
    """What was seen of a run so far."""

    def __init__(self, began: float) -> None:
        self.began, self.told = began, began
        self.ready: float | None = None
        self.saved: float | None = None
        self.steps: list[float] = []
        self.memory = self._size = 0

    def look(self, run: Path, process: int | None, say: Say) -> None:
        now = time.monotonic()
        if process is not None:
            self.memory = max(self.memory, peak_of(process))
        metrics = run / "metrics.jsonl"
        with contextlib.suppress(OSError):
            size = metrics.stat().st_size
            if self.ready is None:
                self.ready = now - self.began
                say(f"set up after {self.ready:.0f} s")
            if size != self._size:
                self._size = size
                ended = metrics.read_bytes().count(b"\n")
                self.steps += [now - self.began] * (ended - len(self.steps))
                if now - self.told > 2:
                    say(f"step {ended} after {now - self.began:.0f} s")
                    self.told = now
        if self.steps and self.saved is None and any((run / "checkpoints").glob("step-*")):
            self.saved = now - self.began


def _check(status: int, log: str, used: int) -> None:
    """What became of a run that has ended, where it has not ended well."""
    if status == 0:
        return
    line = (log.strip().splitlines() or [""])[-1].removeprefix("plaudit: ")
    if line.startswith("out of memory") or status == -signal.SIGKILL:
        raise DoesNotFit(used)
    if status == 2:
        raise UserError(line)
    raise RuntimeError(f"the rehearsal ended with status {status}:\n{log}")


def mean_length(metrics: Path) -> float | None:
    """Tokens a completion, over all steps that logged it."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in metrics.read_text().splitlines()]
    lengths = [row["length"] for row in rows if row.get("length") is not None]
    return sum(lengths) / len(lengths) if lengths else None


def size_of(directory: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def peak_of(process: int) -> int:
    """The most bytes that a process has held; 0 where the system does not tell of another's.

    Not wait4's ru_maxrss: a process begins with its parent's peak there, and a parent with torch is larger than many a
    run.
    """
    with contextlib.suppress(OSError, StopIteration):
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return 0


def _children_peak() -> int:
    """Where there is no /proc: of the largest process that was ever waited for."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available() -> int:
    """Bytes that a new process can have before the system swaps or kills, some spared for others; the least of what
    the machine and the container give. What is not known does not count."""
    least = sys.maxsize
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()}
        least = sizes["MemAvailable"] - int(SPARE * sizes["MemTotal"])
    for limit, used, cached in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        with contextlib.suppress(OSError, ValueError):
            most, now = (int(Path("/sys/fs/cgroup", name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in Path("/sys/fs/cgroup", cached).read_text().splitlines())
            # What the page cache holds is given back when it is wanted.
            now -= int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            least = min(least, most - now - int(SPARE * most))
    return least


def free_disk(place: Path) -> int:
    """Bytes that can be written there."""
    return shutil.disk_usage(place).free
