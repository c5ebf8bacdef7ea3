"""Both ways round: a foreign library learns in our environment, and our components learn in a foreign one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import games
from plaudit.algorithms.advantages import gae
from plaudit.algorithms.kl import k1
from plaudit.algorithms.masking import whiten
from plaudit.algorithms.policy_loss import ppo_policy_loss
from plaudit.algorithms.value_loss import clipped_value_loss
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.branch import Branch, ScalarHead, token_logprobs, token_values
from plaudit.models.load import load_model, make_adapter
from plaudit.rollout.agent import Agent, episodes
from plaudit.rollout.collect import forward
from plaudit.rollout.environment import TextEnv
from plaudit.tensors import Sample, SamplingParams
from plaudit.training.optim import adam, take_step

pytestmark = pytest.mark.proof


class Agreement:
    """A scorer: the share of "yes" less that of "no", in four words."""

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [(s.text.split().count("yes") - s.text.split().count("no")) / 4 for s in samples]


def six_words() -> Tokenizer:
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("<end>", "say", "yes", "no", "well", "more"))}
    inner = Inner(models.WordLevel(words, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>"), [0])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("turns", [1, 2])
def test_stable_baselines3_learns_in_a_text_environment(seed: int, turns: int) -> None:
    """Its PPO for 2,048 tokens. By chance the return is about 0; "yes" four times is 1, the best there is."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    env = TextEnv(
        six_words(), ["say yes", "say no"], Agreement(),
        turn_tokens=4 // turns, turns=turns, context=10, respond=(lambda _: "more") if turns > 1 else None,
    )  # fmt: skip
    watched = Monitor(env)
    learner = PPO(
        "MultiInputPolicy", watched, n_steps=128, batch_size=64, n_epochs=4, learning_rate=3e-3, seed=seed,
        device="cpu",
    )  # fmt: skip
    begin, _ = evaluate_policy(learner, watched, 100, deterministic=False)
    learner.learn(2048)
    end, _ = evaluate_policy(learner, watched, 100, deterministic=False)
    assert isinstance(begin, float)
    assert isinstance(end, float)
    assert abs(begin) < 0.2
    assert end > 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_our_components_learn_in_a_text_environment_of_two_turns(seed: int) -> None:
    """PPO over tokens: what is wanted of the second turn is the opposite of the first's. The best return is 2."""
    model = load_model("tiny", torch.float32)
    trunk = model.trunk
    with torch.no_grad():
        trunk.norm.mul_(6.0)  # sure enough of itself that there is something to learn
    policy = Branch(trunk, make_adapter(trunk, rank=4, alpha=8.0, blocks=3, seed=seed))
    value = Branch(
        trunk, make_adapter(trunk, rank=4, alpha=8.0, blocks=2, seed=seed), ScalarHead(trunk.shape.width)
    )
    parameters = policy.parameters() + value.parameters()
    optimizer = adam(parameters, learning_rate=5e-3)
    agent = Agent.of(model, SamplingParams(max_new_tokens=6))
    rooms = [games.Halves() for _ in range(32)]
    returns = []
    for step in range(30):
        agent.engine.load(policy.adapter, f"step-{step}")
        played = episodes(agent, rooms, 4, 8, key=(seed, "learn", step))
        returns.append(sum(episode.score for episode in played) / len(played))
        seen = forward(
            [episode.sample for episode in played],
            reference=trunk, policy=policy, value=value, reward=None, temperature=1.0, budget=4096,
        )  # fmt: skip
        mask = seen.packed.mask
        total = float(mask.sum())
        assert total < float(seen.packed.lengths.sum()), "the environment's words are among the tokens"
        kl = k1(seen.logprobs, seen.ref_logprobs)
        assert seen.shares is not None
        rewards = seen.shares - 0.01 * kl
        advantages, targets = gae(rewards, seen.values, mask)
        advantages = whiten(advantages, mask, keep_mean=False)
        for _ in range(4):
            actor = ppo_policy_loss(
                token_logprobs(policy, seen.packed).logprobs, seen.logprobs, advantages, mask, total=total,
                sampled_logprobs=seen.sampled_logprobs,
            )  # fmt: skip
            critic = clipped_value_loss(
                token_values(value, seen.packed), seen.values, targets, mask, total=total
            )
            torch.autograd.backward(actor.loss + 0.1 * critic.loss)
            take_step(optimizer, parameters, learning_rate=5e-3 * (1 - step / 30), max_grad_norm=1.0)
    assert sum(returns[:2]) / 2 < 1.2
    assert sum(returns[-3:]) / 3 > 1.8
