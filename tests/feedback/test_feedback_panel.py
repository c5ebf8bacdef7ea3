"""The simulated raters: people's words, drawn characters, every judgement replayed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from plaudit.feedback import panel
from plaudit.feedback.panel import (
    OVERALL_WEIGHTS,
    Impression,
    Rater,
    criterion_scores,
    judging_raters,
    lexicon,
    overall_scores,
    training_raters,
    training_words,
)

TEXTS = (
    "I love this wonderful day!",
    "This is not good at all.",
    "It was the worst trip ever, horrible.",
    "The bus leaves at nine.",
    "Thank you so much, that is a great and kind idea.",
    "VERY sad news :(",
)
IMPRESSIONS = [Impression(text, 0.1 + 0.15 * i, 0.9 - 0.1 * i) for i, text in enumerate(TEXTS)]


def plain(**changes: Any) -> Rater:
    judge = judging_raters(3)[0]
    fields: dict[str, Any] = {
        "name": "plain",
        "column": 7,
        "seed": 3,
        "analyzer": judge.analyzer,
        "weights": OVERALL_WEIGHTS,
    }
    return Rater(**(fields | changes))


def choice(rater: Rater, first: Impression, second: Impression, order: tuple[int, int] = (0, 1)) -> object:
    verdict = rater.compare(first, second, (1,), order)
    return None if verdict is None else verdict.choice


def test_the_lexicon_holds_ten_ratings_a_word_whose_mean_is_vaders() -> None:
    assert len(lexicon()) == 7506  # of 7,520 lines: 14 entries occur twice
    assert lexicon()["$:"] == (-1, -1, -1, -1, -3, -1, -3, -1, -2, -1)  # the file's first line
    published = SentimentIntensityAnalyzer().lexicon
    assert set(published) == set(lexicon())
    # the published means are rounded to one decimal; one entry differs from its ratings in VADER's own file
    off = [word for word, ratings in lexicon().items() if abs(np.mean(ratings) - published[word]) > 0.051]
    assert off == ["lmfao"]


def test_valence_is_vaders_own_reading_with_one_raters_words() -> None:
    vader = SentimentIntensityAnalyzer()
    vader.lexicon = {word: float(ratings[8]) for word, ratings in lexicon().items()}
    valence = criterion_scores([judging_raters(1)[1]], IMPRESSIONS)["valence"][0]
    expected = [(vader.polarity_scores(text)["compound"] + 1) / 2 for text in TEXTS]
    assert valence.tolist() == expected
    # by hand: "love" is rated 3, 3.. by column; a lone word w has compound w / sqrt(w^2 + 15)
    love = lexicon()["love"][8]
    alone = criterion_scores([judging_raters(1)[1]], [Impression("love", 0.5, 0.5)])["valence"][0, 0]
    assert alone == pytest.approx((love / np.sqrt(love**2 + 15) + 1) / 2, abs=5e-5)


def test_training_and_judging_share_neither_columns_nor_unseen_words() -> None:
    training, judging = training_raters(1), judging_raters(1)
    assert [rater.column for rater in training] == [0, 1, 2, 3, 4, 5, 6]
    assert [rater.column for rater in judging] == [7, 8, 9]
    known = training_words(1)
    assert len(known) == round(0.7 * 7506)
    assert all(set(rater.analyzer.lexicon) == known for rater in training)
    unseen = set(lexicon()) - known
    assert all(set(rater.analyzer.lexicon) == unseen for rater in judging_raters(1, unseen_only=True))
    assert all(set(rater.analyzer.lexicon) == set(lexicon()) for rater in judging)
    assert training_words(2) != known
    for rater in judging:
        assert (rater.noise, rater.leniency, rater.side_bias, rater.skip) == (0, 0, 0, 0)
        assert rater.weights == OVERALL_WEIGHTS


def test_characters_come_from_the_seed() -> None:
    def traits(seed: int) -> list[object]:
        return [
            (r.leniency, r.noise, r.side_bias, r.skip, tuple(r.weights.items()))
            for r in training_raters(seed)
        ]

    assert traits(1) == traits(1)
    assert not set(traits(1)) & set(traits(2))
    assert len(set(traits(1))) == 7
    for rater in training_raters(1):
        assert sum(rater.weights.values()) == pytest.approx(1)
        assert 0.02 <= rater.noise <= 0.06
        assert 0 <= rater.skip <= 0.05


def test_overall_is_the_stated_mix() -> None:
    scores = criterion_scores(judging_raters(1), IMPRESSIONS)
    expected = 0.4 * scores["valence"] + 0.4 * scores["relevance"] + 0.2 * scores["fluency"]
    np.testing.assert_allclose(scores["overall"], expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(overall_scores(judging_raters(1), IMPRESSIONS), scores["overall"])
    assert scores["overall"].shape == (3, 6)
    only = judging_raters(1, weights={"valence": 0, "relevance": 1, "fluency": 0})
    np.testing.assert_allclose(
        overall_scores(only, IMPRESSIONS), [[i.relevance for i in IMPRESSIONS]] * 3, rtol=0, atol=1e-12
    )
    with pytest.raises(ValueError, match="sum to 1"):
        judging_raters(1, weights={"valence": 1, "relevance": 1, "fluency": 0})
    assert overall_scores(judging_raters(1), []).shape == (3, 0)


def test_a_judgement_is_replayed_alone_whatever_came_before() -> None:
    rater = training_raters(5)[2]
    row = [rater.rate(impression, ("round", 1, i)) for i, impression in enumerate(IMPRESSIONS)]
    alone = [training_raters(5)[2].rate(IMPRESSIONS[i], ("round", 1, i)) for i in reversed(range(6))]
    assert row == alone[::-1]
    assert rater.rate(IMPRESSIONS[0], ("round", 2, 0)) != row[0]
    assert rater.compare(IMPRESSIONS[0], IMPRESSIONS[1], (1,)) == rater.compare(
        IMPRESSIONS[0], IMPRESSIONS[1], (1,)
    )


def test_scores_stay_within_bounds_and_leniency_and_noise_move_them() -> None:
    still = plain().rate(IMPRESSIONS[3], (1,))
    assert still == {k: round(v, 4) for k, v in plain().opinion(IMPRESSIONS[3]).items()}
    kind = plain(leniency=0.1).rate(IMPRESSIONS[3], (1,))
    assert still is not None
    assert kind is not None
    assert kind["overall"] - still["overall"] == pytest.approx(0.1, abs=1e-3)
    noisy = plain(noise=0.05)
    drawn = [scores["valence"] for i in range(400) if (scores := noisy.rate(IMPRESSIONS[3], (i,)))]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.01)
    assert np.std(drawn) == pytest.approx(0.05, abs=0.006)
    wild = [plain(noise=3.0).rate(IMPRESSIONS[3], (i,)) or {} for i in range(50)]
    assert all(0 <= score <= 1 for scores in wild for score in scores.values())


@pytest.mark.parametrize(
    ("gap", "better", "strength"),
    [
        (0.019, "tie", None),
        (0.021, 0, 1),
        (0.059, 0, 1),
        (0.061, 0, 2),
        (0.121, 0, 3),
        (0.241, 0, 4),
        (-0.061, 1, 2),
        (-0.3, 1, 4),
    ],
)
def test_choice_and_strength_follow_the_difference(gap: float, better: object, strength: int | None) -> None:
    # relevance alone counts, so that the gap in overall is the gap in relevance
    rater = plain(weights={"valence": 0, "relevance": 1, "fluency": 0})
    first, second = Impression("x", 0.5 + gap / 2, 0.5), Impression("x", 0.5 - gap / 2, 0.5)
    verdict = rater.compare(first, second, key=(1,))
    assert verdict is not None
    assert (verdict.choice, verdict.strength) == (better, strength)
    assert verdict.difference == pytest.approx(gap)


def test_both_bad_side_bias_and_skips() -> None:
    rater = plain(weights={"valence": 0, "relevance": 1, "fluency": 0})
    bad, worse = Impression("x", 0.19, 0.5), Impression("x", 0.05, 0.5)
    verdict = rater.compare(bad, worse, (1,))
    assert verdict is not None
    assert (verdict.choice, verdict.strength) == ("both_bad", None)
    assert verdict.difference == pytest.approx(0.14)
    assert choice(rater, Impression("x", 0.21, 0.5), worse) == 0
    biased = plain(weights=rater.weights, side_bias=0.1)
    same = Impression("x", 0.5, 0.5)
    assert [choice(biased, same, same, order) for order in ((0, 1), (1, 0))] == [0, 1]
    skips = [plain(skip=0.2).rate(same, (i,)) is None for i in range(1000)]
    assert np.mean(skips) == pytest.approx(0.2, abs=0.04)
    assert any(plain(skip=0.2).compare(same, same, (i,)) is None for i in range(50))
    with pytest.raises(ValueError, match="presented"):
        rater.compare(bad, worse, (1,), (0, 0))
    with pytest.raises(ValueError, match=r"relevance is 1\.2"):
        Impression("x", 1.2, 0.5)


def test_the_docstring_says_what_is_human_and_what_is_not() -> None:
    assert panel.__doc__ is not None
    assert "A column of the lexicon is\nnot a person" in panel.__doc__
