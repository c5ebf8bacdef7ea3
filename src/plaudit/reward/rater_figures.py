"""What is told of each rater: figures with their uncertainty, and a word for what stands out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from plaudit.data.judged import Judged
from plaudit.reward.judgements import Reading
from plaudit.reward.measure_raters import Hidden, Measured, item_logprobs, unit_logprobs
from plaudit.reward.rater_tables import Table
from plaudit.reward.raters import CROWD_Q, RELIABILITY_SD, RaterEffects

GRID = torch.linspace(-8.0, 8.0, 65, dtype=torch.float64)
SURE = 0.8
"""The probability from which a rater is called careless or inverted."""
TASTE_NATS = 3.0
"""By how much a taste of the rater's own must explain their judgements better before it is called one."""
NONE = -1e3
"""The logarithm (or logit) of nothing."""


@torch.no_grad()
def rater_figures(
    groups: Sequence[Judged], measured: Measured, reading: Reading, effects: RaterEffects
) -> dict[str, dict[str, Any]]:
    """By rater: judgements; careless with its 90 % interval, scale, side, severity; own_taste (nats by which a taste of
    their own explains them better); agreement with the crowd (left-out scores); repeats and gold items and how many
    agree; copies (whom, and what share); shares_taste (in ratings, with whom); label. Intervals are of carelessness
    alone, all else as estimated. Carelessness and scale are those in comparisons where there are any, else in ratings.
    """
    chance = posteriors(measured, reading, effects)
    taste = taste_nats(measured, reading, effects)
    everybody = torch.arange(len(effects.names))
    comparing, rating = effects.of(everybody), effects.of(everybody, rating=True)
    found = {}
    for place, name in enumerate(effects.names):
        careless = 1 - torch.tanh(GRID / 2).abs()
        order = careless.argsort()
        mass = chance[place][order].cumsum(0)
        low, high = (float(careless[order][int((mass < at).sum())]) for at in (0.05, 0.95))
        inverted = float(chance[place][(GRID < 0) & (careless < 0.5)].sum())
        copies = torch.nonzero(measured.copying[place])[:, 0].tolist()
        alike = [effects.names[i] for i in torch.nonzero(effects.shared[place])[:, 0].tolist()]
        said = {kind: int((table.rater == place).sum()) for kind, table in measured.tables.items()}
        habits = comparing if said.get("comparison") else rating
        if alike and not said.get("comparison"):
            low = high = 0.0  # held there, whatever the judgements
        row: dict[str, Any] = {
            "judgements": sum(said.values()),
            "careless": float(habits.careless[place]),
            "careless_90": [low, high],
            "scale": float(habits.scale[place]),
            "side": float(habits.side[place]),
            "severity": float(habits.severity[place]),
            "own_taste": float(taste[place]),
            "agreement": agreement(measured.tables.get("comparison"), place),
            **again(groups, name, measured.tables.get("comparison"), place),
            "copies": {effects.names[i]: float(effects.copied[place, i]) for i in copies},
            "shares_taste": alike,
        }
        row["label"] = label(row, float(chance[place][careless >= 0.5].sum()), inverted)
        found[name] = row
    return found


def label(row: dict[str, Any], careless: float, inverted: float) -> str:
    """One word; careless, inverted: their probabilities."""
    if row["copies"]:
        return "copies"
    if inverted > SURE:
        return "inverted"
    if row["own_taste"] > TASTE_NATS:
        return "shared taste" if row["shares_taste"] else "own taste"
    if careless > SURE:
        return "careless"
    return "like the crowd" if careless + inverted < 1 - SURE else "unsure"


def posteriors(measured: Measured, reading: Reading, effects: RaterEffects) -> Tensor:
    """[R, grid]: of each rater's reliability, all else as estimated."""
    before = effects.reliability.clone()
    others = given_others(measured, reading, effects)
    log = -((GRID - CROWD_Q) / RELIABILITY_SD).square() / 2
    log = log.expand(len(effects.names), -1).clone()
    for at, value in enumerate(GRID):
        effects.reliability.fill_(float(value) - CROWD_Q)
        log[:, at] += evidence(measured, measured.hidden, reading, effects, others)
    effects.reliability.copy_(before)
    return torch.softmax(log, -1)


def taste_nats(measured: Measured, reading: Reading, effects: RaterEffects) -> Tensor:
    """[R]: log-likelihood of each rater's judgements less what it is without a taste of their own."""
    hidden = measured.hidden
    without = Hidden(list(hidden.sharpness), len(effects.names))
    without.load_state_dict(hidden.state_dict())
    without.taste.fill_(NONE)
    without.own.fill_(NONE)
    others = given_others(measured, reading, effects)
    with_it, without_it = (evidence(measured, these, reading, effects, others) for these in (hidden, without))
    return with_it - without_it


def given_others(measured: Measured, reading: Reading, effects: RaterEffects) -> dict[str, Tensor]:
    """[U, Q] by kind: the nodes' log-weights for each unit, given what everybody else said of its item."""
    found = {}
    for kind, table in measured.tables.items():
        units = unit_logprobs(kind, table, measured.hidden, reading, effects)
        found[kind] = torch.log_softmax(item_logprobs(table, units)[table.unit_item] - units, -1)
    return found


def evidence(
    measured: Measured, hidden: Hidden, reading: Reading, effects: RaterEffects, others: dict[str, Tensor]
) -> Tensor:
    """[R]: log P of each rater's judgements by these habits, given what everybody else said."""
    total = torch.zeros(len(effects.names), dtype=torch.float64)
    for kind, table in measured.tables.items():
        units = unit_logprobs(kind, table, hidden, reading, effects)
        told = torch.logsumexp(others[kind] + units, -1)
        known = table.unit_rater >= 0
        total.index_add_(0, table.unit_rater[known], told[known])
    return total


def agreement(table: Table | None, place: int) -> float | None:
    """The share of the rater's decided comparisons in which the crowd's left-out score is on their side."""
    if table is None:
        return None
    own = (table.rater == place) & (table.value != 0) & (table.prior[table.item] != 0)
    if not bool(own.any()):
        return None
    return float(((table.prior[table.item] > 0) == (table.value > 0))[own].double().mean())


def again(groups: Sequence[Judged], name: str, table: Table | None, place: int) -> dict[str, Any]:
    """How often the rater was asked again (pairs of answers to one comparison) and said the same; gold items, and how
    many were judged right."""
    repeats = same = gold = right = 0
    for group in groups:
        said: dict[tuple[int, int], list[float]] = {}
        for pair in group.pairs:
            if pair.rater == name and pair.ranking is None and pair.target != 0.5:
                turned = pair.a > pair.b
                key = (pair.b, pair.a) if turned else (pair.a, pair.b)
                said.setdefault(key, []).append(1 - pair.target if turned else pair.target)
        for answers in said.values():
            repeats += len(answers) * (len(answers) - 1) // 2
            same += sum(a == b for a, b in combinations(answers, 2))
    if table is not None:
        own = (table.rater == place) & (table.gold[table.item] != 0) & (table.value != 0)
        gold = int(own.sum())
        right = int((table.gold[table.item] == table.value.sign())[own].sum())
    return {"repeats": repeats, "repeats_alike": same, "gold": gold, "gold_right": right}
