"""Rewards from a rule, the guard that every rule stands behind, and a few rules that are ready."""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import regex

from plaudit.tensors import Sample
from plaudit.types import UserError, check_score

Rule = Callable[[Sequence[Sample]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class RuleScorer:
    """A Scorer out of a plain function of samples (their `.text`, say)."""

    rule: Rule
    name: str
    seconds: float = 60.0

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """The rule's numbers. UserError when it raises, takes longer than `seconds`, or gives something else than one
        finite number a sample.

        A rule that keeps Python's lock, as one long call of `re` does, cannot be cut off: it is refused when it comes
        back. `regex`, which gives the lock away, can be.
        """
        found: list[tuple[list[float] | BaseException, float]] = []
        began = time.monotonic()

        def work() -> None:
            said: list[float] | BaseException
            try:
                said = [float(score) for score in self.rule(samples)]
            except BaseException as error:  # the rule is the user's code and may raise anything
                said = error
            found.append((said, time.monotonic() - began))

        # A daemon: a rule that never ends must not keep the process from ending.
        thread = threading.Thread(target=work, name=self.name, daemon=True)
        thread.start()
        thread.join(self.seconds)
        if not found or found[0][1] > self.seconds:
            raise UserError(f"took longer than {self.seconds:g} s", where=self.name, fix="make it faster")
        scores, _ = found[0]
        if isinstance(scores, UserError):
            raise UserError(scores.what, where=self.name, fix=scores.fix) from scores
        if isinstance(scores, BaseException):
            raise UserError(f"failed ({type(scores).__name__}: {scores})", where=self.name) from scores
        if len(scores) != len(samples):
            raise UserError(f"gave {len(scores)} scores for {len(samples)} samples", where=self.name)
        for score in scores:
            check_score(score, f"score {score:g}", self.name, largest=math.inf)  # a transform may follow
        return scores


def rule_scorer(spec: str, seconds: float = 60.0, options: Mapping[str, Any] | None = None) -> RuleScorer:
    """ "package.module:function" as a scorer, looked for in the current directory too. UserError when there is none.

    options: given to the function with every call, by keyword.
    """
    module, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        rule = getattr(importlib.import_module(module), name, None) if module else None
    except (Exception, SystemExit) as error:  # the module is the user's code and may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else "?"
        if not f"{module}.".startswith(f"{missing}."):
            raise UserError(f"cannot be imported ({type(error).__name__}: {error})", where=spec) from error
        rule = None
    if not callable(rule):
        raise UserError("there is no such function", where=spec, fix="write package.module:function")
    return RuleScorer(functools.partial(rule, **options) if options else rule, spec, seconds)


def length(samples: Sequence[Sample], *, unit: Literal["characters", "tokens"] = "characters") -> list[float]:
    """How long each completion is; with a negative weight in a sum, a price for length. An empty one has 0 characters,
    and one token where it ended at once."""
    if unit == "characters":
        return [float(len(s.text)) for s in samples]
    if unit != "tokens":
        raise UserError(f"length in {unit!r}", fix="give characters or tokens")
    if any(s.text and not s.completion_ids for s in samples):
        raise UserError("length in tokens of texts that have no tokens", fix="count characters")
    return [float(len(s.completion_ids)) for s in samples]


def regex_match(samples: Sequence[Sample], *, pattern: str, whole: bool = False) -> list[float]:
    """1 where the pattern is found in the completion (whole: matches all of it), else 0.

    By the module `regex`, whose patterns are those of `re` and more, and which lets others run: see `RuleScorer`.
    """
    found = regex.compile(pattern, regex.DOTALL)
    return [float(bool(found.fullmatch(s.text) if whole else found.search(s.text))) for s in samples]


def repetition(samples: Sequence[Sample], *, n: int = 3) -> list[float]:
    """The share of word n-grams that stood before in the same completion: 0 at best, towards 1 where one thing is said
    again and again; 0 for fewer than n words. A Chinese or Japanese character is a word."""
    if n < 1:
        raise UserError(f"n-grams of {n} words", fix="give n, 1 or more")
    shares = []
    for sample in samples:
        words = _WORDS.findall(sample.text.casefold())
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return shares


_WORDS = regex.compile(
    r"[\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff]|[^\W\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff]+"
)
