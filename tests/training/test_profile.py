"""Profiles of a step: every moment counted once and where it belongs, and a run that is none the worse for it."""

from __future__ import annotations

import importlib
import json
import math
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit import cli, phases
from plaudit import config as configs
from plaudit.config import Config
from plaudit.evaluation.profile_page import in_words, page_if, render, write_profile
from plaudit.training.attribution import ELSEWHERE, KINDS, STEP, Span, attribute, kind_of
from plaudit.training.metrics import Metrics
from plaudit.training.profile import Recording, tokens_of
from runs import CONFIGS, Killed, after_it_is_logged, by_command, rows, weights, write_prompts

PPO: dict[str, Any] = {
    "model": "tiny", "reward": "rules:fourths", "steps": 4, "prompts_per_step": 3, "samples_per_prompt": 2,
    "max_new_tokens": 5, "epochs": 2, "precision": "float64", "threads": 1, "checkpoint_every": 2,
    "missing_eos_penalty": None,
}  # fmt: skip
PHASES = [
    "sampling", "sampling: prompts", "sampling: output", "sampling: draw", "sampling: tokens", "scoring", "look",
    "look: trunk", "look: reference", "look: policy", "look: value", "learning", "learning: policy",
    "learning: backward", "learning: value", "optimiser", "log", "elsewhere",
]  # fmt: skip
SAID = [
    {"prompt": f"{ask} {more}", "completions": [" I love it", " I hate it"], "choice": 0}
    for ask in ("how are you", "what is it", "tell me", "can we talk")
    for more in ("today", "now")
]
LABELLED = [
    {"prompt": row["prompt"], "completion": label, "propensity": 0.5, "scores": {"overall": float(label == "good")}}
    for row in SAID
    for label in ("good", "bad")
]  # fmt: skip


def spans(*rows: tuple[str, float, float], thread: int = 1) -> list[Span]:
    return [Span(name, start, end, thread) for name, start, end in rows]


STEP_BY_HAND = spans(
    (STEP, 10, 110),
    ("phase: sampling", 10, 50),
    ("aten::mm", 12, 20),
    ("phase: sampling: tokens", 20, 45),
    ("kind: attention", 22, 32),
    ("aten::bmm", 23, 27),
    ("aten::copy_", 28, 30),
    ("aten::linear", 33, 40),
    ("aten::mm", 34, 39),
    ("phase: learning", 50, 100),
    ("_Attend", 52, 60),
    ("aten::index_select", 53, 55),
    ("autograd::engine::evaluate_function: _AttendBackward", 60, 80),
    ("_AttendBackward", 61, 79),
    ("aten::bmm", 62, 70),
    ("autograd::engine::evaluate_function: MmBackward0", 80, 90),
    ("aten::mm", 81, 88),
    ("phase: optimiser", 91, 99),
    ("aten::_fused_adamw_", 92, 98),
)


def test_each_moment_goes_to_the_innermost_phase_and_one_kind() -> None:
    found = attribute(STEP_BY_HAND)
    assert found["seconds"] == 100
    assert found["phases"] == {
        "sampling": {"products": 8, "Python": 2 + 5},
        "sampling: tokens": {
            "products": 5 + 2,
            "attention": 4,
            "gathers, copies": 2,
            "Python": 2 + 4 + 1 + 5,
        },
        "learning": {"gathers, copies": 2, "Python": 2 + 6 + 1 + 1},
        "learning: backward": {"products": 7, "attention": 8, "Python": 1 + 10 + 1 + 3},
        "optimiser": {"optimiser": 6, "Python": 2},
        ELSEWHERE: {"Python": 10},
    }
    assert sum(sum(kinds.values()) for kinds in found["phases"].values()) == 100
    assert list(found["phases"]) == [
        "sampling", "sampling: tokens", "learning", "learning: backward", "optimiser", ELSEWHERE
    ]  # fmt: skip
    assert found["beside"] == {}
    assert [(one["name"], one["phase"], one["calls"], one["seconds"]) for one in found["operators"][:3]] == [
        ("aten::mm", "sampling", 1, 8),
        ("aten::bmm", "learning: backward", 1, 8),
        ("aten::mm", "learning: backward", 1, 7),
    ]


