"""An agent in text environments: what it draws is what is trained on, and nothing depends on how many are played."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import games
from plaudit.algorithms.advantages import gae, shaped_rewards
from plaudit.data.collate import pack
from plaudit.models.branch import Branch, final_scores
from plaudit.models.load import Model, load_model
from plaudit.rollout.agent import Agent, Episode, episodes
from plaudit.rollout.collect import Forward, by_token, forward, preflight
from plaudit.rollout.environment import TextEnv, TurnEnv
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Key, Sample, SamplingParams
from plaudit.types import Message, Prompt, UserError
from tiny_models import random_adapter, random_branch

PARAMS = SamplingParams(max_new_tokens=6)
GREEDY = SamplingParams(max_new_tokens=6, temperature=0.0)
END = 1


class Length:
    """A scorer: how many tokens the completion has."""

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [float(len(s.completion_ids)) for s in samples]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("tiny", torch.float64)


@pytest.fixture(scope="module")
def agent(model: Model) -> Agent:
    return Agent.of(model, PARAMS, adapter=random_adapter(model.trunk, seed=2))


class Scripted(LocalEngine):
    """Says what it was told to say, whatever it is asked."""

    def __init__(self, model: Model, *turns: list[int]) -> None:
        super().__init__(model.trunk, model.tokenizer)
        self.turns, self.asked = list(turns), list[list[int]]()

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        key: Key,
        *,
        names: Sequence[Key] | None = None,
    ) -> Iterator[Sample]:
        (ids,) = prompt_ids
        self.asked.append(list(ids))
        said = self.turns.pop(0)
        (sample,) = super().sample(prompt_ids, n, params, key, names=names)
        logprobs = tuple(-1.0 - len(self.asked) - t / 10 for t in range(len(said)))
        yield replace(sample, completion_ids=tuple(said), logprobs=logprobs)


def everything(played: Sequence[Episode]) -> list[Any]:
    """All of it but the log-probabilities, whose last digits depend on what was drawn beside them."""
    return [replace(e, sample=replace(e.sample, logprobs=())) for e in played]


def look(agent: Agent, model: Model, played: Sequence[Episode]) -> Forward:
    assert isinstance(agent.engine, LocalEngine)
    policy = Branch(model.trunk, agent.engine.adapter)
    value = random_branch(model.trunk, blocks=1, seed=4)
    samples = [episode.sample for episode in played]
    return forward(
        samples, reference=model.trunk, policy=policy, value=value, reward=None, temperature=1.0, budget=400
    )


def test_what_is_trained_on_is_what_was_drawn(agent: Agent, model: Model) -> None:
    """Over several turns: the trainer's log-probabilities of every drawn token are the sampler's."""
    played = episodes(agent, [games.Guess() for _ in range(5)], 3, 4, key=(0,))
    assert max(len(e.rewards) for e in played) > 2
    seen = look(agent, model, played)
    assert int(seen.packed.mask.sum()) < int(seen.packed.lengths.sum()), "there are observations"
    gap = (seen.logprobs - seen.sampled_logprobs).abs()
    assert float(gap.max()) < 1e-10
    preflight(seen, torch.float64)
    words = model.tokenizer
    for row, e in enumerate(played):
        drawn = e.sample.action_mask or (True,) * len(e.sample.completion_ids)
        assert seen.packed.mask[row, : len(drawn)].tolist() == list(drawn)
        assert [p for p, mine in zip(e.sample.logprobs, drawn, strict=True) if not mine] == [0.0] * (
            len(drawn) - sum(drawn)
        )
        # By hand: the template's marks around the words, and a turn that did not end itself ended for it.
        text = f"<|user|>{e.messages[0].content}<|end|><|assistant|>"
        assert words.inner.decode(e.sample.prompt_ids) == text
        assert e.sample.completion_ids[-1:] == e.sample.completion_ids[e.ends[-1] :], (
            "it ends with its last turn"
        )
        assert [m.role for m in e.messages] == ["user", "assistant"] * len(e.ends) + ["user"] * (
            len(e.messages) - 2 * len(e.ends)
        )
        assert "\n".join(m.content for m in e.messages if m.role == "assistant") == e.sample.text


def test_two_turns_by_hand(model: Model) -> None:
    words = model.tokenizer
    (hope,), (joy,) = words.encode(" hope"), words.encode(" joy")
    engine = Scripted(model, [hope, joy], [joy, END])
    (episode,) = episodes(Agent(engine, PARAMS), [games.Halves()], 1, 1, key=(3,))
    before = words.encode(f"<|user|>{episode.messages[0].content}<|end|><|assistant|>")
    told = words.encode("<|end|><|user|>and now the other way round<|end|><|assistant|>")
    assert engine.asked == [before, [*before, hope, joy, *told]]
    sample = episode.sample
    assert sample.prompt_ids == tuple(before)
    assert sample.completion_ids == (hope, joy, *told, joy, END)
    assert sample.action_mask == (True, True, *(False for _ in told), True, True)
    assert sample.logprobs == (-2.0, -2.1, *(0.0 for _ in told), -3.0, -3.1)
    assert (sample.text, sample.finish_reason) == (" hope joy\n joy", "stop")
    assert episode.ends == (1, len(told) + 3)
    # hopejoy: h e j of 7 letters are of the first half; joy: o y of 3 of the second.
    assert episode.rewards == pytest.approx((3 / 7, 2 / 3))
    assert episode.score == pytest.approx(3 / 7 + 2 / 3)
    assert episode.end == "terminated"


def test_a_turn_that_closed_itself_is_not_closed_again(model: Model) -> None:
    words = model.tokenizer
    (hope,) = words.encode(" hope")
    engine = Scripted(model, [hope, END], [hope])
    (episode,) = episodes(Agent(engine, PARAMS), [games.Halves()], 1, 1, key=(3,))
    told = words.encode("<|user|>and now the other way round<|end|><|assistant|>")
    assert episode.sample.completion_ids == (hope, END, *told, hope)
    assert episode.sample.action_mask == (True, True, *(False for _ in told), True)
    assert episode.sample.finish_reason == "length", "its last turn did not end by itself"


def test_without_a_template_texts_are_joined_as_they_stand(model: Model) -> None:
    words = model.tokenizer
    (hope,) = words.encode(" hope")
    engine = Scripted(model, [hope, END], [hope])
    (episode,) = episodes(Agent(engine, PARAMS, chat=False), [games.Halves()], 1, 1, key=(3,))
    assert words.inner.decode(episode.sample.prompt_ids) == episode.messages[0].content
    said = words.inner.decode(episode.sample.completion_ids)
    assert said == " hope<|end|>and now the other way round hope"


@pytest.mark.parametrize("at_once", [1, 2, 5, 6, 9])
def test_how_many_are_played_at_a_time_changes_nothing(agent: Agent, at_once: int) -> None:
    whole = episodes(agent, [games.Guess() for _ in range(6)], 3, 2, key=(1, "a"))
    some = episodes(agent, [games.Guess() for _ in range(at_once)], 3, 2, key=(1, "a"))
    assert everything(some) == everything(whole)
    for one, other in zip(some, whole, strict=True):
        assert one.sample.logprobs == pytest.approx(other.sample.logprobs, abs=1e-10)
    assert [(e.sample.prompt, e.sample.index) for e in whole] == [(s, i) for s in range(3) for i in range(2)]


def test_an_episode_is_its_key_its_start_and_its_number(agent: Agent) -> None:
    def play(starts: int, n: int, key: Key) -> list[Episode]:
        return episodes(agent, [games.Guess() for _ in range(4)], starts, n, key=key)

    two, three = play(2, 2, (1,)), play(3, 3, (1,))
    assert everything(two) == everything([three[0], three[1], three[3], three[4]])
    assert [e.seed for e in three] == [three[0].seed] * 3 + [three[3].seed] * 3 + [three[6].seed] * 3
    assert len({e.seed for e in three}) == 3
    assert three[0].sample.prompt_ids == three[1].sample.prompt_ids
    assert three[0].sample.completion_ids != three[1].sample.completion_ids
    assert everything(play(2, 2, (2,))) != everything(two)
    turns = [
        [t for t, mine in zip(e.sample.completion_ids, e.sample.action_mask or (), strict=False) if mine]
        for e in three
    ]
    assert all(drawn[:6] != drawn[6:12] for drawn in turns if len(drawn) > 6), "every turn draws for itself"


def louder(messages: tuple[Message, ...]) -> str:
    return f"louder {len(messages)}"


def tokens(model: Model, **settings: Any) -> TextEnv:
    prompts: list[Prompt] = ["good morning", (Message("system", "be kind"), Message("user", "hi"))]
    return TextEnv(model.tokenizer, prompts, Length(), **({"turn_tokens": 6, "context": 80} | settings))


@pytest.mark.parametrize("turn_tokens", [3, 6, 9])
def test_tokens_are_an_environments_own_episode(agent: Agent, model: Model, turn_tokens: int) -> None:
    """In `TextEnv`, whose turns are shorter than the agent's, as long, or longer."""
    envs = [tokens(model, turns=2, respond=louder, turn_tokens=turn_tokens) for _ in range(4)]
    scored: list[Sample] = []
    for env in envs:
        env.scorer = Recording(scored)
    played = episodes(agent, envs, 4, 1, key=(5,))
    assert {tuple(model.tokenizer.render(env.prompt)) for env in envs} == {
        e.sample.prompt_ids for e in played
    }
    theirs = {s.completion_ids: s for s in scored}
    for e in played:
        assert theirs[e.sample.completion_ids].action_mask == e.sample.action_mask
        assert e.score == len(e.sample.completion_ids)
        assert e.end == "terminated"
        assert sum(e.sample.action_mask or ()) <= 2 * turn_tokens
    seen = look(agent, model, played)
    assert float((seen.logprobs - seen.sampled_logprobs).abs().max()) < 1e-10


