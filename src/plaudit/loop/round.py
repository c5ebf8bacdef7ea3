"""What every transition of a loop's round is given, what stands at its beginning, and what was said so far."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from plaudit import files
from plaudit.feedback.events import Event, Item
from plaudit.feedback.judgements import REPEATS, records_of
from plaudit.feedback.projects import Project, Projects
from plaudit.feedback.served import SERVED, Served
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Task
from plaudit.loop.drawing import Prompts, Row
from plaudit.loop.rounds import Journal
from plaudit.loop.settings import Config, Source
from plaudit.models.load import Model
from plaudit.randomness import rng
from plaudit.reward.rubric import as_text
from plaudit.types import Demonstration, Record

Result = dict[str, Any]
LOOP, SOURCE = "loop", "source"
"""In the meta of items that a loop makes: which loop, and for whom."""
POLICY = "policy"
"""A round's directory with the run that has made its candidate."""
MEND = "put back the copy of it, or start the run again"


@dataclass(frozen=True, slots=True)
class Standing:
    """What holds when a round begins.

    champion: the round whose model is published, 0: the starting model. version: what that is called. kl_target: nats a
    token. overlap: raters a pair. fresh: the number of the last event that was said before taste changed. seq: the last
    event that the round before has learned from.
    """

    champion: int
    version: str
    kl_target: float
    overlap: int
    fresh: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class TakenBack:
    """All that was retracted from a loop. attempts: how often; tests: verdicts of the gate that went with it; versions:
    of policies that it touched, whose samples are not learned from; items, sources: by name, what is heard no more."""

    attempts: int = 0
    tests: int = 0
    versions: frozenset[str] = frozenset()
    items: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Round:
    """start: what the starting model is called. suites: their prompts. wait: whether to wait for people. id: of the run
    in its store, empty where the store is the run's own."""

    config: Config
    directory: Path
    number: int
    model: Model
    store: Store
    prompts: Prompts
    heldout: Prompts
    suites: dict[str, Prompts]
    console: Console
    journal: Journal
    start: str
    standing: Standing
    wait: bool = True
    id: str = ""
    taken_back: TakenBack = field(default_factory=TakenBack)

    @property
    def place(self) -> Path:
        return place_of(self.directory, self.number)

    @property
    def name(self) -> str:
        """What the loop's items and snapshots are known by in its store."""
        return self.config.name + (f" {self.id}" if self.id else "")

    @property
    def sources(self) -> dict[str, float]:
        """Those that are used, with their weights."""
        return {
            name: weight
            for name, weight in self.config.sources.used.items()
            if name not in self.taken_back.sources
        }

    @property
    def parent(self) -> Path | None:
        """The adapter of the policy that is published; None is the starting model."""
        return adapter_of(self.directory, self.standing.champion)

    @property
    def last_reward(self) -> Path | None:
        """The reward model of the round before."""
        return None if self.number == 1 else place_of(self.directory, self.number - 1) / "reward" / "model"

    @property
    def asked(self) -> Prompts:
        """The training prompts that the round samples, drawn anew for each."""
        return self.some("loop prompts", self.prompts, self.config.collect.prompts, self.number)

    @property
    def contested(self) -> Prompts:
        """The held-out prompts that the gate judges: they rotate, so that none comes again before all have come."""
        count = min(self.config.gate.prompts, len(self.heldout))
        order = rng(self.config.seed, "gate prompts").permutation(len(self.heldout))
        first = (self.number - 1) * count
        return [self.heldout[order[i % len(order)]] for i in range(first, first + count)]

    def some(self, purpose: str, prompts: Prompts, count: int, *key: int) -> Prompts:
        """So many of the prompts, drawn."""
        order = rng(self.config.seed, purpose, *key).permutation(len(prompts))[:count]
        return [prompts[i] for i in sorted(order)]

    def done(self, step: str) -> Result:
        """What an earlier transition of this round has come to."""
        found = self.journal.done(self.number, step)
        assert found is not None
        return found

    def say(self, text: str) -> None:
        self.console.print(f"[bold]Round {self.number}[/] {text}", highlight=False, soft_wrap=True)

    # Projects of the studio

    def project(self, purpose: Literal["studio", "gate"]) -> Project | None:
        """The round's own, where people judge what is learned from, or at the gate."""
        found = projects_of(self.directory).get(self._key(purpose))
        return None if found is None else Projects(self.store).get(found)

    def opened(self, purpose: Literal["studio", "gate"], task: Task) -> Project:
        """The round's own, made where there is none, with this task."""
        projects, found = Projects(self.store), self.project(purpose)
        if found is None:
            what = "Loop" if purpose == "studio" else "Gate of"
            again = f", attempt {self.taken_back.attempts + 1}" if self.taken_back.attempts else ""
            found = projects.create(f"{what} {self.config.name}, round {self.number}{again}", task)
            known = projects_of(self.directory) | {self._key(purpose): found.id}
            files.write_json(self.directory / "projects.json", known)
        return found if found.task == task else projects.change(found.id, task=task)

    def _key(self, purpose: str) -> str:
        # What is sampled after a retraction is the same again; what the gate judges is not.
        attempt = f", attempt {self.taken_back.attempts + 1}" if purpose == "gate" else ""
        return f"{purpose}, round {self.number}{attempt}"


