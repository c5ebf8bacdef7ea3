"""A run's directory: it appears at once with its resolved config; summary.json comes last and marks the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plaudit import config as configs
from plaudit import files
from plaudit.training import machine
from plaudit.types import UserError

_GOING = ".overwritten"
"""Where config.yaml goes while the rest of a run that is overwritten is removed."""


def start(directory: Path, recipe: str, config: configs.Config, *, overwrite: bool = False) -> None:
    """Make the directory with config.yaml (resolved). UserError where another run stands, unless overwrite."""
    if directory.exists() and not directory.is_dir():
        raise UserError("is a file", where=str(directory), fix="choose another --out")
    if directory.exists() and not is_empty_shell(directory):
        if not overwrite:
            raise UserError(
                "already holds something",
                where=str(directory),
                fix="resume it with `plaudit resume`, choose another --out, or give --overwrite",
            )
        if not (directory / "config.yaml").exists():
            raise UserError(
                "is not a run, so it is not overwritten", where=str(directory), fix="choose another --out"
            )
        _refuse_to_lose_judgements(directory)
    with files.writable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with alone(directory):
            _clear(directory)
    files.write_json(directory / "machine.json", machine.record())
    files.write_text(directory / "config.yaml", f"recipe: {recipe}\n" + configs.dump(config))


def _refuse_to_lose_judgements(directory: Path) -> None:
    """UserError for a run in which a person has judged: it is never removed by a flag."""
    if (directory / "feedback.db").exists() and read_config(directory)[1].get("raters") == "me":
        raise UserError(
            "holds a person's judgements, so it is not overwritten",
            where=str(directory),
            fix="choose another --out, or move its feedback.db away first",
        )


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """No other process works on this run meanwhile. UserError where one does; its end, a kill too, frees the run."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is at work on this run", where=str(directory), fix="wait for it, or stop it"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def is_empty_shell(directory: Path) -> bool:
    """Whether no run stands here and nothing else does: all that a run killed before it began leaves, or one killed
    while it was overwritten."""
    return (directory / _GOING).exists() or all(
        path.name == "machine.json" or files.is_left_over(path) for path in directory.iterdir()
    )


@contextlib.contextmanager
def first_try(directory: Path) -> Iterator[None]:
    """Around a run that was just started: where it ends in a UserError before its first step, its directory goes, so
    that the same command can be given again once the data is mended."""
    try:
        yield
    except UserError:
        log = directory / "metrics.jsonl"
        begun = (directory / "checkpoints").exists() or (directory / "loop.json").exists()
        if not begun and (not log.exists() or not log.read_bytes()):
            _clear(directory)
            directory.rmdir()
        raise


def _clear(directory: Path) -> None:
    """Remove what stands in a run's directory; a kill in the middle leaves an empty shell, never half a run."""
    if (directory / "config.yaml").exists():
        os.replace(directory / "config.yaml", directory / _GOING)
    for path in directory.iterdir():
        if path.name != _GOING:
            files.remove(path)
    files.remove(directory / _GOING)


def read_config(directory: Path) -> tuple[str, dict[str, Any]]:
    """The recipe's name and the config's tree. UserError where there is no run, or none that had begun."""
    if not directory.is_dir():
        raise UserError("there is no such run", where=str(directory))
    path = directory / "config.yaml"
    if not path.exists() and not is_empty_shell(directory):
        raise UserError("is not a run", where=str(directory))
    if not path.exists():
        raise UserError("was stopped before it began", where=str(directory), fix="start it again")
    tree = configs.read_yaml(path)
    recipe = tree.pop("recipe", None)
    if not isinstance(recipe, str):
        raise UserError("names no recipe", where=str(path), fix="add `recipe: ppo`, say")
    return recipe, tree


def check_machine(directory: Path) -> None:
    """UserError where the run was started on a machine that would give other bits."""
    path = directory / "machine.json"
    if path.exists():
        machine.check_same(_read_json(path))


def reopen(directory: Path) -> None:
    """Make ready a run that was stopped: `check_machine`, and clear away what a kill left half written. `alone`."""
    check_machine(directory)
    files.sweep(directory)


def summary(directory: Path) -> dict[str, Any] | None:
    """The summary of a finished run, None of one that is not."""
    path = directory / "summary.json"
    if not path.exists():
        return None
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), fix="remove it, and resume") from None
    return found
