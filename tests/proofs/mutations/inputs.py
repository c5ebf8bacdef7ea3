"""Mutations of what refuses bad input: files, records, and the places that commands write to."""

from __future__ import annotations

from mutations.kinds import of_room

RECORDS = (
    *of_room("data/sources", "data/test_sources",
           ("if len(found) < len(pairs):", "if False:", "the last of two keys taken in silence")),
)  # fmt: skip
