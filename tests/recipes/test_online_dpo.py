"""The online_dpo recipe: which completions make a pair, what the pairs teach, and episodes in place of completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.algorithms.masking import masked_sum
from plaudit.config import parse
from plaudit.data.collate import pack
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import Model, load_model
from plaudit.recipes import online_dpo
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Sample
from plaudit.training import online
from plaudit.training.learner import Learner
from plaudit.types import UserError
from runs import ONLINE, changed, rows, shipped, write_prompts
from tiny_models import as_samples


def grouped(prompts: Sequence[int]) -> list[Sample]:
    made = as_samples([[4, p] for p in prompts], [[5, 1] for _ in prompts])
    return [replace(s, prompt=p) for s, p in zip(made, prompts, strict=True)]


@pytest.mark.parametrize(
    ("earned", "expected"),
    [
        ([0.1, 0.3, 0.2, 5.0, 4.0, 6.0], [(1, 0), (5, 4)]),
        ([0.3, 0.3, 0.1, -1.0, -0.5, -1.0], [(0, 2), (4, 3)]),
        ([0.2, 0.2, 0.2, 1.0, 2.0, 3.0], [(5, 3)]),
        ([0.2, 0.2, 0.2, 1.0, 1.0, 1.0], []),
    ],
)
def test_the_best_and_the_worst_of_a_prompt_make_a_pair(
    earned: list[float], expected: list[tuple[int, int]]
) -> None:
    samples = grouped([0, 0, 0, 1, 1, 1])
    assert online_dpo.best_and_worst(samples, torch.tensor(earned)) == expected


@pytest.fixture
def config(tmp_path: Path) -> online_dpo.Config:
    return online_dpo.Config(
        model="tiny", prompts=write_prompts(tmp_path), reward="rules:fourths", steps=1, prompts_per_step=5,
        samples_per_prompt=4, max_new_tokens=5, temperature=0.8, missing_eos_penalty=None, learning_rate=1e-3,
        precision="float64", threads=1,
    )  # fmt: skip


def sums(model: Model, samples: Sequence[Sample]) -> torch.Tensor:
    packed = pack([s.prompt_ids for s in samples], [s.completion_ids for s in samples])
    with torch.no_grad():
        now = token_logprobs(Branch(model.trunk), packed, temperature=0.8)
    return masked_sum(now.logprobs, packed.mask, dim=1)


def test_a_step_moves_best_and_worst_apart_and_the_next_loss_is_theirs(
    config: online_dpo.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first policy and reference are one, so the loss is ln 2; after a step, that of the exported model by hand."""
    drawn: list[Sample] = []
    sample = LocalEngine.sample

    def watched(self: LocalEngine, *args: Any) -> Any:
        drawn.extend(found := list(sample(self, *args)))
        return iter(found)

    monkeypatch.setattr(LocalEngine, "sample", watched)
    online_dpo.run(config, tmp_path / "one")
    (row,) = rows(tmp_path / "one")
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-12)
    drawn.sort(key=lambda s: (s.prompt, s.index))
    scores = [sum(i % 4 == 0 for i in s.completion_ids) / len(s.completion_ids) for s in drawn]
    groups = [sorted(range(at, at + 4), key=lambda i: (scores[i], i)) for at in range(0, 20, 4)]
    pairs = [(max(g, key=lambda i: (scores[i], -i)), g[0]) for g in groups if scores[g[0]] < scores[g[-1]]]
    assert row["pairs"] == len(pairs) >= 3
    best, worst = ([drawn[pair[side]] for pair in pairs] for side in (0, 1))
    before, after = (load_model(n, torch.float64) for n in ("tiny", str(tmp_path / "one" / "model")))
    moved = [sums(after, side) - sums(before, side) for side in (best, worst)]
    assert bool((moved[0] > moved[1]).all())

    online_dpo.run(changed(config, epochs=2), tmp_path / "two")
    (row,) = rows(tmp_path / "two")
    gap = config.beta * (moved[0] - moved[1])
    # The model on disk is float32, so the last digits are not the run's.
    assert row["loss"] == pytest.approx(float(torch.log1p(torch.exp(-gap)).mean()), rel=1e-5)
    assert row["accuracy"] == 1.0


