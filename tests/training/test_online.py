"""How a run stands: when it must stop, what is kept then, what a KL costs next, and which prompts a draw is of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from plaudit.models.load import Model, load_model
from plaudit.tensors import Key, Sample, SamplingParams
from plaudit.training import checkpoint, online
from plaudit.training.learner import Learner, Meter
from plaudit.training.online import KLConfig, OnlineAdapter, OnlineConfig, StopConfig
from plaudit.training.policy import make_policy
from tiny_models import as_samples

FINE = {"reward": 0.5, "reward_std": 0.1, "kl": 0.1, "entropy": 2.0, "length": 5.0}
NAN = float("nan")


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("tiny", torch.float64)


def run_of(directory: Path, model: Model, **settings: Any) -> Learner:
    config = OnlineConfig(prompts="", reward="", adapter=OnlineAdapter(rank=2), steps=9, **settings)
    return Learner(
        directory, lambda: {"policy": make_policy(model, config.adapter, seed=0)}, config, {"price": 1.0}
    )


def set_all(run: Learner, value: float) -> None:
    with torch.no_grad():
        for parameter in run.parameters():
            parameter.fill_(value)


def values(run: Learner) -> set[float]:
    return {float(x) for p in run.parameters() for x in p.detach().flatten()}


def test_a_run_goes_on_while_all_is_well_and_stops_where_it_stands_else(tmp_path: Path, model: Model) -> None:
    run = run_of(tmp_path, model)
    set_all(run, 0.25)
    assert not run.must_stop(3, FINE, [FINE])
    run.finish()
    assert not run.stopped
    assert run.must_stop(3, FINE | {"kl": 1.5}, [FINE])
    assert run.state["stopped"].startswith("KL 1.500")
    again = run_of(tmp_path, model)
    assert again.stopped
    assert (again.done, values(again)) == (3, {0.25})


@pytest.mark.parametrize("bad", [{"kl": NAN}, {"entropy": NAN}])
def test_weights_without_numbers_give_way_to_those_saved_before(
    tmp_path: Path, model: Model, bad: dict[str, float]
) -> None:
    run = run_of(tmp_path, model)
    for step, value in ((2, 0.25), (4, NAN)):
        set_all(run, value)
        run.state["price"] = float(step)
        run.save(step)
    assert run.must_stop(4, FINE | bad, [FINE])
    assert run.state["stopped"].endswith("(the model is that of step 2)")
    assert values(run_of(tmp_path, model)) == {0.25}
    assert run.state["price"] == 2.0


def test_a_score_without_a_number_leaves_the_weights_alone(tmp_path: Path, model: Model) -> None:
    run = run_of(tmp_path, model)
    set_all(run, 0.25)
    run.save(2)
    set_all(run, 0.75)
    assert run.must_stop(4, FINE | {"reward": NAN}, [FINE])
    assert values(run) == {0.75}


@pytest.mark.parametrize("saved", [True, False])
def test_the_last_updates_weights_are_looked_at_too(tmp_path: Path, model: Model, saved: bool) -> None:
    run = run_of(tmp_path, model)
    first = [p.detach().clone() for p in run.parameters()]
    if saved:
        set_all(run, 0.25)
        run.save(7)
    set_all(run, NAN)
    run.save(9)
    run.finish()
    assert run.stopped
    assert run.state["stopped"].startswith("a weight is not a number")
    again = run_of(tmp_path, model)
    assert again.stopped
    if saved:
        assert values(again) == {0.25}
    else:
        assert all(torch.equal(p, f) for p, f in zip(again.parameters(), first, strict=True))
    before = again.state["stopped"]
    again.finish()
    assert again.state["stopped"] == before
    assert checkpoint.latest(tmp_path / "checkpoints") is not None


def test_what_the_policy_did_not_draw_need_not_rise(tmp_path: Path, model: Model) -> None:
    flat = [FINE | {"kl": 0.1 * (i + 1)} for i in range(6)]
    run = run_of(tmp_path, model, stop=StopConfig(patience=3))
    assert not run.must_stop(5, flat[-1], flat[:-1], logged=True)
    assert run.must_stop(5, flat[-1], flat[:-1])
    assert "not risen for 3 steps" in run.state["stopped"]


def test_the_next_price_by_hand() -> None:
    """A fifth at most, by the share of the horizon that a step's samples are."""
    kl = KLConfig(target=0.1, horizon=50.0)
    assert online.next_price(2.0, kl, observed=0.11, episodes=5) == pytest.approx(2.0 * (1 + 0.1 * 5 / 50))
    assert online.next_price(2.0, kl, observed=9.0, episodes=10) == pytest.approx(2.0 * (1 + 0.2 * 10 / 50))
    assert online.next_price(2.0, kl, observed=-9.0, episodes=10) == pytest.approx(2.0 * (1 - 0.2 * 10 / 50))
    assert online.next_price(2.0, KLConfig(), observed=9.0, episodes=10) == 2.0