def test_the_order_in_which_spans_were_seen_changes_nothing() -> None:
    assert attribute(STEP_BY_HAND[::-1]) == attribute(STEP_BY_HAND)


def test_other_threads_stand_beside_and_are_no_part_of_the_step() -> None:
    other = spans(
        ("phase: sampling", 0, 200), ("aten::mm", 30, 40), ("aten::bmm", 105, 150), ("aten::mm", 5, 9), thread=2
    )  # fmt: skip
    found, alone = attribute([*other, *STEP_BY_HAND]), attribute(STEP_BY_HAND)
    assert {key: found[key] for key in ("seconds", "phases", "operators")} == {
        key: alone[key] for key in ("seconds", "phases", "operators")
    }
    assert found["beside"] == {"sampling": {"products": 10 + 5, "Python": 100 - 15}}


def test_what_is_before_and_after_the_step_is_cut_off() -> None:
    around = spans(("aten::mm", 0, 9), ("aten::mm", 111, 120), ("aten::empty", 5, 5))
    assert attribute([*around, *STEP_BY_HAND]) == attribute(STEP_BY_HAND)


@pytest.mark.parametrize(
    ("name", "family", "phase", "expected"),
    [
        ("aten::addmm", None, "look: policy", "products"),
        ("mkldnn::_linear_pointwise", None, "sampling: tokens", "products"),
        ("mkldnn::_linear_pointwise", "output", "sampling: output", "output layer"),
        ("aten::exp", "output", "sampling: draw", "output softmax"),
        ("aten::copy_", "output", "look: policy", "output softmax"),
        ("aten::bmm", "attention", "look: policy", "attention"),
        ("aten::index_add_", "attention", "learning: backward", "gathers, copies"),
        ("aten::mul", "rotary", "look: policy", "rotary"),
        ("aten::copy_", "norms", "look: policy", "norms"),
        ("aten::mul", "gate", "look: policy", "gate"),
        ("aten::add_", None, "learning: policy", "elementwise"),
        ("aten::cat", None, "sampling: prompts", "gathers, copies"),
        ("aten::view", None, "look", "Python"),
        ("aten::empty", "attention", "look", "Python"),
        ("aten::mul_", None, "optimiser", "optimiser"),
        ("Optimizer.step#AdamW.step", None, "optimiser", "Python"),
        ("MmBackward0", None, "learning: backward", "Python"),
        ("kind: attention", "attention", "sampling: tokens", "Python"),
    ],
)
def test_the_kind_of_an_operator(name: str, family: str | None, phase: str, expected: str) -> None:
    assert kind_of(name, family, phase) == expected
    assert expected in KINDS


def everything(figures: Mapping[str, Any]) -> float:
    return math.fsum(seconds for kinds in figures["phases"].values() for seconds in kinds.values())


def test_a_recording_sees_names_and_other_threads_and_leaves_nobody_watching() -> None:
    @phases.phase("sampling")
    def work() -> None:
        for _ in range(5):
            torch.ones(64, 64) @ torch.ones(64, 64)

    @phases.kind("rotary")
    def turn() -> None:
        torch.ones(1000).mul(2.0)

    recording = Recording()
    thread = threading.Thread(target=work)
    thread.start()
    with phases.during("look"):
        work()
        turn()
        time.sleep(0.05)
    thread.join()
    recording.stop()
    figures = recording.figures()
    assert set(figures["phases"]) == {"sampling", "look", ELSEWHERE}
    assert set(figures["beside"]) == {"sampling"}
    assert figures["phases"]["sampling"]["products"] > 0
    assert figures["phases"]["look"]["rotary"] > 0
    assert 0.05 <= figures["phases"]["look"]["Python"] <= figures["seconds"]
    assert everything(figures) == pytest.approx(figures["seconds"], rel=1e-9)
    assert 0 < figures["processor_seconds"] < figures["seconds"] * 3
    seen = list[str]()

    def watcher(name: str) -> Any:
        seen.append(name)
        return phases._NOBODY

    work()
    assert seen == []
    phases.watch(watcher)
    try:
        work()
    finally:
        phases.watch(None)
    assert seen == ["phase: sampling"]


