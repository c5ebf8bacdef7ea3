"""The state machine that carries every loop: a transition is done once, recorded, and never done again.

A run that is killed in a transition takes that transition from its start, or from the transition's own checkpoint;
what was recorded before stands as it was written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plaudit import files
from plaudit.training import machine
from plaudit.types import UserError

Result = dict[str, Any]


class Journal:
    """What a loop has done so far, in loop.json: one entry a transition, in order."""

    def __init__(self, directory: Path) -> None:
        """UserError when the journal is there and cannot be read."""
        self.path = directory / "loop.json"
        self.entries: list[dict[str, Any]] = []
        if self.path.exists():
            try:
                self.entries = json.loads(self.path.read_text(encoding="utf-8"))["transitions"]
                for entry in self.entries:
                    _ = entry["round"], entry["step"], entry["seconds"] + 0.0, entry["result"].items()
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                raise UserError(
                    f"cannot be read ({error})", where=str(self.path), fix="start the run again"
                ) from None

    def done(self, round: int, step: str) -> Result | None:
        """The result of a transition that was recorded, else None."""
        for entry in self.entries:
            if entry["round"] == round and entry["step"] == step:
                result: Result = entry["result"]
                return result
        return None

    def do(self, round: int, step: str, work: Callable[[], Result]) -> Result:
        """The recorded result, or else that of the work, which is recorded before it is given back."""
        if (found := self.done(round, step)) is not None:
            return found
        began = time.monotonic()
        result = work()
        machine.release()
        seconds = round_to(time.monotonic() - began)
        self.entries.append({"round": round, "step": step, "seconds": seconds, "result": result})
        files.write_json(self.path, {"transitions": self.entries})
        return result

    def seconds(self) -> dict[str, float]:
        """Seconds by step, rounds together, and "total"; of a transition that was killed, its last run alone."""
        spent: dict[str, float] = {}
        for entry in self.entries:
            spent[entry["step"]] = round_to(spent.get(entry["step"], 0.0) + entry["seconds"])
        return spent | {"total": round_to(sum(spent.values()))}


def round_to(seconds: float) -> float:
    return round(seconds, 2)