def test_a_turn_is_paid_for_all_of_its_tokens(agent: Agent, model: Model) -> None:
    class PaysEach(TextEnv):
        def step(self, action: np.int64) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, reward + 100.0, *rest

    env = PaysEach(
        model.tokenizer, ["good morning"], Length(), turns=2, respond=louder, turn_tokens=6, context=80
    )
    (episode,) = episodes(agent, [env], 1, 1, key=(5,))
    drawn = episode.sample.action_mask or ()
    first = sum(drawn[: episode.ends[0] + 1])
    assert episode.rewards == (first * 100.0, (sum(drawn) - first) * 100.0 + len(drawn))


class Recording(Length):
    def __init__(self, seen: list[Sample]) -> None:
        self.seen = seen

    def score(self, samples: Sequence[Sample]) -> list[float]:
        self.seen += samples
        return super().score(samples)


def test_call_by_call_is_as_a_batch(model: Model) -> None:
    """The likeliest token, drawn one by one in one environment, in turns of text, and by `episodes` in both."""
    greedy = Agent.of(model, GREEDY, adapter=random_adapter(model.trunk, seed=2))
    found: list[str] = []
    for make in (TextEnv, TurnEnv):
        prompts = [(Message("system", "be kind"), Message("user", "hi"))]
        env: gymnasium.Env[Any, Any] = make(
            model.tokenizer, prompts, Length(), turns=2, respond=louder, turn_tokens=6, context=80,
            render_mode="ansi",
        )  # fmt: skip
        observation, info = env.reset(seed=0)
        greedy.begin()
        over = False
        while not over:
            action: Any = greedy.act(observation, info)
            observation, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
        found.append(str(env.render()))
        (episode,) = episodes(greedy, [env], 1, 1, key=(0,))
        found.append(str(env.render()))
        assert len(episode.ends) == 2
    assert len(set(found)) == 1, found


