"""A language model that acts in text environments, and whole batches of episodes for training.

`Agent` acts in one environment, call by call. `episodes` plays many at once, turn by turn through the engine, in any
Gymnasium environment whose observations and actions are text, and in `TextEnv`; what it gives is what
`rollout.collect.forward` and the recipes take, with the observations' tokens masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import gymnasium
import torch
from gymnasium import spaces

from plaudit.data.collate import pack
from plaudit.data.shapes import read_prompt
from plaudit.models.adapter import Adapter
from plaudit.models.branch import Branch, token_values
from plaudit.models.load import Model
from plaudit.randomness import rng
from plaudit.rollout.local import LocalEngine
from plaudit.rollout.samples import TextEngine
from plaudit.rollout.transcript import Transcript, whole
from plaudit.tensors import Key, Sample, SamplingParams
from plaudit.types import Message, Prompt, UserError, check_score

End = Literal["terminated", "truncated", "turns", "context"]
"""How an episode ended: by the environment's word (the first two), at the limit of turns, or for want of context."""


class Agent:
    """A policy that acts: an engine, how it draws, and how it reads what it is told."""

    def __init__(
        self,
        engine: TextEngine,
        params: SamplingParams,
        *,
        chat: bool | None = None,
        value: Branch | None = None,
    ) -> None:
        """params.max_new_tokens: of a turn. chat: what is observed is a user's message, in the model's chat template;
        False: it is text that stands as it is; None: chat where the model has a template. value: a branch with a
        head, for `value`."""
        self.engine, self.params, self.critic = engine, params, value
        self.chat = engine.tokenizer.has_chat_template if chat is None else chat
        self.begin()

    @classmethod
    def of(
        cls, model: Model, params: SamplingParams, *, adapter: Adapter | None = None, **more: Any
    ) -> Agent:
        """Of a model and perhaps an adapter on it; more: chat, value."""
        engine = LocalEngine(model.trunk, model.tokenizer)
        engine.load(adapter, "agent")
        return cls(engine, params, **more)

    def begin(self, *key: int | str) -> None:
        """Forget what was said: an episode begins. What is drawn in it depends on the key alone."""
        self._key, self._calls = key or (0,), 0
        self._transcript: Transcript | None = None

    def act(self, observation: Any, info: dict[str, Any] | None = None) -> str | int:
        """What to do: a turn of text for text, a token for `TextEnv`'s tokens. UserError where there is no room."""
        self._transcript, ids = self._read(observation, info or {})
        params = self.params if self._transcript else replace(self.params, max_new_tokens=1)
        (drawn,) = self.engine.sample([ids], 1, params, (*self._key, "act", self._calls))
        self._calls += 1
        if self._transcript is None:
            return drawn.completion_ids[0]
        self._transcript.draw(drawn.completion_ids, drawn.logprobs)
        return self._transcript.end_turn()

    @torch.no_grad()
    def value(self, observation: Any, info: dict[str, Any] | None = None) -> float:
        """What the critic expects from here on, before anything is done. ValueError where there is no critic."""
        if self.critic is None:
            raise ValueError("this agent was made without a value")
        ids = self._read(observation, info or {})[1]
        return float(token_values(self.critic, pack([ids], [[0]], device=self.critic.trunk.device))[0, 0])

    def _read(self, observation: Any, info: dict[str, Any]) -> tuple[Transcript | None, list[int]]:
        """The episode with this observation heard, and the ids to go on from; the agent itself is left as it was."""
        if not isinstance(observation, str):
            return None, token_ids(observation, "observation")
        if self._transcript is None:
            heard = Transcript(self.engine.tokenizer, first_prompt(observation, info, self.chat, "reset"))
        else:
            heard = self._transcript.copy()
            heard.hear((Message("user", _text(observation, "step")),))
        return heard, heard.all_ids


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode as it was played. sample: every token, its action_mask False at the observations', prompt and index
    those of the start; finish_reason "stop" where the environment terminated it and its last turn ended by itself; its
    rewards each turn's, on the turn's last token.

    rewards: one a turn, the environment's; ends: of each turn, the place of its last token in the completion.
    messages: what was said, in words, where the environment speaks text. seed: the environment's.
    """

    sample: Sample
    rewards: tuple[float, ...]
    ends: tuple[int, ...]
    messages: tuple[Message, ...]
    seed: int
    end: End

    @property
    def score(self) -> float:
        """The episode's return, undiscounted."""
        return math.fsum(self.rewards)


