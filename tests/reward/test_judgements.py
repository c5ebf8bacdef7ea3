"""Records as tensors: who is where, what a margin is worth, which levels ratings take, what is said by criterion."""

from __future__ import annotations

import math

import pytest
import torch

from plaudit.data.judged import Judged, Pair, Ranked, Rated
from plaudit.reward.judgements import (
    OVERALL,
    Judgements,
    Reading,
    begin,
    check_varied,
    level_of,
    levels_of,
    said,
    strength_share,
)
from plaudit.reward.raters import CROWD, GOLD, GOLD_RATER, MOST_RATERS, RaterEffects, copy_weights
from plaudit.types import UserError


def group(*pairs: Pair, key: str = "p", **more: object) -> Judged:
    return Judged(key, [1], [[0]] * 4, list("abcd"), list(pairs), **more)  # type: ignore[arg-type]


def test_a_table_by_hand() -> None:
    groups = [
        group(Pair(0, 1, 1.0, 4, "ada", 1), Pair(2, 0, 0.5, 3, None, 2), Pair(1, 3, 0.0, rater="nobody")),
        group(Pair(3, 2, 0.0, 2, GOLD_RATER), key="q"),
    ]
    effects = RaterEffects(["ada", "bo"])
    found = Judgements.of(groups, [0, 10], Reading(margin=3.0), effects)
    assert found.first.tolist() == [0, 2, 1, 13]
    assert found.second.tolist() == [1, 0, 3, 12]
    assert found.target.tolist() == [1.0, 0.5, 0.0, 0.0]
    assert found.margin.tolist() == pytest.approx([3.0, 0.0, 0.0, 1.0])  # Llama 2's: a third for each step
    assert found.shown.tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert found.rater.tolist() == [0, CROWD, CROWD, GOLD]
    assert found.totals() == (4.0, 1.0)
    assert [strength_share(Pair(0, 1, 1.0, s)) for s in (1, 2, 3, 4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_rankings_are_pairs_or_rankings() -> None:
    pairs = [Pair(a, b, 1.0, ranking=0) for a, b in ((2, 0), (2, 1), (0, 1))]
    ranked = group(*pairs, Pair(0, 3, 1.0), rankings=[Ranked((2, 0, 1, 2), "ada"), Ranked((3, 3))])
    effects = RaterEffects(["ada", "bo"])
    as_pairs = Judgements.of([ranked], [0], Reading(), effects)
    assert (len(as_pairs.first), len(as_pairs.ranker)) == (4, 0)
    whole = Judgements.of([ranked], [5], Reading(comparison="plackett_luce"), effects)
    assert whole.first.tolist() == [5]
    assert whole.ranked.tolist() == [
        [7, 5, 6]
    ]  # a text that stands in it twice, at its better place; one alone, not
    assert whole.ranker.tolist() == [0]
    assert whole.totals().comparisons == 2
    scores = torch.tensor([0.0] * 5 + [math.log(2), 0.0, math.log(4), 0.0], dtype=torch.float64)
    reading = Reading(comparison="plackett_luce")
    loss = whole.loss(scores, None, reading, effects, whole.totals())
    # the pair: 2/3; the ranking: 4/7 and then 2/3
    assert loss.loss.item() == pytest.approx(-math.log(2 / 3 * 4 / 7 * 2 / 3) / 2)
    assert loss.metrics["correct"].item() == pytest.approx(4 / 2)


def test_a_weight_of_two_is_a_judgement_twice_and_of_nothing_is_none() -> None:
    """For comparisons, rankings and ratings, in a crowd whose names nobody keeps."""
    scores = torch.tensor([0.3, -0.2, 1.1, 0.4], dtype=torch.float64)

    def cost(asked: Reading, *, ada: int, bo: int) -> float:
        pairs = [Pair(0, 1, 1.0, rater="ada")] * ada + [Pair(2, 3, 0.0, rater="bo")] * bo
        rankings = [Ranked((2, 0, 1), "ada")] * ada + [Ranked((3, 1), "bo")] * bo
        ratings = [Rated(0, 0.9, {}, "ada")] * ada + [Rated(1, 0.1, {}, "bo")] * bo
        groups = [group(*pairs, rankings=rankings, ratings=ratings)]
        reading, effects = begin(groups, asked)
        told = Judgements.of(groups, [0], reading, effects)
        return told.loss(scores, None, reading, effects, told.totals()).loss.item()

    for comparison in ("bradley_terry", "plackett_luce"):
        plain = Reading(comparison=comparison)
        twice = Reading(comparison=comparison, weights={"ada": 2.0})
        without = Reading(comparison=comparison, weights={"ada": 0.0})
        assert cost(twice, ada=1, bo=1) == pytest.approx(cost(plain, ada=2, bo=1), rel=1e-12)
        assert cost(without, ada=1, bo=1) == pytest.approx(cost(plain, ada=0, bo=1), rel=1e-12)
        assert cost(plain, ada=2, bo=1) != pytest.approx(cost(plain, ada=1, bo=1), rel=1e-3)


def test_a_weight_counts_where_one_rater_alone_brings_a_kind() -> None:
    """Ada compares and Bo rates: of their parts of the slope, Bo's is a tenth where his weight is, and both are as
    large together as without weights."""
    groups = [group(Pair(0, 1, 1.0, rater="ada"), ratings=[Rated(2, 0.9, {}, "bo")])]

    def slopes(weights: dict[str, float]) -> tuple[float, float]:
        scores = torch.tensor([0.3, -0.2, 1.1, 0.4], dtype=torch.float64, requires_grad=True)
        reading, effects = begin(groups, Reading(weights=weights))
        told = Judgements.of(groups, [0], reading, effects)
        told.loss(scores, None, reading, effects, told.totals()).loss.backward()  # type: ignore[no-untyped-call]
        assert scores.grad is not None
        return abs(float(scores.grad[0])), abs(float(scores.grad[2]))

    plain, lighter = slopes({}), slopes({"bo": 0.1})
    assert lighter[1] / lighter[0] == pytest.approx(0.1 * plain[1] / plain[0], rel=1e-12)
    assert lighter[0] / plain[0] + lighter[1] / plain[1] == pytest.approx(2, rel=1e-12)


def test_ratings_by_criterion() -> None:
    scores = {"overall": 0.9, "style": 0.2, "length": 0.4}
    assert said(0.9, scores, Reading()) == [(OVERALL, 0.9)]
    assert said(0.9, scores, Reading(criteria=("truth", "style"))) == [(1, 0.2), (OVERALL, 0.9)]
    assert said(0.9, scores, Reading(criteria=("overall", "style"))) == [(0, 0.9), (1, 0.2)]
    assert said(0.5, {"length": 0.5}, Reading(criteria=("style",))) == []


def test_levels_are_the_values_that_are_taken_or_tenths() -> None:
    assert levels_of([0.5, 0.0, 1.0, 0.5]) == (0.0, 0.5, 1.0)
    many = levels_of([i / 999 for i in range(1000)])
    assert len(many) == 10
    assert many[0] == pytest.approx(0.05, abs=0.002)
    assert many[-1] == pytest.approx(0.95, abs=0.002)
    assert (
        len(levels_of([0.5] * 400 + [i / 20 for i in range(21)])) == 10
    )  # nearly all the same: tenths of the values
    reading = Reading(rating="ordinal", levels=(0.0, 0.5, 1.0))
    assert [level_of(x, reading) for x in (0.1, 0.4, 0.76, 1.0)] == [0, 1, 2, 2]
    assert level_of(0.37, Reading()) == 0.37


def test_raters_are_those_who_are_named_and_the_crowd_needs_two() -> None:
    asked = Reading(aware=True, rating="ordinal")
    two = [
        group(Pair(0, 1, 1.0, rater="zoe"), Pair(0, 1, 1.0), Pair(0, 1, 1.0, rater=GOLD_RATER)),
        group(
            ratings=[Rated(0, 0.25, {}, "ada"), Rated(1, 0.75, {}, "ada"), Rated(2, 0.75, {}, None)], key="q"
        ),
    ]
    reading, effects = begin(two, asked)
    assert reading.aware
    assert effects.names == ("ada", "zoe")
    assert effects.rated.tolist() == [True, False]
    assert reading.levels == (0.25, 0.75)
    assert effects.guess.tolist() == pytest.approx([1.5 / 4, 2.5 / 4])
    one, nobody = begin(two[1:], asked)
    assert not one.aware
    assert nobody.names == ()
    assert begin(two[:1], asked)[0].rating == "regression"  # no ratings, no levels
    flat = [group(Pair(0, 1, 1.0), ratings=[Rated(0, 0.5), Rated(1, 0.5)])]
    with pytest.raises(
        UserError, match=r"all ratings are 0\.5, which makes no levels; set rating=regression"
    ):
        begin(flat, asked)


def test_a_criterion_that_nobody_scored_is_named() -> None:
    rated = [group(ratings=[Rated(0, 0.5, {"style": 0.5}), Rated(1, 0.2, {"truth": 0.2})])]
    begin(rated, Reading(criteria=("style", "truth")))
    with pytest.raises(
        UserError, match="criteria: nobody scored 'flow'; scored are style, truth; take it out"
    ):
        begin(rated, Reading(criteria=("style", "flow")))
    with pytest.raises(UserError, match="nobody scored 'style'; there are no ratings"):
        begin([group(Pair(0, 1, 1.0))], Reading(criteria=("style",)))


def test_copies_count_as_one() -> None:
    effects = RaterEffects(["a", "b", "c", "d"])
    units = [("x", 0), ("x", 1), ("x", 2), ("x", 3), ("x", CROWD), ("y", 0), ("y", 3), ("z", 1), ("z", 1)]
    assert copy_weights(effects, units) == [1.0] * 9
    for r, s in ((0, 1), (0, 2), (1, 2)):
        effects.copied[r, s] = effects.copied[s, r] = 1.0
    assert copy_weights(effects, units) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1, 1, 1, 1, 1, 1])
    assert copy_weights(effects, [("x", 3), ("x", 2), ("x", 1)]) == pytest.approx([1, 1 / 2, 1 / 2])
    effects.copied[0, 1] = effects.copied[1, 0] = 0.5
    assert copy_weights(effects, units)[0] == pytest.approx(1 / 2.5)


