"""A guard before and after the model: a scorer may keep a question from being asked, or an answer from being given, and
a function may write either anew."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plaudit.reward.open import open_for_texts
from plaudit.reward.score import samples_of
from plaudit.reward.scores import scored
from plaudit.serving.backend import Turn
from plaudit.serving.exchange import said_of
from plaudit.types import UserError

log = logging.getLogger(__name__)
Rewrite = Callable[[str], str]


class GuardFailed(Exception):
    """Of the server's own, not of whoever asked."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """text: what is asked or said instead, None as it stands. refused: nothing is asked, or said, but the guard's own
    words. score: the scorer's, None without one."""

    refused: bool = False
    text: str | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """score: of (prompt, text), higher is better; what is below `least` is refused. rewrite: of the text."""

    least: float
    score: Callable[[str | Sequence[Turn], str], float] | None = None
    rewrite: Rewrite | None = None

    def look(self, prompt: str | Sequence[Turn], text: str) -> Verdict:
        """What becomes of a text. GuardFailed where a scorer or function fails: nothing passes then."""
        try:
            changed = None if self.rewrite is None else self.rewrite(text)
            if changed is not None and not isinstance(changed, str):
                raise TypeError(f"gave {type(changed).__name__}, not text")
            if changed == text:
                changed = None
            score = None if self.score is None else self.score(prompt, text if changed is None else changed)
        except Exception as error:  # the owner's code and may raise anything
            log.exception("a guard failed")
            raise GuardFailed("the guard failed; nothing passes until it works") from error
        return Verdict(refused=score is not None and score < self.least, text=changed, score=score)


def open_guard(
    scorer: str | None, least: float, rewrite: str | None, dtype: torch.dtype, device: torch.device
) -> Guard | None:
    """scorer: as `plaudit score` takes it; rewrite: package.module:function, text -> text. None where both are None.
    UserError for what cannot be opened."""
    if scorer is None and rewrite is None:
        return None
    return Guard(
        least,
        None if scorer is None else _scorer(scorer, dtype, device),
        None if rewrite is None else _function(rewrite),
    )


def _scorer(
    spec: str, dtype: torch.dtype, device: torch.device
) -> Callable[[str | Sequence[Turn], str], float]:
    opened = open_for_texts(spec, dtype=dtype, device=device)

    def score(prompt: str | Sequence[Turn], text: str) -> float:
        before: Any = prompt if isinstance(prompt, str) else plain(prompt)
        row: dict[str, Any] = {
            "prompt": before or "\n",  # the first that is said: scorers want something before it
            "completion": text,
        }
        return scored(opened.scorer, samples_of([("guard", row)], opened.base)).scores[0]

    return score


def plain(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Messages as records have them: role and content alone."""
    return [dict(zip(("role", "content"), said_of(turn, lambda text: text), strict=True)) for turn in turns]


def _function(spec: str) -> Rewrite:
    module, _, name = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot be imported ({error})", where=spec) from None
    if not callable(found):
        raise UserError("there is no such function", where=spec, fix="write package.module:function")
    rewrite: Rewrite = found
    return rewrite
