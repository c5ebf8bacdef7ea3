"""Judgements as tensors, and what they cost: where records meet the losses, for the probe and the recipe alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.rater_loss import rater_bradley_terry, rater_ordinal, rater_plackett_luce
from plaudit.algorithms.reward_loss import bradley_terry, ordinal, plackett_luce, rating_regression
from plaudit.data.judged import Judged, Pair, all_cancel
from plaudit.reward.raters import GOLD_RATER, MOST_RATERS, RaterEffects, copy_weights
from plaudit.types import UserError

OVERALL = -1
"""The criterion that is the weighted sum of all."""
MOST_LEVELS = 10
"""Ratings of more values than this are taken to tenths of their distribution."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How judgements are read.

    margin: of the greatest strength, in log-odds; strength 1 has none and those between their share. levels: the
    ratings' values in order, for "ordinal". aware: by each rater's habits. weights: how much a rater's judgements
    count, `unnamed` where none is named; `begin` takes them to a mean of 1.
    """

    comparison: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    rating: Literal["regression", "ordinal"] = "regression"
    margin: float = 0.0
    rating_weight: float = 1.0
    criteria: tuple[str, ...] = ()
    aware: bool = False
    levels: tuple[float, ...] = (0.0, 1.0)
    weights: Mapping[str, float] = field(default_factory=dict)
    unnamed: float = 1.0

    def weight(self, rater: str | None) -> float:
        """Of one judgement by this rater."""
        return self.weights.get(rater or "", self.unnamed)


class Totals(NamedTuple):
    """What a batch's losses are divided by: its comparisons (and rankings), and its ratings, copies being fewer."""

    comparisons: float
    ratings: float


