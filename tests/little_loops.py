"""Loops that take seconds, and people who judge in them as the studio lets them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from plaudit import config as configs
from plaudit.feedback import answering, privacy, schema
from plaudit.feedback.projects import Projects
from plaudit.feedback.store import Store
from plaudit.loop.settings import Config

SMALL: dict[str, Any] = {
    "model": "tiny",
    "max_new_tokens": 8,
    "collect": {"enough": 24, "prompts": 12, "overlap": 2},
    "policy": {"steps": 1, "prompts_per_step": 4, "samples_per_prompt": 2, "kl_horizon": 20.0, "epochs": 1},
    "gate": {"prompts": 16},
    "stop": {"rounds": 2},
    "threads": 1,
}


def small(**more: Any) -> Config:
    return configs.parse(Config, SMALL | {"sources": {"panel": 1.0}} | more, "test")


class Person:
    """Judges as the studio lets them: what they are given, one after the other."""

    def __init__(self, store: Store, name: str, prefers: Callable[[str, str], bool]) -> None:
        self.projects, self.name, self.prefers = Projects(store), name, prefers
        with schema.writing(store.engine) as connection:
            privacy.ensure(connection, name)
            privacy.key_of(connection, name)

    def judge(self, title: str, most: int = 1000) -> int:
        """All that they are given of a project, or so many; how many answers."""
        (project,) = [one for one in self.projects.all() if one.name == title]
        for count in range(most):
            turns = answering.upcoming(self.projects, project, self.name, time.time())
            if not turns:
                return count
            (turn,) = turns
            said: dict[str, Any] = {"choice": 0 if self.prefers(*turn.item.completions) else 1}
            if project.task.strength:
                said["strength"] = 1
            answering.judge(
                self.projects, project.id, self.name, turn.item.id, said,
                event=f"{self.name} {turn.item.id}", assignment=turn.assignment,
            )  # fmt: skip
        return most


def longer(first: str, second: str) -> bool:
    return len(first) > len(second)
