"""Who of several raters errs, and how, from their answers alone: the estimator of Dawid and Skene. No torch.

A. P. Dawid and A. M. Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm", Applied
Statistics 28 (1979). Every item has one true class; a rater gives class l to an item of class k with the probability
confusion[rater, k, l], independently of everybody else. It knows nothing of what was judged: raters who share few items
are told apart by `plaudit.reward.measure_raters`, which reads the texts, too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """items, raters, classes: in order of first appearance, classes sorted; the arrays follow these orders.

    posterior [I, K]: the probability of each item's class. prior [K]: how frequent the classes are. confusion
    [R, K, K]: a row sums to 1. log_likelihood: in nats, at the end (of the answers alone). steps: of EM.
    """

    items: tuple[Any, ...]
    raters: tuple[Any, ...]
    classes: tuple[Any, ...]
    posterior: Floats
    prior: Floats
    confusion: Floats
    log_likelihood: float
    steps: int

    def truth(self) -> dict[Any, dict[Any, float]]:
        """{item: {class: probability}}."""
        rows = self.posterior.tolist()
        return {i: dict(zip(self.classes, row, strict=True)) for i, row in zip(self.items, rows, strict=True)}

    def accuracy(self) -> dict[Any, float]:
        """{rater: the share of items that they put into the right class}, for items as frequent as these."""
        right = np.einsum("k,rkk->r", self.prior, self.confusion)
        return dict(zip(self.raters, right.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Answers:
    """n answers, by number: item, rater, given [n]. sizes: I, R and K."""

    item: Numbers
    rater: Numbers
    given: Numbers
    sizes: tuple[int, int, int]


def dawid_skene(
    answers: Iterable[tuple[Hashable, Hashable, Any]],
    *,
    smoothing: float = 0.0,
    tolerance: float = 1e-8,
    most_steps: int = 1000,
) -> Estimate:
    """EM from the shares of answers an item got (the paper's start), until no probability moves by `tolerance`.

    answers: (item, rater, class); one who answered an item twice has two answers there. smoothing: answers that every
    cell of a rater's table, and every class, is given beforehand: 0 is the paper; 1 keeps a rater with three answers
    from being called infallible. Raises ValueError without answers.
    """
    found = list(answers)
    if not found:
        raise ValueError("there are no answers")
    items = tuple(dict.fromkeys(item for item, _, _ in found))
    raters = tuple(dict.fromkeys(rater for _, rater, _ in found))
    classes = tuple(sorted({given for _, _, given in found}, key=lambda c: (str(type(c)), c)))
    place = [{name: i for i, name in enumerate(names)} for names in (items, raters, classes)]
    item, rater, given = (
        np.array([known[name] for name in column])
        for known, column in zip(place, zip(*found, strict=True), strict=True)
    )
    numbered = _Answers(item, rater, given, (len(items), len(raters), len(classes)))

    posterior = np.zeros((len(items), len(classes)))
    np.add.at(posterior, (item, given), 1.0)
    posterior /= posterior.sum(1, keepdims=True)
    steps = 0
    while steps < most_steps:
        steps += 1
        prior, confusion = maximise(numbered, posterior, smoothing)
        before, (posterior, log_likelihood) = posterior, expect(numbered, prior, confusion)
        if np.abs(posterior - before).max() < tolerance:
            break
    return Estimate(items, raters, classes, posterior, prior, confusion, log_likelihood, steps)


def maximise(answers: _Answers, posterior: Floats, smoothing: float) -> tuple[Floats, Floats]:
    """prior [K] and confusion [R, K, K] (the paper's equations 2.3 and 2.4); a class that no item of a rater's has is
    taken to be answered at random."""
    prior = posterior.sum(0) + smoothing
    _, raters, classes = answers.sizes
    cell = answers.rater * classes + answers.given
    counted = np.stack([np.bincount(cell, of, raters * classes) for of in posterior[answers.item].T])
    table = counted.reshape(classes, raters, classes).transpose(1, 0, 2).astype(np.float64) + smoothing
    total = table.sum(2, keepdims=True)
    even = np.full_like(table, 1 / classes)
    return prior / prior.sum(), np.divide(table, total, out=even, where=total > 0)


def expect(answers: _Answers, prior: Floats, confusion: Floats) -> tuple[Floats, float]:
    """posterior [I, K] (the paper's equation 2.5) and the answers' log-likelihood."""
    with np.errstate(divide="ignore"):
        log_prior, log_confusion = np.log(prior), np.log(confusion)
    said = np.maximum(log_confusion, -1e100)[answers.rater, :, answers.given]
    told = np.stack([np.bincount(answers.item, of, answers.sizes[0]) for of in said.T], 1)
    joint = np.maximum(log_prior, -1e100) + told
    most = joint.max(1, keepdims=True)
    total = most + np.log(np.exp(joint - most).sum(1, keepdims=True))
    return np.exp(joint - total), float(total.sum())
