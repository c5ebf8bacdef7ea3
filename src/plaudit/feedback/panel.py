"""Ten simulated raters over real people's words, to try the whole way round without asking anybody.

What is human: the VADER lexicon's 7,520 entries each carry the ratings, -4 to 4, that ten people gave to the
word (Hutto and Gilbert, "VADER", ICWSM 2014). What is simulated: everything else. A column of the lexicon is
not a person, since each word went to other people; a rater here is one resampled lexicon, read by VADER's own
rules (negation, boosters, a few idioms, which are the same for all). Their leniency, noise, side bias, share of
skipped items and weights of the criteria are drawn from a seed. So their agreement says something about words
on which people differ, and nothing about people.

Columns 0 to 6 are the training raters, who know 70 % of the words; columns 7 to 9 judge what was learnt, and can
be held to the other 30 %.
"""

from __future__ import annotations

import ast
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from plaudit.randomness import rng
from plaudit.types import Choice

Criterion = Literal["valence", "relevance", "fluency"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
OVERALL_WEIGHTS: Mapping[str, float] = MappingProxyType({"valence": 0.4, "relevance": 0.4, "fluency": 0.2})
"""The mix that "overall" is, before each training rater's own deviation; sums to 1. Relevance weighs as much as
valence, so that one gushing sentence for everybody is no good answer."""
COLUMNS = 10
TRAINING_COLUMNS = range(7)
TRAINING_WORDS = 0.7
"""The share of the words that the training raters know."""
TIE_BELOW = 0.02
"""A difference in overall score under which a rater sees none."""
BOTH_BAD_BELOW = 0.2
"""An overall score that, where neither completion reaches it, makes both bad."""
STRENGTHS = (0.06, 0.12, 0.24)
"""Differences in overall score from which a preference has strength 2, 3, 4."""


@dataclass(frozen=True, slots=True)
class Impression:
    """A completion as a rater meets it; relevance and fluency, 0 to 1, are computed elsewhere from a model."""

    text: str
    relevance: float
    fluency: float

    def __post_init__(self) -> None:
        for name, value in (("relevance", self.relevance), ("fluency", self.fluency)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, not within 0 to 1")


class Comparison(NamedTuple):
    """choice: index of the better of (first, second), "tie" or "both_bad"; strength: 1 to 4, None without a winner;
    difference: the first's overall score less the second's, as this rater felt it, -1 to 1."""

    choice: Choice
    strength: int | None
    difference: float


@dataclass(frozen=True, slots=True)
class Rater:
    """One simulated rater: a column of the lexicon and a drawn character.

    leniency: added to every score. noise: standard deviation added to every score, at each judgement anew.
    side_bias: added to the overall score of what stood first. skip: share of items not judged, 0 to 1.
    weights: of the criteria in this rater's overall score; they sum to 1.
    analyzer: VADER's, with this rater's words. Every draw depends on (seed, name, key) alone.
    """

    name: str
    column: int
    seed: int
    analyzer: Any
    weights: Mapping[str, float]
    leniency: float = 0.0
    noise: float = 0.0
    side_bias: float = 0.0
    skip: float = 0.0

    def opinion(self, impression: Impression) -> dict[str, float]:
        """What the rater thinks, without noise: a score by criterion and "overall", 0 to 1."""
        return self._scores(impression, np.zeros(len(CRITERIA)))

    def rate(self, impression: Impression, key: Sequence[int | str]) -> dict[str, float] | None:
        """Scores by criterion and "overall", 0 to 1, or None for a skipped item.

        key: what names this judgement, e.g. (round, item). The same key, the same answer, in whatever order.
        """
        draw = rng(self.seed, self.name, "rate", *key)
        if draw.random() < self.skip:
            return None
        scores = self._scores(impression, draw.normal(0, self.noise, len(CRITERIA)))
        return {criterion: round(score, 4) for criterion, score in scores.items()}

    def compare(
        self,
        first: Impression,
        second: Impression,
        key: Sequence[int | str],
        presented: Sequence[int] = (0, 1),
    ) -> Comparison | None:
        """Which of the two is better, or None for a skipped item.

        presented: the order on the screen; presented[0] stood first and has the side bias with it. A tie under
        `TIE_BELOW`; both bad where neither reaches `BOTH_BAD_BELOW`; the strength grows by `STRENGTHS`.
        """
        if sorted(presented) != [0, 1]:
            raise ValueError(f"presented is {list(presented)}, not [0, 1] or [1, 0]")
        draw = rng(self.seed, self.name, "compare", *key)
        if draw.random() < self.skip:
            return None
        noise = draw.normal(0, self.noise, (2, len(CRITERIA)))
        overall = [
            self._scores(impression, noise[i])["overall"] for i, impression in enumerate((first, second))
        ]
        if max(overall) < BOTH_BAD_BELOW:
            return Comparison("both_bad", None, overall[0] - overall[1])
        overall[presented[0]] += self.side_bias
        difference = overall[0] - overall[1]
        if abs(difference) < TIE_BELOW:
            return Comparison("tie", None, difference)
        strength = 1 + sum(abs(difference) >= step for step in STRENGTHS)
        return Comparison(0 if difference > 0 else 1, strength, difference)

    def _scores(self, impression: Impression, noise: NDArray[np.float64]) -> dict[str, float]:
        valence = (float(self.analyzer.polarity_scores(impression.text)["compound"]) + 1) / 2
        felt = np.array([valence, impression.relevance, impression.fluency]) + self.leniency + noise
        scores = dict(zip(CRITERIA, np.clip(felt, 0, 1).tolist(), strict=True))
        return scores | {
            "overall": sum(self.weights[criterion] * scores[criterion] for criterion in CRITERIA)
        }


def training_raters(seed: int, weights: Mapping[str, float] = OVERALL_WEIGHTS) -> list[Rater]:
    """Seven raters, columns 0 to 6, who know 70 % of the words, each with a character drawn from the seed.

    Leniency: normal, sd 0.05. Noise: 0.02 to 0.06. Side bias: normal around 0.01, sd 0.01. Skipped: up to 5 %.
    Weights: Dirichlet around the given ones, concentration 60 (a weight of 0.5 has sd 0.06).
    """
    words = training_words(seed)
    return [_training_rater(seed, column, words, weights) for column in TRAINING_COLUMNS]


def judging_raters(
    seed: int, *, unseen_only: bool = False, weights: Mapping[str, float] = OVERALL_WEIGHTS
) -> list[Rater]:
    """Three raters, columns 7 to 9, with the given weights and without noise, bias, leniency or skipping.

    They know all words; with `unseen_only`, just the 30 % that the training raters of this seed do not know.
    """
    words = frozenset(lexicon()) - training_words(seed) if unseen_only else frozenset(lexicon())
    _check_weights(weights)
    return [
        Rater(f"judge-{column}", column, seed, _analyzer(column, words), dict(weights))
        for column in range(len(TRAINING_COLUMNS), COLUMNS)
    ]


def overall_scores(raters: Sequence[Rater], impressions: Sequence[Impression]) -> NDArray[np.float64]:
    """The raters' overall opinion, without noise: [raters, impressions], 0 to 1."""
    return criterion_scores(raters, impressions)["overall"]


def criterion_scores(
    raters: Sequence[Rater], impressions: Sequence[Impression]
) -> dict[str, NDArray[np.float64]]:
    """The raters' opinions, without noise, by criterion and "overall": [raters, impressions] each, 0 to 1."""
    opinions = [[rater.opinion(impression) for impression in impressions] for rater in raters]
    shape = (len(raters), len(impressions))
    return {
        name: np.array([[opinion[name] for opinion in row] for row in opinions]).reshape(shape)
        for name in (*CRITERIA, "overall")
    }


@cache
def lexicon() -> Mapping[str, tuple[int, ...]]:
    """VADER's entries with their ten ratings each, -4 to 4; where an entry occurs twice the later one counts,
    as in VADER itself."""
    text = (
        importlib.resources.files("vaderSentiment").joinpath("vader_lexicon.txt").read_text(encoding="utf-8")
    )
    entries = {}
    for line in text.strip("\n").split("\n"):
        word, _mean, _deviation, ratings = line.strip().split("\t")
        entries[word] = tuple(int(rating) for rating in ast.literal_eval(ratings))
        if len(entries[word]) != COLUMNS:
            raise ValueError(f"{word!r} has {len(entries[word])} ratings, not {COLUMNS}")
    return MappingProxyType(entries)


@cache
def training_words(seed: int) -> frozenset[str]:
    """The 70 % of the lexicon that the training raters know, drawn from the seed."""
    words = sorted(lexicon())
    order = rng(seed, "panel", "words").permutation(len(words))
    return frozenset(words[i] for i in order[: round(TRAINING_WORDS * len(words))])


def _training_rater(seed: int, column: int, words: frozenset[str], weights: Mapping[str, float]) -> Rater:
    _check_weights(weights)
    draw = rng(seed, "panel", "rater", column)
    own = draw.dirichlet([60 * weights[criterion] + 1e-9 for criterion in CRITERIA])
    return Rater(
        name=f"rater-{column}",
        column=column,
        seed=seed,
        analyzer=_analyzer(column, words),
        weights=dict(zip(CRITERIA, own.tolist(), strict=True)),
        leniency=float(draw.normal(0, 0.05)),
        noise=float(draw.uniform(0.02, 0.06)),
        side_bias=float(draw.normal(0.01, 0.01)),
        skip=float(draw.uniform(0, 0.05)),
    )


def _check_weights(weights: Mapping[str, float]) -> None:
    if set(weights) != set(CRITERIA) or abs(sum(weights.values()) - 1) > 1e-9 or min(weights.values()) < 0:
        raise ValueError(f"weights {dict(weights)} are not shares of {', '.join(CRITERIA)} that sum to 1")


@cache
def _analyzer(column: int, words: frozenset[str]) -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    analyzer.lexicon = {word: float(ratings[column]) for word, ratings in lexicon().items() if word in words}
    return analyzer
