"""`plaudit worker`: computes what the studio asks for, one job after another.

A job is rows in, rows out: what it draws depends on its arguments alone, and what it has written already is not written
again, so that one whose worker died is simply begun anew.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from plaudit.data.collate import pack
from plaudit.data.tokenizer import check_room
from plaudit.feedback import schema, vectors
from plaudit.feedback.events import prompt_from_json
from plaudit.feedback.jobs import Job, Jobs
from plaudit.feedback.projects import Entry, Projects
from plaudit.feedback.store import Store
from plaudit.models.branch import Branch, pooled_states
from plaudit.models.load import Model, load_model, open_adapter
from plaudit.reward.open import open_for_texts
from plaudit.reward.score import samples_of
from plaudit.reward.scores import scored
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import SamplingParams
from plaudit.types import Prompt, UserError, prompt_to_json

LEASE_SECONDS = 60.0
PAUSE_SECONDS = 0.5
"""Between two looks at an empty queue."""
KEPT = 2
"""Models in memory; a playground asks two."""
ROWS = 32
"""Completions a pass of the trunk."""


class Stopped(Exception):
    """The job is no longer this worker's: it was cancelled, or taken for dead."""


@dataclass(slots=True)
class Worker:
    """One process that works. tell: where lines for whoever watches go."""

    store: Store
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    tell: Callable[[str], None] = lambda _: None
    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    models: dict[str, Model] = field(default_factory=dict)

    def run(self, *, once: bool = False) -> int:
        """Until it is interrupted, or, once: until the queue is empty. How many jobs were worked on."""
        jobs, count = Jobs(self.store.engine), 0
        while True:
            job = jobs.claim(self.name, time.time(), LEASE_SECONDS)
            if job is not None:
                count += 1
                self.work(job, jobs)
            elif once:
                return count
            else:
                time.sleep(PAUSE_SECONDS)

    def work(self, job: Job, jobs: Jobs) -> None:
        """One job to its end; what is wrong with its arguments is told to who asked."""
        began = time.monotonic()
        self.tell(f"job {job.id}: {job.kind}")
        try:
            if job.kind not in KINDS:
                raise UserError(f"no job is called {job.kind!r}", where=f"job {job.id}")
            with Pulse(jobs, job.id, self.name) as pulse:
                result = KINDS[job.kind](self, job.arguments, pulse)
        except Stopped:
            self.tell(f"job {job.id}: cancelled")
        except UserError as error:
            jobs.fail(job.id, self.name, str(error))
            self.tell(f"job {job.id}: {error}")
        except Exception as error:
            jobs.fail(job.id, self.name, f"{type(error).__name__}: {error}"[:500])
            raise
        else:
            jobs.finish(job.id, self.name, result)
            self.tell(f"job {job.id}: done in {time.monotonic() - began:.1f} s")

    def model(self, name: str) -> Model:
        """In memory, as long as no more than so many others were asked for since."""
        found = self.models.pop(name, None) or load_model(name, self.dtype, self.device)
        self.models[name] = found
        while len(self.models) > KEPT:
            self.models.pop(next(iter(self.models)))
        return found


class Pulse:
    """Says every so often that the worker is alive and how far it is; `at` raises Stopped where it should stop."""

    def __init__(self, jobs: Jobs, id: int, worker: str) -> None:
        self.jobs, self.id, self.worker = jobs, id, worker
        self.progress, self.message, self.mine = 0.0, "", True
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Pulse:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def at(self, done: int, total: int, message: str = "") -> None:
        """So many of so many."""
        self.progress, self.message = done / max(1, total), message
        if not self.mine:
            raise Stopped

    def watch(self, rows: Iterator[Any], total: int, message: str) -> Iterator[Any]:
        """The rows as they come."""
        for done, row in enumerate(rows, 1):
            yield row
            self.at(done, total, message)

    def _beat(self) -> None:
        while self.mine and not self.ended.wait(1.0):
            with contextlib.suppress(UserError):  # the store is busy: the next beat may be heard
                self.mine = self.jobs.beat(
                    self.id, self.worker, time.time(), LEASE_SECONDS, self.progress, self.message
                )


Arguments = Mapping[str, Any]


def _sample(worker: Worker, arguments: Arguments, pulse: Pulse) -> dict[str, int]:
    """Completions of prompts, put into a project as what its task judges: pairs of a comparison, all of a ranking, each
    by itself of another.

    project, model, prompts (text or messages each), n; adapter, max_new_tokens, temperature, top_p, seed where given.
    """
    with _arguments(arguments) as given:
        project, name = str(given["project"]), str(given["model"])
        prompts = [prompt_from_json(prompt) for prompt in given["prompts"]]
        n, seed = int(given.get("n", 2)), int(given.get("seed", 0))
        params = SamplingParams(
            int(given.get("max_new_tokens", 128)), float(given.get("temperature", 1.0)),
            top_p=float(given.get("top_p", 1.0)),
        )  # fmt: skip
        adapter = given.get("adapter")
    projects = Projects(worker.store)
    task = projects.get(project).task
    model = worker.model(name)
    engine, version = LocalEngine(model.trunk, model.tokenizer), name
    if adapter is not None:
        version = f"{name} with {adapter}"
        engine.load(open_adapter(Path(adapter), model.trunk), version)
    ids = [model.tokenizer.render(prompt) for prompt in prompts]
    drawn = engine.sample(ids, n, params, (seed, "studio", project))
    samples = list(pulse.watch(drawn, n * len(ids), "sampling"))
    texts: list[list[str]] = [[] for _ in prompts]
    for sample in sorted(samples, key=lambda s: (s.prompt, s.index)):
        texts[sample.prompt].append(sample.text)
    size = {"comparison": 2, "ranking": n}.get(task.kind, 1)
    entries = [
        Entry(prompt, tuple(group[at : at + size]), version)
        for prompt, group in zip(prompts, texts, strict=True)
        for at in range(0, len(group) - size + 1, size)
    ]
    return {"samples": len(samples), "items": len(entries), "added": projects.add(project, entries)}


