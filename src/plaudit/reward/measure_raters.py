"""What raters are like, measured before the reward is tuned, from scores that their own words did not make.

A reward fitted to a rater's judgements agrees with them, the careless ones too: among some hundred features there is
always one that explains a slip. So habits are measured against scores of prompts left out (five folds), and a pair
keeps a gap of its own that the features do not see:

    gap of pair i            d_i ~ N(K m_i, tau^2)      m_i: the left-out scores' gap
    rater r on pair i        u_ri = (1 - own_r) d_i + own_r K' o_ri + z_ri
                             o_ri: the gap by a fit to r's judgements alone, left out likewise,
                             less what of it is the crowd's
                             z_ri ~ N(0, taste_r^2), the same each time that r is asked again
    r's judgement            careless_r * guess + (1 - careless_r) * sigmoid(scale_r u_ri + side_r)

d and z are integrated out (Gauss-Hermite), habits, K, K' and tau maximise what is left with the priors of
`plaudit.reward.raters` (empirical Bayes), and fit and measurement take turns. Where raters overlap, this is an
item-response model; where they do not, the features stand in for the others.

Careless or of another taste? One judgement that differs says neither. But a taste of one's own says the same when
asked again (taste_r), and says of new prompts what it said of others (own_r), where a careless rater does neither; and
a gold item has one right answer, whatever the taste. Who has a taste of their own is then not careless, and their
judgements keep their full weight in the reward, which is the mean of tastes. Without repeats taste_r is 0, and with
fewer than `ENOUGH` judgements own_r is: a rater who differs from features and colleagues alike is then taken for
careless, and can be right all the same. Ask some things twice.

In ratings (of levels: `rating: ordinal`) another thing tells: careless answers agree with nobody. Two whose ratings go
together beyond what all others' ratings and the features lead to expect (`shared_tastes`; 30 prompts that both rated)
share a taste. In ratings neither is then careless nor inverted, their scale is the crowd's, and what sets them apart is
their own taste: a careless rater of the crowd's taste agrees with all alike, through it, and is found as before. Two
who copy ratings of each other cannot be told from two of one taste, and either way are not careless: somebody's
opinion is in what they say. Raters who toss one coin between them look the same, too. And whoever shares a taste is
taken for careful in all ratings: how often they slip is not measured there.

Copies: two raters who agree more often than their habits and everybody else's answers explain, by more than one
standard error, are counted as fewer (`copy_weights`); beyond what chance could do they are named. Two who share a sharp
taste of their own agree as much and cannot be told from them; both ways, their common answers are no two independent
witnesses of the crowd's opinion.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.algorithms.rater_loss import choice_logprobs, rating_logprobs
from plaudit.data.judged import Judged
from plaudit.reward.judgements import Reading, starts_of
from plaudit.reward.probe import PENALTIES, leave_out, minimise, standardised
from plaudit.reward.rater_tables import Table, tables
from plaudit.reward.raters import FAR, RaterEffects

ROUNDS = 3
"""How often fit and measurement take turns."""
NODES, TASTE_NODES = 15, 7
"""Points of the quadratures over d and z."""
ENOUGH = 30
"""The fewest comparisons from which a rater's own taste is looked for in the features."""
OWN_PENALTIES = (1.0, 10.0)
"""Penalties tried for a fit to one rater alone."""
OWN_LOGIT, OWN_SD = -3.0, 1.5
"""The share of a rater's judgement that is not the crowd's: its logit's mean and standard deviation."""
GOLD_GAP = 3.0
"""Log-odds between the answers of a gold item: a careful rater misses one in twenty."""
TASTE_LOG_SD, USUAL_TASTE = 1.0, 0.3
"""A rater's own taste: its logarithm's standard deviation, and where that is centred, in log-odds."""
SHARED = 5
"""The fewest judgements that two raters must share before copying is looked for."""
DOUBT = 0.01
"""The chance that some pair of independent raters is named as copying (Bonferroni)."""


