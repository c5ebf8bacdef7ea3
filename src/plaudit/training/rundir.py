"""A run's directory: it appears at once with its resolved config; summary.json comes last and marks the end.

A run that is overwritten waits in `.overwritten`. It stands again where the new one could not take a step, and goes
when that one ends, or is resumed, after its first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from plaudit import config as configs
from plaudit import files
from plaudit.training import machine
from plaudit.types import UserError

_MOVING, _OLD = ".overwriting", ".overwritten"
"""Where a run that is overwritten waits: the first while it goes there or comes back, the second once it is whole."""
_BESIDE = ("machine.json", "inputs.json")
"""What is written before config.yaml, which begins a run."""
_MEND = "remove it, and resume"
_INPUTS = {
    "model", "models", "data", "gold", "samples", "reference", "prompts", "contexts", "feedback", "reward", "start",
    "scorer", "members",
}  # fmt: skip
"""The settings that may name files, wherever they stand in a config or in a scorer's description."""


def start(directory: Path, recipe: str, config: configs.Config, *, overwrite: bool = False) -> None:
    """Make the directory with config.yaml (resolved). UserError where another run stands, unless overwrite."""
    if directory.exists() and not directory.is_dir():
        raise UserError("is a file", where=str(directory), fix="choose another --out")
    with files.writable(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with alone(directory), files.writable(directory):
        if (directory / _MOVING).exists() or not _has_begun(directory):
            _take_back(directory)
        settle(directory)
        if not is_empty_shell(directory):
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
            _set_aside(directory)
        read = _digests(configs.dump(config))  # what stood here is no longer there to be read
        files.write_json(directory / "machine.json", machine.record())
        files.write_json(directory / "inputs.json", read)
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
    while it was set aside."""
    return (directory / _MOVING).exists() or all(
        path.name in (*_BESIDE, _OLD) or files.is_left_over(path) for path in directory.iterdir()
    )


@contextlib.contextmanager
def first_try(directory: Path) -> Iterator[None]:
    """Around a run that was just started: where it ends in a UserError before its first step, its directory goes, or
    holds again the run that was to be overwritten, so that the same command can be given once the data is mended."""
    try:
        yield
    except UserError:
        if not _has_begun(directory) and not _take_back(directory):
            for path in directory.iterdir():
                files.remove(path)
            directory.rmdir()
        raise
    finally:
        settle(directory)


def settle(directory: Path) -> None:
    """What the run has overwritten goes, once it has taken a step."""
    if _has_begun(directory) and (directory / _OLD).exists():
        # Under a name that `files.sweep` knows: a kill in the middle leaves nothing that could be taken for a run.
        going = Path(tempfile.mkdtemp(dir=directory, prefix=f".new.{_OLD}."))
        os.replace(directory / _OLD, going / _OLD)
        files.remove(going)


def _has_begun(directory: Path) -> bool:
    """Whether a step of this run is worth keeping."""
    log = directory / "metrics.jsonl"
    marks = ("checkpoints", "loop.json", "summary.json")
    return any((directory / mark).exists() for mark in marks) or (log.exists() and bool(log.read_bytes()))


def _set_aside(directory: Path) -> None:
    """All that stands here, into `_OLD`; config.yaml first, so that nobody takes the rest for a run."""
    (directory / _MOVING).mkdir()
    for path in sorted(directory.iterdir(), key=lambda path: path.name != "config.yaml"):
        if path.name != _MOVING:
            os.replace(path, directory / _MOVING / path.name)
    os.replace(directory / _MOVING, directory / _OLD)


def _take_back(directory: Path) -> bool:
    """Whether a run was overwritten here; it stands again, and what was to come in its place is gone."""
    if (directory / _OLD).exists():
        for path in directory.iterdir():
            if path.name != _OLD:
                files.remove(path)
        os.replace(directory / _OLD, directory / _MOVING)
    if not (directory / _MOVING).exists():
        return False
    for path in sorted((directory / _MOVING).iterdir(), key=lambda path: path.name == "config.yaml"):
        os.replace(path, directory / path.name)
    (directory / _MOVING).rmdir()
    return True


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
        machine.check_same(files.read_json(path, _MEND))


def reopen(directory: Path) -> None:
    """Make ready a run that was stopped: `check_machine`, `check_inputs`, and clear away what a kill left half written.
    `alone`."""
    check_machine(directory)
    check_inputs(directory)
    settle(directory)
    files.sweep(directory)


def check_inputs(directory: Path) -> None:
    """UserError where the config, or a file or directory that it names, is no longer what the run was started with."""
    path = directory / "inputs.json"
    if not path.exists():
        return
    now = _digests((directory / "config.yaml").read_text(encoding="utf-8"))
    for name, digest in files.read_json(path, _MEND).items():
        # One that is gone is for the recipe to miss, where it is still needed.
        if now.get(name, digest) != digest:
            raise UserError(
                "has changed since the run began, which would end as another",
                where=name or str(directory / "config.yaml"),
                fix="put it back, or start a new run",
            )


def _digests(text: str) -> dict[str, str]:
    """Of a config as it is dumped ("") and of the files and directories that it names, by their names; a scorer's
    description names more."""
    tree = yaml.safe_load(text)
    tree.pop("recipe", None)
    paths: set[str] = set()
    found = list(_named(tree))
    while found:
        name = found.pop()
        if name in paths or not (os.path.isfile(name) or os.path.isdir(name)):
            continue
        paths.add(name)
        if name.endswith((".yaml", ".yml")) and os.path.isfile(name):
            with contextlib.suppress(UserError):  # whoever opens the scorer says what is wrong with it
                found += _named(configs.read_yaml(Path(name)))
    settings = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    return {"": settings, **{name: files.digest(Path(name)) for name in sorted(paths)}}


def _named(tree: Any) -> Iterator[str]:
    """What the settings that may name files say, wherever they stand."""
    for inner in tree if isinstance(tree, list) else []:
        yield from _named(inner)
    for key, value in tree.items() if isinstance(tree, dict) else []:
        yield from _named(value)
        if key in _INPUTS:
            yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str))


def summary(directory: Path) -> dict[str, Any] | None:
    """The summary of a finished run, None of one that is not."""
    path = directory / "summary.json"
    if not path.exists():
        return None
    return files.read_json(path, _MEND)
