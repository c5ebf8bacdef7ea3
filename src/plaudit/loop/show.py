"""Progress of long work: a bar with an estimate on a terminal, a line at the end elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from plaudit.training.metrics import clock

T = TypeVar("T")


class Bar:
    """Counts what is done."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        columns = (TextColumn(f"  {title}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task(title, total=total)
        self.console, self.title, self.done, self.began = console, title, 0, time.monotonic()

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if kind is None:
            spent = time.monotonic() - self.began
            self.console.print(f"  [dim]{self.title}: {self.done} in {clock(spent)}[/]", highlight=False)

    def step(self, value: T) -> T:
        """One more is done; gives the value back."""
        self.done += 1
        self.progress.advance(self.task)
        return value

    def of(self, values: Iterable[T], total: int) -> Iterator[T]:
        """The values one by one, counted as they are done; total is added to the bar's."""
        known = self.progress.tasks[0].total or 0
        self.progress.update(self.task, total=known + total)
        for value in values:
            yield value
            self.step(value)