def _vectors(worker: Worker, arguments: Arguments, pulse: Pulse) -> dict[str, int]:
    """A vector of each completion of a project: the mean of the trunk's states half-way up, over its tokens.

    project, model.
    """
    with _arguments(arguments) as given:
        project, name = str(given["project"]), str(given["model"])
    Projects(worker.store).get(project)
    model = worker.model(name)
    branch = Branch(model.trunk, exit=max(1, model.trunk.shape.depth // 2), pool="mean")
    left, made = vectors.missing(worker.store.engine, project, name), 0
    for first in range(0, len(left), ROWS):
        rows = [row for row in left[first : first + ROWS] if row[2]]
        found = _seen(branch, model, [(prompt, text) for _, prompt, text in rows])
        vectors.put(worker.store.engine, name, dict(zip([place for place, _, _ in rows], found, strict=True)))
        made += len(rows)
        pulse.at(first + ROWS, len(left), "reading")
    return {"vectors": made}


@torch.no_grad()
def _seen(branch: Branch, model: Model, rows: list[tuple[Prompt, str]]) -> list[Any]:
    """Prompts that are too long lose their beginning, completions their end."""
    if not rows:
        return []
    room = model.trunk.shape.context
    prompts, completions = list[list[int]](), list[list[int]]()
    for prompt, text in rows:
        completion = list(model.tokenizer.encode(text))[: room // 2]
        prompts.append(list(model.tokenizer.render(prompt))[-(room - len(completion)) :])
        completions.append(completion)
    packed = pack(prompts, completions, device=model.trunk.device)
    return list(pooled_states(branch, packed).float().cpu().numpy())


def _scores(worker: Worker, arguments: Arguments, pulse: Pulse) -> dict[str, int]:
    """A reward of each completion of a project, with the deviation over an ensemble's members: what the queue and the
    pages read.

    project, reward: as `plaudit score` takes it.
    """
    with _arguments(arguments) as given:
        project, name = str(given["project"]), str(given["reward"])
    Projects(worker.store).get(project)
    opened = open_for_texts(name, dtype=worker.dtype, device=worker.device)
    left = vectors.missing(worker.store.engine, project, name, schema.scores)
    for first in range(0, len(left), ROWS):
        rows = left[first : first + ROWS]
        asked = [
            (f"item {item}", {"prompt": prompt_to_json(prompt), "completion": text})
            for (item, _), prompt, text in rows
        ]
        said = scored(opened.scorer, samples_of(asked, opened.base))
        doubt: Sequence[float | None] = said.uncertainty or [None] * len(rows)
        found = zip([place for place, _, _ in rows], zip(said.scores, doubt, strict=True), strict=True)
        vectors.put_scores(worker.store.engine, name, dict(found))
        pulse.at(first + ROWS, len(left), "scoring")
    return {"scores": len(left)}


def _reply(worker: Worker, arguments: Arguments, pulse: Pulse) -> dict[str, Any]:
    """What each of several models says next in a dialogue: {"replies": [text, ...]} in the models' order, cut to what
    their context holds.

    models, messages; max_new_tokens, temperature, seed where given.
    """
    with _arguments(arguments) as given:
        names, prompt = [str(name) for name in given["models"]], prompt_from_json(given["messages"])
        most, temperature = int(given.get("max_new_tokens", 256)), float(given.get("temperature", 1.0))
        seed = int(given.get("seed", 0))
    replies = []
    for number, name in enumerate(names):
        model = worker.model(name)
        ids = model.tokenizer.render(prompt)
        check_room(len(ids) + 1, model.trunk.shape.context, name)
        params = SamplingParams(min(most, model.trunk.shape.context - len(ids)), temperature)
        engine = LocalEngine(model.trunk, model.tokenizer)
        (sample,) = engine.sample([ids], 1, params, (seed, "reply", number))
        replies.append(sample.text)
        pulse.at(number + 1, len(names), "answering")
    return {"replies": replies}


@contextlib.contextmanager
def _arguments(given: Arguments) -> Iterator[Arguments]:
    """UserError where one is missing or is of another kind."""
    try:
        yield given
    except KeyError as error:
        raise UserError(f"is not told its {error.args[0]}", where="job") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot use what it is told ({error})", where="job") from None


KINDS: dict[str, Callable[[Worker, Arguments, Pulse], Any]] = {
    "sample": _sample,
    "vectors": _vectors,
    "scores": _scores,
    "reply": _reply,
}
