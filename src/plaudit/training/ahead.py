"""Sampling beside learning: while one step is learned from, a thread already draws for the steps that come."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

import torch

from plaudit.models.branch import Branch
from plaudit.training.learner import Learner

T = TypeVar("T")


class Ahead(Generic[T]):
    """What each step learns from, drawn by the policy as it was `lag` steps before (Espeholt et al. 2018, IMPALA,
    section 4; Noukhovitch et al. 2024, asynchronous RLHF). The losses weigh what the policy has moved since then by the
    truncated importance weight that holds sampler against trainer anyway.

    With lag 0 a step is drawn when it is asked for. Else one thread draws step after step, each by a copy of the
    policy; what it draws depends on that copy and the step alone, so that overlap changes no bit. Checkpoints keep the
    copies that still have to draw: a run that is resumed draws the same again.
    """

    def __init__(self, draw: Callable[[Branch, int], T], learner: Learner) -> None:
        """draw: by this policy, for this step (0, 1, ...). learner: whose policy draws, and whose config has lag and
        steps."""
        self.draw, self.learner, self.config = draw, learner, learner.config
        self._begun: dict[int, Future[T]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What has not begun is dropped; what has is waited for, so that nothing runs on behind a run's end."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def of(self, step: int) -> T:
        """What this step learns from; before it is waited for, the drawing of the step `lag` later is begun by the
        policy as it is now."""
        policy = self.learner.branches["policy"]
        if self.config.lag == 0:
            return self.draw(policy, step)
        for coming in range(step, min(step + self.config.lag + 1, self.config.steps)):
            if coming not in self._begun:
                if coming not in self.learner.acting:
                    self.learner.acting[coming] = policy.snapshot()
                self._begun[coming] = self._thread.submit(self._beside, self.learner.acting[coming], coming)
        found = self._begun.pop(step).result()
        del self.learner.acting[step]
        return found

    def _beside(self, acting: Branch, step: int) -> T:
        """On a GPU in a stream of its own, once the copy is whole."""
        device = acting.trunk.device
        if device.type != "cuda":
            return self.draw(acting, step)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.default_stream(device))
        with torch.cuda.stream(stream):
            return self.draw(acting, step)
