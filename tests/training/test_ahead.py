"""Sampling beside learning: who draws for which step, that it is beside, and that nothing is left when a run ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.models.branch import Branch
from plaudit.models.load import Model, load_model
from plaudit.recipes import ppo
from plaudit.rollout.local import LocalEngine
from plaudit.training.ahead import Ahead
from plaudit.training.learner import Learner
from plaudit.training.online import OnlineAdapter, OnlineConfig
from plaudit.training.policy import make_policy
from plaudit.types import UserError
from runs import changed, rows, same, shipped, write_prompts

Seen = tuple[int, float]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("tiny", torch.float64)


def learner_of(directory: Path, model: Model, lag: int, rank: int = 2) -> Learner:
    config = OnlineConfig(prompts="", reward="", adapter=OnlineAdapter(rank=rank), steps=6, lag=lag)
    return Learner(directory, lambda: {"policy": make_policy(model, config.adapter, seed=0)}, config, {})


def moved(learner: Learner, step: int) -> None:
    """An update that leaves its number in every weight."""
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.fill_(float(step))


def seen_of(policy: Branch, step: int) -> Seen:
    """The step, and the number that the drawing policy's weights hold."""
    return step, float(policy.parameters()[0].detach().flatten()[0])


@pytest.mark.parametrize("rank", [2, 0], ids=["adapter", "whole"])
@pytest.mark.parametrize(
    ("lag", "drawn_by"), [(0, [0, 1, 2, 3, 4, 5]), (1, [0, 0, 1, 2, 3, 4]), (3, [0, 0, 0, 0, 1, 2])]
)
def test_each_step_is_drawn_by_the_policy_of_lag_steps_before(
    tmp_path: Path, model: Model, lag: int, drawn_by: list[int], rank: int
) -> None:
    learner = learner_of(tmp_path, model, lag, rank)
    moved(learner, 0)
    found = []
    with Ahead(seen_of, learner) as sampling:
        for step in range(6):
            found.append(sampling.of(step))
            moved(learner, step + 1)
    assert found == list(enumerate(map(float, drawn_by)))
    assert learner.acting == {}


@pytest.mark.parametrize("lag", [1, 3])
def test_a_run_taken_up_again_draws_by_the_same_policies(tmp_path: Path, model: Model, lag: int) -> None:
    first = learner_of(tmp_path, model, lag)
    moved(first, 0)
    found = []
    with Ahead(seen_of, first) as sampling:
        for step in range(3):
            found.append(sampling.of(step))
            moved(first, step + 1)
            first.save(step + 1)
        moved(first, 99)  # what a kill loses
    again = learner_of(tmp_path, model, lag)
    assert again.done == 3
    with Ahead(seen_of, again) as sampling:
        for step in range(3, 6):
            found.append(sampling.of(step))
            moved(again, step + 1)
    assert found == [(step, float(max(0, step - lag))) for step in range(6)]


def test_the_next_step_is_drawn_while_this_one_is_learned_from(tmp_path: Path, model: Model) -> None:
    begun = {step: threading.Event() for step in range(6)}

    def draw(_: Branch, step: int) -> str:
        begun[step].set()
        return threading.current_thread().name

    with Ahead(draw, learner_of(tmp_path, model, 1)) as sampling:
        for step in range(5):
            assert sampling.of(step).startswith("sampling")
            assert begun[step + 1].wait(10), "it has begun before the next is asked for"
            if step + 2 < 6:
                assert not begun[step + 2].is_set(), "and no other has"
    with Ahead(draw, learner_of(tmp_path, model, 0)) as sampling:
        assert sampling.of(0) == threading.main_thread().name


def test_what_a_draw_raises_is_raised_where_its_step_is_asked_for(tmp_path: Path, model: Model) -> None:
    def draw(_: Branch, step: int) -> int:
        if step == 2:
            raise UserError("the scorer has gone", where="reward")
        return step

    with Ahead(draw, learner_of(tmp_path, model, 2)) as sampling:
        assert [sampling.of(0), sampling.of(1)] == [0, 1]
        with pytest.raises(UserError, match="has gone"):
            sampling.of(2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sampling")]


def test_an_interrupted_run_waits_for_the_draw_on_its_way_and_begins_no_other(
    tmp_path: Path, model: Model
) -> None:
    drawn, gate = list[int](), threading.Event()

    def draw(_: Branch, step: int) -> None:
        if step:
            gate.wait(10)
        drawn.append(step)

    def interrupted() -> None:
        with Ahead(draw, learner_of(tmp_path, model, 4)) as sampling:
            sampling.of(0)
            threading.Timer(0.2, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert drawn in ([0], [0, 1])


@pytest.fixture
def config(tmp_path: Path) -> Any:
    _, config = shipped(
        "ppo",
        model="tiny",
        prompts=write_prompts(tmp_path),
        reward="rules:fourths",
        steps=4,
        prompts_per_step=3,
        samples_per_prompt=2,
        max_new_tokens=6,
        learning_rate=1e-2,
        missing_eos_penalty=None,
        precision="float64",
        threads=1,
    )
    return config


def test_a_lag_is_told_apart_and_corrected_by_the_importance_weight(config: Any, tmp_path: Path) -> None:
    """At once, sampler and trainer agree to rounding; a step behind they do not, and the weights say how far."""
    ppo.run(config, tmp_path / "at once")
    ppo.run(changed(config, lag=1), tmp_path / "behind")
    at_once, behind = rows(tmp_path / "at once"), rows(tmp_path / "behind")
    same(behind[:1], at_once[:1], 0.0)
    assert max(row["sampler_difference"] for row in at_once) < 1e-6
    assert behind[0]["sampler_difference"] < 1e-6
    assert all(row["sampler_difference"] > 1e-4 for row in behind[1:])
    assert all(row["importance_mean"] != pytest.approx(1.0, abs=1e-6) for row in behind[1:])


def test_samples_are_named_after_the_policy_that_drew_them(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, versions = LocalEngine.load, list[str]()

    def named(self: LocalEngine, weights: Any, version: str) -> None:
        versions.append(version)
        load(self, weights, version)

    monkeypatch.setattr(LocalEngine, "load", named)
    ppo.run(changed(config, lag=2), tmp_path / "run")
    assert versions == ["step-0", "step-0", "step-0", "step-1"]


def test_feedback_is_drawn_by_nobody_so_nothing_can_be_drawn_ahead() -> None:
    with pytest.raises(UserError, match=r"set lag: 0"):
        shipped("reinforce_feedback", feedback=["x.jsonl"], lag=1)
