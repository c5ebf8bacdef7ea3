"""docs/speed.md and its pictures, from benchmarks/results alone: no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEAD = "| row | ours, s | peer, s | ratio | tokens/s, ours / peer | peak GB, ours / peer | of the ceiling, ours / peer |"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows in Markdown."""
    lines = [HEAD, "|---" * 7 + "|"]
    for row in rows:
        speed, memory, share = row["tokens_per_second"], row["peak_rss_gb"], row["roofline"]
        lines.append(
            f"| {row['name']} | {row['ours']:.2f} | {row['peer']:.2f} | {row['ratio']:.2f} "
            f"| {speed['ours']:.0f} / {speed['peer']:.0f} | {memory['ours']:.1f} / {memory['peer']:.1f} "
            f"| {share['ours']:.2f} / {share['peer']:.2f} |"
        )
    return "\n".join(lines)
