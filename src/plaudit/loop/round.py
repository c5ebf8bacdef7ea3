"""What every transition of a loop's round is given, and what stands at its beginning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from plaudit.feedback.events import Event, Item
from plaudit.feedback.judgements import REPEATS
from plaudit.feedback.projects import Project, Projects
from plaudit.feedback.served import SERVED
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Task
from plaudit.loop.drawing import Prompts
from plaudit.loop.rounds import Journal
from plaudit.loop.settings import Config, Source
from plaudit.models.load import Model
from plaudit.randomness import rng

Result = dict[str, Any]
LOOP, SOURCE = "loop", "source"
"""In the meta of items that a loop makes: which loop, and for whom."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What holds when a round begins.

    champion: the round whose model is published, 0: the starting model. version: what that is called; versions: of all
    rounds so far. kl_target: nats a token. overlap: raters an item. fresh: the number of the last event that was said
    before taste changed. seq: the last event that the round before has learned from.
    """

    champion: int
    version: str
    kl_target: float
    overlap: int
    fresh: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Round:
    """wait: whether to wait for people. attempt: how often something was taken back; set_aside: rounds that went with
    it. barred: versions of policies whose samples are not learned from, since what made them was taken back."""

    config: Config
    directory: Path
    number: int
    model: Model
    store: Store
    prompts: Prompts
    heldout: Prompts
    console: Console
    journal: Journal
    start: str
    standing: Standing
    wait: bool = True
    attempt: int = 0
    set_aside: int = 0
    barred: frozenset[str] = frozenset()

    @property
    def place(self) -> Path:
        return place_of(self.directory, self.number)

    @property
    def parent(self) -> Path | None:
        """The adapter of the policy that is published; None is the starting model."""
        champion = self.standing.champion
        return None if champion == 0 else place_of(self.directory, champion) / "ppo" / "adapter"

    @property
    def last_reward(self) -> Path | None:
        """The reward model of the round before."""
        return None if self.number == 1 else place_of(self.directory, self.number - 1) / "reward" / "model"

    @property
    def asked(self) -> Prompts:
        """The training prompts that the round samples, drawn anew for each."""
        return self.drawn("loop prompts", self.prompts, self.config.collect.prompts, self.number)

    @property
    def contested(self) -> Prompts:
        """The held-out prompts that the gate judges: they rotate, so that none comes again before all have come."""
        count = min(self.config.gate.prompts, len(self.heldout))
        order = rng(self.config.seed, "gate prompts").permutation(len(self.heldout))
        first = (self.number - 1) * count
        return [self.heldout[order[i % len(order)]] for i in range(first, first + count)]

    def drawn(self, purpose: str, prompts: Prompts, count: int, *key: int) -> Prompts:
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

    @property
    def titles(self) -> dict[str, str]:
        """Of this round's projects: whose judgements are learned from, and whose decide at the gate."""
        again = "" if self.attempt == 0 else f", attempt {self.attempt + 1}"
        name = self.config.name
        return {"studio": title_of(name, self.number), "gate": f"Gate of {name}, round {self.number}{again}"}

    def project(self, title: str) -> Project | None:
        """The newest of that name that is not archived."""
        found = [one for one in Projects(self.store).all() if one.name == title and not one.archived]
        return found[-1] if found else None

    def opened(self, title: str, task: Task) -> Project:
        """The project of that name, with this task; made where there is none."""
        projects, found = Projects(self.store), self.project(title)
        if found is None:
            return projects.create(title, task)
        return found if found.task == task else projects.change(found.id, task=task)


def title_of(name: str, number: int) -> str:
    """Of the project in which people judge a round's samples."""
    return f"Loop {name}, round {number}"


def place_of(directory: Path, number: int) -> Path:
    return directory / "rounds" / str(number)


def gathered(round: Round, up_to: int | None, after: int = 0) -> Iterator[tuple[Event, Item, Source]]:
    """The judgements that stand and are learned from, with where each comes from; skips are none. Not among them: what
    is said of held-out prompts, of samples of a policy that is barred, and what others ask in the same store."""
    events = [event for event in round.store.current(up_to) if event.kind != "skip" and event.seq > after]
    items = round.store.items({event.item for event in events if event.item is not None})
    heldout = set(round.heldout)
    for event in events:
        item = items.get(event.item or "")
        source = None if item is None else source_of(item, round.config.name)
        if item is None or source is None or not getattr(round.config.sources, source):
            continue
        versions = {event.policy_version, item.policy_version, *item.meta.get("models", ())}
        if item.prompt not in heldout and not versions & round.barred:
            yield event, item, source


def source_of(item: Item, name: str) -> Source | None:
    """For whom the item was made; None where it is not for this loop, or shows another again."""
    if SERVED in item.meta:
        return "served"
    if item.meta.get(LOOP) != name or REPEATS in item.meta:
        return None
    source: Source = item.meta[SOURCE]
    return source
