"""The quickstart on the tiny model: what it leaves, what it refuses, and that no fault of the world ruins it."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from plaudit import config as configs
from plaudit.feedback.store import Store
from plaudit.loop import drawing, measure, quickstart
from plaudit.loop.rounds import Journal
from plaudit.models.load import load_model
from plaudit.training import rundir
from plaudit.types import UserError

SETTINGS = (
    "training_prompts=10",
    "heldout_prompts=4",
    "max_new_tokens=8",
    "policy.steps=2",
    "policy.prompts_per_step=4",
    "policy.samples_per_prompt=2",
    "policy.epochs=1",
    "precision=float32",
)
TIMED = {"seconds", "seconds_sampling", "tokens_per_second", "peak_rss_gb"}


def command(out: Path, *more: str, **given: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"model": "tiny", "rounds": 1, "threads": 1} | given
    return quickstart.command(out=out, overrides=[*SETTINGS, *more], **arguments)


def tree(path: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below the path, hidden ones too: when it was changed, and what it holds."""
    return {
        str(p.relative_to(path)): (p.stat().st_mtime_ns, b"" if p.is_dir() else p.read_bytes())
        for p in sorted(path.rglob("*"))
    }


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if key not in TIMED}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Tests read it; one that changes something copies it first."""
    directory = tmp_path_factory.mktemp("quickstart") / "run"
    command(directory)
    return directory


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


# What a run leaves -----------------------------------------------------------------------------------------


def test_the_summary_says_what_was_done_how_well_and_with_what(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert summary["seed"] == 0
    seconds = summary["seconds"]
    stages = {"sample", "look", "judge", "agree", "reward", "improve", "evaluate"}
    assert seconds.keys() == stages | {"total"}
    assert seconds["total"] == pytest.approx(sum(seconds[name] for name in stages), abs=0.1)
    assert summary["peak_rss_gb"] > 0.1
    assert summary["judgements"] > 100
    assert -1 <= summary["agreement"]["alpha"] <= 1
    for name in ("heldout_accuracy", "length_only_accuracy"):
        assert summary["reward_model"][name] is None or 0 <= summary["reward_model"][name] <= 1
    policy = summary["policy"]
    low, high = policy["win_rate_ci95"]
    assert 0 <= low <= policy["win_rate"] <= high <= 1
    for name in ("win_rate_unseen_words", "relevance_before", "relevance_after"):
        assert 0 <= policy[name] <= 1
    assert abs(policy["kl_per_token"]) < 0.5
    assert policy["distinct2_ratio"] == pytest.approx(1, abs=0.3)
    assert policy["perplexity_ratio"] == pytest.approx(1, abs=0.3)
    assert len(summary["rounds"]) == 1
    assert summary["rounds"][0]["policy"] == policy
    assert {"plaudit", "torch", "transformers"} <= summary["versions"].keys()
    assert summary["baselines"]["before"]["win_rate"] == 0.5  # against itself


def test_the_evaluation_compares_the_same_prompts(finished: Path) -> None:
    rows = [
        json.loads(line)
        for line in (finished / "rounds/1/evaluation.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    heldout = (finished / "prompts" / "heldout.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [row["prompt"] for row in rows] == [json.loads(line)["prompt"] for line in heldout]
    assert {row["constant"] for row in rows} == {measure.CONSTANT}


def test_the_model_loads_with_transformers_and_is_the_last_rounds(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    exported = AutoModelForCausalLM.from_pretrained(finished / "rounds" / "1" / "ppo" / "model")
    begun = AutoModelForCausalLM.from_pretrained(load_model("tiny", torch.float32).directory)
    assert model.state_dict().keys() == exported.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, exported.state_dict()[name])
    assert any(not torch.equal(w, begun.state_dict()[name]) for name, w in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(finished / "model")("good day")["input_ids"]


def test_a_second_command_shows_the_summary_and_changes_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(finished)
    assert command(finished) == json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert "The improved model wins" in capsys.readouterr().err
    assert quickstart.resume(finished)["seed"] == 0
    assert tree(finished) == before


# What it refuses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "given"),
    [((), {"seed": 1}), ((), {"rounds": 2}), (("training_prompts=11",), {}), (("policy.kl_coef=0.2",), {})],
)
def test_other_settings_in_the_same_place_are_refused(
    finished: Path, more: tuple[str, ...], given: dict[str, Any]
) -> None:
    before = tree(finished)
    with pytest.raises(UserError, match="already holds another run") as caught:
        command(finished, *more, **given)
    assert "--overwrite" in caught.value.fix
    assert tree(finished) == before


@pytest.mark.parametrize(
    "mine", [("notes.txt",), (".git/config",), (".hidden",), ("machine.json", "data.csv"), (".new.x", "y")]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_place_that_holds_something_else_is_refused_and_left_alone(
    tmp_path: Path, mine: tuple[str, ...], overwrite: bool
) -> None:
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="already holds something" if not overwrite else "is not a run"):
        command(tmp_path, overwrite=overwrite)
    with pytest.raises(UserError, match="is not a run"):
        quickstart.resume(tmp_path)
    assert tree(tmp_path) == before


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/run", "file/deeper/run"):
        with pytest.raises(UserError) as caught:
            command(tmp_path / place)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["loop.json", "summary.json", "machine.json", "config.yaml"])
def test_a_broken_record_is_refused_in_one_line(copy: Path, name: str) -> None:
    (copy / name).write_text('{"half', encoding="utf-8")
    if name != "summary.json":
        (copy / "summary.json").unlink()
    with pytest.raises(UserError) as caught:
        quickstart.resume(copy)
    assert name in caught.value.where
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "setting",
    [
        "rounds=0", "training_prompts=9", "heldout_prompts=1", "completions=1", "training_prompts=999",
        "policy.epochs=0", "policy.entropy_coef=-1", "policy.kl_horizon=1", "reward.rating_weight=-1",
        "reward.exit=0", "max_new_tokens=0", "overlap=0", "overlap=8", "answers=0", "threads=-1",
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_before_anything_is_done(tmp_path: Path, setting: str) -> None:
    with pytest.raises(UserError):
        command(tmp_path / "run", setting)
    assert not (tmp_path / "run").exists()


# Overwriting -----------------------------------------------------------------------------------------------


def test_overwrite_begins_again(copy: Path, finished: Path) -> None:
    (copy / "stray").write_text("of the run that goes")
    summary = command(copy, overwrite=True)
    assert not (copy / "stray").exists()
    assert untimed(summary) == untimed(rundir.summary(finished))


def test_an_overwrite_that_was_stopped_before_it_began_loses_neither_run(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one stands again where another command wants the place; where it goes on, the old one goes at its end."""

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    before = tree(copy)
    for go_on in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(quickstart, "run", stopped)
            with pytest.raises(KeyboardInterrupt):
                command(copy, overwrite=True)
        assert not (copy / "rounds").exists()
        if go_on:
            quickstart.resume(copy)
            assert not list(copy.glob(".over*"))
            assert (copy / "summary.json").exists()
        else:
            with pytest.raises(UserError, match="already holds something"):
                rundir.start(copy, "quickstart", quickstart.Config())
            assert tree(copy) == before


