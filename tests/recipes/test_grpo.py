"""The grpo recipe: advantages within a group, what a loss is a mean of, and which groups are drawn anew."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from plaudit.cli import main
from plaudit.config import parse
from plaudit.models.load import load_model
from plaudit.recipes import grpo
from plaudit.reward.rules import RuleScorer
from plaudit.rollout.collect import forward
from plaudit.tensors import Sample
from plaudit.training import online
from plaudit.training.learner import Learner
from plaudit.training.online import Drawn
from plaudit.training.policy import make_policy
from plaudit.types import UserError
from runs import CONFIGS, changed, made_up, rows, write_prompts
from tiny_models import as_samples

KL = [[0.2, -0.4, 0.6], [1.0], [0.0, 0.2], [-0.2, 0.0]]
SCORES = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
ENDED = [True, False, True, True]


@pytest.fixture
def config() -> grpo.Config:
    return grpo.Config(
        prompts="", reward="", samples_per_prompt=2, missing_eos_penalty=None, max_new_tokens=4
    )


# -- advantages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        # Groups 1, 2 and 3, 6: deviations 1 / sqrt(2) and 3 / sqrt(2); of all, about their mean of 3, sqrt(14 / 3).
        ("group", [x / (d / math.sqrt(2) + 1e-4) for x, d in ((-0.5, 1), (0.5, 1), (-1.5, 3), (1.5, 3))]),
        ("batch", [x / (math.sqrt(14 / 3) + 1e-4) for x in (-0.5, 0.5, -1.5, 1.5)]),
        ("none", [-0.5, 0.5, -1.5, 1.5]),
    ],
)
def test_a_completion_is_held_against_its_group(
    config: grpo.Config, scale: str, expected: list[float]
) -> None:
    seen, samples = made_up(KL, prompts=[0, 0, 1, 1], ended=ENDED)
    found = grpo.advantages_of(seen, SCORES, samples, 0.5, changed(config, scale=scale))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_price_in_the_reward_is_that_of_all_its_tokens(config: grpo.Config) -> None:
    """1 - 0.2, 2 - 0.5, 3 - 0.1, 6 + 0.1, less 1.15 and 4.5; by k2 half the squares."""
    seen, samples = made_up(KL, prompts=[0, 0, 1, 1], ended=ENDED)
    paid = changed(config, scale="none", kl={"place": "reward", "estimator": "k1"})
    found = grpo.advantages_of(seen, SCORES, samples, 0.5, paid)
    assert found.tolist() == pytest.approx([-0.35, 0.35, -1.6, 1.6])
    squares = changed(config, scale="none", kl={"place": "reward", "estimator": "k2"})
    found = grpo.advantages_of(seen, SCORES, samples, 0.5, squares)
    first, second = 1 - 0.25 * (0.04 + 0.16 + 0.36), 2 - 0.25
    assert found[:2].tolist() == pytest.approx([(first - second) / 2, (second - first) / 2])


def test_one_text_drawn_twice_is_worth_the_same_to_the_last_bit(config: grpo.Config) -> None:
    """Its log-probabilities come from two places of a batch, and differ by rounding: that is no lesson. In another
    group the same words are another completion."""
    seen, samples = made_up([[0.3, 0.1], [0.3, 0.1 + 1e-9], [0.3, 0.2]], prompts=[0, 0, 1])
    samples = [replace(sample, completion_ids=(5, 6)) for sample in samples]
    scores = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    paid = changed(config, kl={"place": "reward", "estimator": "k1"})
    assert grpo.advantages_of(seen, scores, samples, 0.5, paid)[:2].tolist() == [0.0, 0.0]
    assert online.twins(samples, scores.device).tolist() == [0, 0, 2]


def test_what_is_near_the_limit_is_priced_in_a_line(config: grpo.Config) -> None:
    """Of at most 4 tokens the last 2 are the buffer: 3 cost a half, 4 cost 1; the missing end is another matter."""
    samples = as_samples([[4]] * 4, [[5, 1], [5, 6, 1], [5, 6, 7, 1], [5, 6, 7, 8]])
    scores = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    long = changed(config, overlong_buffer=2)
    assert grpo.earned(scores, samples, long).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert grpo.earned(scores, samples, changed(long, missing_eos_penalty=-2.0)).tolist() == [
        1.0,
        0.5,
        0.0,
        -3.0,
    ]
    assert grpo.earned(scores, samples, config).tolist() == [1.0] * 4


def test_groups_are_equal_by_what_they_earn_and_not_by_rounding(config: grpo.Config) -> None:
    """Three tenths less their mean are not quite 0; and equal scores may still differ by how they end."""
    three = changed(config, samples_per_prompt=3)
    samples = as_samples([[4]] * 6, [[5, 1], [6, 1], [7, 8], [5, 1], [6, 1], [7, 1]])
    scores = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.2], dtype=torch.float64)
    assert grpo.equal_groups((samples, scores), three) == 0.5
    assert grpo.equal_groups((samples, scores), changed(three, missing_eos_penalty=-1.0)) == 0.0


# -- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Before any update every ratio is 1. Lengths 3, 1 and 2 weigh 1, -2 and 4, of at most 4 tokens.
        ({"mean_over": "completions"}, -(1 - 2 + 4) / 3),
        ({"mean_over": "tokens"}, -(3 - 2 + 8) / 6),
        ({"mean_over": "constant"}, -(3 - 2 + 8) / 12),
        ({"ratio": "completion"}, -(1 - 2 + 4) / 3),
    ],
    ids=str,
)
def test_a_loss_is_the_mean_of_what_its_config_says(
    config: grpo.Config, tmp_path: Path, settings: dict[str, Any], expected: float
) -> None:
    model = load_model("tiny", torch.float64)
    config = changed(config, adapter={"rank": 2}, kl={"coef": 0.0}, **settings)
    learner = Learner(
        tmp_path, lambda: {"policy": make_policy(model, config.adapter, seed=0)}, config, {"kl_coef": 0.0}
    )
    samples = as_samples([[4], [7], [9]], [[5, 6, 1], [8], [10, 1]])
    seen = forward(
        samples, reference=model.trunk, policy=learner.branches["policy"], value=None, reward=None,
        temperature=1.0, budget=99,
    )  # fmt: skip
    seen = replace(seen, sampled_logprobs=seen.logprobs)
    advantages = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    row = grpo.update(seen, advantages, learner, 0, 0.0, 0.0, config)
    assert row["policy_loss"] == pytest.approx(expected, rel=1e-12)
    assert row["ratio_max"] == 1.0
    assert row["importance_mean"] == pytest.approx(1.0)


# -- dynamic sampling ----------------------------------------------------------------------------------------------


def redrawn(
    config: grpo.Config, monkeypatch: pytest.MonkeyPatch, *draws: Sequence[Sequence[float]]
) -> tuple[grpo.Groups, list[int]]:
    """groups_of_step where each further draw is of these groups of scores; and which draws were made."""
    asked: list[int] = []

    def draw(*_: Any, again: int = 0) -> Drawn:
        asked.append(again)
        found = []
        for prompt, group in enumerate(draws[again]):
            for index, score in enumerate(group):
                (one,) = as_samples([[100 * again + prompt + 2]], [[int(1000 * score) + 2, 1]])
                found.append(replace(one, prompt=prompt, index=index, text=str(score)))
        return Drawn(found)

    monkeypatch.setattr(online, "draw", draw)
    scorer = RuleScorer(lambda samples: [float(s.text) for s in samples], "texts")
    model = load_model("tiny", torch.float64)
    world = online.World(model, [], [], scorer, None, cast(Any, None), cast(Any, None))
    found = grpo.groups_of_step(world, cast(Any, None), 7, config)
    for place, sample in enumerate(found.samples):
        assert (sample.prompt, sample.index) == divmod(place, 2), "numbered by the place it has come to"
    return found, asked


def prompts_of(found: grpo.Groups) -> list[int]:
    return [s.prompt_ids[0] for s in found.samples[::2]]


@pytest.fixture
def dynamic(config: grpo.Config) -> grpo.Config:
    return cast(grpo.Config, changed(config, dynamic_sampling=2, prompts_per_step=3))


def test_groups_that_teach_nothing_are_drawn_anew(
    dynamic: grpo.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first draw keeps two of three; the second has two more, of which one is wanted."""
    first = [(0.1, 0.3), (0.5, 0.5), (0.2, 0.4)]
    second = [(0.7, 0.7), (0.6, 0.1), (0.9, 0.8)]
    found, asked = redrawn(dynamic, monkeypatch, first, second)
    assert asked == [0, 1]
    assert found.draws == 2
    assert prompts_of(found) == [2, 4, 103]
    assert found.scores is not None
    assert found.scores.tolist() == [0.1, 0.3, 0.2, 0.4, 0.6, 0.1], "in float64, to the last digit"
    assert found.everything is not None
    assert found.everything[1].tolist() == [x for group in (*first, *second) for x in group]
    assert len(found.everything[0]) == 12


