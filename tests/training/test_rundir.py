"""A run's directory: what stood there is lost to nothing but a run that takes its place, and what it reads is known."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from plaudit.recipes import bandit, sft
from plaudit.training import rundir
from plaudit.types import UserError


class Killed(BaseException):
    """Stands for a kill."""


@pytest.fixture
def config(tmp_path: Path) -> sft.Config:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    return sft.Config(data=[str(data)])


@pytest.fixture
def run(config: sft.Config, tmp_path: Path) -> Path:
    """One that has taken steps."""
    place = tmp_path / "run"
    rundir.start(place, "sft", config)
    (place / "checkpoints" / "step-000001").mkdir(parents=True)
    (place / "metrics.jsonl").write_text('{"step": 1}\n')
    (place / "model").mkdir()
    (place / "model" / "weights").write_bytes(b"old")
    return place


def standing(place: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()
    }


def test_what_is_overwritten_stands_again_where_no_step_was_taken(run: Path, config: sft.Config) -> None:
    before = standing(run)
    rundir.start(run, "sft", config, overwrite=True)
    assert not (run / "model").exists()
    (run / "tensorboard").mkdir()
    with pytest.raises(UserError, match="no such data"), rundir.first_try(run):
        raise UserError("no such data")
    assert standing(run) == before


def test_what_is_overwritten_goes_once_a_step_was_taken(run: Path, config: sft.Config) -> None:
    rundir.start(run, "sft", config, overwrite=True)
    with rundir.first_try(run):
        (run / "metrics.jsonl").write_text('{"step": 1}\n')
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "inputs.json",
        "machine.json",
        "metrics.jsonl",
    }


def test_an_interrupt_before_the_first_step_leaves_both_and_a_resume_drops_the_old(
    run: Path, config: sft.Config
) -> None:
    before = standing(run)
    rundir.start(run, "sft", config, overwrite=True)
    with pytest.raises(KeyboardInterrupt), rundir.first_try(run):
        raise KeyboardInterrupt
    with rundir.alone(run):
        rundir.reopen(run)
    with pytest.raises(UserError, match="already holds something"):
        rundir.start(run, "sft", config)
    assert standing(run) == before  # nothing had begun in its place

    rundir.start(run, "sft", config, overwrite=True)
    (run / "checkpoints").mkdir()
    rundir.reopen(run)
    assert not (run / "model").exists()
    assert not list(run.glob(".*"))


def test_a_kill_while_it_is_set_aside_loses_nothing(
    run: Path, config: sft.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of the renames: nobody takes what is left for a run, and the next command finds all of it again."""
    before, replace, kills = standing(run), os.replace, 0
    for moment in range(20):
        left = moment

        def dying(source: Path, target: Path) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            replace(source, target)

        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(os, "replace", dying)
            rundir.start(run, "sft", config, overwrite=True)
        kills += left == 0
        moved = [path.name for path in run.glob(".overwriting/*")]
        assert not moved or not (run / "config.yaml").exists()
        if not (run / "config.yaml").exists():
            with pytest.raises(UserError, match="was stopped before it began"):
                rundir.read_config(run)
        with pytest.raises(UserError, match="already holds something"):
            rundir.start(run, "sft", config)
        assert standing(run) == before
    assert kills > 5


def test_a_run_reads_what_it_was_started_with(run: Path, config: sft.Config) -> None:
    rundir.reopen(run)
    data = Path(config.data[0])
    text = data.read_text()
    data.write_text(text * 2)
    with pytest.raises(UserError, match=r"data\.jsonl: has changed since the run began, .*; put it back"):
        rundir.reopen(run)
    data.unlink()
    rundir.reopen(run)  # whoever needs it will miss it
    data.write_text(text)
    rundir.reopen(run)
    place = run / "config.yaml"
    place.write_text(place.read_text() + "# a remark\n")
    rundir.reopen(run)
    place.write_text(place.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match=r"config\.yaml: has changed since the run began"):
        rundir.reopen(run)


def test_a_model_that_was_trained_on_is_another(run: Path, config: sft.Config, tmp_path: Path) -> None:
    model = tmp_path / "base"
    model.mkdir()
    (model / "weights").write_bytes(b"1")
    rundir.start(run, "sft", config.model_copy(update={"model": str(model)}), overwrite=True)
    rundir.reopen(run)
    (model / "weights").write_bytes(b"2")
    with pytest.raises(UserError, match="base: has changed since the run began"):
        rundir.reopen(run)


def test_all_that_a_scorer_is_made_of_is_known(tmp_path: Path) -> None:
    """A YAML's members and terms, theirs in turn, models' directories and data; one that names itself ends, too."""
    parts = {name: tmp_path / name for name in ("one", "two", "answers.jsonl")}
    for name, path in parts.items():
        path.mkdir() if "." not in name else path.write_text("1")
    outer, inner, known, clip = (tmp_path / f"{name}.yaml" for name in ("outer", "inner", "known", "clip"))
    outer.write_text(f"kind: sum\nterms: [{{scorer: {inner}}}, {{scorer: {known}}}, {{scorer: {clip}}}]\n")
    inner.write_text(f"kind: ensemble\nmembers: [{parts['one']}, {outer}, {tmp_path / 'nowhere'}]\n")
    known.write_text(f"kind: answers\ndata: {parts['answers.jsonl']}\n")
    clip.write_text(f"kind: transform\nscorer: {parts['two']}\ntransform: [{{name: clip, low: 0}}]\n")
    place = tmp_path / "run"
    rundir.start(place, "bandit", bandit.Config(data=[], contexts="c", reward=str(outer), labels=["a", "b"]))
    rundir.reopen(place)
    for part in (
        inner,
        known,
        clip,
        parts["answers.jsonl"],
        parts["one"] / "weights",
        parts["two"] / "weights",
    ):
        was = part.read_text() if part.exists() else None
        part.write_text((was or "") + "\n")
        with pytest.raises(UserError, match=f"{part.parent if was is None else part}: has changed since"):
            rundir.reopen(place)
        part.unlink() if was is None else part.write_text(was)
        rundir.reopen(place)


def test_a_description_that_cannot_be_read_is_for_the_recipe_to_refuse(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("kind: [")
    place = tmp_path / "run"
    rundir.start(place, "bandit", bandit.Config(data=[], contexts="c", reward=str(broken), labels=["a", "b"]))
    broken.write_text("kind: rule")
    with pytest.raises(UserError, match=r"broken\.yaml: has changed since"):
        rundir.reopen(place)
