"""Text as an environment: Gymnasium environments over a tokenizer, prompts and a reward, for any RL library to act in.

`TextEnv` is acted in token by token, `TurnEnv` in whole turns of text; both are the same episodes. After a turn that
is not the last, `respond` says something to the policy (a simulated user, a tool, a game): its tokens are
observations. An episode's length is part of the task, as in a completion of a fixed limit: the end of the last turn
terminates it, and only a full context truncates it.
"""

from __future__ import annotations

import importlib
import math
import os
import string
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from plaudit.data.tokenizer import Tokenizer
from plaudit.rollout.transcript import Transcript, whole
from plaudit.tensors import FinishReason, Sample, SamplingParams, Scorer
from plaudit.types import Message, Prompt, UserError, check_score, prompt_to_json

Respond = Callable[[tuple[Message, ...]], str | None]
"""The other side: all messages so far -> what it says to the policy, or None where the episode is over."""

Observed = dict[str, Any]
"""ids [context] int64, the tokens so far, then (an id beyond the vocabulary) nothing; length int64."""

Step = tuple[Observed, float, bool, bool, dict[str, Any]]


def open_environments(spec: str, count: int) -> list[gymnasium.Env[Any, Any]]:
    """Environments by what a config calls them: "package.module:function" (or a class) that makes one, looked for in
    the current directory too, or the id that one is registered by. UserError where there is none, or it fails."""
    module, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        maker = getattr(importlib.import_module(module), name, None) if name else None
        made = [maker() if maker else gymnasium.make(spec, disable_env_checker=True) for _ in range(count)]
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(
            f"cannot be made ({type(error).__name__}: {error})",
            where=f"environment {spec}",
            fix="write package.module:function, or the id that it is registered by",
        ) from error
    if not all(isinstance(environment, gymnasium.Env) for environment in made):
        raise UserError(f"gave {type(made[0]).__name__}, not a gymnasium.Env", where=f"environment {spec}")
    return made