class Ratings(NamedTuple):
    """Each one's place, level, criterion, rater and weight."""

    place: Tensor
    level: Tensor
    criterion: Tensor
    rater: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Judgements:
    """All that was said of some completions, by their place in a list of scores.

    Comparisons, [P]: first, second (places), target, margin, shown (+1: the first stood first on the screen, -1: the
    second, 0: not known), rater (a place in `RaterEffects`), weight. Rankings, [N, K]: ranked (places, best first) and
    mask; [N]: ranker, ranking_weight. Ratings: `Ratings`. counts: comparisons and rankings, and ratings; copies count
    for less, raters' weights do not count: a kind that one source alone brings would else weigh the same, whatever it
    weighs.
    """

    first: Tensor
    second: Tensor
    target: Tensor
    margin: Tensor
    shown: Tensor
    rater: Tensor
    weight: Tensor
    ranked: Tensor
    mask: Tensor
    ranker: Tensor
    ranking_weight: Tensor
    ratings: Ratings
    counts: tuple[float, float]

    @classmethod
    def of(
        cls,
        groups: Sequence[Judged],
        starts: Sequence[int],
        reading: Reading,
        effects: RaterEffects,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> Judgements:
        """starts: the place of each group's first completion among the scores."""
        listwise = reading.comparison == "plackett_luce"
        pairs, units, rankings, ranking_units, ratings, rating_units = [], [], [], [], [], []
        told: dict[str, list[str | None]] = {"pairs": [], "rankings": [], "ratings": []}  # by whom, in order

        for start, group in zip(starts, groups, strict=True):
            for pair in group.pairs:
                if listwise and pair.ranking is not None:
                    continue
                who = effects.index(pair.rater)
                margin = reading.margin * strength_share(pair)
                pairs.append((start + pair.a, start + pair.b, pair.target, margin, shown(pair), who))
                units.append(((group.key, frozenset((pair.a, pair.b))), who))
                told["pairs"].append(pair.rater)
            for one in group.rankings if listwise else ():
                who, places = effects.index(one.rater), list(dict.fromkeys(one.places))
                if len(places) > 1:  # a text that was ranked twice counts at its better place
                    rankings.append(([start + place for place in places], who))
                    ranking_units.append(((group.key, frozenset(places)), who))
                    told["rankings"].append(one.rater)
            for rated in group.ratings:
                who = effects.index(rated.rater)
                for criterion, level in said(rated.rating, rated.scores, reading):
                    ratings.append((start + rated.place, level, criterion, who))
                    rating_units.append(((group.key, rated.place, criterion), who))
                    told["ratings"].append(rated.rater)

        def column(rows: Sequence[Sequence[float]], at: int, kind: torch.dtype) -> Tensor:
            return torch.tensor([row[at] for row in rows], dtype=kind, device=device)

        def weighed(units: Sequence[tuple[object, int]], names: Sequence[str | None]) -> tuple[Tensor, float]:
            """Each one's weight, and how many there are, whatever they weigh: what counts for nothing is not there."""
            shares, own = copy_weights(effects, units), [reading.weight(name) for name in names]
            both = list(zip(shares, own, strict=True))
            found = torch.tensor([share * weight for share, weight in both], dtype=dtype, device=device)
            return found, float(sum(share for share, weight in both if weight > 0))

        weight, compared = weighed(units, told["pairs"])
        ranking_weight, ranked = weighed(ranking_units, told["rankings"])
        rating_weight, rated_times = weighed(rating_units, told["ratings"])
        longest = max((len(places) for places, _ in rankings), default=1)
        padded = [places + [0] * (longest - len(places)) for places, _ in rankings]
        counted = [[k < len(places) for k in range(longest)] for places, _ in rankings]
        return cls(
            first=column(pairs, 0, torch.long),
            second=column(pairs, 1, torch.long),
            target=column(pairs, 2, dtype),
            margin=column(pairs, 3, dtype),
            shown=column(pairs, 4, dtype),
            rater=column(pairs, 5, torch.long),
            weight=weight,
            ranked=torch.tensor(padded, dtype=torch.long, device=device).reshape(-1, longest),
            mask=torch.tensor(counted, dtype=torch.bool, device=device).reshape(-1, longest),
            ranker=torch.tensor([who for _, who in rankings], dtype=torch.long, device=device),
            ranking_weight=ranking_weight,
            ratings=Ratings(
                column(ratings, 0, torch.long),
                column(ratings, 1, dtype),
                column(ratings, 2, torch.long),
                column(ratings, 3, torch.long),
                rating_weight,
            ),
            counts=(compared + ranked, rated_times),
        )

    def totals(self) -> Totals:
        """Of a whole batch; never 0, so that a batch of one kind can be divided by both."""
        compared, rated = self.counts
        return Totals(compared or 1.0, rated or 1.0)

    def nat(self, reading: Reading) -> float:
        """What a nat of one judgement weighs in the loss, the mean over all: as much does a nat of a prior."""
        compared, rated = self.counts
        rated = rated if reading.rating_weight > 0 else 0.0
        return ((compared > 0) + reading.rating_weight * (rated > 0)) / ((compared + rated) or 1.0)

    def loss(
        self, scores: Tensor, each: Tensor | None, reading: Reading, effects: RaterEffects, totals: Totals
    ) -> LossOutput:
        """Comparisons and rankings plus rating_weight times ratings, each over its total. scores: of all completions;
        each: [completions, criteria], None without criteria. metrics sum over micro-batches: `correct`, `decided`,
        `rating_loss`. Habits are learned where they are not frozen."""
        loss = scores.sum() * 0
        metrics = {name: loss.detach() for name in ("correct", "decided", "rating_loss")}
        for out in self._comparisons(scores, reading, effects, totals.comparisons):
            loss = loss + out.loss
            for name in ("correct", "decided"):
                metrics[name] = metrics[name] + out.metrics[name]
        if len(self.ratings.place) and reading.rating_weight > 0:
            rated = self._ratings(scores, each, reading, effects, totals.ratings)
            loss = loss + reading.rating_weight * rated
            metrics["rating_loss"] = rated.detach()
        return LossOutput(loss, metrics)

    def _comparisons(
        self, scores: Tensor, reading: Reading, effects: RaterEffects, total: float
    ) -> list[LossOutput]:
        found = []
        a, b = scores[self.first], scores[self.second]
        if len(a) and reading.aware:
            who = effects.of(self.rater, scores.dtype)
            found.append(
                rater_bradley_terry(
                    a, b, self.target, who.careless, who.scale, who.side * self.shown, self.weight,
                    total=total, margin=self.margin,
                )
            )  # fmt: skip
        elif len(a):
            found.append(bradley_terry(a, b, self.target, self.weight, total=total, margin=self.margin))
        if len(self.ranker):
            ranked = scores[self.ranked]
            who = effects.of(self.ranker, scores.dtype)
            found.append(
                rater_plackett_luce(
                    ranked, self.mask, who.careless, who.scale, self.ranking_weight, total=total
                )
                if reading.aware
                else plackett_luce(ranked, self.mask, self.ranking_weight, total=total)
            )
        return found

    def _ratings(
        self, scores: Tensor, each: Tensor | None, reading: Reading, effects: RaterEffects, total: float
    ) -> Tensor:
        place, level, criterion, rater, weight = self.ratings
        own = scores[place]
        if each is not None:
            own = torch.where(criterion == OVERALL, own, each[place, criterion.clamp(min=0)])
        cuts = effects.cuts().to(scores)
        if not reading.aware and reading.rating == "regression":
            return rating_regression(own, level, weight, total=total).loss
        if not reading.aware:
            return ordinal(own, level, cuts, weight, total=total).loss
        who = effects.of(rater, scores.dtype, rating=True)
        # A soft target says nothing of carelessness; it would read every middling rating as a guess.
        careless = who.careless if reading.rating == "ordinal" else torch.zeros_like(who.careless)
        guess = effects.guess.to(scores)
        return rater_ordinal(
            own, level, cuts, careless, who.scale, who.severity, guess, weight, total=total
        ).loss


def begin(training: Sequence[Judged], asked: Reading) -> tuple[Reading, RaterEffects]:
    """The reading with the levels that ratings take, and the raters with no habits yet. By the crowd where fewer than
    two raters are named. UserError for a criterion that nobody scored, for ratings without levels, and for more than
    `MOST_RATERS`."""
    check_criteria(training, asked)
    asked = _of_mean_one(training, asked)
    named: set[str] = set()
    rated: set[str] = set()
    for group in training:
        rated |= {one.rater for one in group.ratings if one.rater is not None}
        named |= {pair.rater for pair in group.pairs if pair.rater is not None}
    names = sorted((named | rated) - {GOLD_RATER})
    names = names if asked.aware and len(names) > 1 else []
    if len(names) > MOST_RATERS:
        raise UserError(
            f"{len(names)} raters are named, and the habits of {MOST_RATERS} at most can be learned",
            where="raters",
            fix="set raters=crowd, or leave out the names of those who judged least",
        )
    reading = replace(asked, aware=bool(names))
    values = [
        level
        for group in training
        for one in group.ratings
        for _, level in said(one.rating, one.scores, replace(reading, rating="regression"))
    ]
    if reading.rating == "regression" or not values:
        return replace(reading, rating="regression"), RaterEffects(names, sorted(rated))
    reading = replace(reading, levels=levels_of(values))
    if len(reading.levels) < 2:
        raise UserError(
            f"all ratings are {reading.levels[0]:g}, which makes no levels",
            where="reward_model",
            fix="set rating=regression, or collect more varied ratings",
        )
    effects = RaterEffects(names, sorted(rated), levels=len(reading.levels))
    levels = torch.tensor([int(level_of(value, reading)) for value in values])
    effects.frequencies(torch.bincount(levels, minlength=len(reading.levels)))
    return reading, effects


def _of_mean_one(training: Sequence[Judged], reading: Reading) -> Reading:
    """Weights over their mean, so that they say what counts for more than what, and not how fast to learn."""
    if not reading.weights:
        return reading
    raters = [pair.rater for group in training for pair in group.pairs]
    raters += [one.rater for group in training for one in group.ratings]
    found = [weight for rater in raters if (weight := reading.weight(rater)) > 0]
    mean = sum(found) / len(found) if found else 1.0
    weights = {name: weight / mean for name, weight in reading.weights.items()}
    return replace(reading, weights=weights, unnamed=reading.unnamed / mean)


def check_criteria(training: Sequence[Judged], reading: Reading) -> None:
    """UserError for a criterion that no rating has, and for criteria where there are no ratings."""
    scored = {name for group in training for one in group.ratings for name in one.scores}
    missing = [name for name in reading.criteria if name not in scored]
    if missing:
        known = f"scored are {', '.join(sorted(scored))}" if scored else "there are no ratings"
        raise UserError(
            f"nobody scored {missing[0]!r}",
            where="criteria",
            fix=f"{known}; take it out, or collect ratings of it",
        )


def check_varied(training: Sequence[Judged], reading: Reading, where: str) -> None:
    """UserError where there is nothing to learn from: no judgements, or none that tells one answer from another, be it
    that each is even or that all of them together are. Ratings teach only where they have a weight."""
    pairs = [pair for group in training for pair in group.pairs]
    ratings = [one for group in training for one in group.ratings]
    if not pairs and not ratings:
        raise UserError("holds no comparisons and no ratings", where=where, fix="collect judgements first")
    if _comparisons_tell(training, reading):
        return
    ties = all(pair.target == 0.5 for pair in pairs)
    even = f"all {len(pairs)} comparisons {'are ties' if ties else 'cancel each other'}" if pairs else ""
    if _ratings_tell(training, reading):
        if reading.rating_weight > 0:
            return
        raise UserError(
            f"{even or 'there are no comparisons'} and rating_weight is 0, so there is nothing to learn",
            where=where,
            fix="set rating_weight above 0, or compare completions",
        )
    levels = {level for one in ratings for level in said(one.rating, one.scores, reading)}
    same = len(levels) == len({criterion for criterion, _ in levels})
    rated = "all ratings are the same" if same else "the ratings of every completion come to the same"
    cancel = not ties if pairs else not same
    raise UserError(
        f"{even or rated}, so there is nothing to learn",
        where=where,
        fix="collect more judgements, or leave out those that are wrong"
        if cancel
        else "judge more varied completions",
    )


def _comparisons_tell(training: Sequence[Judged], reading: Reading) -> bool:
    """Whether some completion is preferred to another. Those of different raters, where their habits are learned, and
    of different margins do not cancel each other; nor do whole rankings, read as such, whose pairs do."""
    if reading.comparison == "plackett_luce" and any(
        len({*one.places}) > 2 for group in training for one in group.rankings
    ):
        return True
    return not all_cancel(
        training, lambda pair: (pair.rater if reading.aware else None, reading.margin * strength_share(pair))
    )


def _ratings_tell(training: Sequence[Judged], reading: Reading) -> bool:
    """Whether, by some criterion, one completion is rated as another is not: by another mean, or for "ordinal" by
    other levels. Where raters' habits are learned, each rater is looked at alone."""
    said_of: dict[tuple[int, object], list[float]] = {}
    for group in training:
        for one in group.ratings:
            whose = (group.key, one.place, one.rater if reading.aware else None)
            for criterion, level in said(one.rating, one.scores, reading):
                said_of.setdefault((criterion, whose), []).append(level)
    found: dict[int, set[object]] = {}
    for (criterion, _), levels in said_of.items():
        shares = frozenset((level, levels.count(level) / len(levels)) for level in levels)
        whole = round(sum(levels) / len(levels), 6) if reading.rating == "regression" else shares
        found.setdefault(criterion, set()).add(whole)
    return any(len(different) > 1 for different in found.values())


def strength_share(pair: Pair) -> float:
    """0 for the least strength (1) or none asked or a tie, 1 for the greatest (4)."""
    return 0.0 if pair.strength is None or pair.target == 0.5 else (pair.strength - 1) / 3


def shown(pair: Pair) -> float:
    return 0.0 if pair.shown_first is None else 1.0 if pair.shown_first == pair.a else -1.0


def said(rating: float, scores: dict[str, float], reading: Reading) -> list[tuple[int, float]]:
    """(criterion, level) of a rating: the overall one (or the mean of what was scored) without criteria; with them
    each that was scored, and the overall one where it was. Criteria that the config does not name are not read."""
    if not reading.criteria:
        return [(OVERALL, level_of(rating, reading))]
    found = [(i, scores[name]) for i, name in enumerate(reading.criteria) if name in scores]
    if "overall" in scores and "overall" not in reading.criteria:
        found.append((OVERALL, scores["overall"]))
    return [(criterion, level_of(score, reading)) for criterion, score in found]


def level_of(rating: float, reading: Reading) -> float:
    """The rating as a level: itself for regression (between levels 0 and 1), else that of the nearest value."""
    if reading.rating == "regression":
        return rating
    return float(min(range(len(reading.levels)), key=lambda k: abs(reading.levels[k] - rating)))


def levels_of(ratings: Sequence[float]) -> tuple[float, ...]:
    """The values that ratings take, at most `MOST_LEVELS`: all of them, else the middles of tenths of the ratings, or
    (where nearly all are the same) of tenths of the values."""
    ratings = sorted(ratings)
    values = sorted({round(rating, 4) for rating in ratings})
    if len(values) <= MOST_LEVELS:
        return tuple(values)

    def middles(ordered: Sequence[float]) -> tuple[float, ...]:
        found = {ordered[int((k + 0.5) / MOST_LEVELS * len(ordered))] for k in range(MOST_LEVELS)}
        return tuple(sorted(found))

    levels = middles(ratings)
    return levels if len(levels) > 1 else middles(values)


def starts_of(groups: Sequence[Judged]) -> list[int]:
    """The place of each group's first completion where all stand in one list."""
    places = [0]
    for group in groups:
        places.append(places[-1] + len(group.completions))
    return places[:-1]
