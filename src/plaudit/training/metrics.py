"""One JSON object a step in metrics.jsonl, the same numbers for TensorBoard, and a line for whoever watches."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from plaudit import files
from plaudit.phases import phase

if TYPE_CHECKING:
    from plaudit.training.profile import StepProfile


class Metrics:
    """The log of one run; what a killed run wrote after its last checkpoint is dropped, since it comes again."""

    def __init__(
        self,
        directory: Path,
        *,
        total: int,
        done: int,
        title: str,
        console: Console | None = None,
        profile: Callable[[Path, Mapping[str, Any]], object] | None = None,
    ) -> None:
        """total, done: steps in all and already taken. profile: makes the page of a profiled step; None: none is."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self.path, self.done, self.total = directory / "metrics.jsonl", done, total
        kept = [row for row in read(self.path) if row["step"] <= done]
        files.write_rows(self.path, kept)
        self.history: list[dict[str, float]] = kept
        self.board = SummaryWriter(str(directory / "tensorboard"), purge_step=done + 1)
        self.console = console or Console(stderr=True)
        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.progress = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        self.task = self.progress.add_task(title, total=total, completed=done, note="")
        self.title, self.started = title, time.monotonic()
        self.profile: StepProfile | None = None
        if profile is not None:
            from plaudit.training.profile import StepProfile

            self.profile = StepProfile(directory, profile, total=total, done=done)

    def __enter__(self) -> Metrics:
        self.progress.start()
        if self.profile is not None:
            self.profile.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.profile is not None:
            self.profile.end()
        self.progress.stop()
        self.board.close()

    def expect(self, total: int) -> None:
        """So many steps in all, where that was not known at first."""
        self.total = total
        self.progress.update(self.task, total=total)

    def log(self, step: int, values: Mapping[str, float], shown: str) -> None:
        """Write the numbers of a step that is done (1, 2, ...) and show one line of them."""
        self._log(step, values, shown)
        if self.profile is not None:
            self.profile.logged(step, values)

    @phase("log")
    def _log(self, step: int, values: Mapping[str, float], shown: str) -> None:
        row = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        with files.writable(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.history.append(row)  # type: ignore[arg-type]
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        spent = time.monotonic() - self.started
        left = spent / max(1, step - self.done) * (self.total - step)
        self.progress.update(self.task, completed=step, note="")
        self.console.print(
            f"[dim]{self.title}[/] {step:>3}/{self.total}  {shown}  [dim]{clock(left)} left[/]",
            highlight=False,
            soft_wrap=True,
        )


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl; a last line that a kill has cut is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def clock(seconds: float) -> str:
    """75 -> '1:15'."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
