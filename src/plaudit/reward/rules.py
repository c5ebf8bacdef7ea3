"""Rewards from a rule, and the guard that every scorer stands behind."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
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
        pool = ThreadPoolExecutor(max_workers=1)
        try:
            scores = [float(score) for score in pool.submit(self.rule, samples).result(timeout=self.seconds)]
        except Late:
            raise UserError(
                f"took longer than {self.seconds:g} s", where=self.name, fix="make it faster"
            ) from None
        except Exception as error:  # the rule is the user's code and may raise anything
            raise UserError(f"failed ({type(error).__name__}: {error})", where=self.name) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if len(scores) != len(samples):
            raise UserError(f"gave {len(scores)} scores for {len(samples)} samples", where=self.name)
        if not all(math.isfinite(score) for score in scores):
            raise UserError("gave a score that is not a finite number", where=self.name)
        return scores


def rule_scorer(spec: str, seconds: float = 60.0) -> RuleScorer:
    """ "package.module:function" as a scorer. UserError when there is no such function."""
    module, _, name = spec.partition(":")
    try:
        rule = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"there is no such function ({error})", where=spec, fix="write package.module:function"
        ) from None
    return RuleScorer(rule, spec, seconds)
