"""A fence around text that is judged, so that instructions in it stay text.

Three things hold it. The border carries a key that its author could not know: drawn from the question itself, and drawn
again where it occurs in the text. Words that a model's own template gives a meaning, such as <|im_end|>, are broken
up. And a verdict counts only with the key beside it (`reward.verdict`), so that a verdict line inside the text is
none. What a fence cannot do is make a weak judge obey it: `plaudit judge` therefore counts what the swap reveals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from plaudit.randomness import rng

_CONTROL = re.compile(
    r"<[|\uff5c][^<>\s]{1,60}[|\uff5c]>|</?s>|<(?:start|end)_of_turn>|</?(?:bos|eos|pad|unk)>|<[se]op>|<</?SYS>>|"
    r"\[/?[A-Z_]{3,30}\]",
    re.IGNORECASE,
)
"""Control words of the usual chat templates, and any word in square brackets, as [/INST] and [gMASK] are."""


def draw_key(seed: int, texts: Sequence[str], attempt: int = 0) -> str:
    """The key of one question, 16 hexadecimal digits: of its texts, the seed and the attempt alone, and in none of the
    texts.

    The same question has the same key again, so that answers can be kept; another attempt has another.
    """
    seen = "\0".join(texts).casefold()
    draw = 0
    while True:
        key = rng(seed, "fence", attempt, draw, len(texts), *texts).bytes(8).hex()
        if key not in seen:
            return key
        draw += 1


def fenced(key: str, name: str, text: str) -> str:
    """The text between two border lines that carry the key, its control words broken up."""
    return f"<<<{key} {name}>>>\n{defused(text)}\n<<<{key} end of {name}>>>"


def defused(text: str) -> str:
    """The text with a space in each control word, so that no chat template reads it as its own: < |im_end|>."""
    while True:
        broken = _CONTROL.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        if broken == text:
            return text
        text = broken