@pytest.mark.parametrize("rating", ["regression", "ordinal"])
def test_copied_ratings_count_as_one(rating: str) -> None:
    """One who rates as another does adds nothing, where that was found out: of comparisons and of ratings."""
    said_by_two = [Rated(0, 1.0, {}, "a"), Rated(1, 0.0, {}, "a"), Rated(1, 1.0, {}, "c")]
    twice = [group(ratings=[*said_by_two, *(one._replace(rater="b") for one in said_by_two[:2])])]
    reading = Reading(rating=rating, aware=True)  # type: ignore[arg-type]
    effects, alone = RaterEffects(["a", "b", "c"]), RaterEffects(["a", "b", "c"])
    effects.copied[0, 1] = effects.copied[1, 0] = 1.0
    scores = torch.tensor([0.7, -0.4, 0.0, 0.0], dtype=torch.float64)
    found = []
    for groups, raters in ((twice, effects), ([group(ratings=said_by_two)], alone)):
        table = Judgements.of(groups, [0], reading, raters)
        assert table.totals().ratings == 3.0
        found.append(table.loss(scores, None, reading, raters, table.totals()).loss.item())
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_more_raters_than_a_table_can_hold_are_refused() -> None:
    crowd = [group(*(Pair(0, 1, 1.0, rater=f"r{i}") for i in range(MOST_RATERS + 1)))]
    with pytest.raises(UserError, match=r"raters: 1001 raters are named, and the habits of 1000 at most"):
        begin(crowd, Reading(aware=True))
    assert begin(crowd, Reading())[1].names == ()


