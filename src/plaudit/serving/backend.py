"""What answers: a model here, or a server elsewhere; and what they are asked and say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from plaudit.types import UserError

Finish = Literal["stop", "length", "tool_calls", "content_filter"]
Turn = Mapping[str, Any]
"""A message as the API has it: role, content, and what goes with tools."""


class TooMuch(UserError):
    """A prompt, or what is asked beside it, that the model has no room for."""


class Unsupported(UserError):
    """What this model or server cannot do."""


class Overloaded(Exception):
    """As many wait as may. seconds: after which to ask again."""

    def __init__(self, seconds: float = 1.0) -> None:
        super().__init__(f"busy; ask again in {seconds:.0f} s")
        self.seconds = seconds


class Broken(Exception):
    """The server behind this one failed, or could not be reached. status: what it said, 502 where it said nothing."""

    def __init__(self, what: str, status: int = 502) -> None:
        super().__init__(what)
        self.status = status


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, whatever it came as. prompt: text to go on with, or messages to answer.

    most: new tokens a completion, None: as many as there is room for. seed: of the draws; the same one gives the same
    answer. top: how many of the likeliest tokens are told beside each. schema: of JSON that the answer must be; calls:
    whether a tool must be called, and which (None: as the model will). temperature, top_p: None as the model's server
    has it, 1 here. extra: what else stood in the request, for a server behind; handed: what it may know beside, and
    this process does not.
    """

    prompt: str | Sequence[Turn]
    n: int = 1
    most: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    stops: Sequence[str] = ()
    seed: int = 0
    top: int = 0
    schema: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    calls: Literal["none", "required"] | str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    handed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Token:
    """One token that was said, as text and bytes, its log-probability, and the likeliest ones beside it."""

    id: int | None
    text: str
    bytes: tuple[int, ...] | None
    logprob: float
    top: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one of the n completions. finish: why it ends here, None while it goes on. usage: tokens of the
    prompt and of all completions, where a server behind says so; it stands in a piece of its own. cut: a stop string
    took away what some of the tokens said."""

    index: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    calls: tuple[Mapping[str, Any], ...] = ()
    finish: Finish | None = None
    usage: tuple[int, int] | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is coming. prompt_tokens: None where a server behind has not said. Closing `pieces` ends it."""

    prompt_tokens: int | None
    pieces: AsyncIterator[Piece]


class Backend(Protocol):
    """One model under one version's name."""

    version: str

    async def answer(self, ask: Ask) -> Reply:
        """UserError for what cannot be asked of it, Overloaded where too many ask, Broken where it fails."""
        ...

    async def ready(self) -> bool:
        """Whether it would answer now."""
        ...

    async def close(self, seconds: float) -> None:
        """After what is being said, or so many seconds."""
        ...
