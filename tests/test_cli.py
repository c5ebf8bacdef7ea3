"""The command line: the real commands on the tiny model, and what a user is told when something is at fault."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from plaudit import cli, doctor
from plaudit.cli import main
from plaudit.models import load

ROOT = Path(__file__).parents[1]
ENTRY = [sys.executable, "-c", "import sys; from plaudit.cli import main; sys.exit(main())"]
SMALL = ["model=tiny", "precision=float64", "threads=1"]
WORDS = [
    "a cat",
    "a dog",
    "my car",
    "the rain",
    "good food",
    "bad news",
    "work today",
    "my friend",
    "the city",
    "tea",
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


class Told:
    """Runs commands in this process and keeps what they said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def done(self, *words: object) -> str:
        """stdout of a command that must end well."""
        status = main([str(word) for word in words])
        said = self.capsys.readouterr()
        assert status == 0, said.err
        return said.out

    def refused(self, *words: object) -> str:
        """The one line of a command that must be refused."""
        status = main([str(word) for word in words])
        said = self.capsys.readouterr()
        assert status == 2, said.err
        assert said.out == ""
        lines = said.err.splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("plaudit: ")
        return lines[0].removeprefix("plaudit: ")


@pytest.fixture
def plaudit(capsys: pytest.CaptureFixture[str]) -> Told:
    return Told(capsys)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data of every kind."""
    place = tmp_path_factory.mktemp("data")
    write(place / "prompts.jsonl", [{"prompt": f"tell me about {word}"} for word in WORDS])
    write(
        place / "demonstrations.jsonl",
        [{"prompt": f"tell me about {word}", "completion": f" I like {word}"} for word in WORDS],
    )
    write(
        place / "preferences.jsonl",
        [
            {
                "prompt": f"tell me about {word}",
                "completions": [f" {word} is good", f" {word} is bad and sad"],
                "choice": 0,
                "rater": rater,
            }
            for word in WORDS
            for rater in ("ann", "bob")
        ],
    )
    return place


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write relative to the directory that they are called in."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def reward(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained reward model."""
    run = tmp_path_factory.mktemp("reward") / "run"
    words = [ROOT / "configs/reward_model.yaml", *SMALL, f"data=[{data / 'preferences.jsonl'}]", "--out", run]
    assert main(["train", *map(str, words)]) == 0
    return run / "model"


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
import weakref
from plaudit.cli import main
def loaded(*names):
    return sorted(set(names) & set(sys.modules))
