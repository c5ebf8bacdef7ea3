"""What learns in a recipe that samples: the branches, their optimiser, checkpoints, and why it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit.config import leaves
from plaudit.models.branch import Branch
from plaudit.training import checkpoint
from plaudit.training.online import OnlineConfig
from plaudit.training.optim import adam, take_step
from plaudit.training.stop import reason_to_stop


@dataclass(slots=True)
class Learner:
    """How a run stands: its branches, their optimiser, and what a step reads beside them.

    make: gives the branches as they are before the first step. state: step, stopped (why it ended early, or None)
    and what else the recipe keeps. acting: by step to come, the policy that draws for it, where that is another one
    (see `Ahead`). All of it is in every checkpoint.
    """

    directory: Path
    make: Callable[[], dict[str, Branch]]
    config: OnlineConfig
    state: dict[str, Any]
    branches: dict[str, Branch] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    acting: dict[int, Branch] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.branches = self.make()
        self.optimizer = adam(self.parameters(), learning_rate=self.config.learning_rate)
        self.state = {"step": 0, "stopped": None, **self.state}
        self._restore(checkpoint.latest(self.directory / "checkpoints"))

    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for branch in self.branches.values() for p in branch.parameters()]

    def _restore(self, found: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
        if found is None:
            return
        tensors, self.state = found
        for name, branch in self.branches.items():
            branch.load_state(checkpoint.unprefixed(name, tensors))
        checkpoint.load_optimizer(self.optimizer, tensors)
        self.acting = {step: self.branches["policy"].snapshot() for step in self.state.pop("acting", ())}
        for step, branch in self.acting.items():
            branch.load_state(checkpoint.unprefixed(f"acting.{step}", tensors))

    @property
    def done(self) -> int:
        """How many steps are taken."""
        return int(self.state["step"])

    @property
    def stopped(self) -> bool:
        return self.state["stopped"] is not None

    def update(self, rate: float) -> float:
        """One optimiser step at this learning rate; the gradients' norm before it is clipped."""
        return take_step(
            self.optimizer, self.parameters(), learning_rate=rate, max_grad_norm=self.config.max_grad_norm
        )

    def save(self, step: int) -> None:
        """A checkpoint after so many steps."""
        self.state["step"] = step
        tensors = checkpoint.optimizer_tensors(self.optimizer)
        for name, branch in self.branches.items():
            tensors |= checkpoint.prefixed(name, branch.state())
        for coming, branch in self.acting.items():
            tensors |= checkpoint.prefixed(f"acting.{coming}", branch.state())
        state = self.state | ({"acting": sorted(self.acting)} if self.acting else {})
        checkpoint.save(self.directory / "checkpoints", step, tensors, state)

    def must_stop(
        self, step: int, row: dict[str, float], history: Sequence[dict[str, float]], *, logged: bool = False
    ) -> bool:
        """Whether a rule ends the run before this step's update. logged: the rewards are of completions that the
        policy did not draw, so that they need not rise."""
        rules = {**self.config.stop.model_dump(), "settings": leaves(self.config.model_dump())}
        if logged:
            rules["patience"] = self.config.steps + 1
        why = reason_to_stop([*history, row], **rules)
        if why is not None:
            self._stop(step, why, usable=math.isfinite(row["kl"] + row["entropy"]))
        return why is not None

    def finish(self) -> None:
        """After the last step, whose weights no rollout has looked at."""
        usable = all(bool(p.float().isfinite().all()) for p in self.parameters())
        if not self.stopped and not usable:
            self._stop(self.done, "a weight is not a number: lower the learning rate", usable=False)

    def _stop(self, step: int, why: str, *, usable: bool) -> None:
        """Save that the run is over, and why. Weights that give no numbers are of no use: the model is then the one
        last saved before them, or the first."""
        if not usable:
            found = checkpoint.latest(self.directory / "checkpoints", before=step)
            if found is None:
                for name, fresh in self.make().items():
                    self.branches[name].load_state(fresh.state())
                self.state["step"] = 0
            self._restore(found)
            why += f" (the model is that of step {self.state['step']})"
        self.state["stopped"] = why
        self.save(step)

    def summary(self, history: Sequence[dict[str, float]]) -> dict[str, Any]:
        """What summary.json says of a run that is over."""
        last = history[-1] if history else None
        return {"steps": last["step"] if last else 0, "stopped": self.state["stopped"], "last": last}


class Meter:
    """Figures of one epoch: summed over micro-batches, averaged over minibatches; maxima stay maxima."""

    def __init__(self, minibatches: int) -> None:
        self.minibatches, self.row = minibatches, dict[str, float]()

    def add(self, **figures: Tensor) -> None:
        for name, figure in figures.items():
            old, new = self.row.get(name, 0.0), float(figure.detach())
            self.row[name] = max(old, new) if name.endswith("_max") else old + new / self.minibatches