def test_drawn_call_by_call_an_episode_is_its_key(agent: Agent) -> None:
    def play(*key: int | str) -> str:
        env = games.Guess()
        observation, info = env.reset(seed=1)
        agent.begin(*key)
        said = []
        for _ in range(2):
            said.append(str(agent.act(observation, info)))
            observation, _, _, _, info = env.step(said[-1])
        assert said[0] != said[1]
        return "".join(said)

    assert play(1) == play(1)
    assert play(1) != play(2)
    agent.begin(1)
    asked = {"ids": np.array([5, 6, 7]), "length": np.int64(3)}
    assert len({agent.act(asked) for _ in range(8)}) > 4, "asked again, it draws again"


def test_a_value_is_the_critics_number_before_the_next_token(model: Model) -> None:
    critic = random_branch(model.trunk, seed=6)
    agent = Agent.of(model, PARAMS, value=critic)
    words = model.tokenizer
    first = agent.value("good morning")
    ids = words.render((Message("user", "good morning"),))
    assert first == pytest.approx(
        float(final_scores(critic, pack([ids[:1]], [ids[1:]]))[0].detach()), abs=1e-12
    )
    assert agent.value("good morning") == first, "asking changes nothing"
    said = str(agent.act("good morning"))
    second = agent.value("tell me more")
    assert agent.value("tell me more") == second
    assert second != first
    assert said
    observed = {"ids": np.array([*ids, 714]), "length": np.int64(len(ids))}
    assert agent.value(observed) == first
    with pytest.raises(ValueError, match="without a value"):
        Agent.of(model, PARAMS).value("hi")