heavy = ("torch", "transformers", "numpy", "sqlalchemy", "rich", "yaml")
assert main(["--help"]) == 0
assert not loaded("pydantic", *heavy), loaded("pydantic", *heavy)
assert main(["train", "--help"]) == 0  # newer versions of Typer read the options by pydantic
assert not loaded(*heavy), loaded(*heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONFIG.yaml" in done.stdout


def test_help_and_version(plaudit: Told) -> None:
    assert "quickstart" in plaudit.done()
    assert plaudit.done("--version").strip() == importlib.metadata.version("plaudit")
    assert "agreement" in plaudit.done("feedback", "--help")


def test_the_whole_way_by_commands(plaudit: Told, data: Path, reward: Path) -> None:
    """sft, then samples, feedback in and out, scores, ppo from the sft adapter, and a comparison of both ends."""
    demonstrations = data / "demonstrations.jsonl"
    said = plaudit.done("train", ROOT / "configs/sft.yaml", *SMALL, f"data=[{demonstrations}]", "epochs=1")
    assert json.loads(said) == json.loads(Path("runs/sft/summary.json").read_text())
    assert yaml.safe_load(Path("runs/sft/config.yaml").read_text())["recipe"] == "sft"

    small = ["--threads", 1, "--precision", "float64"]
    said = plaudit.done(
        "generate", "tiny", "--prompts", data / "prompts.jsonl", "--out", "s.jsonl", "--n", 2,
        "--max-new-tokens", 8, "--adapter", "runs/sft/adapter", *small,
    )  # fmt: skip
    assert json.loads(said)["samples"] == len(read(Path("s.jsonl"))) == 2 * len(WORDS)

    plaudit.done("score", reward, "--input", "s.jsonl", "--out", "scored.jsonl", *small)
    assert all(isinstance(row["score"], float) and "logprobs" in row for row in read(Path("scored.jsonl")))

    ppo = [
        "steps=2",
        "prompts_per_step=2",
        "samples_per_prompt=2",
        "max_new_tokens=6",
        "adapter.blocks=2",
        "epochs=1",
    ]
    where = [f"prompts={data / 'prompts.jsonl'}", f"reward={reward}", "start=runs/sft/adapter"]
    said = plaudit.done("train", ROOT / "configs/ppo.yaml", *SMALL, *ppo, *where)
    assert json.loads(said)["steps"] == 2

    settings = [f"prompts={data / 'prompts.jsonl'}", f"reward={reward}", "max_new_tokens=6", *SMALL[1:]]
    models = "models=[tiny, runs/sft/model, runs/ppo/model]"
    said = plaudit.done("evaluate", ROOT / "configs/evaluate.yaml", models, *settings)
    found = json.loads(said)["models"]
    assert [one["model"] for one in found] == ["tiny", "runs/sft/model", "runs/ppo/model"]
    assert found[0]["kl"] == 0
    assert found[1]["kl"] != 0
    assert len(read(Path("runs/evaluate/samples.jsonl"))) == 3 * 4 * len(WORDS)
    assert plaudit.done("resume", "runs/evaluate") == said


def test_feedback_in_and_out(plaudit: Told, data: Path) -> None:
    first = json.loads(plaudit.done("feedback", "import", data / "preferences.jsonl", "--store", "f.db"))
    assert (first["records"], first["events"]) == (20, 20)
    again = json.loads(plaudit.done("feedback", "import", data / "preferences.jsonl", "--store", "f.db"))
    assert (again["events"], again["known"]) == (0, 20)
    assert json.loads(plaudit.done("feedback", "stats", "--store", "f.db"))["items"] == 10
    found = json.loads(plaudit.done("feedback", "agreement", "--store", "f.db"))
    assert found["comparisons"]["agreement"]["share"] == 1.0
    assert json.loads(plaudit.done("feedback", "export", "out.jsonl", "--store", "f.db"))["records"] == 20
    assert [row["choice"] for row in read(Path("out.jsonl"))] == [0] * 20
    for command in (["stats"], ["agreement"], ["export", "x.jsonl"]):
        assert plaudit.refused("feedback", *command, "--store", "none.db").startswith(
            "none.db: there is no such store"
        )
    assert not Path("none.db").exists()
    said = plaudit.refused("feedback", "stats", "--store", "sqlite:///none.db")
    assert said.startswith("sqlite:///none.db: there is no such store")
    assert not Path("none.db").exists()
    for command in (["agreement"], ["export", "x.jsonl"]):
        said = plaudit.refused("feedback", *command, "--store", "f.db", "--up-to", "21")
        assert said == "up to 21: there are 20 events, not 21"
    assert not Path("x.jsonl").exists()
    with sqlite3.connect("other.db") as raw:
        raw.execute("CREATE TABLE accounts (id)")
    raw.close()
    said = plaudit.refused("feedback", "import", data / "preferences.jsonl", "--store", "other.db")
    assert said.endswith("other.db: is no feedback store; name another file")


def test_feedback_comes_from_the_hub(plaudit: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load(name: str) -> list[dict[str, str]]:
        assert name == "owner/name"
        return [{"prompt": "p", "completion": "c"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert json.loads(plaudit.done("feedback", "import", "owner/name"))["events"] == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("trian x.yaml", "no such command 'trian'. Did you mean 'train'?; try `plaudit --help`"),
        ("train", "missing argument 'CONFIG.yaml'; try `plaudit train --help`"),
        ("train x.yaml -seed=1", "no such option: -s; try `plaudit train --help`"),
        ("generate tiny --prompts p.jsonl", "missing option '--out'; try `plaudit generate --help`"),
        ("train none.yaml", "none.yaml: cannot be read (No such file or directory)"),
        ("train sft.yaml seed", "command line: 'seed' is not a setting; write key=value"),
        ("train sft.yaml epoch=1", "sft.yaml: unknown setting 'epoch'; did you mean 'epochs'?"),
        (
            "train sft.yaml adapter.ranks=1",
            "sft.yaml: unknown setting 'adapter.ranks'; did you mean 'adapter.rank'?",
        ),
        ("train sft.yaml epochs=0", "sft.yaml: epochs: input should be greater than or equal to 1, not 0"),
        (
            "train sft.yaml learning_rate=.inf",
            "sft.yaml: learning_rate: input should be a finite number, not inf",
        ),
        ("train sft.yaml threads=99999999999", "threads: 99999999999 is more than help any machine; set "),
        (
            "generate tiny --prompts p.jsonl --out o.jsonl --threads 20000",
            "threads: 20000 is more than help any machine; set ",
        ),
        ("train sft.yaml precision=half", "sft.yaml: precision: input should be 'auto', 'float32'"),
        (
            "train sft.yaml recipe=cpo",
            "sft.yaml: unknown recipe 'cpo'; set `recipe` to one of sft, reward_model,",
        ),
        ("train bare.yaml", "bare.yaml: names no recipe; set `recipe` to one of"),
        ("evaluate sft.yaml", "sft.yaml: is of recipe sft, not evaluate; run it with `plaudit train`"),
        ("resume none", "none: there is no such run"),
        ("resume .", ".: is not a run"),
        ("generate tiny --prompts none.jsonl --out o.jsonl", "none.jsonl: there is no such file"),
        (
            "generate ./none --prompts p.jsonl --out o.jsonl",
            "./none: there is no such model; give a directory",
        ),
        (
            "generate tiny --prompts p.jsonl --out o.jsonl --precision half",
            "--precision: unknown precision 'half'",
        ),
        ("generate tiny --prompts p.jsonl --out .", ".: is a directory; name a file"),
        ("generate tiny --prompts broken.jsonl --out o.jsonl", "broken.jsonl:2: is not JSON"),
        ("generate tiny --prompts empty.jsonl --out o.jsonl", "empty.jsonl: holds no prompts"),
        ("generate tiny --prompts long.jsonl --out o.jsonl", "prompt 2: has "),
        ("generate tiny --prompts p.jsonl --out o.jsonl --adapter none", "none/adapter_config.json: "),
        ("score none --input p.jsonl --out o.jsonl", "none: holds no reward model"),
        ("feedback import broken.jsonl", "broken.jsonl:2: is not JSON"),
        ("feedback import p.jsonl --format trll", "unknown format 'trll'; did you mean 'trl'?"),
    ],
)
def test_what_is_at_fault_is_told_in_one_line(plaudit: Told, words: str, line: str) -> None:
    shutil.copy(ROOT / "configs/sft.yaml", "sft.yaml")
    Path("bare.yaml").write_text("model: tiny\n")
    Path("p.jsonl").write_text('{"prompt": "a cat"}\n')
    Path("broken.jsonl").write_text('{"prompt": "a cat", "completion": "b"}\n{"prompt": "a\n')
    Path("empty.jsonl").write_text("")
    write(Path("long.jsonl"), [{"prompt": "a"}, {"prompt": "a cat " * 200}])
    before = {path.name for path in Path().iterdir()}
    assert plaudit.refused(*words.split()).startswith(line)
    assert {path.name for path in Path().iterdir()} == before


@pytest.mark.parametrize(
    "words",
    [
        "generate tiny --prompts IN --out OUT",
        "score plaudit.reward.rules:length --input IN --out OUT --best 1",
        "score OUT --input rows.jsonl --out OUT",
        "classify none --input IN --out OUT",
        "judge IN --judge judge.yaml --out OUT",
        "feedback export OUT --store IN",
    ],
)
def test_no_command_writes_over_its_own_input(plaudit: Told, words: str) -> None:
    Path("judge.yaml").write_text("kind: judge\nmodel: tiny\n")
    rows = write(Path("rows.jsonl"), [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "c"}])
    if words.startswith("feedback"):
        plaudit.done("feedback", "import", rows, "--store", "in.jsonl")
    else:
        shutil.copy(rows, "in.jsonl")
    Path("out.jsonl").symlink_to("in.jsonl")
    before = Path("in.jsonl").read_bytes()
    for out in ("in.jsonl", "out.jsonl"):
        said = plaudit.refused(*words.replace("IN", "in.jsonl").replace("OUT", out).split())
        assert said == f"{out}: is the input itself; choose another place"
        assert Path("in.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        "generate tiny --prompts rows.jsonl",
        "score plaudit.reward.rules:length --input rows.jsonl",
        "classify none --input rows.jsonl",
        "judge rows.jsonl --judge judge.yaml",
    ],
)
def test_no_command_writes_json_lines_into_a_table(plaudit: Told, words: str) -> None:
    Path("judge.yaml").write_text("kind: judge\nmodel: tiny\n")
    write(Path("rows.jsonl"), [{"prompt": "a", "completion": "b"}])
    said = plaudit.refused(*words.split(), "--out", "out.csv")
    assert said == "out.csv: would hold JSON lines, not what .csv says; end it in .jsonl"
    assert not Path("out.csv").exists()


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": \n', "d.jsonl:2: is not JSON"),
        ("", "d.jsonl: holds no records"),
        (
            '{"prompt": "a", "completions": ["b", "c"], "choice": 0}\n',
            "d.jsonl: record 1: is a preference, not",
        ),
        (json.dumps({"prompt": "a cat " * 300, "completion": "b"}), "d.jsonl: record 1: has "),
    ],
)
def test_data_at_fault_leaves_no_run_behind(plaudit: Told, rows: str, line: str) -> None:
    Path("d.jsonl").write_text(rows)
    words = ["train", ROOT / "configs/sft.yaml", *SMALL, "data=[d.jsonl]", "--out", "run"]
    assert plaudit.refused(*words).startswith(line)
    assert not Path("run").exists()
    write(Path("d.jsonl"), [{"prompt": "a", "completion": "b"}])
    plaudit.done(*words, "heldout=0.0")  # mended, the same command goes


