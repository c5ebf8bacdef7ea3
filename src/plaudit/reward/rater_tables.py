"""Judgements by item, rater and what a rater said of one item more than once: what the measurement of raters reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plaudit.data.judged import Judged
from plaudit.reward.judgements import OVERALL, Reading, said, shown, starts_of
from plaudit.reward.raters import GOLD, RaterEffects, copy_weights


@dataclass(frozen=True, slots=True)
class Row:
    """One judgement on its way into a table."""

    kind: str
    item: int
    rater: int
    value: float
    shown: float
    own: float
    weight: float


@dataclass(frozen=True, slots=True)
class Table:
    """Judgements of one kind.

    [J]: item, rater, value (+1 or -1 and 0 for a tie, or a level), shown, own (what the rater alone would say beside
    what the crowd does, of mean square 1; 0 where that is not known), weight, and the unit that they are of: all that
    one rater said of one item. [U]: the units' item and rater. [I]: the items' prior (the left-out score), which way a
    gold item points (0: it is none), and the number of its prompt.
    """

    item: Tensor
    rater: Tensor
    value: Tensor
    shown: Tensor
    own: Tensor
    weight: Tensor
    unit: Tensor
    unit_item: Tensor
    unit_rater: Tensor
    prior: Tensor
    gold: Tensor
    prompt: Tensor

    @classmethod
    def of(
        cls, rows: Sequence[Row], priors: Sequence[float], prompts: Sequence[int], effects: RaterEffects
    ) -> Table:
        units = sorted({(row.item, row.rater) for row in rows})
        place = {unit: i for i, unit in enumerate(units)}
        gold = torch.zeros(len(priors), dtype=torch.float64)
        for row in rows:
            if row.rater == GOLD and row.kind == "comparison":
                gold[row.item] += row.value
        copies = copy_weights(effects, [(row.item, row.rater) for row in rows])
        weights = [row.weight * copied for row, copied in zip(rows, copies, strict=True)]

        rater, own = np.array([row.rater for row in rows]), np.array([row.own for row in rows])
        crowd = np.array([priors[row.item] for row in rows])
        for who in set(rater[own != 0].tolist()):
            own[rater == who] = beside(own[rater == who], crowd[rater == who])

        def column(values: Sequence[float], kind: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=kind)

        return cls(
            item=column([row.item for row in rows], torch.long),
            rater=column([row.rater for row in rows], torch.long),
            value=column([row.value for row in rows], torch.float64),
            shown=column([row.shown for row in rows], torch.float64),
            own=torch.from_numpy(own),
            weight=column(weights, torch.float64),
            unit=column([place[row.item, row.rater] for row in rows], torch.long),
            unit_item=column([item for item, _ in units], torch.long),
            unit_rater=column([rater for _, rater in units], torch.long),
            prior=column(priors, torch.float64),
            gold=gold.sign(),
            prompt=column(prompts, torch.long),
        )

    def repeated(self, raters: int) -> Tensor:
        """[R]: how often each rater was asked again what they had been asked."""
        often = torch.bincount(self.unit, minlength=len(self.unit_item))
        again = torch.zeros(raters, dtype=torch.long)
        own = self.unit_rater >= 0
        return again.index_add(0, self.unit_rater[own], (often - 1)[own])


def tables(
    groups: Sequence[Judged],
    scores: Tensor,
    each: Tensor,
    reading: Reading,
    effects: RaterEffects,
    own: Mapping[int, Tensor],
) -> dict[str, Table]:
    """Comparisons (those that follow from rankings of K, each 2 / K of one) and ratings. scores, each: left out, by
    place; own: by a rater's place, the scores of a fit to that rater alone, left out likewise."""
    rows: dict[str, list[Row]] = {"comparison": [], "rating": []}
    priors: dict[str, list[float]] = {"comparison": [], "rating": []}
    prompts: dict[str, list[int]] = {"comparison": [], "rating": []}
    known: dict[object, int] = {}

    def item(kind: str, prompt: int, key: object, prior: float) -> int:
        if key not in known:
            known[key] = len(priors[kind])
            priors[kind].append(prior)
            prompts[kind].append(prompt)
        return known[key]

    for prompt, (start, group) in enumerate(zip(starts_of(groups), groups, strict=True)):
        for pair in group.pairs:
            low, high = sorted((pair.a, pair.b))
            towards = 1.0 if pair.a == low else -1.0
            gap = float(scores[start + low] - scores[start + high])
            number = item("comparison", prompt, (group.key, low, high), gap)
            weight = 1.0 if pair.ranking is None else 2 / len(group.rankings[pair.ranking].places)
            value, who = towards * (2 * pair.target - 1), effects.index(pair.rater)
            mine = float(own[who][start + low] - own[who][start + high]) if who in own else 0.0
            rows["comparison"].append(
                Row("comparison", number, who, value, towards * shown(pair), mine, weight)
            )
        for rated in group.ratings:
            for criterion, level in said(rated.rating, rated.scores, reading):
                at = start + rated.place
                prior = float(scores[at] if criterion == OVERALL else each[at, criterion])
                number = item("rating", prompt, (group.key, rated.place, criterion, "rating"), prior)
                rows["rating"].append(Row("rating", number, effects.index(rated.rater), level, 0.0, 0.0, 1.0))
    return {kind: Table.of(rows[kind], priors[kind], prompts[kind], effects) for kind in rows if rows[kind]}


def beside(own: NDArray[np.float64], crowd: NDArray[np.float64]) -> NDArray[np.float64]:
    """What of a rater's own gaps is not the crowd's (nor the crowd's turned round), scaled to mean square 1."""
    rest = own - crowd * (own @ crowd) / max(float(crowd @ crowd), 1e-12)
    size = float(np.sqrt(np.mean(rest**2)))
    return np.asarray(rest / size if size > 1e-9 else 0.0 * rest)
