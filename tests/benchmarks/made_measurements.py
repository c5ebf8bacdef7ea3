"""Workers that say what they are told, and a row of a result."""

from __future__ import annotations

from typing import Any

import speed.batches
from speed import harness, operations
from speed.cases import Case

CEILINGS = {"ceilings": {"float32": 100.0, "bfloat16": 200.0, "copy": 10.0}, "machine": {"cpu": "a CPU"}}


class Hand:
    """A worker whose turns take as many seconds as it is told."""

    def __init__(
        self, log: list[str], side: str, seconds: list[float], saves: dict[str, str] | None = None
    ) -> None:
        """saves: what it says beside at every second turn."""
        self.log, self.side, self.seconds, self.saves = log, side, seconds, saves or {}
        self.facts, self.taken = {"versions": {side: "1"}}, 0

    def turn(self) -> dict[str, Any]:
        self.log.append(self.side)
        self.taken += 1
        said = {} if self.taken % 2 else self.saves
        return {"seconds": self.seconds.pop(0), "peak_rss_gb": 1.0, "rss_gb": 1.0, **said}

    def close(self) -> None:
        self.log.append(f"{self.side} ends")


def made_row(name: str = "a row", **changed: Any) -> dict[str, Any]:
    case = Case(name, "rollout", "transformers", "bfloat16", target="rollout")
    turns = [{"seconds": s, "peak_rss_gb": 1.0, "rss_gb": 1.0, "new_tokens": 100} for s in (1.0, 2.0, 3.0)]
    theirs = [{**turn, "seconds": 4 * turn["seconds"], "peak_rss_gb": 3.0} for turn in turns]
    timings = harness.Timings(turns, theirs, {"ours": {"precision": "bfloat16"}, "peer": {}})
    phases = [operations.Phase(100e9)]
    batch = speed.batches.Batch([], [], [], 0)
    return harness.row_of(case, timings, batch, phases, CEILINGS) | changed