@pytest.mark.parametrize("fault", ["missing", "cut", "pickled", "family", "tokenizer"])
def test_a_model_at_fault_is_refused(plaudit: Told, data: Path, fault: str) -> None:
    shutil.copytree(load.find_model("tiny"), "model")
    weights, config = Path("model/model.safetensors"), Path("model/config.json")
    expected = {
        "missing": "model: holds no model.safetensors",
        "cut": "model/model.safetensors: is not a readable safetensors file",
        "pickled": "model: holds pytorch_model.bin, which is pickled and could run code; convert it",
        "family": "model/config.json: model type 't5' is not supported",
        "tokenizer": "model: holds no usable tokenizer",
    }[fault]
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif fault in ("missing", "pickled"):
        weights.unlink()
        if fault == "pickled":
            Path("model/pytorch_model.bin").write_bytes(b"no")
    elif fault == "family":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "t5"}))
    else:
        Path("model/tokenizer.json").unlink()
    words = ["generate", "./model", "--prompts", data / "prompts.jsonl", "--out", "o.jsonl"]
    assert plaudit.refused(*words).startswith(expected)
    settings = ["model=./model", *SMALL[1:], f"data=[{data / 'demonstrations.jsonl'}]"]
    assert plaudit.refused("train", ROOT / "configs/sft.yaml", *settings).startswith(expected)
    assert not Path("o.jsonl").exists()
    assert not Path("runs/sft").exists()


