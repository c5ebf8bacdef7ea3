"""Runs: which there are, and their curves as they grow."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from fastapi import APIRouter, Query, Request

from plaudit.studio import wire
from plaudit.studio.guard import Review
from plaudit.types import Missing

router = APIRouter(prefix="/api/v1", tags=["runs"])
DEEPEST, MOST = 5, 500
QUIET_SECONDS = 600.0
"""A run that has not ended and has written nothing for so long is shown as stopped."""


@router.get("/runs")
def list_runs(request: Request, _: Review) -> list[wire.RunShown]:
    """Those below the studio's runs directory, by who wrote last."""
    place: Path = request.app.state.runs
    found = [run for path in _runs(place) if (run := _shown(place, path)) is not None]
    return sorted(found, key=lambda run: (-(run.at or 0.0), run.name))


@router.get("/loops")
def list_loops(request: Request, _: Review) -> list[wire.LoopShown]:
    """The loops below the studio's runs directory: their rounds, and what they wait for."""
    place: Path = request.app.state.runs
    found = list[wire.LoopShown]()
    for path in _runs(place):
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError, RecursionError
        ):  # none, or half a one
            found.append(loop_shown(place, path))
    return found


def loop_shown(place: Path, path: Path) -> wire.LoopShown:
    """From its status.json. A fault of any kind where it has none that can be read."""
    told = json.loads((path / "status.json").read_text(encoding="utf-8"))
    waiting = told["waiting"]
    rounds = [
        wire.LoopRound(
            round=one["round"],
            judgements=one["judgements"],
            accuracy=one["accuracy"],
            gains=[
                wire.Gain(against=name, rate=one["rates"][name], low=low, high=high)
                for name, (low, high) in one["intervals"].items()
            ],
            published=one["published"],
            why=one["why"] or "",
            seconds=sum(one["steps"].values()),
        )
        for one in told["rounds"]
    ]
    return wire.LoopShown(
        run=str(path.relative_to(place)),
        name=told["name"],
        champion=wire.Champion(**told["champion"]),
        target=told["target"],
        judgements=told["judgements"],
        seconds=told["seconds"]["total"],
        waiting=None
        if waiting is None
        else wire.Waited(
            round=waiting["round"],
            gate="gate" in waiting["for"],
            have=waiting["have"],
            want=waiting["want"],
        ),
        at=None if told["at"] is None else wire.LoopAt(**told["at"]),
        ended=told["ended"] or "",
        rounds=rounds,
    )


@router.get("/metrics")
def show_metrics(
    request: Request,
    _: Review,
    run: Annotated[str, Query(max_length=1000)],
    after: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> wire.Metrics:
    """The rows of a run after so many, for a page that draws its curves as they grow."""
    place: Path = request.app.state.runs
    path = next((path for path in _runs(place) if str(path.relative_to(place)) == run), None)
    shown = None if path is None else _shown(place, path)
    if path is None or shown is None:
        raise Missing("run", run)
    return wire.Metrics(name=shown.name, state=shown.state, rows=_rows(path)[after:])


def _runs(place: Path) -> list[Path]:
    """Directories with a config.yaml that names a recipe; links are not followed."""
    found = list[Path]()
    for root, names, files in os.walk(place):
        here = Path(root)
        if len(here.relative_to(place).parts) >= DEEPEST:
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith("."))
        if "config.yaml" in files and here != place:
            found.append(here)
        if len(found) >= MOST:
            break
    return found


def _shown(place: Path, path: Path) -> wire.RunShown | None:
    try:
        tree = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        recipe = tree["recipe"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError):
        return None
    log, at = path / "metrics.jsonl", None
    with contextlib.suppress(OSError):
        at = log.stat().st_mtime
    state: Literal["running", "ended", "stopped"] = "running"
    if (path / "summary.json").exists():
        state = "ended"
    else:
        newest = at if at is not None else (path / "config.yaml").stat().st_mtime
        if time.time() - newest > QUIET_SECONDS:
            state = "stopped"
    return wire.RunShown(
        name=str(path.relative_to(place)), recipe=str(recipe), state=state, steps=len(_rows(path)), at=at
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    """Numbers alone; a last line that is being written is left out."""
    rows = []
    try:
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict):
            break
        numbers = {
            name: x for name, x in row.items() if isinstance(x, int | float) and not isinstance(x, bool)
        }
        rows.append({name: _finite(x) for name, x in numbers.items()})
    return rows


def _finite(x: float) -> float | None:
    try:
        found = float(x)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
