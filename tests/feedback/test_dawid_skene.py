"""Dawid and Skene's estimator, held against the table of their own paper, and against what can be worked out."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest

from plaudit.feedback.dawid_skene import Estimate, dawid_skene
from plaudit.randomness import rng

ANAESTHETISTS = (
    "111 1 1 1 1|333 4 3 3 4|112 2 1 2 2|222 3 1 2 1|222 3 2 2 2|222 3 3 2 2|122 2 1 1 1|333 3 4 3 3|222 2 2 2 3|"
    "232 2 2 2 3|444 4 4 4 4|222 3 3 4 3|111 1 1 1 1|222 3 2 1 2|121 1 1 1 1|111 2 1 1 1|111 1 1 1 1|111 1 1 1 1|"
    "222 2 2 2 1|222 1 3 2 2|222 2 2 2 2|222 2 2 2 1|222 3 2 2 2|221 2 2 2 2|111 1 1 1 1|111 1 1 1 1|232 2 2 2 2|"
    "111 1 1 1 1|111 1 1 1 1|112 1 1 2 1|111 1 1 1 1|333 3 2 3 3|111 1 1 1 1|222 2 2 2 2|222 3 2 3 2|433 4 3 4 3|"
    "221 2 2 3 2|232 3 2 3 3|333 3 4 3 2|111 1 1 1 1|111 1 1 1 1|121 2 1 1 1|232 2 2 2 2|121 1 1 1 1|222 2 2 2 2"
)
"""Table 1 of Dawid & Skene 1979: 45 patients, five anaesthetists, the first of whom was asked three times."""


def anaesthetists() -> list[tuple[int, int, int]]:
    return [
        (patient, rater, int(answer))
        for patient, row in enumerate(ANAESTHETISTS.split("|"))
        for rater, answers in enumerate(row.split())
        for answer in answers
    ]


def test_it_is_the_papers_estimate() -> None:
    """Its estimates of how frequent the classes are and of the first observer's errors, printed to two places."""
    answers = anaesthetists()
    assert len(answers) == 45 * 7
    found = dawid_skene(answers)
    assert found.prior.round(2).tolist() == [0.40, 0.42, 0.11, 0.07]
    first = found.confusion[0].round(2).tolist()
    assert first == [[0.89, 0.11, 0, 0], [0.07, 0.88, 0.05, 0], [0, 0.34, 0.66, 0], [0, 0, 0.56, 0.44]]


def by_hand(found: Estimate, answers: list[tuple[int, int, int]]) -> float:
    """The log-likelihood, summed over every class of every item."""
    total = 0.0
    for item in found.items:
        chance = 0.0
        for k in range(len(found.classes)):
            part = found.prior[k]
            for which, rater, given in answers:
                if which == item:
                    part *= found.confusion[found.raters.index(rater), k, found.classes.index(given)]
            chance += part
        total += math.log(chance)
    return total


def test_the_likelihood_is_the_sum_over_classes_and_never_falls() -> None:
    answers = anaesthetists()
    rows = [dawid_skene(answers, most_steps=steps, tolerance=0.0) for steps in (1, 2, 5, 20)]
    assert all(a.log_likelihood < b.log_likelihood + 1e-9 for a, b in pairwise(rows))
    assert rows[2].log_likelihood == pytest.approx(by_hand(rows[2], answers), rel=1e-12)
    assert [row.steps for row in rows] == [1, 2, 5, 20]


def test_one_step_by_hand() -> None:
    """Two items: both raters say a of x; they differ on y, whose halves are shared out."""
    found = dawid_skene([("x", 1, "a"), ("x", 2, "a"), ("y", 1, "a"), ("y", 2, "b")], most_steps=1)
    assert found.classes == ("a", "b")
    assert found.prior.tolist() == [0.75, 0.25]
    assert found.confusion[0].tolist() == [[1, 0], [1, 0]]
    assert found.confusion[1].tolist() == pytest.approx(np.array([[2 / 3, 1 / 3], [0, 1]]))
    assert found.posterior[0].tolist() == [1.0, 0.0]
    assert found.posterior[1].tolist() == pytest.approx([0.5, 0.5])  # 3/4 * 1/3 against 1/4 * 1
    assert found.truth()["y"] == pytest.approx({"a": 0.5, "b": 0.5})


def test_known_raters_are_recovered() -> None:
    draw = rng("dawid and skene")
    right = {"good": 0.9, "fair": 0.7, "coin": 0.5, "inverted": 0.15, "fine": 0.8}
    truth = draw.integers(2, size=600)
    answers = [
        (item, name, int(side if draw.random() < share else 1 - side))
        for item, side in enumerate(truth)
        for name, share in right.items()
    ]
    found = dawid_skene(answers, smoothing=1.0)
    for name, share in right.items():
        assert found.accuracy()[name] == pytest.approx(share, abs=0.06)
    agreed = np.mean([found.truth()[item][int(side)] > 0.5 for item, side in enumerate(truth)])
    assert agreed > 0.91


def test_names_and_order_change_nothing_but_order() -> None:
    answers = anaesthetists()
    one, other = dawid_skene(answers), dawid_skene([(i, f"rater {r}", c) for i, r, c in reversed(answers)])
    for item, rater in product((1, 11, 36), range(5)):
        assert other.truth()[item] == pytest.approx(one.truth()[item], abs=1e-6)
        assert other.accuracy()[f"rater {rater}"] == pytest.approx(one.accuracy()[rater], abs=1e-6)


def test_smoothing_keeps_few_answers_from_being_certain() -> None:
    answers = [("x", 1, 0), ("x", 2, 0), ("y", 1, 1)]
    assert dawid_skene(answers).accuracy()[1] == 1.0
    assert dawid_skene(answers, smoothing=1.0).accuracy()[1] < 0.9
    with pytest.raises(ValueError, match="there are no answers"):
        dawid_skene([])
