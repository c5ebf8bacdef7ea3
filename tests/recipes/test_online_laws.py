"""Laws of every recipe that learns from its own samples, held by each shipped config and by logged completions."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plaudit.models.adapter import save_adapter
from plaudit.models.load import load_model
from plaudit.rollout.collect import forward
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Sample
from plaudit.training import checkpoint, learner, online
from plaudit.training.optim import take_step
from plaudit.types import UserError
from runs import (
    ONLINE,
    TIMES,
    Kill,
    Killed,
    after_it_is_logged,
    after_it_is_saved,
    before_it_is_logged,
    before_it_is_saved,
    changed,
    judged,
    peaked_model,
    rows,
    same,
    shipped,
    weights,
    within_the_export,
    within_the_log_line,
    within_the_update,
    write_prompts,
)
from tiny_models import random_adapter

RATIOS = (
    "ppo", "reinforce_plus_plus", "rloo, clipped", "grpo", "dr_grpo", "dapo", "gspo", "dapo, episodes", "ppo, lagged",
    "dapo, lagged",
)  # fmt: skip
SMALL: dict[str, Any] = {
    "model": "tiny",
    "reward": "rules:fourths",
    "steps": 5,
    "prompts_per_step": 3,
    "samples_per_prompt": 2,
    "max_new_tokens": 6,
    "epochs": 2,
    "learning_rate": 3e-3,
    "missing_eos_penalty": None,
    "dynamic_sampling": 2,
    "overlong_buffer": 2,
    "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3},
    "kl": {"coef": 0.1, "target": 0.001, "horizon": 20.0},
    "precision": "float64",
    "threads": 1,
    "checkpoint_every": 2,
}


@dataclass(frozen=True)
class Case:
    """A recipe with its settings, and where it has run once, undisturbed."""

    name: str
    recipe: ModuleType
    config: Any
    directory: Path

    def run(self, directory: Path, **settings: Any) -> list[dict[str, float]]:
        self.recipe.run(changed(self.config, **settings), directory)
        return rows(directory)


VARIANTS = ("rloo, clipped", "reinforce, judged", "dapo, episodes", "ppo, lagged", "dapo, lagged")
ONE_A_RECIPE = ("ppo", "reinforce", "dapo", "rejection", "online_dpo", "reinforce, judged", "ppo, lagged")
"""For what the recipes' shared parts do, whatever the loss."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    return cache(lambda name: make_case(name, tmp_path_factory.mktemp("laws")))


@pytest.fixture(params=[*ONLINE, *VARIANTS])
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


def make_case(name: str, place: Path) -> Case:
    config, _, more = name.partition(", ")
    settings: dict[str, Any] = SMALL | {"prompts": write_prompts(place)}
    if config not in ("grpo", "dapo"):
        settings |= {"dynamic_sampling": 0, "overlong_buffer": 0}
    if more == "clipped":
        settings |= {"loss": "clipped"}
    if more == "lagged":
        settings |= {"lag": 2}
    if more == "judged":
        settings |= {"prompts": None, "reward": None, **judged(place)}
        settings["kl"] = SMALL["kl"] | {"place": "loss", "estimator": "k2"}
    if more == "episodes":
        settings |= {"prompts": None, "reward": None, "environment": "games:Halves", "turns": 2}
        settings |= {"max_new_tokens": 4, "overlong_buffer": 0}
    recipe, parsed = shipped(config, **settings)
    recipe.run(parsed, place / "run")
    return Case(name, recipe, parsed, place / "run")


@pytest.mark.parametrize("budget", [pytest.param(30, marks=pytest.mark.proof), 1])
def test_the_split_into_micro_batches_changes_nothing(case: Case, tmp_path: Path, budget: int) -> None:
    same(case.run(tmp_path / "run", micro_batch_tokens=budget), rows(case.directory), 1e-9)


