"""Configs say what is wrong, where, and what was probably meant; what is dumped reads back the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from plaudit.config import Config, Score, dump, load, parse, read_yaml, with_overrides
from plaudit.types import UserError


class Optimiser(Config):
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    kind: Literal["adam", "sgd"] = "adam"


class Run(Config):
    steps: int
    name: str = "run"
    out: Path | None = None
    clip: float | None = None
    merged: bool = False
    stops: tuple[str, ...] = ()
    weights: dict[str, float] = Field(default_factory=dict)
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    penalty: Score | None = None
    optimiser: Optimiser = Optimiser()
    second: Optimiser | None = None

    @model_validator(mode="after")
    def _steps_are_few(self) -> Run:
        if self.steps > 10**6:
            raise ValueError("steps are too many")
        return self


def fault(tree: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse(Run, tree, "run.yaml")
    message = str(caught.value)
    assert message.startswith("run.yaml: ")
    assert "\n" not in message
    return message.removeprefix("run.yaml: ")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"stepps": 3}, "unknown setting 'stepps'; did you mean 'steps'?"),
        ({"steps": 3, "optimiser": {"lerning_rate": 1.0}}, "did you mean 'optimiser.learning_rate'?"),
        ({"steps": 3, "second": {"kinds": "sgd"}}, "did you mean 'second.kind'?"),
        # a setting of a section, written outside it, and the other way round
        ({"steps": 3, "learning_rate": 1.0}, "did you mean 'optimiser.learning_rate'?"),
        ({"steps": 3, "optimiser": {"merge": True}}, "did you mean 'merged'?"),
        ({"steps": 3, "optimiser": {"qqq": 1}}, "known here: betas, kind, learning_rate"),
        ({"steps": 3, 7: 1}, "unknown setting '7'; known here: clip, merged, name, optimiser, options,"),
        # the misspelling explains the missing one, so it is named though it comes second
        ({"name": 5, "stepz": 3}, "unknown setting 'stepz'; did you mean 'steps'?"),
    ],
)
def test_unknown_settings_are_refused_with_the_nearest_known(tree: dict[str, Any], message: str) -> None:
    assert message in fault(tree)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "steps: field required"),
        ({"steps": "3"}, "steps: input should be a valid integer, not '3'"),
        ({"steps": 3.0}, "steps: input should be a valid integer, not 3.0"),
        ({"steps": True}, "steps: input should be a valid integer, not True"),
        ({"steps": None}, "steps: input should be a valid integer"),
        ({"steps": 3, "name": 5}, "name: input should be a valid string, not 5"),
        ({"steps": 3, "merged": 1}, "merged: input should be a valid boolean, not 1"),
        ({"steps": 3, "merged": "true"}, "merged: input should be a valid boolean, not 'true'"),
        ({"steps": 3, "clip": "0.2"}, "clip: input should be a valid number, not '0.2'"),
        (
            {"steps": 3, "optimiser": {"kind": "adamw"}},
            "optimiser.kind: input should be 'adam' or 'sgd', not",
        ),
        ({"steps": 3, "optimiser": {"betas": [0.9]}}, "optimiser.betas.1: field required"),
        ({"steps": 3, "optimiser": 5}, "optimiser: "),
        ({"steps": 10**7}, "steps are too many"),
    ],
)
def test_nothing_is_coerced(tree: dict[str, Any], message: str) -> None:
    assert fault(tree).startswith(message)


ODD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("number", ODD)
@pytest.mark.parametrize(
    ("place", "path"),
    [
        (lambda x: {"clip": x}, "clip"),
        (lambda x: {"optimiser": {"learning_rate": x}}, "optimiser.learning_rate"),
        (lambda x: {"second": {"betas": [0.5, x]}}, "second.betas.1"),
        (lambda x: {"weights": {"joy": 1.0, "flow": x}}, "weights.flow"),
        (lambda x: {"options": {"low": x}}, "options.low.float"),
    ],
)
def test_numbers_are_finite_wherever_they_stand(place: Any, path: str, number: float) -> None:
    assert fault({"steps": 3} | place(number)) == f"{path}: input should be a finite number, not {number}"


def test_a_number_beyond_every_float_is_not_finite() -> None:
    assert fault({"steps": 3, "clip": 10**400}) == "clip: input should be a finite number"
    with pytest.raises(UserError, match="clip: input should be a finite number, not inf"):
        parse(Run, with_overrides({"steps": 3}, ["clip=1e400"]), "")


@pytest.mark.parametrize("number", [1e39, -1e39, 1000000001])
def test_what_stands_for_a_score_is_within_the_scores(number: float) -> None:
    assert fault({"steps": 3, "penalty": number}).startswith("penalty: input should be ")
    assert parse(Run, {"steps": 3, "penalty": -1e9}, "").penalty == -1e9


def test_a_whole_number_is_a_float_and_a_list_is_a_tuple() -> None:
    run = parse(Run, {"steps": 3, "clip": 1, "out": "a/b", "optimiser": {"betas": [0.5, 1]}}, "run.yaml")
    assert (run.clip, run.out, run.optimiser.betas) == (1.0, Path("a/b"), (0.5, 1.0))
    assert isinstance(run.clip, float)


def test_trees_that_no_file_could_hold_are_refused() -> None:
    loop: dict[str, Any] = {"steps": 3}
    loop["second"] = loop
    assert "no setting" in fault(loop)


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(Run, {"steps": 3}, "").__setattr__("steps", 4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1e5", 1e5),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        (".inf", math.inf),
        ("3", 3),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("'1e-4'", "1e-4"),
        ("2024-01-01", "2024-01-01"),
        ("2024-99-01", "2024-99-01"),
        ("true", True),
        ("", None),
        ("[1e-4, a]", [1e-4, "a"]),
    ],
)
def test_yaml_words_mean_what_they_look_like(tmp_path: Path, text: str, value: Any) -> None:
    read = read_yaml(written(tmp_path, f"key: {text}\n"))["key"]
    assert read == value
    assert type(read) is type(value)
    assert with_overrides({}, [f"key={text}"]) == {"key": value}


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\nb: [1\nc: 2\n", ":3", "is not YAML"),
        ("a: 1\n\tb: 2\n", ":2", "is not YAML"),
        ("a: 1\nb: 2\na: 3\n", ":3", "'a' is set twice"),
        ("s:\n  a: 1\n  a: 1\n", ":3", "'a' is set twice"),
        ("a: 1\n---\nb: 1\n", ":2", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", ":1", "is not YAML"),
        ("a: !!int x\n", "", "is not YAML"),
        ("a: \x01\n", "", "is not YAML"),
        ("", "", "holds no settings"),
        ("- 1\n", "", "holds no settings"),
        ("word", "", "holds no settings"),
    ],
)
def test_broken_yaml_is_named_by_its_line(tmp_path: Path, text: str, where: str, what: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert caught.value.where == f"{path}{where}"
    assert what in caught.value.what
    assert len(str(caught.value).splitlines()) == 1


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    for name, what in (("latin.yaml", "UTF-8"), ("none.yaml", "No such file"), (".", "directory")):
        with pytest.raises(UserError, match=what) as caught:
            load(Run, tmp_path / name)
        assert caught.value.where == str(tmp_path / name)


def test_merge_keys_and_anchors_stay_yaml(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: 2}\nmore: &more {<<: *base, b: 3}\nmost: {<<: *more, c: 4}\n"
    assert read_yaml(written(tmp_path, text))["most"] == {"a": 1, "b": 3, "c": 4}


def test_overrides_reach_any_depth_and_leave_the_tree_alone(tmp_path: Path) -> None:
    tree = {"steps": 3, "a": {"b": {"c": 1}}, "none": None}
    out = with_overrides(tree, ["steps=4", "a.b.c=2", "x.y=[1, 2]", "none.z=1e-4", "text=a=b", "steps=5"])
    assert out == {
        "steps": 5,
        "a": {"b": {"c": 2}},
        "x": {"y": [1, 2]},
        "none": {"z": 1e-4},
        "text": "a=b",
    }
    assert tree == {"steps": 3, "a": {"b": {"c": 1}}, "none": None}

    run = load(Run, written(tmp_path, "steps: 3\n"), ["optimiser.learning_rate=1e-4", "second.kind=sgd"])
    assert run == Run(steps=3, optimiser=Optimiser(learning_rate=1e-4), second=Optimiser(kind="sgd"))


@pytest.mark.parametrize(
    "override", ["steps", "=3", "", "a..b=1", ".a=1", "a.=1", "steps.a=1", "a=[1", "a={b: }}"]
)
def test_broken_overrides_are_refused(override: str) -> None:
    with pytest.raises(UserError) as caught:
        with_overrides({"steps": 3}, [override])
    assert len(str(caught.value).splitlines()) == 1
    assert override in str(caught.value)


TEXTS = st.text() | st.sampled_from(
    [
        "a\x85b",
        "a\u2028b",
        "1e4",
        "1e-4",
        ".5",
        "5.",
        "1",
        "007",
        "0x1f",
        "12:30",
        "1_0",
        "yes",
        "no",
        "null",
        "~",
        "true",
        "=",
        "<<",
        "2024-01-01",
        ".inf",
        ".nan",
        "@a",
        "`a",
        "-",
        "?",
        "#",
        ":",
        "|",
        ">",
    ]
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
OPTIMISERS = st.builds(
    Optimiser,
    learning_rate=FLOATS,
    betas=st.tuples(FLOATS, FLOATS),
    kind=st.sampled_from(["adam", "sgd"]),
)
RUNS = st.builds(
    Run,
    steps=st.integers(max_value=10**6),
    name=TEXTS,
    out=st.none() | st.builds(Path, st.text("ab/.: 1é")),
    clip=st.none() | FLOATS,
    merged=st.booleans(),
    stops=st.lists(TEXTS, max_size=3).map(tuple),
    weights=st.dictionaries(TEXTS, FLOATS, max_size=3),
    optimiser=OPTIMISERS,
    second=st.none() | OPTIMISERS,
)


@given(RUNS)
def test_what_is_dumped_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, run: Run) -> None:
    text = dump(run)
    path = written(tmp_path_factory.getbasetemp(), text)
    assert load(Run, path) == run
    assert dump(load(Run, path)) == text


def test_every_default_is_written_out_and_plain_yaml_readers_agree() -> None:
    tree = yaml.safe_load(dump(Run(steps=3, stops=("\n\n",))))
    assert list(tree) == list(Run.model_fields)
    assert tree["optimiser"] == {"learning_rate": 1e-3, "betas": [0.9, 0.95], "kind": "adam"}
    assert tree["stops"] == ["\n\n"]
