"""`plaudit loop retract`: what somebody said is taken back, and every model that it touched with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from plaudit import config as configs
from plaudit import files
from plaudit.feedback.projects import Projects
from plaudit.feedback.releases import Releases
from plaudit.feedback.served import Served
from plaudit.feedback.store import Store
from plaudit.loop import lineage, publishing
from plaudit.loop.drawing import Row
from plaudit.loop.round import MEND, TakenBack, adapter_of, place_of, projects_of, source_of, store_of
from plaudit.loop.rounds import Journal
from plaudit.loop.settings import Config, Source
from plaudit.training import rundir
from plaudit.types import UserError

What = Literal["rater", "item", "source"]


def retract(directory: Path, what: What, name: str, *, by: str, dry: bool = False) -> dict[str, Any]:
    """Takes back all that a rater said, that was said of an item, or that came from a source, now and later:
    {"touched": {round: [why]}, "goes_back_to": the last round that nothing of it touches, ...}. The published model is
    then that round's, and `plaudit resume` takes the later ones anew without what was taken back. dry: only says what
    would be touched. UserError where nobody and nothing of that name is in the loop."""
    recipe, tree = rundir.read_config(directory)
    if recipe != "loop":
        raise UserError("is no loop", where=str(directory))
    config = configs.parse(Config, tree, str(directory / "config.yaml"))
    with rundir.alone(directory):
        finish(directory, config)
        entries = Journal(directory).entries
        done = sorted({entry["round"] for entry in entries if entry["step"] == "publish"})
        with Store.open(store_of(config, directory)) as store:
            _check_known(store, config, what, name)
            events = _events(store, config, directory, what, name)
        touched = lineage.touched(directory, done, _matcher(what, name))
        # A round that is not over has read what is taken back, or will: it begins anew.
        back = min(touched) - 1 if touched else max(done, default=0)
        found: dict[str, Any] = {
            "what": what,
            "name": name,
            "by": by,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "judgements": len(events),
            "touched": {str(number): why for number, why in touched.items()},
            "goes_back_to": back,
            "barred": [
                files.read_json(place_of(directory, n) / "lineage.json", MEND)["version"] for n in touched
            ],
            "tests": sum(entry["step"] == "gate" and entry["round"] > back for entry in entries),
            "events": events,
            "finished": False,
        }
        if not dry:
            files.write_json(directory / "retractions.json", {"retractions": [*read(directory), found]})
            finish(directory, config)
        return {key: value for key, value in found.items() if key not in ("events", "finished", "tests")}


def _check_known(store: Store, config: Config, what: What, name: str) -> None:
    known = {
        "rater": lambda: name in store.raters(),
        "item": lambda: bool(store.items([name])),
        "source": lambda: name in config.sources.used,
    }
    if what == "source" and name not in get_args(Source):
        raise UserError(
            f"no source is called {name}", where="--source", fix=f"known: {', '.join(get_args(Source))}"
        )
    if not known[what]():
        raise UserError(f"no {what} {name} is in this loop", where="plaudit loop retract")


def _events(store: Store, config: Config, directory: Path, what: What, name: str) -> list[str]:
    """The judgements that stand, whether a round has learned from them or not."""
    loop, names = known_by(config, directory), Served(store).names()
    events = store.current()
    items = store.items({event.item for event in events if event.item is not None})
    found = []
    for event in events:
        item = items.get(event.item or "")
        source = None if item is None else source_of(item, loop, config.name, names)
        if {"rater": event.rater, "item": event.item, "source": source}[what] == name:
            found.append(event.id)
    return found


def known_by(config: Config, directory: Path) -> str:
    """As `Round.name`, of a loop that has begun."""
    path = directory / "identity.json"
    return config.name + (f" {files.read_json(path, MEND)['id']}" if path.exists() else "")


def read(directory: Path) -> list[dict[str, Any]]:
    """All retractions of a loop, the oldest first."""
    path = directory / "retractions.json"
    if not path.exists():
        return []
    found: list[dict[str, Any]] = files.read_json(path, MEND)["retractions"]
    return found


def all_of(directory: Path) -> TakenBack:
    """All of them together."""
    every = read(directory)
    return TakenBack(
        attempts=len(every),
        tests=sum(one["tests"] for one in every),
        versions=frozenset(version for one in every for version in one["barred"]),
        items=frozenset(one["name"] for one in every if one["what"] == "item"),
        sources=frozenset(one["name"] for one in every if one["what"] == "source"),
    )


def finish(directory: Path, config: Config) -> None:
    """What a retraction that was written down still has to do; each part may be done again."""
    every = read(directory)
    for number, one in enumerate(every, 1):
        if one["finished"]:
            continue
        back = one["goes_back_to"]
        with Store.open(store_of(config, directory)) as store:
            # 1. In the store, so that nobody learns from it again.
            if one["what"] == "rater":
                store.retract_rater(one["name"])
            else:
                for event in one["events"]:
                    store.retract(event)
            # 2. The last clean model answers again, and nobody is asked any more of what a touched one said.
            _close(directory, store, set(one["barred"]))
            _release(directory, config, store, back, one)
        # 3. The rounds that are touched, and one that is not over, stand aside; last the journal ends before them.
        aside, rounds = directory / "retracted" / str(number), directory / "rounds"
        aside.mkdir(parents=True, exist_ok=True)
        for path in sorted(rounds.iterdir()) if rounds.exists() else []:
            if path.name.isdecimal() and int(path.name) > back:
                if (aside / path.name).exists():  # half moved, over file systems
                    files.remove(aside / path.name)
                shutil.move(path, aside / path.name)
        journal = Journal(directory)
        kept = [entry for entry in journal.entries if entry["round"] <= back]
        if len(kept) < len(journal.entries):
            for name in ("summary.json", "report.html", "waiting.json", "model"):
                if (directory / name).exists():
                    files.remove(directory / name)
            files.write_json(journal.path, {"transitions": kept})
        one["finished"] = True
        files.write_json(directory / "retractions.json", {"retractions": every})


def _close(directory: Path, store: Store, barred: set[str]) -> None:
    projects = Projects(store)
    for project in projects_of(directory).values():
        items = store.items(projects.items(project))
        projects.close(project, [key for key, item in items.items() if item.policy_version in barred])


def _release(directory: Path, config: Config, store: Store, back: int, about: dict[str, Any]) -> None:
    """Publishes the model that stood after round `back`, where one that is touched stands now."""
    before = Journal(directory).done(back, "publish")
    champion = 0 if before is None else before["champion"]
    stands = Releases(store).newest().get(config.name)
    if stands is not None and {one.version for one in stands.arms} & set(about["barred"]):
        note = f"{about['what']} {about['name']} was retracted from {directory}"
        arm = publishing.arm_of(config, adapter_of(directory, champion))
        Releases(store).publish(config.name, [arm], by=about["by"], note=note)


def _matcher(what: What, name: str) -> Callable[[Row], bool]:
    return lambda row: bool(row[what] == name)
