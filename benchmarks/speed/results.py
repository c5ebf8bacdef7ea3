"""benchmarks/results/NAME.json: what a benchmark found, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plaudit import files
from plaudit.types import UserError
from speed.cases import TARGETS

PLACE = Path(__file__).parents[1] / "results"
WITHOUT = PLACE / "float32"
"""Results of machines that do not multiply bfloat16: both sides compute in float32 there, and ratios differ."""
ROW = (
    "name", "target", "peer_name", "precision", "train", "batch", "ours", "peer", "ratio", "ratios", "peak_rss_gb",
    "tokens", "tokens_per_second", "operations", "seconds_at_ceiling", "roofline", "timings", "ceilings", "repeats",
    "date", "versions", "micro_batch_tokens",
)  # fmt: skip
"""What a row holds. ours, peer: median seconds; ratio: the median of the rounds' ratios, peer's seconds to ours.
micro_batch_tokens: ours, None where nothing is trained or it was not noted."""


def place(native: bool) -> Path:
    """native: whether the machine multiplies bfloat16."""
    return PLACE if native else WITHOUT


def headline(rows: list[dict[str, Any]], target: str) -> dict[str, Any] | None:
    """The row that a target is measured by: against the peer's better setting, so the least ratio of those with it. A
    target in equal precision takes the other's rows too where both sides ran in that precision."""
    work, _, precision = target.partition(", ")
    equal = {"ours": precision, "peer": precision}
    mine = [
        row
        for row in rows
        if row["target"] == target or (row["target"] == work and row["precision"] == equal)
    ]
    return min(mine, key=lambda row: row["ratio"]) if mine else None


def write(path: Path, name: str, rows: list[dict[str, Any]], about: dict[str, Any], command: str) -> None:
    """Rows that were measured now take the place of those of the same name; the others stay, with their own dates."""
    kept = {row["name"]: row for row in read(path)["rows"]} if path.exists() else {}
    merged = [*(kept | {row["name"]: row for row in rows}).values()]
    best = headline(merged, name) or merged[0]
    told = {key: best[key] for key in ("ours", "peer", "ratio", "peak_rss_gb", "versions", "date")}
    told |= {"machine": about, "command": command, "rows": merged}
    files.write_json(path, {"name": name, "row": best["name"], **told})


def read(path: Path) -> dict[str, Any]:
    """A result. UserError for a file that is none."""
    found = files.read_json(path, "run `python -m benchmarks` with the file's name again")
    for row in found.get("rows") or [{}]:
        if missing := [key for key in ROW if key not in row]:
            raise UserError(f"a row has no {missing[0]}", where=str(path), fix="measure it again")
        if row["target"] is not None and row["target"] not in TARGETS:
            raise UserError(f"no target is called {row['target']!r}", where=str(path), fix="measure it again")
    return found