def test_what_is_still_missing_after_the_last_draw_is_left_out(
    dynamic: grpo.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = [(0.5, 0.5)] * 3
    found, asked = redrawn(dynamic, monkeypatch, same, [(0.5, 0.5), (0.1, 0.2), (0.5, 0.5)], same)
    assert asked == [0, 1, 2]
    assert found.draws == 3
    assert prompts_of(found) == [103]


def test_where_nothing_is_left_the_first_draw_is_kept(
    dynamic: grpo.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked = redrawn(dynamic, monkeypatch, [(0.5, 0.5)] * 3, [(0.4, 0.4)] * 3, [(0.3, 0.3)] * 3)
    assert asked == [0, 1, 2]
    assert prompts_of(found) == [2, 3, 4]
    assert found.scores is not None
    assert found.scores.tolist() == [0.5] * 6


def test_a_draw_that_teaches_enough_is_the_only_one(
    dynamic: grpo.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked = redrawn(dynamic, monkeypatch, [(0.1, 0.2)] * 3)
    assert (asked, found.draws) == ([0], 1)
    off, asked = redrawn(changed(dynamic, dynamic_sampling=0), monkeypatch, [(0.1, 0.1)] * 3)
    assert (asked, off.draws, off.scores, off.everything) == ([0], 1, None, None)


def run_of(tmp_path: Path, name: str, **settings: Any) -> list[dict[str, float]]:
    config = grpo.Config(
        model="tiny", prompts=write_prompts(tmp_path), reward="rules:even_start", gold="rules:even_start", steps=3,
        prompts_per_step=4, samples_per_prompt=2, max_new_tokens=3, missing_eos_penalty=None, precision="float64",
        threads=1, **settings,
    )  # fmt: skip
    grpo.run(config, tmp_path / name)
    return rows(tmp_path / name)


def test_the_reward_logged_is_that_of_all_that_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of groups chosen for being unlike it would be pulled to the middle: with two of each, to a half."""
    given: list[list[float]] = []

    def even_start(samples: Sequence[Sample]) -> list[float]:
        given.append([float(s.completion_ids[0] % 4 == 0) for s in samples])
        return given[-1]

    monkeypatch.setattr("rules.even_start", even_start, raising=False)
    plain = run_of(tmp_path, "plain")
    first = [x for call in given[:1] for x in call]
    assert plain[0]["reward"] == plain[0]["gold"] == pytest.approx(sum(first) / 8)
    assert plain[0]["draws"] == 1.0
    given.clear()
    chosen = run_of(tmp_path, "chosen", dynamic_sampling=3)
    draws = int(chosen[0]["draws"])
    assert draws > 1
    everything = [x for call in given[:draws] for x in call]
    assert everything[:8] == first
    assert chosen[0]["reward"] == chosen[0]["gold"] == pytest.approx(sum(everything) / (8 * draws))
    assert chosen[0]["reward"] != 0.5
    alike = [a == b for a, b in zip(everything[::2], everything[1::2], strict=True)]
    assert chosen[0]["equal_groups"] == pytest.approx(sum(alike) / len(alike))
    assert sum(alike) > 0


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples_per_prompt": 1}, "samples_per_prompt"),
        ({"ratio": "completion", "mean_over": "tokens"}, "ratio completion has one loss a completion"),
        ({"ratio": "completion", "mean_over": "constant"}, "set mean_over: completions"),
        ({"overlong_buffer": 5}, "overlong_buffer is more than max_new_tokens"),
        ({"kl": {"place": "loss", "estimator": "k1"}}, "k1's slope is 0"),
        ({"kl": {"target": 0.1, "horizon": 1.0}}, "kl.horizon"),
        ({"clip_high": 0.0}, "clip_high"),
        ({"dynamic_sampling": -1}, "dynamic_sampling"),
    ],
    ids=str,
)
def test_a_setting_without_meaning_is_refused(
    config: grpo.Config, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        parse(grpo.Config, config.model_dump() | settings, "a.yaml")


@pytest.mark.parametrize("rule", ["raises", "gives_infinity", "one_too_few"])
@pytest.mark.parametrize("name", ["grpo", "dapo", "rejection"])
def test_a_rule_at_fault_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, rule: str
) -> None:
    words = ["model=tiny", "threads=1", "precision=float64", f"prompts={write_prompts(tmp_path)}"]
    asked = [
        str(CONFIGS / f"{name}.yaml"),
        *words,
        f"reward=rules:{rule}",
        "prompts_per_step=2",
        "max_new_tokens=16",
    ]
    assert main(["train", *asked, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"plaudit: rules:{rule}: ")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_of_equal_scores_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No group teaches: the first draw is kept, no gradient but the KL's is left, and that is 0 at the start."""
    monkeypatch.setattr("rules.even_start", lambda samples: [0.1 for _ in samples], raising=False)
    logged = run_of(tmp_path, "run", dynamic_sampling=1)
    assert [row["draws"] for row in logged] == [2.0] * 3
    assert [row["equal_groups"] for row in logged] == [1.0] * 3
    assert max(abs(row["grad_norm"]) for row in logged) < 1e-9
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stopped"] is None