@pytest.mark.parametrize(
    ("game", "end", "turns"), [(games.NeverEnds, "turns", 5), (games.TalksTooMuch, "context", 2)]
)
def test_what_does_not_end_is_cut_and_marked(
    agent: Agent, game: type[games.Guess], end: str, turns: int
) -> None:
    for episode in episodes(agent, [game(), game()], 2, 1, key=(0,), turns=5):
        assert episode.end == end
        assert len(episode.rewards) == len(episode.ends) == turns
        assert episode.score == 0.5 * (turns - 1)
        assert episode.sample.finish_reason == "length"
        length = len(episode.sample.completion_ids)
        assert episode.ends[-1] == length - 1, "it ends with what was drawn last"
        assert len(episode.sample.prompt_ids) + length <= 256


def test_an_episode_that_was_cut_is_not_finished_whatever_its_last_token(model: Model) -> None:
    (hope,) = model.tokenizer.encode(" hope")
    engine = Scripted(model, [hope, END], [hope, END])
    (episode,) = episodes(Agent(engine, PARAMS), [games.NeverEnds()], 1, 1, key=(0,), turns=2)
    assert episode.end == "turns"
    assert episode.sample.completion_ids[-1] == END
    assert episode.sample.finish_reason == "length"


def test_a_truncation_is_the_environments_word(agent: Agent) -> None:
    played = episodes(agent, [games.Guess()], 6, 1, key=(0,))
    assert {e.end for e in played} == {"terminated", "truncated"}
    for e in played:
        assert e.end == ("terminated" if e.rewards[-1] == 1.0 else "truncated")