class Hidden(torch.nn.Module):
    """What is estimated beside the habits: of each kind how sharp the features are (log K, of priors scaled to 1), what
    they do not see (log tau) and the level; of each rater the own taste (its logarithm), and its share that features
    see (a logit), and how sharp that is for all."""

    def __init__(self, kinds: Sequence[str], raters: int) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        self.sharpness = torch.nn.ParameterDict({kind: torch.nn.Parameter(zero.clone()) for kind in kinds})
        self.unseen = torch.nn.ParameterDict({kind: torch.nn.Parameter(zero.clone()) for kind in kinds})
        self.level = torch.nn.Parameter(zero.clone())
        self.taste = torch.nn.Parameter(
            torch.full((raters,), float(np.log(USUAL_TASTE)), dtype=torch.float64)
        )
        self.own = torch.nn.Parameter(torch.full((raters,), OWN_LOGIT, dtype=torch.float64))
        self.own_sharpness = torch.nn.Parameter(zero.clone())

    def prior(self) -> Tensor:
        """In nats, as `RaterEffects.prior`."""
        taste = (self.taste - float(np.log(USUAL_TASTE))) / TASTE_LOG_SD
        parts = [*self.sharpness.values(), *self.unseen.values(), self.own_sharpness, self.level / 3, taste]
        return sum(
            (x.square().sum() / 2 for x in parts), ((self.own - OWN_LOGIT) / OWN_SD).square().sum() / 2
        )


