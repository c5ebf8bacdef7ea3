"""What a model or a person wrote, as HTML that can do nothing: Markdown without HTML of its own, links that lead
nowhere by themselves, no pictures."""

from __future__ import annotations

import functools
import unicodedata

from markdown_it import MarkdownIt
from markupsafe import Markup

INVISIBLE = frozenset("\u200c\u200d")
"""Format characters that scripts and emoji need."""
_LINES = {ord(space): None for space in "\n\t"}


@functools.cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "typographer": False, "breaks": True})
    return (
        parser.enable("table")
        .enable("strikethrough")
        .disable(["image", "link", "autolink", "html_inline", "reference"])
    )


@functools.lru_cache(maxsize=4096)
def markdown(text: str) -> Markup:
    """Headings, lists, emphasis, tables and code; everything else as it stands."""
    return Markup(_parser().render(visible(text)))


@functools.lru_cache(maxsize=4096)
def visible(text: str) -> str:
    """Control characters and those that turn the direction of writing, made visible."""
    text = text.replace("\r\n", "\n")
    if text.translate(_LINES).isprintable():  # most texts, without a look at each character
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    kind = unicodedata.category(character)
    if character in "\n\t" or character in INVISIBLE or kind not in ("Cc", "Cf", "Cs"):
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "\ufffd"