def test_a_step_without_a_difference_changes_nothing(config: online_dpo.Config, tmp_path: Path) -> None:
    (tmp_path / "same.yaml").write_text(
        "kind: transform\nscorer: rules:fourths\ntransform: [{name: linear, gain: 0.0, shift: 0.25}]\n"
    )
    online_dpo.run(changed(config, reward=str(tmp_path / "same.yaml")), tmp_path / "run")
    (row,) = rows(tmp_path / "run")
    assert row["pairs"] == 0
    assert "grad_norm" not in row
    before, after = (load_model(n, torch.float32) for n in ("tiny", str(tmp_path / "run" / "model")))
    assert all(
        torch.equal(a, b) for a, b in zip(before.trunk.parameters(), after.trunk.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples_per_prompt": 1}, "samples_per_prompt"),
        ({"beta": 0}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"environment": "games:Halves"}, "an environment asks and rewards by itself"),
        ({"prompts": None}, "prompts is not set"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    tree = {"prompts": "p.txt", "reward": "rules:fourths"} | settings
    with pytest.raises(UserError, match=said):
        parse(online_dpo.Config, tree, "config")


@pytest.mark.parametrize("name", [name for name in ONLINE if name not in ("dr_grpo", "gspo", "rloo")])
def test_every_recipe_plays_episodes_of_a_text_environment(tmp_path: Path, name: str) -> None:
    """Two turns each; what the environment says is never counted, and its rewards are what is logged."""
    recipe, config = shipped(
        name, model="tiny", prompts=None, reward=None, environment="games:Halves", turns=2, steps=2,
        prompts_per_step=3, samples_per_prompt=2, max_new_tokens=4, missing_eos_penalty=None, precision="float64",
        adapter={"rank": 4, "alpha": 8.0, "blocks": 3}, dynamic_sampling=0, overlong_buffer=0, threads=1,
    )  # fmt: skip
    recipe.run(config, tmp_path / "run")
    first, second = rows(tmp_path / "run")
    assert first["kl"] == 0.0
    assert 0 < first["reward"] < 2
    assert first["length"] <= 8, "of the policy's own tokens"
    assert second["kl"] != 0.0


def test_what_an_environment_gives_stays_however_an_episode_ends(tmp_path: Path) -> None:
    """With the penalty for a missing end as without, for it is the environment that knows how its episodes end."""
    found = []
    for penalty in (-1.0, None):
        recipe, config = shipped(
            "ppo", model="tiny", prompts=None, reward=None, environment="games:Halves", turns=2, steps=2,
            prompts_per_step=3, samples_per_prompt=2, max_new_tokens=4, missing_eos_penalty=penalty,
            precision="float64", adapter={"rank": 4, "alpha": 8.0, "blocks": 3}, threads=1,
        )  # fmt: skip
        recipe.run(config, tmp_path / str(penalty))
        found.append(rows(tmp_path / str(penalty)))
    assert found[0] == found[1]
    assert found[0][0]["eos_rate"] < 1


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("dapo", {"overlong_buffer": 4}, "overlong_buffer is of one completion"),
        ("ppo", {"dense_reward": True}, "an environment rewards turns"),
        ("ppo", {"reference": "start"}, "reference start wants a start"),
    ],
)
def test_settings_that_an_environment_has_no_use_for_are_refused(
    name: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        shipped(name, prompts=None, reward=None, environment="games:Halves", **settings)


def test_pairs_with_one_prompt_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    """Every episode of this game begins alike; as many minibatches as pairs can be had, and each has one."""
    recipe, config = shipped(
        "online_dpo", model="tiny", prompts=None, reward=None, environment="games:Guess", turns=2, steps=1,
        prompts_per_step=6, samples_per_prompt=4, max_new_tokens=6, missing_eos_penalty=None, precision="float64",
        adapter={"rank": 4, "alpha": 8.0, "blocks": 3}, threads=1, minibatches=50,
    )  # fmt: skip
    taken = []
    update = Learner.update

    def counted(self: Learner, rate: float) -> Any:
        taken.append(rate)
        return update(self, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", counted)
        patch.setattr(
            online,
            "scores_of",
            lambda drawn, seen: (
                seen.logprobs.new_tensor([s.completion_ids[0] for s in drawn.samples]),
                {},
            ),
        )
        recipe.run(config, tmp_path / "run")
    (row,) = rows(tmp_path / "run")
    assert len(taken) == row["pairs"] > 3


def test_an_environment_at_fault_is_named(config: online_dpo.Config, tmp_path: Path) -> None:
    faulty = changed(config, prompts=None, reward=None, environment="games:GivesNaN")
    with pytest.raises(UserError, match=r"GivesNaN, start 0, turn 2: gave the reward nan"):
        online_dpo.run(faulty, tmp_path / "run")
    with pytest.raises(UserError, match="environment games:nobody: cannot be made"):
        online_dpo.run(changed(faulty, environment="games:nobody"), tmp_path / "other")