def test_another_run_is_not_overwritten_unasked(plaudit: Told, data: Path) -> None:
    words = [
        "train",
        ROOT / "configs/sft.yaml",
        *SMALL,
        f"data=[{data / 'demonstrations.jsonl'}]",
        "epochs=1",
    ]
    plaudit.done(*words, "--out", "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert plaudit.refused(*words, "seed=1", "--out", "run").startswith(
        "run: already holds something; resume it"
    )
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    plaudit.done(*words, "seed=1", "--out", "run", "--overwrite")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["seed"] == 1

    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    assert "is not a run" in plaudit.refused(*words, "--out", "mine", "--overwrite")
    assert plaudit.refused(*words, "--out", "mine/thesis.txt").startswith("mine/thesis.txt: is a file")
    assert Path("mine/thesis.txt").read_text() == "years of work"


class Failing:
    """Stands for a system call that fails."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, *_: object, **__: object) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "mended"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "choose another place")]
)
def test_a_full_disk_or_a_closed_place_leaves_nothing_half_written(
    plaudit: Told, data: Path, reward: Path, monkeypatch: pytest.MonkeyPatch, number: int, mended: str
) -> None:
    write(Path("in.jsonl"), [{"prompt": "a", "completion": "b"}])
    small = ["--threads", 1]
    commands: list[list[object]] = [
        ["generate", "tiny", "--prompts", data / "prompts.jsonl", "--out", "out.jsonl", *small],
        ["score", reward, "--input", "in.jsonl", "--out", "out.jsonl", *small],
        [
            "train",
            ROOT / "configs/sft.yaml",
            *SMALL,
            f"data=[{data / 'demonstrations.jsonl'}]",
            "--out",
            "run",
        ],
    ]
    load.find_model("tiny")
    monkeypatch.setattr("plaudit.files.os.fsync", Failing(number))
    for command in commands:
        line = plaudit.refused(*command)
        assert mended in line
        assert os.strerror(number).lower() in line or "no permission" in line
    assert [path for path in Path().rglob("*") if path.is_file()] == [Path("in.jsonl")]


def test_a_disk_that_fills_while_training_can_be_gone_on_from(
    plaudit: Told, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        *SMALL,
        f"data=[{data / 'demonstrations.jsonl'}]",
        "batch_size=4",
        "epochs=2",
        "checkpoint_every=1",
    ]
    words = ["train", str(ROOT / "configs/sft.yaml"), *settings, "--out"]
    plaudit.done(*words, "whole")
    from safetensors.torch import save_file

    calls = []

    def fills(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError(f"Error while serializing: No space left on device (os error {errno.ENOSPC})")
        return save_file(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("plaudit.training.checkpoint.save_file", fills)
        assert main([*words, "cut"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    place = "cut/checkpoints/step-000003"
    assert said == f"plaudit: {place}: cannot be written (no space left on device); free some space"
    assert sorted(path.name for path in Path("cut/checkpoints").iterdir()) == ["step-000001", "step-000002"]
    plaudit.done("resume", "cut")
    for name in ("model/model.safetensors", "metrics.jsonl", "summary.json"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()


def test_resume_elsewhere_is_refused_and_a_finished_run_is_told(plaudit: Told, data: Path) -> None:
    settings = [*SMALL, f"data=[{data / 'demonstrations.jsonl'}]", "epochs=1"]
    said = plaudit.done("train", ROOT / "configs/sft.yaml", *settings, "--out", "run")
    assert plaudit.done("resume", "run") == said
    machine = Path("run/machine.json")
    machine.write_text(json.dumps(json.loads(machine.read_text()) | {"torch": "1.0"}))
    assert plaudit.done("resume", "run") == said  # finished: nothing is computed
    Path("run/summary.json").unlink()
    assert "was started elsewhere (torch 1.0 -> " in plaudit.refused("resume", "run")


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), SystemExit("oh")])
def test_a_bug_shows_where_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def wrong() -> None:
        raise error

    monkeypatch.setattr(doctor, "examine", wrong)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert f"{type(error).__name__}: oh" in said
    assert (
        said.splitlines()[-1] == "plaudit: this is a bug of Plaudit's; please report it with the lines above"
    )


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (MemoryError(), 2, "out of memory; lower micro_batch_tokens"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            2,
            "/x: no space left on device; free some space",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/y"),
            2,
            "/y: no such file or directory; check",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_faults_of_the_machine_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    line: str,
    debug: bool,
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(doctor, "examine", fails)
    assert main(["doctor", "--debug"] if debug else ["doctor"]) == status
    said = capsys.readouterr().err
    assert ("Traceback" in said) is debug
    assert said.splitlines()[-1].startswith(f"plaudit: {line}")
    if not debug:
        assert len(said.splitlines()) == 1


@pytest.fixture
def interrupted(data: Path) -> Iterator[subprocess.Popen[str]]:
    """A training run in a process of its own, that has taken two steps and gets Ctrl-C."""
    settings = [
        *SMALL,
        f"data=[{data / 'demonstrations.jsonl'}]",
        "epochs=1000",
        "batch_size=4",
        "checkpoint_every=1",
    ]
    words = [*ENTRY, "train", str(ROOT / "configs/sft.yaml"), *settings, "--out", "run"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        log = Path("run/metrics.jsonl")
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if log.exists() and log.read_bytes().count(b"\n") >= 2:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.02)
        yield process
        process.kill()


def test_ctrl_c_says_how_to_go_on(interrupted: subprocess.Popen[str]) -> None:
    _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert said.splitlines()[-1] == "plaudit: interrupted; go on with `plaudit resume run`"
    assert "Traceback" not in said
    assert list(Path("run/checkpoints").glob("step-*"))
    assert not Path("run/summary.json").exists()


def test_a_reader_that_leaves_early_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*ENTRY, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_quickstart_hands_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from plaudit.loop import quickstart

    given: dict[str, Any] = {}
    monkeypatch.setattr(quickstart, "command", lambda **options: given.update(options))
    words = "quickstart a=1 --out q --model tiny --raters me --seed 3 --overwrite"
    assert main(words.split()) == 0
    assert given == {
        "out": Path("q"),
        "model": "tiny",
        "raters": "me",
        "seed": 3,
        "rounds": None,
        "overwrite": True,
        "threads": 0,
        "overrides": ["a=1"],
    }


def test_an_interrupt_that_a_callback_swallows_comes_again() -> None:
    """As when the signal arrives while objects are collected."""

    class Thing:
        pass

    def swallowed(_: object) -> None:
        raise KeyboardInterrupt

    def wait() -> None:
        thing = Thing()
        watch = weakref.ref(thing, swallowed)
        del thing
        assert watch() is None
        time.sleep(5)

    with cli._no_interrupt_is_lost(), pytest.raises(KeyboardInterrupt):
        wait()
