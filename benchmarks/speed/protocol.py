"""What the harness and a worker say to each other: one JSON object a line. Standard library alone, since peers import
it in environments where nothing of Plaudit is installed.

The worker says {"ready": facts} when its model is loaded, and the harness then asks for turns, one at a time, with
{"command": "turn"}. The worker times its own work and answers {"seconds": ..., "peak_rss_gb": ..., "rss_gb": ...}.
{"command": "stop"}, or the end of its input, ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Turns:
    """A worker's side of the talk."""

    def __init__(self) -> None:
        """From here on whatever libraries print goes to standard error: standard output is the harness's."""
        sys.stdout.flush()
        self._out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._began = 0.0
        if sys.platform == "linux":  # a side that was stopped when the harness was killed would wait for ever
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def ready(self, **facts: Any) -> None:
        """Say that the model is loaded; returns when the first turn is asked for, and the clock runs from there."""
        self._say({"ready": facts})
        self._wait()

    def done(self, **facts: Any) -> None:
        """Say that a turn is done; returns when the next is asked for, and the clock runs from there. `seconds` among
        the facts: the turn's own, where more was done since than belongs to it."""
        self._say(
            {"seconds": self.seconds(), "peak_rss_gb": memory("VmHWM"), "rss_gb": memory("VmRSS"), **facts}
        )
        self._wait()

    def seconds(self) -> float:
        """Since the turn was asked for."""
        return time.perf_counter() - self._began

    def _say(self, message: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line or json.loads(line)["command"] == "stop":
            sys.exit(0)
        self._began = time.perf_counter()


def memory(field: str) -> float:
    """VmHWM (the most so far) or VmRSS (now), in 10^9 bytes, of this process and of those that it started."""
    parents, sizes = dict[int, int](), dict[int, float]()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            lines = (entry / "status").read_text(encoding="utf-8").splitlines()
        except OSError:  # it has ended since
            continue
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        parents[int(entry.name)] = int(status["PPid"])
        sizes[int(entry.name)] = int(status.get(field, "0 kB").split()[0]) * 1024 / 1e9
    mine, found = {os.getpid()}, set[int]()
    while mine != found:
        found = set(mine)
        mine |= {child for child, parent in parents.items() if parent in found}
    return sum(sizes.get(process, 0.0) for process in mine)


class WorkerDied(Exception):
    """A worker ended, or said what is no answer; the message holds the end of its log."""


class Worker:
    """The harness's side: a process that speaks the protocol. Between its turns it is stopped (SIGSTOP): threads that
    spin while they wait, as some OpenMP runtimes' do, would slow the other side."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        """Starts it and waits until it is ready. env: beside this process's own."""
        self.log, self.command = log, " ".join(command)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **(env or {})},
            )
        try:
            self.facts: dict[str, Any] = self._hear()["ready"]
            self.process.send_signal(signal.SIGSTOP)
        except BaseException:
            self.close()
            raise

    def turn(self) -> dict[str, Any]:
        """One turn of its work, as the worker timed it."""
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write('{"command": "turn"}\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        heard = self._hear()
        self.process.send_signal(signal.SIGSTOP)
        return heard

    def close(self) -> None:
        """End it; what does not end within ten seconds is killed."""
        self.process.send_signal(signal.SIGCONT)
        if self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        try:
            heard = json.loads(line)
            if not isinstance(heard, dict):
                raise ValueError
        except ValueError:
            raise self._died() from None
        return heard

    def _died(self) -> WorkerDied:
        end = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-6:]
        return WorkerDied(f"{self.command} ended early; {self.log} ends:\n" + "\n".join(end))
