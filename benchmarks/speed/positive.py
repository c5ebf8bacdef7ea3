"""A reward that both sides compute alike, in microseconds: how positive a text is by VADER's lexicon."""

from __future__ import annotations

from functools import cache
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@cache
def analyser() -> Any:
    return SentimentIntensityAnalyzer()


def positivity(text: str) -> float:
    """-1 to 1 (Hutto and Gilbert 2014, the compound score)."""
    return float(analyser().polarity_scores(text)["compound"])