def test_ratings_that_vary_by_criterion_alone_can_be_learned_from() -> None:
    """Their mean is the same for all; by each criterion they are not."""

    def rated(*by: tuple[float, float]) -> list[Judged]:
        ratings = [
            Rated(i, sum(two) / 2, dict(zip(("joy", "flow"), two, strict=True))) for i, two in enumerate(by)
        ]
        return [Judged("p", [1], [[0]] * len(by), ["x"] * len(by), ratings=ratings)]

    criteria = Reading(criteria=("joy", "flow"))
    check_varied(rated((0.2, 0.8), (0.8, 0.2)), criteria, "d")
    for groups, reading in (
        (rated((0.2, 0.8), (0.8, 0.2)), Reading()),
        (rated((0.2, 0.8), (0.2, 0.8)), criteria),
    ):
        with pytest.raises(UserError, match="d: all ratings are the same, so there is nothing to learn"):
            check_varied(groups, reading, "d")


BOTH_WAYS = [Pair(0, 1, 1.0, 4, "ada"), Pair(1, 0, 1.0, 1, "bo"), Pair(2, 1, 0.5)]
RANKED_BOTH_WAYS = [Ranked((0, 1, 2)), Ranked((2, 1, 0))]


@pytest.mark.parametrize(
    ("groups", "reading", "varied"),
    [
        ([group(*BOTH_WAYS)], Reading(), False),
        ([group(*BOTH_WAYS)], Reading(margin=1.0), True),  # the strong word leads
        ([group(*BOTH_WAYS)], Reading(aware=True), True),  # one of the two may be careless
        ([group(*(pair._replace(rater="ada") for pair in BOTH_WAYS))], Reading(aware=True), False),
        ([group(*BOTH_WAYS, Pair(0, 3, 1.0))], Reading(), True),
        ([group(Pair(0, 1, 1.0)), group(Pair(0, 1, 0.0), key="q")], Reading(), True),  # two prompts
        ([group(Pair(0, 1, 1.0), Pair(1, 2, 1.0), Pair(2, 0, 1.0))], Reading(), False),  # round in a circle
        ([group(Pair(0, 1, 1.0), Pair(1, 2, 1.0))], Reading(), True),
        # By Plackett and Luce's first choice the middle one of these is no worse than the ends, by the second better.
        (
            [group(Pair(0, 1, 1.0), Pair(1, 0, 1.0), rankings=RANKED_BOTH_WAYS)],
            Reading(comparison="plackett_luce"),
            True,
        ),
        ([group(ratings=[Rated(0, 0.0), Rated(0, 1.0), Rated(1, 0.5)])], Reading(), False),
        ([group(ratings=[Rated(0, 0.0), Rated(0, 1.0), Rated(1, 0.6)])], Reading(), True),
        (
            [group(ratings=[Rated(0, 0.0), Rated(0, 1.0), Rated(1, 0.5)])],
            Reading(rating="ordinal", levels=(0.0, 0.5, 1.0)),
            True,
        ),
        ([group(ratings=[Rated(i, r, {}, w) for i in (0, 1) for w, r in (("a", 0.2), ("b", 0.8))])],
         Reading(), False),
        ([group(ratings=[Rated(0, 0.2, {}, "a"), Rated(0, 0.8, {}, "b"), Rated(1, 0.5, {}, "c")])],
         Reading(aware=True), True),
        ([group(*BOTH_WAYS, ratings=[Rated(0, 0.2), Rated(1, 0.8)])], Reading(), True),
    ],
)  # fmt: skip
def test_what_cancels_teaches_nothing(groups: list[Judged], reading: Reading, varied: bool) -> None:
    if varied:
        check_varied(groups, reading, "d")
        return
    with pytest.raises(UserError, match=r"d: .*(cancel each other|come to the same), so there is nothing"):
        check_varied(groups, reading, "d")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            [],
            "d: there are no comparisons and rating_weight is 0, so there is nothing to learn; set rating_weight",
        ),
        (
            [Pair(0, 1, 0.5), Pair(1, 2, 0.5)],
            "d: all 2 comparisons are ties and rating_weight is 0, so there",
        ),
    ],
)
def test_ratings_without_weight_teach_nothing(pairs: list[Pair], message: str) -> None:
    groups = [group(*pairs, ratings=[Rated(0, 0.1), Rated(1, 0.9)])]
    with pytest.raises(UserError, match=message):
        check_varied(groups, Reading(rating_weight=0.0), "d")
    check_varied(groups, Reading(), "d")
    check_varied([group(*pairs, Pair(0, 2, 1.0))], Reading(rating_weight=0.0), "d")


