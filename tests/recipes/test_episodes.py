"""Episodes of several turns in the recipes: where each turn's reward stands, and what a step is split into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.recipes import ppo, reinforce
from plaudit.rollout.agent import Episode, episodes
from plaudit.rollout.collect import Forward
from plaudit.tensors import Sample
from plaudit.training import online
from plaudit.training.learner import Learner
from plaudit.training.policy import make_policy
from runs import shipped

PLAYED: dict[str, Any] = {
    "model": "tiny",
    "prompts": None,
    "reward": None,
    "environment": "games:Halves",
    "turns": 2,
    "steps": 1,
    "prompts_per_step": 3,
    "samples_per_prompt": 2,
    "max_new_tokens": 4,
    "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3},
    "kl": {"coef": 0.0, "target": None},
    "precision": "float64",
    "threads": 1,
}


def rollout_of(config: Any) -> tuple[list[Episode], list[Sample], Forward, Tensor]:
    """A step's episodes as they were played, and what the recipe makes of them."""
    played: list[Episode] = []
    with pytest.MonkeyPatch.context() as patch:

        def kept(*args: Any, **names: Any) -> list[Episode]:
            played.extend(episodes(*args, **names))
            return played

        patch.setattr("plaudit.training.online.episodes", kept)
        world = online.open_world(config)
        policy = make_policy(world.model, config.adapter, seed=0)
        drawn = online.draw(world, policy, 0, config, "test")
        samples = drawn.samples
    seen = online.look(world, samples, config, policy=policy)
    return played, samples, seen, online.scores_of(drawn, seen)[0]


def by_hand(played: list[Episode], like: Tensor) -> Tensor:
    """[B, T]: what the environment gave for each turn, at the last token that the policy drew in it."""
    out = torch.zeros_like(like)
    for row, episode in enumerate(played):
        drawn = episode.sample.action_mask or (True,) * len(episode.sample.completion_ids)
        ends = [
            place for place, own in enumerate(drawn) if own and not (*drawn[place + 1 : place + 2], False)[0]
        ]
        assert len(ends) == len(episode.rewards) == 2
        for place, reward in zip(ends, episode.rewards, strict=True):
            out[row, place] = reward
    return out


def test_ppo_reads_each_turns_reward_where_the_turn_ends() -> None:
    _, config = shipped("ppo", **PLAYED, gamma=0.5, lam=1.0)
    played, samples, seen, scores = rollout_of(config)
    expected = by_hand(played, seen.logprobs)
    assert scores.tolist() == pytest.approx([sum(e.rewards) for e in played], abs=1e-12)
    found = ppo.experience_from(seen, scores, samples, 0.0, config)
    torch.testing.assert_close(found.rewards, expected, rtol=0, atol=1e-12)
    # Of the first token, by the definition of a discounted return: tokens of the policy's own count, others do not.
    for row, episode in enumerate(played):
        own = seen.packed.mask[row]
        worth = sum(0.5**k * float(r) for k, r in enumerate(expected[row][own]))
        assert float(found.returns[row, 0]) == pytest.approx(worth, abs=1e-12)
        assert episode.rewards[0] > 0


def test_a_later_turn_is_not_credited_with_an_earlier_ones_reward() -> None:
    """REINFORCE++: a token is worth what comes from it on; the completion as one action is worth all."""
    bare = {"baseline": "none", "whiten": False}
    _, config = shipped("reinforce_plus_plus", **PLAYED, **bare)
    played, samples, seen, scores = rollout_of(config)
    worth, earned = reinforce.advantages_of(seen, scores, samples, None, 0.0, config)
    _, whole = shipped("reinforce_plus_plus", **PLAYED, **bare, action="completion")
    together, _ = reinforce.advantages_of(seen, scores, samples, None, 0.0, whole)
    for row, episode in enumerate(played):
        first, second = episode.rewards
        own = seen.packed.mask[row].nonzero()[:, 0].tolist()
        for place in own:
            to_come = first + second if place <= episode.ends[0] else second
            assert float(worth[row, place]) == pytest.approx(to_come, abs=1e-12)
            assert float(together[row, place]) == pytest.approx(first + second, abs=1e-12)
    assert earned == pytest.approx(sum(sum(e.rewards) for e in played) / len(played))


@pytest.mark.parametrize("name", ["ppo", "grpo", "rejection", "online_dpo"])
def test_no_penalty_takes_the_place_of_what_an_environment_gave(name: str) -> None:
    """It has seen how its episodes end: none of these by itself."""
    _, config = shipped(name, **PLAYED, missing_eos_penalty=-7.0)
    _, samples, _, scores = rollout_of(config)
    assert all(sample.finish_reason == "length" for sample in samples)
    assert torch.equal(online.rewards_of(scores, samples, config), scores)


@pytest.mark.parametrize("name", ["ppo", "reinforce", "reinforce_plus_plus", "grpo", "rejection"])
@pytest.mark.parametrize("minibatches", [1, 3, 4])
def test_a_step_has_as_many_minibatches_as_are_asked_for(tmp_path: Path, name: str, minibatches: int) -> None:
    """However many samples begin alike, and could share a row: here all 12 do."""
    (tmp_path / "one.jsonl").write_text('{"prompt": "good morning"}\n')
    settings = PLAYED | {
        "environment": None, "prompts": str(tmp_path / "one.jsonl"), "reward": "rules:fourths",
        "prompts_per_step": 2, "samples_per_prompt": 6, "missing_eos_penalty": None, "dynamic_sampling": 0,
        "epochs": 1, "keep": 3, "minibatches": minibatches,
    }  # fmt: skip
    recipe, config = shipped(name, **settings)
    taken: list[float] = []
    update = Learner.update
    with pytest.MonkeyPatch.context() as patch:

        def counted(self: Learner, rate: float) -> float:
            taken.append(rate)
            return update(self, rate)

        patch.setattr(Learner, "update", counted)
        recipe.run(config, tmp_path / "run")
    assert len(taken) == minibatches
