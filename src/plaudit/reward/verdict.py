"""What a judge decided, read from its reply: one verdict in the form that was asked for, or none."""

from __future__ import annotations

import re
from collections.abc import Sequence

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


def read_verdict(reply: str, key: str, allowed: Sequence[str], *, whole: bool = True) -> str | None:
    """The verdict, None where there is not exactly one.

    The last line that is not blank must be "VERDICT key: x" with x among `allowed`, letter for letter; bold or code
    marks around the line are taken off, and thoughts in <think> before the reply. The key may stand nowhere else in
    it. whole: False for a reply that was cut off, which has no verdict: its "1" may be the beginning of "10".
    """
    lines = [line.strip() for line in _THOUGHT.sub("", reply, count=1).splitlines()]
    lines = [line for line in lines if line]
    if not whole or not lines or sum(line.casefold().count(key.casefold()) for line in lines) != 1:
        return None
    last = lines[-1]
    for mark in ("**", "`"):
        if last.startswith(mark) and last.endswith(mark) and len(last) > 2 * len(mark):
            last = last[len(mark) : -len(mark)].strip()
    head, _, found = last.partition(": ")
    return found if head == f"VERDICT {key}" and found in allowed else None