def test_streams_kept_from_the_rollout_change_nothing(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They only save work: thrown away, the run is the same."""
    monkeypatch.setattr(
        online, "forward", lambda *args, **kwargs: replace(forward(*args, **kwargs), streams={})
    )
    same(case.run(tmp_path / "run"), rows(case.directory), 1e-9)


@pytest.mark.parametrize("budget", [100_000, 30])
def test_the_first_ratio_is_exactly_1(case: Case, tmp_path: Path, budget: int) -> None:
    """With one epoch and one minibatch the logged ratio is that before any update, of every step."""
    logged = case.run(tmp_path / "run", epochs=1, micro_batch_tokens=budget)
    if case.name in RATIOS:
        assert {row["ratio_max"] for row in logged} == {1.0}
        assert {row["clip_fraction"] for row in logged} == {0.0}
        assert {row["approx_kl"] for row in logged} == {0.0}
        assert any(row["ratio_max"] > 1 for row in rows(case.directory)), "two epochs have moved it"
    else:
        assert "ratio_max" not in logged[0]
    assert logged[0]["kl"] == 0.0
    assert logged[-1]["kl"] != 0.0


CHAIN: tuple[tuple[Kill, int], ...] = (
    (within_the_update, 1), (after_it_is_logged, 1), (before_it_is_saved, 2), (after_it_is_saved, 2),
    (within_the_log_line, 3), (within_the_update, 2), (before_it_is_logged, 4), (after_it_is_saved, 4),
    (within_the_export, 5),
)  # fmt: skip


@pytest.mark.parametrize("case", ONE_A_RECIPE, indirect=True)
def test_a_run_killed_wherever_it_stands_ends_with_the_same_bits(case: Case, tmp_path: Path) -> None:
    """Nine times, before it is let go on to its end; a checkpoint is written after every second step."""
    for kill, at in CHAIN:
        with pytest.MonkeyPatch.context() as monkeypatch:
            kill(monkeypatch, at, case.recipe)
            with pytest.raises(Killed):
                case.run(tmp_path / "run")
        assert not (tmp_path / "run" / "summary.json").exists()
    case.run(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(case.directory)
    assert weights(tmp_path / "run") == weights(case.directory)
    states = [checkpoint.latest(place / "checkpoints") for place in (tmp_path / "run", case.directory)]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0][1] == states[1][1]
    summaries = [json.loads((d / "summary.json").read_text()) for d in (tmp_path / "run", case.directory)]
    for summary in summaries:
        summary["last"] = {k: v for k, v in summary["last"].items() if k not in TIMES}
    assert summaries[0] == summaries[1]


def test_a_finished_run_that_is_run_again_stays_as_it_is(case: Case) -> None:
    before, logged = weights(case.directory), rows(case.directory)
    assert case.run(case.directory) == logged
    assert weights(case.directory) == before
    assert len(logged) == 5


def test_the_order_in_which_samples_come_changes_nothing(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = LocalEngine.sample

    def backwards(self: LocalEngine, *args: Any, **names: Any) -> Any:
        return reversed(list(sample(self, *args, **names)))

    monkeypatch.setattr(LocalEngine, "sample", backwards)
    assert case.run(tmp_path / "run") == rows(case.directory)
    assert weights(tmp_path / "run") == weights(case.directory)


def test_a_gold_score_is_logged_and_changes_nothing(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[list[float]] = []

    def first_id(samples: Sequence[Sample]) -> list[float]:
        scored.append([s.completion_ids[0] / 700 for s in samples])
        return scored[-1]

    monkeypatch.setattr("rules.first_id", first_id)
    logged = case.run(tmp_path / "run", gold="rules:first_id")
    assert [row.pop("gold") for row in logged] == pytest.approx([sum(s) / len(s) for s in scored], abs=1e-12)
    assert logged == rows(case.directory)
    assert weights(tmp_path / "run") == weights(case.directory)


def test_the_whole_model_can_be_trained(case: Case, tmp_path: Path) -> None:
    logged = case.run(tmp_path / "run", adapter={"rank": 0}, learning_rate=1e-3, steps=3)
    assert not (tmp_path / "run" / "adapter").exists()
    before = load_file(load_model("tiny", torch.float64).directory / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert logged[0]["kl"] == 0.0
    assert logged[-1]["kl"] != 0.0, "the reference has stayed where it was"


@pytest.mark.parametrize("case", ONE_A_RECIPE, indirect=True)
def test_a_run_can_begin_from_an_adapter(case: Case, tmp_path: Path) -> None:
    """It is the policy of the first step; the reference stays the bare trunk."""
    trunk = load_model("tiny", torch.float64).trunk
    (tmp_path / "start").mkdir()
    save_adapter(random_adapter(trunk, rank=3, blocks=2, seed=8), tmp_path / "start", base="tiny")
    start = {"start": str(tmp_path / "start"), "steps": 2}
    logged = case.run(tmp_path / "still", **start, learning_rate=0.0)
    kept = load_file(tmp_path / "still" / "adapter" / "adapter_model.safetensors")
    begun = load_file(tmp_path / "start" / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], begun[name]) for name in begun)
    assert abs(logged[0]["kl"]) > 1e-3
    case.run(tmp_path / "moved", **start)
    moved = load_file(tmp_path / "moved" / "adapter" / "adapter_model.safetensors")
    assert all(not torch.equal(moved[name], begun[name]) for name in begun)
    beside = case.run(tmp_path / "beside", **start, reference="start")
    assert beside[0]["kl"] == 0.0, "the start is its own reference where that is asked for"
    assert beside[1]["kl"] != 0.0


# -- the price of moving away ------------------------------------------------------------------------------------


def test_the_kl_controller_moves_the_price_by_its_formula(case: Case) -> None:
    """In nats a token against the target; a policy that has not moved makes moving cheaper."""
    logged = rows(case.directory)
    if case.name in ("rejection", "online_dpo"):
        assert "kl_coef" not in logged[0]
        return
    assert logged[0]["kl_coef"] == 0.1
    for now, after in itertools.pairwise(logged):
        error = min(max(now["kl"] / 0.001 - 1, -0.2), 0.2)
        episodes = (after["kl_coef"] / now["kl_coef"] - 1) * 20 / error
        assert episodes == pytest.approx(round(episodes), abs=1e-9)
        if case.name == "reinforce, judged":
            assert round(episodes) in (9, 10), "one prompt has four completions, the others three"
        elif case.config.model_dump().get("dynamic_sampling"):
            assert round(episodes) in (2, 4, 6), "groups that teach nothing may be missing"
        else:
            assert round(episodes) == 6
    assert logged[1]["kl_coef"] < 0.1


def test_a_price_without_a_target_stays(case: Case, tmp_path: Path) -> None:
    if case.name not in ("rejection", "online_dpo"):
        logged = case.run(tmp_path / "run", kl={"coef": 0.07, "target": None}, steps=2)
        assert [row["kl_coef"] for row in logged] == [0.07, 0.07]


@pytest.mark.parametrize("name", ["ppo", "reinforce", "reinforce_plus_plus", "grpo", "gspo"])
@pytest.mark.parametrize("place", ["reward", "loss"])
def test_a_price_holds_the_policy_back(tmp_path: Path, name: str, place: str) -> None:
    settings = SMALL | {
        "model": peaked_model(tmp_path), "prompts": write_prompts(tmp_path), "samples_per_prompt": 8, "clip": 0.2,
        "steps": 6, "learning_rate": 5e-3, "dynamic_sampling": 0, "overlong_buffer": 0, "stop": {"max_kl": 100.0},
    }  # fmt: skip
    ends = []
    for coef in (0.0, 3.0):
        kl = {"coef": coef, "place": place, "estimator": "k2" if place == "loss" else "k1", "target": None}
        recipe, config = shipped(name, **settings | {"kl": kl})
        recipe.run(config, tmp_path / str(coef))
        ends.append(rows(tmp_path / str(coef))[-1])
    assert ends[1]["kl"] < 0.6 * ends[0]["kl"], ends
    assert ends[1]["reward"] < ends[0]["reward"]


# -- refusals and ends ---------------------------------------------------------------------------------------------


def test_a_sampler_with_other_weights_is_refused(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first update. What was judged long ago is not drawn, so there is no sampler to hold it against."""
    if case.name == "reinforce, judged":
        return
    load = LocalEngine.load

    def wrong(self: LocalEngine, weights: Any, version: str) -> None:
        load(self, random_adapter(self.trunk) if weights is not None else None, version)

    monkeypatch.setattr(LocalEngine, "load", wrong)
    with pytest.raises(UserError, match=r"preflight: trainer and sampler differ by 0\.\d+ nats"):
        case.run(tmp_path / "run", steps=1)
    assert rows(tmp_path / "run") == []
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("settings", "reason", "steps"),
    [
        ({"stop": {"max_kl": -1.0}}, "KL 0.000 nats a token is over -1.0", 0),
        ({"stop": {"min_entropy": 50.0}}, "entropy", 0),
        ({"stop": {"max_length_growth": 0.5}}, "length", 0),
        ({"learning_rate": 1e200}, "the model is that of step 0", 1),
        ({"learning_rate": 1e200, "checkpoint_every": 1}, "the model is that of step 0", 1),
        ({"learning_rate": 1e200, "steps": 1}, "a weight is not a number.*of step 0", 1),
        ({"learning_rate": 1e200, "adapter": {"rank": 0}}, "the model is that of step 0", 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("case", ONE_A_RECIPE, indirect=True)
def test_a_run_stops_by_itself_with_a_reason_and_a_usable_model(
    case: Case, tmp_path: Path, settings: dict[str, Any], reason: str, steps: int
) -> None:
    for _ in range(2):  # a second time it stays stopped
        case.run(tmp_path / "run", **settings)
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert pytest.approx(summary["steps"]) == steps
        assert re.search(reason, summary["stopped"]), summary["stopped"]
        model = load_file(tmp_path / "run" / "model" / "model.safetensors")
        assert all(bool(t.isfinite().all()) for t in model.values())


@pytest.mark.parametrize("case", ONE_A_RECIPE, indirect=True)
def test_weights_that_give_no_numbers_go_back_to_the_last_checkpoint_that_did(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient breaks in the fourth step: of the checkpoints after steps 2 and 4 the older one is good."""
    step, calls = take_step, [0]

    def breaks(optimizer: Any, parameters: Any, **rest: Any) -> float:
        calls[0] += 1
        if calls[0] == 8:
            parameters[0].grad.fill_(float("nan"))
        return step(optimizer, parameters, **rest)

    monkeypatch.setattr(learner, "take_step", breaks)
    case.run(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "not a number" in summary["stopped"]
    assert "the model is that of step 2" in summary["stopped"]
    kept = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert kept is not None
    assert all(bool(t.isfinite().all()) for t in kept[0].values())
    assert rows(tmp_path / "run")[:3] == rows(case.directory)[:3]