def test_a_name_that_nobody_watches_costs_next_to_nothing() -> None:
    """A millisecond of a step of a second, were there a thousand of them; measured, it is under a microsecond each."""

    @phases.phase("sampling")
    def named() -> None:
        pass

    best = math.inf
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(1000):
            named()
        best = min(best, time.perf_counter() - began)
    assert best < 0.01


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of `plaudit train configs/ppo.yaml`: without a profile, and with one."""
    room = tmp_path_factory.mktemp("ppo")
    settings = PPO | {"prompts": write_prompts(room)}
    by_command("ppo", settings, room / "without")
    by_command("ppo", settings | {"profile": True}, room / "with")
    return room / "without", room / "with"


def test_a_profile_changes_no_number(profiled: tuple[Path, Path]) -> None:
    without, with_ = profiled
    assert rows(with_) == rows(without)
    assert weights(with_) == weights(without)
    assert not [path.name for path in without.iterdir() if path.name.startswith("profile")]


def test_the_figures_of_a_ppo_step(profiled: tuple[Path, Path]) -> None:
    directory = profiled[1]
    figures = json.loads((directory / "profile.json").read_text())
    assert list(figures["phases"]) == PHASES
    assert everything(figures) == pytest.approx(figures["seconds"], rel=1e-9)
    second, third = (json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()[1:3])
    # The recipe's own clock is read within the step that is watched, and once more around all but the log.
    rest = figures["phases"]["log"]["Python"] + figures["phases"][ELSEWHERE]["Python"]
    assert second["seconds"] <= figures["seconds"] <= second["seconds"] + rest + 0.1
    sampled = sum(
        sum(of.values()) for name, of in figures["phases"].items() if name.startswith(("sampling", "scoring"))
    )
    assert sampled == pytest.approx(second["seconds_sampling"], rel=0.1, abs=0.05)
    assert figures["tokens"] == pytest.approx(second["tokens_per_second"] * second["seconds"], abs=0.01)
    assert figures["without"]["step"] == 3
    assert third["seconds"] <= figures["without"]["seconds"]
    assert (figures["step"], figures["cold"], figures["recipe"], figures["precision"]) == (
        2,
        False,
        "ppo",
        "float64",
    )
    assert figures["machine"]["threads"] == 1
    for phase, kind in (
        ("sampling: tokens", "products"), ("sampling: tokens", "attention"), ("sampling: output", "output layer"),
        ("sampling: draw", "output softmax"), ("look: trunk", "rotary"), ("look: policy", "output layer"),
        ("learning: policy", "norms"), ("learning: backward", "attention"), ("learning: backward", "gate"),
        ("optimiser", "optimiser"),
    ):  # fmt: skip
        assert figures["phases"][phase][kind] > 0, (phase, kind)
    assert len(figures["operators"]) == 10
    calls = {(one["phase"], one["name"]): one["calls"] for one in figures["operators"]}
    assert calls.get(("optimiser", "aten::_fused_adamw_"), 2) == 2, "two epochs, one step each"


def test_the_page_says_the_figures_in_words_and_as_a_picture(profiled: tuple[Path, Path]) -> None:
    directory = profiled[1]
    figures, page = (
        json.loads((directory / "profile.json").read_text()),
        (directory / "profile.html").read_text(),
    )
    assert "Of a second of a step: <strong>" in page
    drawn = json.loads(re.findall(r'id="figures">(.*?)</script>', page, re.S)[0])["phases"]
    assert sum(sum(bar["x"]) for bar in drawn["data"]) == pytest.approx(1000, rel=1e-9)
    names = drawn["layout"]["yaxis"]["ticktext"]
    assert names == ["sampling: rest" if n == "sampling" else "look: rest" if n == "look" else
                     "learning: rest" if n == "learning" else n for n in figures["phases"]]  # fmt: skip
    place = names.index("sampling: tokens")
    products = next(bar for bar in drawn["data"] if bar["name"] == "products")
    expected = 1000 * figures["phases"]["sampling: tokens"]["products"] / figures["seconds"]
    assert products["x"][place] == pytest.approx(expected)
    assert "Step 3, with nobody watching." in page


def test_the_sentence_names_what_takes_most() -> None:
    by_phase = {"sampling": 1.0, "sampling: tokens": 2.0, "look": 1.5, "learning: backward": 4.0, "log": 0.9,
                "scoring": 0.5, "optimiser": 0.1}  # fmt: skip
    assert in_words(by_phase, 10.0) == [
        ("learning", 0.4), ("sampling", pytest.approx(0.3)), ("the look at the samples", 0.15), ("the log", 0.09),
        ("all else", pytest.approx(0.06)),
    ]  # fmt: skip
    ((what, share),) = in_words({"learning": 9.97, "log": 0.03}, 10.0)
    assert what == "learning"
    assert share == pytest.approx(0.997)
    assert in_words({"learning": 9.9, "log": 0.04, "look": 0.06}, 10.0)[-1] == (
        "the look at the samples",
        0.006,
    )


def test_what_a_config_holds_stays_text(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script>"
    figures = attribute(STEP_BY_HAND) | {
        "recipe": "ppo", "model": attack, "step": 2, "cold": True, "tokens": None, "precision": None,
        "machine": {"threads": 1, "cores": 2, "processor": attack}, "without": None, "processor_seconds": 69.0,
        "device_seconds": 0.0,
    }  # fmt: skip
    page = render(tmp_path, figures)
    assert "<script>alert" not in page
    assert page.count("<script") == 3
    assert "the first step that its process took" in page
    assert "others were at work on the machine" in page
    assert "others were at work" not in render(tmp_path, figures | {"processor_seconds": 71.0})


def killed(monkeypatch: pytest.MonkeyPatch, step: int, settings: Mapping[str, Any], out: Path) -> None:
    """A run of ppo that is killed once this step is logged."""
    with monkeypatch.context() as patch:
        after_it_is_logged(patch, step, importlib.import_module("plaudit.recipes.ppo"))
        with pytest.raises(Killed):
            by_command("ppo", settings, out)


def test_the_profile_is_there_when_the_step_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run that is killed after it, and resumed, keeps it and watches no other."""
    out, settings = tmp_path / "run", PPO | {"prompts": write_prompts(tmp_path), "profile": True}
    killed(monkeypatch, 2, settings, out)
    assert phases._watcher is None
    kept = (out / "profile.json").read_bytes(), (out / "profile.html").read_bytes()
    assert json.loads(kept[0])["without"] == json.loads(kept[0])["without"] | {"step": 1, "cold": True}
    assert cli.main(["resume", str(out)]) == 0
    assert len(rows(out)) == 4
    assert ((out / "profile.json").read_bytes(), (out / "profile.html").read_bytes()) == kept