def episodes(
    agent: Agent,
    environments: Sequence[gymnasium.Env[Any, Any]],
    starts: int,
    n: int,
    *,
    key: Key,
    turns: int = 16,
) -> list[Episode]:
    """n episodes from each of `starts` starts, by start and then by number; as many at a time as environments.

    The n episodes of a start are reset with one seed. What happens in an episode depends on the key, its start and its
    number (and the environment's own faith in its seed), not on how many are played at a time. turns: of the policy,
    at most; an environment that goes on is cut off there, and the episode marked, as it is where the context is full.

    UserError, in one line that names environment, start and turn: for spaces or observations that are not text, a
    reward that is not finite or beyond `LARGEST_SCORE`, an exception in the environment, a first observation that
    leaves no room, or one that is another with the same seed.
    """
    if not environments or len({id(environment) for environment in environments}) < len(environments):
        raise ValueError("give one environment or more, each once")
    for environment in environments:
        check_spaces(environment)
    wanted = [(start, index) for start in range(starts) for index in range(n)]
    done: list[Episode] = []
    firsts: dict[int, Any] = {}
    for begin in range(0, len(wanted), len(environments)):
        group = wanted[begin : begin + len(environments)]
        plays = [_begin(agent, env, name, key) for env, name in zip(environments, group, strict=False)]
        for play in plays:
            begun = firsts.setdefault(play.name[0], play.transcript.prompt_ids)
            if play.transcript.prompt_ids != begun:
                raise UserError(
                    f"begins in two ways with the seed {play.seed}",
                    where=f"{_name(play.environment)}, start {play.name[0]}",
                    fix="draw with self.np_random, after super().reset(seed=seed)",
                )
        done += _play(agent, plays, key, turns)
    return done


@dataclass(slots=True)
class _Play:
    """An episode while it is played."""

    environment: gymnasium.Env[Any, Any]
    name: tuple[int, int]
    seed: int
    transcript: Transcript
    speaks: bool
    rewards: list[float] = field(default_factory=list)
    end: End | None = None

    @property
    def where(self) -> str:
        return f"{_name(self.environment)}, start {self.name[0]}, turn {len(self.rewards) + 1}"


def _begin(agent: Agent, environment: gymnasium.Env[Any, Any], name: tuple[int, int], key: Key) -> _Play:
    seed = int(rng(*key, "environment", name[0]).integers(2**31))
    where = f"{_name(environment)}, start {name[0]}"
    observation, info = _called(where, "reset", 2, environment.reset, seed=seed)
    speaks = isinstance(environment.action_space, spaces.Text)
    tokenizer = agent.engine.tokenizer
    if speaks:
        transcript = Transcript(tokenizer, first_prompt(observation, info, agent.chat, where))
    else:
        transcript = Transcript(tokenizer, "", token_ids(observation, where))
    if len(transcript.prompt_ids) + agent.params.max_new_tokens > agent.engine.context:
        raise UserError(
            f"the first observation has {len(transcript.prompt_ids)} tokens; with {agent.params.max_new_tokens} new "
            f"ones the model takes {agent.engine.context}",
            where=where,
            fix="shorten it or max_new_tokens",
        )
    return _Play(environment, name, seed, transcript, speaks)


def _play(agent: Agent, plays: Sequence[_Play], key: Key, turns: int) -> list[Episode]:
    """All of them to their ends, turn by turn: those that go on are drawn for together."""
    context = agent.engine.context - agent.params.max_new_tokens
    for turn in range(turns):
        for play in plays:
            if play.end is None and len(play.transcript.all_ids) > context:
                play.end = "context"
        going = [play for play in plays if play.end is None]
        if not going:
            break
        drawn = agent.engine.sample(
            [play.transcript.all_ids for play in going],
            1,
            agent.params,
            (*key, "turn", turn),
            names=[play.name for play in going],
        )
        for sample in sorted(drawn, key=lambda s: s.prompt):
            play = going[sample.prompt]
            (_say if play.speaks else _give_tokens)(play, sample)
    return [_episode(agent, play) for play in plays]


def _say(play: _Play, drawn: Sample) -> None:
    """A whole turn, in words; the environment's answer is heard."""
    play.transcript.draw(drawn.completion_ids, drawn.logprobs)
    observation, reward = _step(play, play.transcript.end_turn())
    if play.end is None:
        play.transcript.hear((Message("user", _text(observation, play.where)),))
    play.rewards.append(reward)


