"""When a run stops by itself: just below and just above each limit, and not for noise."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from plaudit import config as configs
from plaudit.evaluation.diagnosis import diagnose
from plaudit.randomness import rng
from plaudit.recipes import grpo, online_dpo, ppo, reinforce, rejection
from plaudit.training.online import StopConfig
from plaudit.training.stop import broader, closer, level_error, price, reason_to_stop

LIMITS: dict[str, Any] = {"max_kl": 1.0, "min_entropy": 0.5, "max_length_growth": 3.0, "patience": 4}
WELL = {"reward": 0.5, "reward_std": 0.2, "kl": 0.1, "entropy": 2.0, "length": 10.0}


def history(**curves: list[float]) -> list[dict[str, float]]:
    """Rows in which all is well but for these."""
    steps = max(len(curve) for curve in curves.values())
    return [WELL | {name: curve[i] for name, curve in curves.items()} for i in range(steps)]


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ({"kl": [0.1, 1.0]}, None),
        ({"kl": [0.1, 1.01]}, r"KL 1.010 nats a token is over 1.0: raise kl.coef or lower the learning rate"),
        ({"kl": [1.5, 0.9]}, None),
        ({"entropy": [2.0, 0.5]}, None),
        ({"entropy": [2.0, 0.49]}, "entropy 0.490 nats a token is under 0.5: raise entropy_coef or lower"),
        ({"entropy": [0.1, 0.9]}, None),
        ({"length": [10.0, 25.0, 30.0]}, None),
        ({"length": [10.0, 25.0, 31.0]}, "length 31.0 is over 3.0 times the start's"),
        ({"length": [10.0, 31.0, 29.0]}, None),
        ({"reward": [0.5] * 7, "kl": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}, None),
        (
            {"reward": [0.5] * 8, "kl": [0.1, 0.1, 0.1, 0.1, 0.13, 0.13, 0.13, 0.13]},
            r"reward has not risen for 4 steps \(0.5, then 0.5\) while KL grew from 0.100 to 0.130",
        ),
        ({"reward": [0.5] * 8, "kl": [0.1, 0.1, 0.1, 0.1, 0.11, 0.11, 0.11, 0.11]}, None),
        ({"reward": [0.5] * 8, "kl": [0.0] * 4 + [0.012] * 4}, None),
        ({"reward": [0.5] * 8, "kl": [0.0] * 4 + [0.0121] * 4}, "reward has not risen"),
        # What happened before the two stretches is not asked: a rise that is over, and a KL that was once higher.
        ({"reward": [0.1] * 4 + [0.5] * 8, "kl": [0.9] * 4 + [0.1] * 4 + [0.13] * 4}, "reward has not risen"),
        ({"reward": [0.9] * 4 + [0.5] * 4 + [0.6] * 4, "kl": [0.01] * 4 + [0.1] * 4 + [0.3] * 4}, None),
        ({"reward": [0.5] * 4 + [0.4] * 4, "kl": [0.1] * 4 + [0.3] * 4}, "reward has not risen"),
        ({"reward": [0.5] * 4 + [0.6] * 4, "kl": [0.1] * 4 + [0.3] * 4}, None),
    ],
    ids=str,
)
def test_each_limit_from_below_and_from_above(curves: dict[str, list[float]], said: str | None) -> None:
    found = reason_to_stop(history(**curves), **LIMITS, settings={"kl.coef", "entropy_coef"})
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert re.match(said, found), found


def test_a_fall_within_the_noise_is_none() -> None:
    """Rewards 0 and 1 in turn: a step's variance is 1/2, and the error of two means over four 1/2, too."""
    noisy = [0.0, 1.0] * 2
    assert level_error([*noisy, *noisy], 4) == pytest.approx(0.5)
    kl = [0.1] * 4 + [0.3] * 4
    within = history(reward=[*noisy, *(x - 0.45 for x in noisy)], kl=kl)
    beyond = history(reward=[*noisy, *(x - 0.55 for x in noisy)], kl=kl)
    assert reason_to_stop(within, **LIMITS) is None
    assert "has not risen" in (reason_to_stop(beyond, **LIMITS) or "")