def test_a_persons_judgements_are_not_overwritten(copy: Path) -> None:
    config = copy / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("raters: panel", "raters: me"))
    before = tree(copy)
    with pytest.raises(UserError, match="a person's judgements"):
        command(copy, overwrite=True)
    assert tree(copy) == before
    (copy / "feedback.db").unlink()
    assert command(copy, overwrite=True)["raters"] == "panel"


def test_a_run_is_not_lost_to_one_that_cannot_begin(copy: Path) -> None:
    before = tree(copy)
    with pytest.raises(UserError, match="nowhere"):
        command(copy, overwrite=True, model="./nowhere")
    assert tree(copy) == before


def test_a_run_that_another_process_works_on_is_left_to_it(copy: Path, finished: Path) -> None:
    (copy / "summary.json").unlink()
    (copy / ".new.band.json.abcd_123").write_text("being written")
    before = tree(copy)
    with rundir.alone(copy):
        for overwrite in (False, True):
            with pytest.raises(UserError, match="another process is at work"):
                command(copy, overwrite=overwrite)
        assert tree(copy) == before
    assert untimed(command(copy)) == untimed(rundir.summary(finished))


# Faults of the world ---------------------------------------------------------------------------------------


def full_from(when: Callable[[], bool]) -> Callable[[int], None]:
    fsync = os.fsync

    def call(handle: int) -> None:
        if when():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    return call


