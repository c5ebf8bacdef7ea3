"""What the studio refuses, in the reader's language. The store speaks English; what it says is found again here."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

PLACE = Path(__file__).parent / "languages" / "faults"
LONGEST = 1000
"""Characters; a shape with several gaps takes the square of a text's length to find that it does not fit."""


def translated(text: str, language: str) -> str:
    """The text in this language; as it stands where nobody has translated it, or it is as long as no fault is but one
    that repeats what was sent."""
    if len(text) > LONGEST:
        return text
    for shape, words in _catalogue(language):
        if (found := shape.fullmatch(text)) is not None:
            return words.format(*found.groups())
    return text


@functools.cache
def _catalogue(language: str) -> list[tuple[re.Pattern[str], str]]:
    """What may be said, with gaps, and its translation; those with the most words of their own first."""
    path = PLACE / f"{language}.json"
    said: dict[str, str] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    in_order = sorted(said, key=lambda template: -len(template.replace("{}", "")))
    return [(_shape(template), said[template]) for template in in_order]


def _shape(template: str) -> re.Pattern[str]:
    return re.compile("(.+?)".join(map(re.escape, template.split("{}"))), re.DOTALL)