class AnyText(spaces.Text):
    """Texts of up to max_length characters, whichever these are; what is sampled from it is printable ASCII."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length, min_length=0, charset=string.printable)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length


class TextEnv(gymnasium.Env[Observed, np.int64]):
    """One action a token.

    action_space: Discrete(vocab), a token's id. observation_space: see `Observed`. Every reward is 0 but those at
    the end of a turn: the scorer's number of the episode at its end; with per_turn, after each turn what that turn
    added to it, so that an episode's rewards sum to the same (potential-based shaping: Ng et al. 1999).

    info: "turn", how many turns have ended; at the end of an episode "sample", what the scorer saw. Its logprobs are
    NaN: the environment does not know by which probabilities its agent drew.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        scorer: Scorer,
        *,
        respond: Respond | None = None,
        turns: int = 1,
        turn_tokens: int = 64,
        context: int = 1024,
        per_turn: bool = False,
        vocab: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        """prompts: one is drawn a reset (or options={"prompt": number}). turns: of the policy, at most; turn_tokens:
        of a turn, at most; context: of an episode, at most. vocab: how many ids a model's output layer has, where
        that is more than the tokenizer's. UserError for a prompt that leaves no room for a turn."""
        if not prompts or turns < 1 or turn_tokens < 1:
            raise ValueError("prompts, turns and turn_tokens must be one or more")
        if turns > 1 and respond is None:
            raise ValueError(f"nobody responds, and {turns} turns were asked for")
        self.tokenizer, self.prompts, self.scorer, self.respond = tokenizer, list(prompts), scorer, respond
        self.turns, self.turn_tokens, self.context, self.per_turn = turns, turn_tokens, context, per_turn
        self.render_mode = render_mode
        self.vocab = vocab or len(tokenizer.inner)
        for number, prompt in enumerate(prompts):
            if (length := len(tokenizer.render(prompt))) + turn_tokens > context:
                raise UserError(
                    f"has {length} tokens; with a turn of {turn_tokens} the context of {context} is full",
                    where=f"prompt {number + 1}",
                    fix="shorten it or turn_tokens",
                )
        self.action_space = spaces.Discrete(self.vocab)
        self.observation_space = spaces.Dict(
            {"ids": spaces.MultiDiscrete([self.vocab + 1] * context), "length": spaces.Discrete(context + 1)}
        )
        self.prompt: Prompt = self.prompts[0]
        self._transcript: Transcript | None = None
        self._over = True
        self._scored = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """UserError for options that name a prompt which there is not."""
        super().reset(seed=seed)
        number = (options or {}).get("prompt")
        if number is None:
            number = int(self.np_random.integers(len(self.prompts)))
        if number not in range(len(self.prompts)):
            raise UserError(
                f"there is no prompt {number!r}", where="options", fix=f"give 0 to {len(self.prompts) - 1}"
            )
        self.prompt = self.prompts[int(number)]
        self._transcript = Transcript(self.tokenizer, self.prompt)
        self._over, self._scored = False, 0.0
        return self._observed(self._transcript), {"turn": 0}

    def step(self, action: np.int64) -> Step:
        """One token. gymnasium's ResetNeeded or InvalidAction for a call out of turn or an id beyond the vocabulary;
        UserError where the responder or the scorer fails."""
        transcript = self._transcript
        if transcript is None or self._over:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset")
        if not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(f"{action!r} is no token of {self.action_space}")
        transcript.draw([int(action)], [math.nan])
        ended = int(action) in self.tokenizer.eos_ids
        whole = ended or len(transcript.turn) >= self.turn_tokens
        room = self.context - len(transcript.all_ids)
        if not whole and room > 0:
            return self._observed(transcript), 0.0, False, False, {"turn": len(transcript.ends)}

        # A turn is over: is anything said to it, and is there room for that and one token more?
        transcript.end_turn()
        reply = self._reply(transcript) if whole else None
        truncated = not whole or (reply is not None and len(transcript.reply_ids(reply)) >= room)
        terminated = reply is None and not truncated
        self._over = terminated or truncated
        info: dict[str, Any] = {"turn": len(transcript.ends)}
        reward = self._reward(transcript, "stop" if ended and not truncated else "length", info)
        if reply is not None and not truncated:
            transcript.hear(reply)
        return self._observed(transcript), reward, terminated, truncated, info

    def render(self) -> str | None:
        """With render_mode "ansi": who said what, a line a message."""
        if self.render_mode != "ansi" or self._transcript is None:
            return None
        lines = [f"{message.role}: {message.content}" for message in self._transcript.messages]
        if self._transcript.turn:
            lines.append(f"assistant: {self.tokenizer.decode(self._transcript.turn)}")
        return "\n".join(lines)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The dialogue so far."""
        return tuple(self._transcript.messages) if self._transcript else ()

    def _reply(self, transcript: Transcript) -> tuple[Message] | None:
        if self.respond is None or len(transcript.ends) >= self.turns:
            return None
        try:
            said = self.respond(tuple(transcript.messages))
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise UserError(f"failed ({type(error).__name__}: {error})", where="respond") from error
        if said is not None and not isinstance(said, str):
            raise UserError(f"gave {type(said).__name__}, not text or None", where="respond")
        return None if said is None else (Message("user", whole(said, "what it said", "respond")),)

    def _reward(self, transcript: Transcript, finish: FinishReason, info: dict[str, Any]) -> float:
        if not (self._over or self.per_turn):
            return 0.0
        sample = transcript.sample(finish, SamplingParams(max_new_tokens=self.turn_tokens))
        before, self._scored = self._scored, self._score(sample)
        if self._over:
            info["sample"] = sample
        return self._scored - before

    def _score(self, sample: Sample) -> float:
        try:
            said = [float(score) for score in self.scorer.score([sample])]
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise UserError(f"failed ({type(error).__name__}: {error})", where="scorer") from error
        if len(said) != 1:
            raise UserError(f"gave {len(said)} scores for one sample", where="scorer")
        check_score(said[0], f"score {said[0]:g}", "scorer")
        return said[0]

    def _observed(self, transcript: Transcript) -> Observed:
        so_far = transcript.all_ids
        ids: NDArray[np.int64] = np.full(self.context, self.vocab, dtype=np.int64)
        ids[: len(so_far)] = so_far
        return {"ids": ids, "length": np.int64(len(so_far))}


class TurnEnv(gymnasium.Env[str, str]):
    """One action a turn: the same episodes as `TextEnv`'s, in words.

    An action is what the policy says, an observation what is said to it: first the prompt (of messages, the last;
    info["dialogue"] has the whole prompt, as the records write it), then each reply, at last "". An action is read as
    its tokens with the end-of-text token behind, cut at turn_tokens. Takes the arguments of `TextEnv`, and max_length,
    in characters.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        scorer: Scorer,
        *,
        max_length: int = 100_000,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        self.tokens = TextEnv(tokenizer, prompts, scorer, render_mode=render_mode, **settings)
        self.render_mode = render_mode
        self.action_space = AnyText(max_length)
        self.observation_space = AnyText(max_length)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.tokens.np_random = self.np_random
        _, info = self.tokens.reset(options=options)
        info["dialogue"] = prompt_to_json(self.tokens.prompt)
        return self.tokens.messages[-1].content, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One turn. Errors as of `TextEnv.step`."""
        if not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(f"{type(action).__name__} is not of {self.action_space}")
        before, total = len(self.tokens.messages), 0.0
        for token in self.tokens.tokenizer.complete(action):
            _, reward, terminated, truncated, info = self.tokens.step(np.int64(token))
            total += reward
            if len(self.tokens.messages) > before:
                break
        said = "" if terminated or truncated else self.tokens.messages[-1].content
        return said, total, terminated, truncated, info

    def render(self) -> str | None:
        """As `TextEnv.render`."""
        return self.tokens.render()