def _quadrature(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights of a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(np.log(weights / weights.sum()))


def _felt(kind: str, table: Table, hidden: Hidden, effects: RaterEffects) -> tuple[Tensor, Tensor]:
    """[J, Q, S]: u of each judgement at the nodes of d and z; [S]: the log-weights of z."""
    nodes, _ = _quadrature(NODES)
    # A comparison's gaps are scaled about 0: about their mean, it would matter which answer is called the first.
    prior = table.prior if kind == "comparison" else table.prior - table.prior.mean()
    at = hidden.sharpness[kind].exp() * prior / prior.square().mean().sqrt().clamp(min=1e-6)
    gap = at[:, None] + hidden.unseen[kind].exp() * nodes
    gap = torch.where(table.gold[:, None] != 0, GOLD_GAP * table.gold[:, None], gap)

    repeats = table.repeated(len(effects.names)) > 0
    nobody = torch.zeros(2, dtype=torch.float64)
    opinion = table.gold[table.item] == 0  # a gold item leaves no room for taste
    taste = torch.cat([hidden.taste.exp() * repeats, nobody])[table.rater] * opinion
    share = torch.cat([torch.sigmoid(hidden.own), nobody])[table.rater] * opinion * (table.own != 0)
    own = table.own * hidden.own_sharpness.exp()
    z, z_weights = _quadrature(TASTE_NODES if bool(repeats.any()) else 1)
    mine = (1 - share[:, None]) * gap[table.item] + (share * own)[:, None]
    return mine[:, :, None] + taste[:, None, None] * z, z_weights


def _rated(table: Table, mine: Tensor, hidden: Hidden, effects: RaterEffects) -> tuple[Tensor, Tensor]:
    """[J, Q, S]: the score that each rating tells, on its rater's own scale, and the cut-points that part its levels.
    A shared taste draws both together, as z's integral does to a logistic (MacKay 1992; Bishop 2006, equations 4.153
    and 4.154)."""
    who = effects.of(table.rater, rating=True)
    scores = who.scale[:, None, None] * (mine + hidden.level - who.severity[:, None, None])
    once = effects.tasting() & (table.repeated(len(effects.names)) == 0)  # asked again, `_felt` has it
    if not bool(once.any()):
        return scores, effects.cuts()
    taste = torch.cat([hidden.taste.exp() * once, torch.zeros(2, dtype=torch.float64)])[table.rater]
    flat = (1 + math.pi / 8 * taste.square()).rsqrt()[:, None, None]
    return flat * scores, flat[..., None] * effects.cuts()


def unit_logprobs(kind: str, table: Table, hidden: Hidden, reading: Reading, effects: RaterEffects) -> Tensor:
    """[U, Q]: log P of all that one rater said of one item, at the nodes of d."""
    mine, z_weights = _felt(kind, table, hidden, effects)
    who = effects.of(table.rater, rating=kind == "rating")
    careless, scale = who.careless[:, None, None], who.scale[:, None, None]
    if kind == "comparison":
        sign = torch.where(table.value < 0, -1.0, 1.0).double()[:, None, None]
        side = (who.side * table.shown)[:, None, None]
        choice = choice_logprobs(scale * sign * mine, careless, sign * side)
        tie = (F.logsigmoid(mine) + F.logsigmoid(-mine)) / 2
        decided = table.value.abs()[:, None, None]
        logprobs = decided * choice + (1 - decided) * tie
    else:
        if reading.rating == "regression":
            careless = torch.zeros_like(careless)
        scores, cuts = _rated(table, mine, hidden, effects)
        levels = table.value[:, None, None].expand(scores.shape)
        logprobs = rating_logprobs(scores, levels, cuts, careless, effects.guess)
    logprobs = logprobs * table.weight[:, None, None]
    shape = (len(table.unit_item), *logprobs.shape[1:])
    together = torch.zeros(shape, dtype=torch.float64).index_add(0, table.unit, logprobs)
    return torch.logsumexp(together + z_weights, -1)


def first_chances(table: Table, hidden: Hidden, effects: RaterEffects) -> Tensor:
    """[U, Q]: the chance that one comparison of the unit names the first completion, at the nodes of d."""
    mine, z_weights = _felt("comparison", table, hidden, effects)
    who = effects.of(table.rater)
    side = (who.side * table.shown)[:, None, None]
    chance = choice_logprobs(who.scale[:, None, None] * mine, who.careless[:, None, None], side).exp()
    shape = (len(table.unit_item), *chance.shape[1:])
    sums = torch.zeros(shape, dtype=torch.float64).index_add(0, table.unit, chance)
    often = torch.bincount(table.unit, minlength=shape[0])[:, None, None]
    return (sums / often * z_weights.exp()).sum(-1)


def expected_levels(table: Table, hidden: Hidden, effects: RaterEffects) -> Tensor:
    """[U, Q]: the mean level of the unit's ratings, at the nodes of d."""
    mine, z_weights = _felt("rating", table, hidden, effects)
    scores, cuts = _rated(table, mine, hidden, effects)
    guess = (effects.guess * torch.arange(effects.levels)).sum()
    careful = torch.sigmoid(scores[..., None] - cuts).sum(-1)
    careless = effects.of(table.rater, rating=True).careless[:, None, None]
    mean = ((careless * guess + (1 - careless) * careful) * z_weights.exp()).sum(-1)
    return by_unit(table, mean)


def by_unit(table: Table, said: Tensor) -> Tensor:
    """[U, ...]: the mean over each unit's judgements; said: [J, ...]."""
    often = torch.bincount(table.unit, minlength=len(table.unit_item))
    sums = torch.zeros(len(table.unit_item), *said.shape[1:], dtype=torch.float64)
    return sums.index_add(0, table.unit, said) / often.reshape(-1, *[1] * (said.dim() - 1))


def item_logprobs(table: Table, units: Tensor) -> Tensor:
    """[I, Q]: the nodes' log-weights and all that was said of each item."""
    _, weights = _quadrature(NODES)
    return weights.expand(len(table.prior), -1).index_add(0, table.unit_item, units)


def settle(found: dict[str, Table], reading: Reading, effects: RaterEffects) -> Hidden:
    """Habits, cut-points and what is hidden, at the maximum of the marginal likelihood with the priors; the habits in
    place. It begins at the crowd's."""
    hidden = Hidden(list(found), len(effects.names))
    with torch.no_grad():
        for habit in (effects.reliability, effects.log_scale, effects.side, effects.severity):
            habit.zero_()

    def surprise() -> Tensor:
        """Minus the log-likelihood of all that was said."""
        spent = torch.zeros((), dtype=torch.float64)
        for kind, table in found.items():
            units = unit_logprobs(kind, table, hidden, reading, effects)
            spent = spent - torch.logsumexp(item_logprobs(table, units), -1).sum()
        return spent

    minimise(
        [*effects.parameters(), *hidden.parameters()],
        surprise,
        lambda: effects.prior() + hidden.prior(),
        lambda: effects.bounded() and all(bool((p.abs() <= FAR).all()) for p in hidden.parameters()),
        most=150,
        tolerances=(1e-7, 1e-10),
    )
    return hidden


def settle_with_tastes(found: dict[str, Table], reading: Reading, effects: RaterEffects) -> Hidden:
    """As `settle`, and once more where ratings show tastes that some share, who are then not careless in them. They
    are looked for among habits that nothing holds: a taste is seen by what carelessness does not explain."""
    effects.shared.fill_(False)
    hidden = settle(found, reading, effects)
    if "rating" in found and reading.rating == "ordinal":
        effects.shared.copy_(shared_tastes(found["rating"], hidden, reading, effects))
        if bool(effects.shared.any()):
            hidden = settle(found, reading, effects)
    return hidden


class Copied(NamedTuple):
    """[R, R] each: the share of what two raters both judged in which one says what the other does beyond what their
    habits and all others' answers explain, less one standard error; whether chance cannot do that (`DOUBT`)."""

    share: Tensor
    sure: Tensor


@torch.no_grad()
def copied_shares(table: Table, hidden: Hidden, reading: Reading, effects: RaterEffects) -> Copied:
    """Of comparisons; 0 where two raters share fewer than `SHARED`. Gold items and ties are not looked at."""
    raters = len(effects.names)
    units = unit_logprobs("comparison", table, hidden, reading, effects)
    first = first_chances(table, hidden, effects)
    items = item_logprobs(table, units)
    often = torch.bincount(table.unit, minlength=len(table.unit_item)).clamp(min=1)
    answer = (
        torch.zeros(len(table.unit_item), dtype=torch.float64).index_add(0, table.unit, table.value) / often
    )
    decided = (answer.abs() == 1) & (table.gold[table.unit_item] == 0)
    both = {pair: shared for pair, shared in judged_by_both(table, decided).items() if len(shared) >= SHARED}
    copied = torch.zeros(raters, raters, dtype=torch.float64)
    sure = torch.zeros(raters, raters, dtype=torch.bool)
    if not both:
        return Copied(copied, sure)
    limit = NormalDist().inv_cdf(1 - DOUBT / len(both))
    for (r, s), shared in both.items():
        a, b = torch.tensor(shared).unbind(1)
        others = torch.softmax(items[table.unit_item[a]] - units[a] - units[b], -1)
        alike = (others * (first[a] * first[b] + (1 - first[a]) * (1 - first[b]))).sum(-1)
        seen = (answer[a] == answer[b]).double()
        beyond = float((seen - alike).sum())
        error = float((alike * (1 - alike)).sum().sqrt())
        copied[r, s] = copied[s, r] = min(1.0, max(0.0, beyond - error) / float((1 - alike).sum()))
        sure[r, s] = sure[s, r] = beyond > limit * error
    return Copied(copied, sure)


@torch.no_grad()
def shared_tastes(table: Table, hidden: Hidden, reading: Reading, effects: RaterEffects) -> Tensor:
    """[R, R]: whose ratings surely go together beyond the crowd's. Of ratings in levels.

    What each says beyond what their habits, the features and all others' ratings of the item lead to expect is
    correlated over the items that both rated, less what the uncertainty about the item makes of it (two of one crowd
    know more of an item than the others' ratings tell). By Fisher's z, as if each prompt had one item.
    """
    raters = len(effects.names)
    units, said = unit_logprobs("rating", table, hidden, reading, effects), by_unit(table, table.value)
    items, wanted = item_logprobs(table, units), expected_levels(table, hidden, effects)
    sure = torch.zeros(raters, raters, dtype=torch.bool)
    both = judged_by_both(table, torch.ones_like(said, dtype=torch.bool))
    prompts = {
        pair: len({int(table.prompt[table.unit_item[one]]) for one, _ in shared})
        for pair, shared in both.items()
    }
    both = {pair: shared for pair, shared in both.items() if prompts[pair] >= ENOUGH}
    limit = NormalDist().inv_cdf(1 - DOUBT / max(1, len(both)))
    for (r, s), shared in both.items():
        a, b = torch.tensor(shared).unbind(1)
        others = torch.softmax(items[table.unit_item[a]] - units[a] - units[b], -1)
        mean_a, mean_b = (others * wanted[a]).sum(-1), (others * wanted[b]).sum(-1)
        one, two = said[a] - mean_a, said[b] - mean_b
        spread = (one.square().sum() * two.square().sum()).sqrt().clamp(min=1e-12)
        together = (one * two).sum() / spread
        by_chance = ((others * wanted[a] * wanted[b]).sum(-1) - mean_a * mean_b).sum() / spread
        ends = torch.stack([together, by_chance]).clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        sure[r, s] = sure[s, r] = float(ends[0] - ends[1]) * (prompts[r, s] - 3) ** 0.5 > limit
    return sure


def judged_by_both(table: Table, counts: Tensor) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """By two named raters, their units of each item that both judged; counts [U]: which units are looked at."""
    by_item: dict[int, list[int]] = defaultdict(list)
    for unit, item in enumerate(table.unit_item.tolist()):
        if int(table.unit_rater[unit]) >= 0 and bool(counts[unit]):
            by_item[item].append(unit)
    both: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for there in by_item.values():
        for one, two in combinations(there, 2):
            both[int(table.unit_rater[one]), int(table.unit_rater[two])].append((one, two))
    return both


def own_scores(
    groups: Sequence[Judged], states: Sequence[Tensor], effects: RaterEffects, seed: int
) -> dict[int, Tensor]:
    """By place, for each rater with `ENOUGH` comparisons: scores [n] of a plain fit to that rater's comparisons alone,
    each prompt left out of the fit that scores it."""
    starts, count = starts_of(groups), sum(len(group.completions) for group in groups)
    found = {}
    plain = Reading()
    for who, name in enumerate(effects.names):
        chosen = [i for i, group in enumerate(groups) if any(pair.rater == name for pair in group.pairs)]
        alone = [
            replace(groups[i], pairs=[p for p in groups[i].pairs if p.rater == name], ratings=[])
            for i in chosen
        ]
        if sum(pair.target != 0.5 for group in alone for pair in group.pairs) < ENOUGH or len(alone) < 10:
            continue
        left = leave_out(alone, [states[i] for i in chosen], plain, effects, (1.0,), seed, OWN_PENALTIES)
        places = [starts[i] + k for i in chosen for k in range(len(groups[i].completions))]
        scores = torch.zeros(count, dtype=torch.float64)
        scores[places] = left.scores
        found[who] = scores
    return found


@dataclass(frozen=True, slots=True)
class Measured:
    """What the measurement left behind for the figures of each rater; copying [R, R]: who surely copies whom."""

    tables: dict[str, Table]
    hidden: Hidden
    copying: Tensor


def measure_raters(
    groups: Sequence[Judged],
    states: Sequence[Tensor],
    *,
    reading: Reading,
    effects: RaterEffects,
    seed: int,
    shares: Sequence[float] = (1.0,),
) -> Measured:
    """Set the habits of `effects`, the cut-points and who copied whom.

    states: [completions, width] of each group, of the frozen trunk.
    """
    even, _, _ = standardised(states)
    penalties: tuple[float, ...] = PENALTIES
    copying = torch.zeros(len(effects.names), len(effects.names), dtype=torch.bool)
    own = own_scores(groups, even, effects, seed)
    for turn in range(ROUNDS):
        as_read = replace(reading, aware=turn > 0)
        left = leave_out(groups, even, as_read, effects, shares, seed, penalties)
        penalties = (left.penalty,)
        found = tables(groups, left.scores, left.each, reading, effects, own)
        hidden = settle_with_tastes(found, reading, effects)
        if "comparison" in found and turn < ROUNDS - 1:
            share, copying = copied_shares(found["comparison"], hidden, reading, effects)
            effects.copied.copy_(share)
    return Measured(found, hidden, copying)