class Engine:
    """Answers every prompt in reverse, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[Sequence[int]], Key]] = []

    def load(self, weights: Any, version: str) -> None:
        assert weights is not None
        self.version = version

    def sample(
        self, prompt_ids: Sequence[Sequence[int]], n: int, params: SamplingParams, key: Key
    ) -> Iterator[Sample]:
        self.asked.append((list(prompt_ids), key))
        assert params.max_new_tokens == 2
        for prompt in reversed(range(len(prompt_ids))):
            for index in reversed(range(n)):
                (one,) = as_samples([prompt_ids[prompt]], [[5, 1]])
                yield replace(one, prompt=prompt, index=index)


def test_a_further_draw_is_of_prompts_of_its_own(model: Model) -> None:
    """The first draws take all prompts in turn; a further one has its own prompts and its own key, again the same."""
    engine = Engine()
    prompts = [[i + 2] for i in range(40)]
    world = online.World(
        model, ["ask"] * 40, prompts, None, None, cast(Any, engine), SamplingParams(max_new_tokens=2)
    )
    config = OnlineConfig(
        prompts="", reward="", prompts_per_step=4, samples_per_prompt=2, adapter=OnlineAdapter(rank=1)
    )
    policy = make_policy(model, config.adapter, seed=0)
    for step, again in ((0, 0), (1, 0), (1, 1), (1, 2), (1, 2), (2, 1)):
        found = online.draw(world, policy, step, config, "test", again=again)
        assert [(s.prompt, s.index) for s in found.samples] == [(p, i) for p in range(4) for i in range(2)]
    asked = [tuple(ids[0] for ids in one) for one, _ in engine.asked]
    keys = [key for _, key in engine.asked]
    assert keys[:4] == [(0, "test", 0), (0, "test", 1), (0, "test", 1, 1), (0, "test", 1, 2)]
    assert asked[3] == asked[4]
    assert keys[3] == keys[4]
    assert len({asked[i] for i in (0, 1, 2, 3, 5)}) == 5
    assert not set(asked[0]) & set(asked[1])
    assert engine.version == "step-2"


def test_figures_are_summed_over_micro_batches_and_averaged_over_minibatches() -> None:
    meter = Meter(2)
    for loss, most in ((1.0, 1.5), (2.0, 1.25), (5.0, 1.75)):
        meter.add(loss=torch.tensor(loss), ratio_max=torch.tensor(most))
    assert meter.row == {"loss": 4.0, "ratio_max": 1.75}


def test_a_step_of_equal_scores_is_said_to_teach_nothing() -> None:
    row = FINE | {"eos_rate": 1.0, "tokens_per_second": 9.0}
    assert "same" not in online.shown(row)
    assert online.shown(row | {"reward_std": 0.0}).endswith("every score is the same")


def test_a_target_without_a_price_to_steer_is_refused() -> None:
    with pytest.raises(ValueError, match="target steers coef by a factor, and 0 stays 0"):
        online.KLConfig(coef=0.0, target=0.1)
    assert online.KLConfig(coef=0.0).target is None