@pytest.mark.parametrize(
    "written", ["prompts/train.jsonl", "rounds/1/looks.jsonl", "rounds/1/ppo/checkpoints/step-000001"]
)
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_when_there_is_space(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_from((directory / written).exists))
        with pytest.raises(UserError, match="no space left") as caught:
            command(directory)
    assert caught.value.fix == "free some space"
    assert not list(directory.rglob(".new.*"))
    assert not (directory / "summary.json").exists()
    summary = command(directory)
    assert untimed(summary) == untimed(rundir.summary(finished))
    for name in ("model", "rounds/1/ppo/adapter", "rounds/1/reward/model"):
        for path in (finished / name).glob("*.safetensors"):
            assert path.read_bytes() == (directory / name / path.name).read_bytes()


def test_leftovers_of_a_kill_are_swept_away(copy: Path) -> None:
    (copy / "summary.json").unlink()
    for name in (".new.summary.json.abcd_123", "rounds/1/.new.looks.jsonl.00000000"):
        (copy / name).write_text("half")
    (copy / "rounds" / "1" / "ppo" / ".new.model.zzzzzzzz" / "deep").mkdir(parents=True)
    (copy / ".mine").write_text("stays")
    quickstart.resume(copy)
    assert not list(copy.rglob(".new.*"))
    assert (copy / ".mine").exists()


# A person judges -------------------------------------------------------------------------------------------


class Person:
    """Types the answers one by one, the default strength after each choice; then the input ends."""

    def __init__(self, answers: str) -> None:
        self.answers, self.asked = iter(answers), 0

    def __call__(self, question: str) -> str:
        if question.startswith(("By how much", "That was the last")):
            return ""
        answer = next(self.answers, None)
        if answer is None:
            raise EOFError
        self.asked += 1
        return answer


def by_me(out: Path, person: Person, *more: str) -> dict[str, Any]:
    tree = {"model": "tiny", "raters": "me", "rounds": 1, "threads": 1}
    words = [*SETTINGS, "training_prompts=20", "answers=40", "blind_answers=3", *more]
    config = configs.parse(quickstart.Config, configs.with_overrides(tree, words), "test")
    if not out.exists():
        rundir.start(out, "quickstart", config)
    return quickstart.run(config, out, ask=person)


def comparisons(out: Path) -> list[Any]:
    with Store.open(out / "feedback.db") as store:
        return [event for event in store.log() if event.kind == "comparison"]


def test_a_person_goes_the_whole_way_round(tmp_path: Path) -> None:
    person = Person("12" * 19 + "1u1t" + "121")
    summary = by_me(tmp_path / "run", person)
    assert person.asked == 38 + 4 + 3  # the undone answer was given again
    log = comparisons(tmp_path / "run")
    assert len(log) == 40 + 1 + 3
    assert sum(event.supersedes is not None for event in log) == 1
    assert summary["judgements"] == 40
    assert summary["agreement"]["alpha"] is None
    assert summary["policy"]["judges"] == "me"
    assert summary["policy"]["blind_answers"] == 3
    assert summary["policy"]["win_rate"] is not None


def test_what_a_person_says_of_heldout_prompts_is_never_trained_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    by_me(out, Person("12" * 60), "rounds=2", "answers=10", "training_prompts=10")
    heldout = {json.dumps(row["prompt"]) for row in drawing.read_rows(out / "prompts" / "heldout.jsonl")}
    assert len(comparisons(out)) == 2 * (10 + 3)
    told = drawing.read_rows(out / "rounds" / "2" / "feedback.jsonl")
    assert len(told) == 2 * 10
    assert not heldout & {json.dumps(row["prompt"]) for row in told}


@pytest.mark.parametrize("end", ["q", ""])
def test_a_person_may_stop_early_and_blind_answers_are_a_courtesy(tmp_path: Path, end: str) -> None:
    summary = by_me(tmp_path / "run", Person("1212121212" + end))
    assert summary["judgements"] == 10
    assert summary["policy"]["win_rate"] is None
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("answers", ["12q", "t" * 40])
def test_too_few_answers_end_in_one_line_and_the_run_goes_on_with_more(tmp_path: Path, answers: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="which are kept") as caught:
        by_me(out, Person(answers), "training_prompts=30")
    assert f"plaudit resume {out}" in caught.value.fix
    assert [entry["step"] for entry in Journal(out).entries] == ["sample", "look"]
    kept = comparisons(out)
    by_me(out, Person("12" * 30), "training_prompts=30")
    assert comparisons(out)[: len(kept)] == kept
    assert (out / "summary.json").exists()


def test_there_is_nobody_to_ask_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserError, match="asks at a terminal"):
        command(tmp_path / "run", raters="me")
    assert not (tmp_path / "run").exists()