def _give_tokens(play: _Play, drawn: Sample) -> None:
    """Token by token, until the environment answers or ends; what was drawn beyond that was never said."""
    transcript, total = play.transcript, 0.0
    answer: list[int] = []
    for token, logprob in zip(drawn.completion_ids, drawn.logprobs, strict=True):
        observation, reward = _step(play, token)
        total += reward
        transcript.draw([token], [logprob])
        if play.end is not None:
            break
        ids, known = token_ids(observation, play.where), transcript.all_ids
        if ids[: len(known)] != known:
            raise UserError("does not keep the tokens that it was given", where=play.where)
        if answer := ids[len(known) :]:
            break
    transcript.end_turn()
    play.rewards.append(total)
    transcript.observe(answer)


def _episode(agent: Agent, play: _Play) -> Episode:
    transcript, last = play.transcript, play.transcript.ends[-1]
    transcript.cut(last + 1)  # nothing was drawn after what was said last
    rewards = [0.0] * len(transcript.ids)
    for place, reward in zip(transcript.ends, play.rewards, strict=True):
        rewards[place] = reward
    stopped = play.end == "terminated" and transcript.ids[-1] in agent.engine.tokenizer.eos_ids
    sample = transcript.sample(
        "stop" if stopped else "length",
        agent.params,
        prompt=play.name[0],
        index=play.name[1],
        policy_version=agent.engine.version,
    )
    messages = tuple(transcript.messages) if play.speaks else ()
    sample = replace(sample, rewards=tuple(rewards))
    return Episode(
        sample, tuple(play.rewards), tuple(transcript.ends), messages, play.seed, play.end or "turns"
    )


def _step(play: _Play, action: str | int) -> tuple[Any, float]:
    """The environment's answer; sets how the episode ended, where it did."""
    observation, reward, terminated, truncated, _ = _called(
        play.where, "step", 5, play.environment.step, action
    )
    try:
        number = float(reward)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    check_score(number, f"reward {reward!r:.60}", play.where)
    if terminated or truncated:
        play.end = "terminated" if terminated else "truncated"
    return observation, number


def _called(where: str, name: str, count: int, call: Any, *words: Any, **named: Any) -> Any:
    """What a method of the environment gave. UserError where it raises, or gives something else than it should."""
    try:
        given = call(*words, **named)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the environment is the user's code and may raise anything
        said = f", of the action {words[0]!r:.60}" if words else ""
        raise UserError(f"{name} failed ({type(error).__name__}: {error}{said})", where=where) from error
    if not isinstance(given, tuple) or len(given) != count:
        raise UserError(f"{name} gave no {count} values", where=where, fix="see gymnasium.Env")
    return given


def check_spaces(environment: gymnasium.Env[Any, Any]) -> None:
    """UserError unless an agent can act in it: text for text, or a token for ids and their length."""
    sees, does = environment.observation_space, environment.action_space
    text = isinstance(sees, spaces.Text) and isinstance(does, spaces.Text)
    tokens = (
        isinstance(sees, spaces.Dict)
        and {"ids", "length"} <= set(sees.spaces)
        and isinstance(does, spaces.Discrete)
    )
    if not (text or tokens):
        raise UserError(
            f"observes {type(sees).__name__} and is acted in by {type(does).__name__}, not text by text",
            where=_name(environment),
            fix="wrap it so that both spaces are gymnasium.spaces.Text",
        )


def first_prompt(observation: Any, info: dict[str, Any], chat: bool, where: str) -> Prompt:
    """What an episode begins with: info["dialogue"] (messages, or text that stands as it is) where the environment
    gives one, else the observation, as a user's message where `chat`."""
    given = info.get("dialogue")
    if given is None:
        text = _text(observation, where)
        return (Message("user", text),) if chat else text
    try:
        return read_prompt({"prompt": list(given) if isinstance(given, tuple) else given})
    except UserError as error:
        raise UserError(
            f'info["dialogue"] is no dialogue ({error.what})',
            where=where,
            fix='give a list of {"role": ..., "content": ...}',
        ) from None


def token_ids(observation: Any, where: str) -> list[int]:
    """The ids of `TextEnv`'s observation. UserError for anything else."""
    try:
        ids = observation["ids"][: int(observation["length"])]
        return [int(token) for token in ids]
    except (TypeError, KeyError, ValueError, IndexError):
        raise UserError(
            f"observed {type(observation).__name__}, neither text nor ids and their length", where=where
        ) from None


def _text(observation: Any, where: str) -> str:
    if not isinstance(observation, str):
        raise UserError(f"observed {type(observation).__name__}, not text", where=where)
    return whole(observation, "the observation", where)


def _name(environment: gymnasium.Env[Any, Any]) -> str:
    spec = environment.spec
    return type(environment.unwrapped).__name__ if spec is None else spec.id
