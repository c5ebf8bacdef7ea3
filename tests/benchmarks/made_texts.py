"""Dialogues in the words that the tiny model's tokenizer knows, in the shape of HH-RLHF's pairs."""

from __future__ import annotations

from plaudit.models.tiny import WORDS
from plaudit.randomness import rng


def made_pairs(count: int = 24) -> tuple[tuple[str, str], ...]:
    """(chosen, rejected): some turns in common, then two answers of up to 30 words."""
    words, draw = WORDS.split(), rng("made pairs")

    def said(low: int, high: int) -> str:
        return " ".join(words[int(i)] for i in draw.integers(0, len(words), int(draw.integers(low, high))))

    found = []
    for _ in range(count):
        shared = "".join(f"\n\nHuman: {said(20, 60)}\n\nAssistant: {said(20, 60)}" for _ in range(5))
        shared += f"\n\nHuman: {said(5, 20)}\n\nAssistant:"
        found.append((f"{shared} {said(5, 30)}", f"{shared} {said(5, 30)}"))
    return tuple(found)
