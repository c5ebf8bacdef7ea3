"""A profile of one step of a run: torch's profiler around it, and what it saw written beside the run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from plaudit import config as configs
from plaudit import files, phases
from plaudit.training import machine
from plaudit.training.attribution import STEP, Span, attribute

Write = Callable[[Path, Mapping[str, Any]], object]
"""Makes a page of the figures in a run's directory."""


class Recording:
    """A profiler that is on, and the step that it watches. It changes no number."""

    def __init__(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it tells the terminal that it starts and stops
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self.profile = profile(activities=activities, experimental_config=_every_thread())
        self.profile.start()
        phases.watch(_mark)
        self.processor = time.process_time()
        self.step = record_function(STEP)
        self.step.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Without asking what it saw."""
        self.step.__exit__(None, None, None)
        self.processor = time.process_time() - self.processor
        phases.watch(None)
        self.profile.stop()

    def figures(self) -> dict[str, Any]:
        """What it saw, once it has stopped: as `attribute` has it; and how long processors were at work for this
        process, all threads together, and how long a device was (seconds)."""
        results: Any = self.profile.profiler and self.profile.profiler.kineto_results
        host, device = list[Span](), 0.0
        for event in results.events():
            if event.device_type().name != "CPU":
                device += event.duration_ns() / 1e9
            elif not event.is_async():
                start = (
                    event.start_ns() - results.trace_start_ns()
                )  # small enough for a float to tell ns apart
                end = start + event.duration_ns()
                host.append(Span(event.name(), start / 1e9, end / 1e9, event.start_thread_id()))
        return attribute(host) | {"processor_seconds": self.processor, "device_seconds": device}


def _mark(name: str) -> AbstractContextManager[object]:
    """torch's own marker; the quick one where this torch has it, for some stand around a few microseconds."""
    quick = getattr(torch._C._profiler, "_RecordFunctionFast", record_function)
    marker: AbstractContextManager[object] = quick(name)
    return marker


def _every_thread() -> Any:
    """The setting that other threads are seen, too; None where this torch does not have it."""
    try:
        return torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    except (AttributeError, TypeError):
        return None


class StepProfile:
    """The profile of one step of a run: profile.html and profile.json in its directory, as soon as the step is done.

    The step is the second that the process takes, since in the first everything is cold; the first where there is no
    other. A run that has its profile, and is resumed, takes no other. What the step after it took, without a profiler,
    is put beside as soon as it is known.
    """

    def __init__(self, directory: Path, write: Write, *, total: int, done: int) -> None:
        """write: makes the page. total, done: steps in all and already taken."""
        self.directory, self.write = directory, write
        self.wanted = done < total and not (directory / "profile.json").exists()
        self.cold = total - done == 1
        self.recording: Recording | None = None
        self.figures: dict[str, Any] = {}
        self.without: dict[str, Any] | None = None
        self.since = time.monotonic()

    def begin(self) -> None:
        """Before the first step."""
        if self.wanted and self.cold:
            self.recording = Recording()
        self.since = time.monotonic()

    def logged(self, step: int, row: Mapping[str, float]) -> None:
        """After a step, with its row of metrics.jsonl."""
        took = {"step": step, "seconds": time.monotonic() - self.since, "tokens": tokens_of(row)}
        if self.recording is not None:
            self.end()
            self.figures = self.about(step, row)
            self._put()
        elif self.figures:
            self.figures["without"], self.wanted = took | {"cold": False}, False
            self._put()
            self.figures = {}
        elif self.wanted:
            self.without = took | {"cold": True}
            self.recording = Recording()
        self.since = time.monotonic()

    def end(self) -> None:
        """Nothing is watched any more; what was seen of a step that did not end is thrown away."""
        if self.recording is not None:
            self.recording.stop()
            self.figures, self.recording = self.recording.figures(), None

    def about(self, step: int, row: Mapping[str, float]) -> dict[str, Any]:
        """All figures of profile.json."""
        path = self.directory / "config.yaml"
        tree = configs.read_yaml(path) if path.exists() else {}
        precision = tree.get("precision")
        known = machine.record() | {"processor": machine.processor(), "cores": machine.available_cores()}
        return {
            "recipe": tree.get("recipe"),
            "model": tree.get("model"),
            "step": step,
            "cold": self.cold,
            "tokens": tokens_of(row),
            "precision": None
            if precision is None
            else str(machine.dtype_of(precision)).removeprefix("torch."),
            "machine": known,
            "without": self.without,
            **self.figures,
        }

    def _put(self) -> None:
        """The page first: where there are figures, there is a page."""
        self.write(self.directory, self.figures)
        files.write_json(self.directory / "profile.json", self.figures)


def tokens_of(row: Mapping[str, float]) -> int | None:
    """How many tokens a step learned from, by its row; None where that does not say."""
    if "tokens" in row:
        return round(row["tokens"])
    if "tokens_per_second" in row:
        return round(row["tokens_per_second"] * row["seconds"])
    return None
