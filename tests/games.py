"""Text environments that nobody here wrote for Plaudit's sake: Gymnasium's interface, text in, text out, and faults."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium import spaces

from plaudit.rollout.environment import AnyText

Step = tuple[str, float, bool, bool, dict[str, Any]]


class Guess(gymnasium.Env[str, str]):
    """A number from 1 to 9 by its seed; told "higher" or "lower" until it is said, or until four turns are gone."""

    def __init__(self) -> None:
        self.action_space, self.observation_space = AnyText(1000), AnyText(1000)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.secret, self.left = int(self.np_random.integers(1, 10)), 4
        return f"guess {self.secret % 2}", {}

    def step(self, action: str) -> Step:
        self.left -= 1
        said = sum(map(ord, action)) % 9 + 1  # any text is a guess
        if said == self.secret:
            return "yes", 1.0, True, False, {}
        return "higher" if said < self.secret else "lower", -0.25, False, self.left == 0, {}


class Halves(gymnasium.Env[str, str]):
    """Two turns: words of the alphabet's first half are wanted, then of its second. A reward is a turn's share of
    letters that are; about a half by chance, 1 at best, so that an episode is worth about 1, and 2 at best."""

    def __init__(self) -> None:
        self.action_space, self.observation_space = AnyText(1000), AnyText(1000)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.turn = 0
        return ("good morning", "tell me more")[int(self.np_random.integers(2))], {}

    def step(self, action: str) -> Step:
        letters = [letter for letter in action.lower() if letter.isascii() and letter.isalpha()]
        first = sum(letter < "n" for letter in letters) / len(letters) if letters else 0.5
        self.turn += 1
        reward = first if self.turn == 1 else 1 - first
        return "and now the other way round", reward, self.turn == 2, False, {}


class Forgets(Guess):
    """Begins as it likes, whatever it is seeded with."""

    times = 0

    def reset(self, **words: Any) -> tuple[str, dict[str, Any]]:
        Forgets.times += 1
        said, info = super().reset(**words)
        return f"{said} {'now ' * Forgets.times}", info


class Faulty(Guess):
    """A guess that goes wrong in its second turn, each in its own way."""

    def step(self, action: str) -> Any:
        if self.left < 4:
            return self.fault(action)
        self.left -= 1
        return "higher", 0.0, False, False, {}

    def fault(self, action: str) -> Any:
        raise NotImplementedError(action)


class Raises(Faulty):
    def fault(self, action: str) -> Any:
        raise KeyError(f"{len(action) >= 0} answer")


class GivesNaN(Faulty):
    def fault(self, action: str) -> Any:
        return action, float("nan"), False, False, {}


class GivesTooMuch(Faulty):
    def fault(self, action: str) -> Any:
        return action, -1e308, False, False, {}


class GivesAllDigits(Faulty):
    def fault(self, action: str) -> Any:
        return action, 10**400, False, False, {}


class Exits(Faulty):
    def fault(self, action: str) -> Any:
        raise SystemExit(f"{len(action) >= 0} exit")


class SaysHalf(Faulty):
    def fault(self, action: str) -> Any:
        return action + "\ud83d", 0.0, False, False, {}


class BeginsWithHalf(Guess):
    def reset(self, **words: Any) -> tuple[str, dict[str, Any]]:
        return "\ud83d", super().reset(**words)[1]


class HalfADialogue(Guess):
    def reset(self, **words: Any) -> tuple[str, dict[str, Any]]:
        return super().reset(**words)[0], {"dialogue": [{"role": "user", "content": "\ud83d"}]}


class GivesNothing(Faulty):
    def fault(self, action: str) -> Any:
        return action, None, False, False, {}


class GivesFour(Faulty):
    def fault(self, action: str) -> Any:
        return action, 0.0, False, {}


class SeesNumbers(Faulty):
    def fault(self, action: str) -> Any:
        return len(action), 0.0, False, False, {}


class NeverEnds(Faulty):
    def fault(self, action: str) -> Any:  # noqa: ARG002
        return "higher", 0.5, False, False, {}


class TalksTooMuch(Faulty):
    def fault(self, action: str) -> Any:  # noqa: ARG002
        return "higher " * 200, 0.5, False, False, {}


class BeginsTooLong(Guess):
    def reset(self, **settings: Any) -> tuple[str, dict[str, Any]]:
        super().reset(**settings)
        return "higher " * 300, {}


class CannotBegin(Guess):
    def reset(self, **settings: Any) -> tuple[str, dict[str, Any]]:
        raise RuntimeError(f"no board for {sorted(settings)}")


class BadDialogue(Guess):
    def reset(self, **settings: Any) -> tuple[str, dict[str, Any]]:
        super().reset(**settings)
        return "hi", {"dialogue": [{"role": "king", "content": "hi"}]}


class Numbers(Guess):
    """Numbers to be seen, and a choice of two to be done."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 1, (4,))  # type: ignore[assignment]
        self.action_space = spaces.Discrete(2)  # type: ignore[assignment]


NOT_AN_ENVIRONMENT = 3


def no_environment() -> int:
    return 3


def exits() -> Guess:
    raise SystemExit(0)


def cannot_be_made() -> None:
    raise OSError("no display")