@pytest.mark.parametrize(
    ("game", "message"),
    [
        (games.Raises, r"^Raises, start 0, turn 2: step failed \(KeyError: 'True answer', of the action '"),
        (games.GivesNaN, r"^GivesNaN, start 0, turn 2: gave the reward nan, which is not a finite number$"),
        (
            games.GivesTooMuch,
            r"turn 2: gave the reward -1e\+308, which is beyond 1e\+09; scale it",
        ),
        (games.GivesAllDigits, r"turn 2: gave the reward 10{59}, which is not a finite number$"),
        (games.Exits, r"^Exits, start 0, turn 2: step failed \(SystemExit: True exit, of the action '"),
        (
            games.SaysHalf,
            r"^SaysHalf, start 0, turn 2: the observation holds half a character \(\\ud83d\); write",
        ),
        (games.BeginsWithHalf, r"^BeginsWithHalf, start 0: the observation holds half a character"),
        (games.HalfADialogue, r'start 0: info\["dialogue"\] is no dialogue \(content holds half a character'),
        (games.GivesNothing, r"turn 2: gave the reward None"),
        (games.GivesFour, r"turn 2: step gave no 5 values"),
        (games.SeesNumbers, r"turn 2: observed int, not text"),
        (games.CannotBegin, r"^CannotBegin, start 0: reset failed \(RuntimeError: no board for \['seed'\]\)"),
        (
            games.BeginsTooLong,
            r"^BeginsTooLong, start 0: the first observation has \d+ tokens; with 6 new ones",
        ),
        (games.BadDialogue, r'start 0: info\["dialogue"\] is no dialogue \(role is'),
        (games.Numbers, r"^Numbers: observes Box and is acted in by Discrete, not text by text; wrap it"),
    ],
    ids=lambda case: case.__name__ if isinstance(case, type) else "",
)
def test_faults_of_an_environment_are_named_in_one_line(
    agent: Agent, game: type[games.Guess], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        episodes(agent, [game(), game()], 1, 2, key=(0,))
    assert "\n" not in str(caught.value)


def test_an_environment_that_forgets_tokens_is_named(agent: Agent, model: Model) -> None:
    class Forgets(TextEnv):
        def _observed(self, transcript: Any) -> dict[str, Any]:
            seen = super()._observed(transcript)
            seen["ids"][0] = 7
            return seen if transcript.ids else super()._observed(transcript)

    env = Forgets(model.tokenizer, ["good morning"], Length(), turn_tokens=6, context=40)
    with pytest.raises(
        UserError, match="Forgets, start 0, turn 1: does not keep the tokens that it was given"
    ):
        episodes(agent, [env], 1, 1, key=(0,))


def test_no_environment_or_one_twice_is_refused(agent: Agent) -> None:
    game = games.Guess()
    for given in ([], [game, game]):
        with pytest.raises(ValueError, match="one environment or more, each once"):
            episodes(agent, given, 1, 1, key=(0,))


def test_each_turns_reward_stands_on_its_last_token(model: Model) -> None:
    """By hand, to the returns: with gamma and lambda 1 a token's return is what is still to come."""
    words = model.tokenizer
    (hope,), (joy,) = words.encode(" hope"), words.encode(" joy")
    engine = Scripted(model, [hope, joy], [joy, END], [hope], [joy])
    played = episodes(Agent(engine, PARAMS), [games.Halves()], 2, 1, key=(3,))
    packed = pack(
        [e.sample.prompt_ids for e in played],
        [e.sample.completion_ids for e in played],
        action_masks=[e.sample.action_mask for e in played],
    )
    rewards = by_token([e.sample.rewards or () for e in played], [e.sample for e in played], packed)
    told = len(words.encode("<|end|><|user|>and now the other way round<|end|><|assistant|>"))
    by_hand = torch.zeros(2, told + 4, dtype=torch.float64)
    by_hand[0, 1], by_hand[0, told + 3] = 3 / 7, 2 / 3
    by_hand[1, 0], by_hand[1, told + 1] = 2 / 4, 2 / 3
    torch.testing.assert_close(rewards, by_hand, rtol=0, atol=1e-12)
    zeros = torch.zeros_like(rewards)
    _, returns = gae(rewards, zeros, packed.mask, lam=1.0)
    assert returns[0][packed.mask[0]].tolist() == pytest.approx([3 / 7 + 2 / 3] * 2 + [2 / 3] * 2)
    assert not bool(returns[~packed.mask].any())
    scores = torch.tensor([e.score for e in played], dtype=torch.float64)
    at_end = shaped_rewards(scores, zeros, packed.mask, coef=0.0)
    assert at_end[range(2), [e.ends[-1] for e in played]].tolist() == scores.tolist()


def test_an_agent_is_not_changed_by_a_batch(agent: Agent) -> None:
    agent.begin(1)
    agent.act("good morning")
    before = copy.copy(agent._transcript)
    episodes(agent, [games.Guess()], 1, 1, key=(0,))
    assert agent._transcript is not None
    assert before is not None
    assert agent._transcript.ids == before.ids


def test_an_environment_that_begins_in_two_ways_with_one_seed_is_named(agent: Agent) -> None:
    with pytest.raises(UserError, match=r"Forgets, start 0: begins in two ways with the seed \d+; draw with"):
        episodes(agent, [games.Forgets() for _ in range(2)], 1, 2, key=(0,), turns=1)
    episodes(agent, [games.Forgets()], 2, 1, key=(0,), turns=1)
