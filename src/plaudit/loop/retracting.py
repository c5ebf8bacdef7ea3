"""`plaudit loop retract`: what somebody said is taken back, and every model that it touched with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from plaudit import config as configs
from plaudit import files
from plaudit.feedback.projects import Projects
from plaudit.feedback.releases import Releases
from plaudit.feedback.store import Store
from plaudit.loop import lineage, publishing
from plaudit.loop.drawing import Row, read_rows
from plaudit.loop.round import place_of, title_of
from plaudit.loop.rounds import Journal
from plaudit.loop.settings import Config
from plaudit.training import rundir
from plaudit.types import UserError

What = Literal["rater", "item", "source"]
MEND = "put back the copy of it, or start the run again"


def retract(directory: Path, what: What, name: str, *, by: str, dry: bool = False) -> dict[str, Any]:
    """Takes back all that a rater said, that was said of an item, or that came from a source: {"touched": {round:
    [why]}, "goes_back_to": the last round that nothing of it touches, ...}. The published model is then that round's,
    and `plaudit resume` takes the later ones anew without what was taken back. dry: only says what would be touched.
    UserError where nobody and nothing of that name is in the loop."""
    recipe, tree = rundir.read_config(directory)
    if recipe != "loop":
        raise UserError("is no loop", where=str(directory))
    config = configs.parse(Config, tree, str(directory / "config.yaml"))
    with rundir.alone(directory):
        finish(directory, config)
        journal = Journal(directory)
        done = rounds_of(journal)
        matches = _matcher(what, name)
        rows = [row for n in done for row in read_rows(place_of(directory, n) / "events.jsonl")]
        events = sorted({row["event"] for row in rows if matches(row)})
        with Store.open(store_of(config, directory)) as store:
            if not events and not _known(store, what, name):
                raise UserError(f"no {what} {name} is in this loop", where=str(directory))
        touched = lineage.touched(directory, done, matches)
        first = min(touched, default=None)
        found: dict[str, Any] = {
            "what": what,
            "name": name,
            "by": by,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "judgements": len(events),
            "touched": {str(number): why for number, why in touched.items()},
            # A round that is not over has read what is taken back, or will: it begins anew.
            "goes_back_to": max(done, default=0) if first is None else first - 1,
            "barred": [
                files.read_json(place_of(directory, n) / "lineage.json", MEND)["version"] for n in touched
            ],
            "events": events,
            "finished": False,
        }
        if not dry:
            files.write_json(directory / "retractions.json", {"retractions": [*read(directory), found]})
            finish(directory, config)
        return {key: value for key, value in found.items() if key not in ("events", "finished")}


def read(directory: Path) -> list[dict[str, Any]]:
    """All retractions of a loop, the oldest first."""
    path = directory / "retractions.json"
    if not path.exists():
        return []
    found: list[dict[str, Any]] = files.read_json(path, MEND)["retractions"]
    return found


def finish(directory: Path, config: Config) -> None:
    """What a retraction that was written down still has to do; each part may be done again."""
    every = read(directory)
    for number, one in enumerate(every, 1):
        if one["finished"]:
            continue
        with Store.open(store_of(config, directory)) as store:
            # 1. In the store, so that nobody learns from it again.
            if one["what"] == "rater" and one["name"] in store.raters():
                store.retract_rater(one["name"])
            elif one["what"] != "rater":
                for event in one["events"]:
                    store.retract(event)
            # 2. The last clean model answers again, and nobody is asked any more of what a touched one said.
            back = one["goes_back_to"]
            _close(config, store, back, set(one["barred"]))
            _release(directory, config, store, Journal(directory), back, one)
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


def _close(config: Config, store: Store, back: int, barred: set[str]) -> None:
    projects = Projects(store)
    for number in range(back + 1, config.stop.rounds + 1):
        for project in projects.all():
            if project.name == title_of(config.name, number):
                items = store.items(projects.items(project.id))
                projects.close(
                    project.id, [key for key, item in items.items() if item.policy_version in barred]
                )


def _release(
    directory: Path, config: Config, store: Store, journal: Journal, back: int, about: dict[str, Any]
) -> None:
    """Publishes the model that stood after round `back`, unless it stands now."""
    before = journal.done(back, "publish")
    champion = 0 if before is None else before["champion"]
    adapter = None if champion == 0 else place_of(directory, champion) / "ppo" / "adapter"
    arm = publishing.arm_of(config.model, config.name, adapter)
    stands = Releases(store).newest().get(config.name)
    if stands is not None and {one.version for one in stands.arms} & set(about["barred"]):
        note = f"{about['what']} {about['name']} was retracted from {directory}"
        Releases(store).publish(config.name, [arm], by=about["by"], note=note)


def rounds_of(journal: Journal) -> list[int]:
    """Those that are over."""
    return sorted({entry["round"] for entry in journal.entries if entry["step"] == "publish"})


def _matcher(what: What, name: str) -> Callable[[Row], bool]:
    return lambda row: bool(row[what] == name)


def _known(store: Store, what: What, name: str) -> bool:
    return name in store.raters() if what == "rater" else what == "item" and bool(store.items([name]))


def store_of(config: Config, directory: Path) -> str:
    return config.store or str(directory / "feedback.db")
