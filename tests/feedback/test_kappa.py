"""Both kappas beside the tables of their papers, and by hand."""

from __future__ import annotations

import pytest

from plaudit.feedback.kappa import cohen, fleiss

FLEISS_1971 = (
    "0 0 0 6 0", "0 3 0 0 3", "0 1 4 0 1", "0 0 0 0 6", "0 3 0 3 0", "2 0 4 0 0", "0 0 4 0 2", "2 0 3 1 0",
    "2 0 0 4 0", "0 0 0 0 6", "1 0 0 5 0", "1 1 0 4 0", "0 3 3 0 0", "1 0 0 5 0", "0 2 0 3 1", "0 0 5 0 1",
    "3 0 0 1 2", "5 1 0 0 0", "0 2 0 4 0", "1 0 2 0 3", "0 0 0 0 6", "0 1 0 5 0", "0 2 0 1 3", "2 0 0 4 0",
    "1 0 0 4 1", "0 5 0 1 0", "4 0 0 0 2", "0 2 0 4 0", "1 0 5 0 0", "0 0 0 0 6",
)  # fmt: skip
"""Table 1 of the paper: 30 patients, six psychiatrists each, five diagnoses."""


def test_fleiss_s_own_table() -> None:
    units = []
    for row in FLEISS_1971:
        said = [name for name, count in enumerate(map(int, row.split())) for _ in range(count)]
        units.append({f"r{i}": name for i, name in enumerate(said)})
    kappa, n = fleiss(units)
    assert n == 30
    assert kappa == pytest.approx(0.430, abs=5e-4)


def test_cohen_by_hand() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: agreed 0.7, by chance 0.5, so 0.4."""
    counts = {("y", "y"): 20, ("y", "n"): 5, ("n", "y"): 10, ("n", "n"): 15}
    units = [{"a": a, "b": b} for (a, b), count in counts.items() for _ in range(count)]
    kappa, n = cohen([*units, {"a": "y"}], "a", "b")
    assert n == 50
    assert kappa == pytest.approx(0.4)
    assert cohen(units, "a", "c") == (None, 0)
    assert cohen([{"a": "y", "b": "y"}], "a", "b") == (None, 1)


def test_things_that_another_number_of_raters_judged_are_left_out() -> None:
    units = [{"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 2, "c": 1}, {"a": 1}]
    kappa, n = fleiss(units)
    assert n == 2
    assert kappa == pytest.approx(1.0)
    assert fleiss([{"a": 1}]) == (None, 0)
    assert fleiss([{"a": 1, "b": 1}]) == (None, 1)