def place_of(directory: Path, number: int) -> Path:
    return directory / "rounds" / str(number)


def adapter_of(directory: Path, champion: int) -> Path | None:
    """Of the policy that a round has made; None is the starting model."""
    return None if champion == 0 else place_of(directory, champion) / POLICY / "adapter"


def store_of(config: Config, directory: Path) -> str:
    return config.store or str(directory / "feedback.db")


def projects_of(directory: Path) -> dict[str, str]:
    """The projects that the loop has made, by what they are for."""
    path = directory / "projects.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def rounded(value: float) -> float:
    """To six digits, as it is written down."""
    return float(f"{value:.6g}")


# What was said --------------------------------------------------------------------------------------------


class Heard(NamedTuple):
    """A judgement that is learned from. records: what it says; a demonstration alone says nothing here."""

    event: Event
    item: Item
    source: Source
    records: tuple[Record, ...]


def gathered(round: Round, up_to: int | None = None, *, after: int = 0) -> list[Heard]:
    """The judgements that stand and are learned from, of events `after` + 1 to `up_to`, in order.

    Not among them: what is said of prompts that are held out or belong to a suite, by the gate's raters, of samples of
    policies that were taken back, of items and from sources that were, and what others ask in the same store.
    """
    events = round.store.current(up_to, after=after)
    items = round.store.items({event.item for event in events if event.item is not None})
    names = Served(round.store).names() if "served" in round.sources else {}
    apart = {as_text(prompt) for some in (round.heldout, *round.suites.values()) for prompt in some}
    judges = set(round.config.gate.raters)
    found = list[Heard]()
    for event in events:
        item = items.get(event.item or "")
        if event.kind == "skip" or event.rater in judges or item is None:
            continue
        source = source_of(item, round.name, round.config.name, names)
        back = round.taken_back
        if source not in round.sources or item.id in back.items or as_text(item.prompt) in apart:
            continue
        if back.versions & {event.policy_version, item.policy_version, *item.meta.get("models", ())}:
            continue
        told = tuple(record for record in records_of(item, event) if not isinstance(record, Demonstration))
        if told and source is not None:
            found.append(Heard(event, item, source, told))
    return found


def judgement_row(one: Heard) -> Row:
    """As it stands in events.jsonl. versions: the policies of which its texts are samples; digest: of all that was
    said."""
    versions = {one.item.policy_version or "", *one.item.meta.get("models", ())} - {""}
    return event_row(one.event, one.source, sorted(versions))


def event_row(event: Event, source: str, versions: Sequence[str]) -> Row:
    content = {"kind": event.kind, "item": event.item, "rater": event.rater, "payload": dict(event.payload)}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return {
        "event": event.id,
        "item": event.item,
        "rater": event.rater,
        "source": source,
        "versions": list(versions),
        "digest": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16],
    }


def as_list(of: str | list[str]) -> list[str]:
    """An item's responses: one, or the two that are compared."""
    return [of] if isinstance(of, str) else of


def source_of(item: Item, loop: str, name: str, names: dict[str, str]) -> Source | None:
    """For whom the item was made; None where it is not of this loop, or shows another again. loop: what the loop is
    known by; name: what its model is asked for by; names: what responses were asked for by."""
    if SERVED in item.meta:
        return "served" if all(names.get(one) == name for one in as_list(item.meta[SERVED])) else None
    if item.meta.get(LOOP) != loop or REPEATS in item.meta:
        return None
    source: Source = item.meta[SOURCE]
    return source