def stopped(reward: Callable[[float], float], kl: Callable[[float], float], seed: int) -> int | None:
    """When a run of 100 steps with the default limits is stopped; a step's mean reward has a deviation of 1/8, as that
    of 64 samples whose scores have 1."""
    draw, rows = rng("stop", seed), []
    for step in range(100):
        t = step / 99
        rows.append(WELL | {"reward": reward(t) + 0.125 * float(draw.normal()), "kl": kl(t)})
        if reason_to_stop(rows, **StopConfig().model_dump()) is not None:
            return step + 1
    return None


@pytest.mark.parametrize(
    ("reward", "kl", "least", "most"),
    [
        (lambda t: t, lambda t: 0.3 * t, 0, 0),
        (lambda t: 1 - (1 - t) ** 3, lambda t: 0.3 * (1 - (1 - t) ** 3), 0, 0),
        (lambda t: 0.5 * t, lambda t: 0.3 * t, 0, 3),
        (lambda _: 0.0, lambda t: 0.3 * t, 35, 40),
        (lambda t: -0.5 * t, lambda t: 0.3 * t, 40, 40),
        (lambda t: min(2 * t, 1.5 - t), lambda t: 0.3 * t, 38, 40),
    ],
    ids=["rises", "saturates", "rises slowly", "stays", "falls", "turns"],
)
def test_of_forty_runs_those_stop_whose_reward_does_not_rise(
    reward: Callable[[float], float], kl: Callable[[float], float], least: int, most: int
) -> None:
    ended = [stopped(reward, kl, seed) for seed in range(40)]
    assert least <= sum(step is not None for step in ended) <= most, ended


def settings_of(recipe: Any, **given: Any) -> set[str]:
    tree: Mapping[str, Any] = recipe.Config(prompts="", reward="", **given).model_dump()
    return configs.leaves(tree)


@pytest.mark.parametrize(
    ("recipe", "held", "near", "open_"),
    [
        (ppo, "kl.coef", "raise kl.coef", "raise entropy_coef"),
        (grpo, "kl.coef", "raise kl.coef", "raise entropy_coef"),
        (reinforce, "kl.coef", "raise kl.coef", "raise entropy_coef"),
        (online_dpo, "beta", "raise beta", "raise beta"),
        (rejection, None, "take fewer epochs", "take fewer epochs"),
    ],
)
def test_what_is_advised_is_a_setting_of_the_recipe(
    recipe: Any, held: str | None, near: str, open_: str
) -> None:
    names = settings_of(recipe)
    assert (price(names), closer(names), broader(names)) == (held, near, open_)
    assert {near.rpartition(" ")[2], open_.rpartition(" ")[2]} <= names


@pytest.mark.parametrize("recipe", [ppo, grpo, reinforce, online_dpo, rejection])
def test_no_recipe_is_told_of_a_setting_that_it_has_not(recipe: Any) -> None:
    """Every rule at once speaks of a run that goes wrong in every way; of the settings that some recipe has, those
    named must be this recipe's."""
    every = [
        {"step": i + 1, "reward": -0.1 * i, "gold": 5 - 0.4 * i, "kl": 0.2 * i, "entropy": 3 / (i + 1), "length": 9.0,
         "eos_rate": 0.9}
        for i in range(30)
    ]  # fmt: skip
    names = settings_of(recipe)
    hacked = [row | {"reward": 0.1 * row["step"]} for row in every]
    still = [row | {"reward": 0.0, "kl": 0.01} for row in every]
    advice = " ".join(f.fix for rows in (every, hacked, still) for f in diagnose(rows, settings=names))
    for setting in ("kl.coef", "kl.target", "entropy_coef", "beta"):
        assert setting not in advice or setting in names
    assert (price(names) or "fewer epochs") in advice
