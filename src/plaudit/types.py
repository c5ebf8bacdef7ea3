"""The records that people's words travel in, and the errors that people are told. Frozen; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Choice = Literal[0, 1, "tie", "both_bad"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


class UserError(Exception):
    """The user's words, config or data are at fault: one line that says what, where and how to mend it.

    The command line prints it without a traceback and exits with status 2.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        line = (f"{where}: " if where else "") + what + (f"; {fix}" if fix else "")
        super().__init__(" ".join(line.split()))


class Unavailable(UserError):
    """What is needed cannot be had now (a busy store, a full disk, a server that is down): the same may work later."""


class Missing(UserError):
    """There is nothing of this kind by that name: Missing("project", "a1b2")."""

    def __init__(self, kind: str, name: object, *, fix: str = "") -> None:
        super().__init__(f"there is no such {kind}", where=f"{kind} {name}", fix=fix)


LARGEST_SCORE = 1e9
"""Nobody means a score or a reward beyond it, either way: in float32 the losses' squares of it drown all else."""


def check_score(number: float, said: str, where: str, largest: float = LARGEST_SCORE) -> None:
    """UserError for a number that is not finite, or beyond the largest. said: what it is, and how it was given."""
    if not math.isfinite(number):
        raise UserError(f"gave the {said}, which is not a finite number", where=where)
    if abs(number) > largest:
        raise UserError(
            f"gave the {said}, which is beyond {largest:g}",
            where=where,
            fix="scale it (a scorer takes a `transform`)",
        )


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or self.role not in ROLES:
            raise ValueError(f"role is {self.role!r}, not one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise ValueError(f"content is {type(self.content).__name__}, not text")


Prompt = str | tuple[Message, ...]
"""Plain text, or the messages so far (rendered with the model's chat template)."""


def prompt_to_json(prompt: Prompt) -> Any:
    """Text as it is; messages as a list of {"role", "content"}."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": message.role, "content": message.content} for message in prompt]


def _check_prompt(prompt: Prompt) -> None:
    if not prompt:
        raise ValueError("prompt is empty")
    if isinstance(prompt, tuple):
        if not all(isinstance(message, Message) for message in prompt):
            raise ValueError("prompt holds something that is not a message")
    elif not isinstance(prompt, str):
        raise ValueError(f"prompt is {type(prompt).__name__}, not text or messages")


def _check_rater(rater: str | None) -> None:
    if rater is not None and not isinstance(rater, str):
        raise ValueError(f"rater is {type(rater).__name__}, not text")
    if rater == "":
        raise ValueError("rater is empty, not a name")


def _are_texts(completions: object) -> bool:
    return isinstance(completions, tuple) and all(isinstance(text, str) for text in completions)


def _are_indices(numbers: object) -> bool:
    return isinstance(numbers, tuple) and all(type(number) is int for number in numbers)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and an answer worth imitating."""

    prompt: Prompt
    completion: str
    rater: str | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        _check_rater(self.rater)
        if not isinstance(self.completion, str) or not self.completion:
            raise ValueError("completion is empty or not text")


@dataclass(frozen=True, slots=True)
class Preference:
    """Two completions of one prompt and which is better.

    choice: 0 or 1 (an index into completions), "tie" or "both_bad".
    strength: 1 (slightly) to 4 (very much), None when it was not asked.
    presented: the order on the rater's screen, e.g. (1, 0): completions[1] stood first.
    """

    prompt: Prompt
    completions: tuple[str, str]
    choice: Choice
    strength: int | None = None
    presented: tuple[int, int] | None = None
    rater: str | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        _check_rater(self.rater)
        if not _are_texts(self.completions) or len(self.completions) != 2:
            raise ValueError("completions must be two texts")
        if type(self.choice) not in (int, str) or self.choice not in (0, 1, "tie", "both_bad"):
            raise ValueError(f'choice is {self.choice!r}, not 0, 1, "tie" or "both_bad"')
        if self.strength is not None and (type(self.strength) is not int or not 1 <= self.strength <= 4):
            raise ValueError(f"strength is {self.strength!r}, not 1 to 4")
        if self.presented is None:
            return
        if not _are_indices(self.presented) or self.presented not in ((0, 1), (1, 0)):
            raise ValueError(f"presented is {self.presented!r}, not [0, 1] or [1, 0]")


@dataclass(frozen=True, slots=True)
class Ranking:
    """K completions of one prompt, best first: ranking[0] is the index of the best."""

    prompt: Prompt
    completions: tuple[str, ...]
    ranking: tuple[int, ...]
    rater: str | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        _check_rater(self.rater)
        if not _are_texts(self.completions) or len(self.completions) < 2:
            raise ValueError("completions must be two texts or more")
        count = len(self.completions)
        if not _are_indices(self.ranking) or sorted(self.ranking) != list(range(count)):
            raise ValueError(f"ranking {self.ranking!r} does not name each of {count} completions once")


@dataclass(frozen=True, slots=True)
class Rating:
    """Scores from 0 (worst) to 1 (best) for one completion, by criterion; "overall" is the usual one."""

    prompt: Prompt
    completion: str
    scores: dict[str, float] = field(default_factory=dict)
    rater: str | None = None

    @property
    def overall(self) -> float:
        """The overall score, or the mean of the criteria where none was asked."""
        return self.scores.get("overall", sum(self.scores.values()) / len(self.scores))

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if not isinstance(self.completion, str):
            raise ValueError("completion is not text")
        _check_rater(self.rater)
        if not isinstance(self.scores, dict) or not self.scores:
            raise ValueError("scores are empty or not named by criterion")
        for criterion, score in self.scores.items():
            if not isinstance(criterion, str):
                raise ValueError(f"criterion {criterion!r} is not text")
            if not criterion:
                raise ValueError("scores hold a criterion without a name")
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise ValueError(f"score of {criterion!r} is {score!r}, not a number")
            if not 0 <= score <= 1:
                raise ValueError(f"score of {criterion!r} is {score}, not within 0 to 1")


Record = Demonstration | Preference | Ranking | Rating