def test_a_run_killed_before_its_profile_has_one_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profiled: tuple[Path, Path]
) -> None:
    out = tmp_path / "run"
    settings = PPO | {"prompts": write_prompts(tmp_path), "profile": True, "checkpoint_every": 1}
    killed(monkeypatch, 1, settings, out)
    assert phases._watcher is None, "a profile that was begun is ended"
    assert not (out / "profile.json").exists()
    assert cli.main(["resume", str(out)]) == 0
    figures = json.loads((out / "profile.json").read_text())
    assert (figures["step"], figures["cold"]) == (2, False)
    assert "checkpoint" in figures["phases"]
    assert rows(out) == rows(profiled[0])
    assert weights(out) == weights(profiled[0])


def test_where_one_step_is_left_that_is_watched(tmp_path: Path) -> None:
    settings = PPO | {"prompts": write_prompts(tmp_path), "steps": 1, "profile": True}
    by_command("ppo", settings, tmp_path / "run")
    figures = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert (figures["step"], figures["cold"], figures["without"]) == (1, True, None)
    assert everything(figures) == pytest.approx(figures["seconds"], rel=1e-9)
    assert "the only step that was left to take" in (tmp_path / "run" / "profile.html").read_text()


OTHERS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "sft": ([{"prompt": row["prompt"], "completion": " I love it"} for row in SAID], {"batch_size": 4, "heldout": 0.3}),
    "dpo": (SAID, {"prompts_per_step": 2, "heldout": 0.3}),
    "kto": (SAID, {"batch_size": 4}),
    "reward_model": (SAID, {"prompts_per_step": 2}),
    "ilql": (SAID, {"batch_size": 4}),
    "bandit": (LABELLED, {"batch_size": 4, "epochs": 1}),
    "grpo": ([], {}), "reinforce": ([], {}), "rejection": ([], {}), "online_dpo": ([], {}),
}  # fmt: skip
"""Of each other recipe: what it learns from, and settings that give it two steps or more."""