def test_a_nat_of_a_prior_weighs_what_one_of_a_judgement_does() -> None:
    """The loss of n judgements is their mean, so 1/n; of kinds that each have a mean, the mean over all judgements."""
    compared = group(Pair(0, 1, 1.0), Pair(1, 2, 1.0), Pair(2, 3, 0.0))
    rated = group(ratings=[Rated(i, 0.5, {"style": 0.5, "truth": 0.1}) for i in range(2)], key="r")
    pairs = [Pair(a, b, 1.0, ranking=0) for a in range(4) for b in range(a + 1, 4)]
    ranked = [group(*pairs, key=f"k{i}", rankings=[Ranked((0, 1, 2, 3))]) for i in range(5)]

    def nat(groups: list[Judged], reading: Reading, effects: RaterEffects | None = None) -> float:
        starts = [4 * i for i in range(len(groups))]
        return Judgements.of(groups, starts, reading, effects or RaterEffects()).nat(reading)

    assert nat([compared], Reading()) == pytest.approx(1 / 3)
    both = Reading(criteria=("style", "truth"), rating_weight=20.0)
    assert nat([rated], both) == pytest.approx(20 / 4)
    assert nat([compared, rated], both) == pytest.approx((3 * 1 / 3 + 4 * 20 / 4) / 7)
    assert nat([compared, rated], Reading(criteria=("style", "truth"), rating_weight=0.0)) == pytest.approx(
        1 / 3
    )
    assert nat(ranked, Reading(comparison="plackett_luce")) == pytest.approx(1 / 5)
    assert nat(ranked, Reading()) == pytest.approx(1 / 30)
    copied = [group(Pair(0, 1, 1.0, rater="a"), Pair(0, 1, 1.0, rater="b"))]
    effects = RaterEffects(["a", "b"])
    effects.copied[0, 1] = effects.copied[1, 0] = 1.0
    assert nat(copied, Reading(), effects) == pytest.approx(1)
