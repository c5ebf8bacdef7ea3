"""Rewards from a rule, and the guard that every scorer stands behind."""

from __future__ import annotations

import importlib
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plaudit.tensors import Sample
from plaudit.types import UserError

Rule = Callable[[Sequence[Sample]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class RuleScorer:
    """A Scorer out of a plain function of samples (their `.text`, say)."""

    rule: Rule
    name: str
    seconds: float = 60.0

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """The rule's numbers. UserError when it raises, takes longer than `seconds`, gives another count than
        one a sample, or something that is not a finite number."""
        found: list[list[float] | BaseException] = []

        def work() -> None:
            try:
                found.append([float(score) for score in self.rule(samples)])
            except BaseException as error:  # the rule is the user's code and may raise anything
                found.append(error)

        # A daemon: a rule that never ends must not keep the process from ending.
        thread = threading.Thread(target=work, name=self.name, daemon=True)
        thread.start()
        thread.join(self.seconds)
        if not found:
            raise UserError(f"took longer than {self.seconds:g} s", where=self.name, fix="make it faster")
        scores = found[0]
        if isinstance(scores, BaseException):
            raise UserError(f"failed ({type(scores).__name__}: {scores})", where=self.name) from scores
        if len(scores) != len(samples):
            raise UserError(f"gave {len(scores)} scores for {len(samples)} samples", where=self.name)
        if not all(math.isfinite(score) for score in scores):
            raise UserError("gave a score that is not a finite number", where=self.name)
        return scores


def rule_scorer(spec: str, seconds: float = 60.0) -> RuleScorer:
    """ "package.module:function" as a scorer, looked for in the current directory too. UserError when there is none."""
    module, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        rule = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"there is no such function ({error})", where=spec, fix="write package.module:function"
        ) from None
    except Exception as error:  # the module is the user's code and may raise anything
        raise UserError(f"cannot be imported ({type(error).__name__}: {error})", where=spec) from error
    if not callable(rule):
        raise UserError("there is no such function", where=spec, fix="write package.module:function")
    return RuleScorer(rule, spec, seconds)