@pytest.mark.parametrize("recipe", OTHERS)
def test_every_recipe_has_a_profile_that_changes_no_number(recipe: str, tmp_path: Path) -> None:
    records, settings = OTHERS[recipe]
    settings = PPO | {"prompts": write_prompts(tmp_path), "steps": 2, "epochs": 1} | settings
    if records:
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        settings = {key: value for key, value in settings.items() if key not in ("prompts", "reward")}
        settings |= {"data": [str(tmp_path / "data.jsonl")]}
    plain = by_command(recipe, settings, tmp_path / "without")
    assert by_command(recipe, settings | {"profile": True}, tmp_path / "with") == plain
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    figures = json.loads((tmp_path / "with" / "profile.json").read_text())
    assert figures["recipe"] == recipe
    assert {"learning", "learning: backward", "optimiser", "log", ELSEWHERE} <= set(figures["phases"])
    assert ("sampling: draw" in figures["phases"]) == (not records)
    assert everything(figures) == pytest.approx(figures["seconds"], rel=1e-9)
    assert (tmp_path / "with" / "profile.html").exists()


def test_every_training_recipe_is_asked() -> None:
    configs_ = {name: importlib.import_module(module).Config for name, module in cli.RECIPES.items()}
    assert {name for name, cls in configs_.items() if "profile" in cls.model_fields} == {"ppo", *OTHERS}
    assert set(configs_) - {"ppo", *OTHERS} == {"evaluate"}
    assert all(issubclass(cls, Config) for cls in configs_.values())
    assert all(configs.read_yaml(CONFIGS / f"{name}.yaml")["profile"] is False for name in ("ppo", *OTHERS))


def test_a_run_that_ends_early_leaves_no_profile_of_half_a_step(tmp_path: Path) -> None:
    with Metrics(tmp_path, total=5, done=0, title="t", profile=write_profile) as metrics:
        metrics.log(1, {"tokens": 3.0}, "one")
        watched = [phases._watcher is not None]
    watched.append(phases._watcher is not None)
    assert watched == [True, False]
    assert not (tmp_path / "profile.json").exists()


def test_no_page_where_none_is_wanted() -> None:
    assert page_if(False) is None
    assert page_if(True) is write_profile


@pytest.mark.parametrize(
    ("row", "tokens"),
    [({"tokens": 12.0}, 12), ({"tokens_per_second": 10.0, "seconds": 2.5}, 25), ({"loss": 1.0}, None)],
)
def test_how_many_tokens_a_step_learned_from(row: dict[str, float], tokens: int | None) -> None:
    assert tokens_of(row) == tokens
