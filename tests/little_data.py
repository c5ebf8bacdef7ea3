"""Small data of several kinds, for tests of what reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = [
    "cat", "dog", "car", "rain", "food", "news", "work", "friend", "city", "tea", "sun", "moon", "book", "song",
    "river", "tree",
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def demonstrations(directory: Path, count: int = 16) -> str:
    rows = [
        {"prompt": f"tell me of {WORDS[i % 16]} {i // 16}", "completion": f" I like {WORDS[i % 16]}"}
        for i in range(count)
    ]
    return write(directory / "demonstrations.jsonl", rows)


def preferences(directory: Path, count: int = 16) -> str:
    rows = [
        {"prompt": f"{WORDS[i % 16]} {i // 16}", "completions": [" is good", " is bad" * (1 + i % 3)], "choice": i % 2}
        for i in range(count)
    ]  # fmt: skip
    return write(directory / "preferences.jsonl", rows)
