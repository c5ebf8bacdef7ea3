"""Names for the parts of a step, which a profile sums by. Where nobody watches a name costs less than a microsecond.

A phase is what is done (sampling, scoring, ...), a kind is with what (attention, norms, ...); time goes to the
innermost of each. Operators that have a name of their own in a profile, such as the autograd functions of
`models.fused`, need no kind here. No torch: whoever watches brings it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Watcher = Callable[[str], AbstractContextManager[object]]

PHASE, KIND = "phase: ", "kind: "
"""What the names begin with that a watcher is given."""
_NOBODY: AbstractContextManager[None] = nullcontext()
_watcher: Watcher | None = None


def watch(watcher: Watcher | None) -> None:
    """From now on whatever is named here runs inside watcher(name), on every thread; None: nobody watches."""
    global _watcher
    _watcher = watcher


def during(name: str) -> AbstractContextManager[object]:
    """Around some lines that are a phase."""
    return _NOBODY if _watcher is None else _watcher(PHASE + name)


def phase(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Of a function that is a phase. Not of a generator, whose body runs after the call."""
    return _named(PHASE + name)


def kind(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Of a function whose operators are of one kind."""
    return _named(KIND + name)


def _named(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def named(*args: P.args, **kwargs: P.kwargs) -> R:
            if _watcher is None:
                return function(*args, **kwargs)
            with _watcher(name):
                return function(*args, **kwargs)

        return named

    return decorate
