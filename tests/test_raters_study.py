"""The study of raters: its record, its tables in benchmarks/README.md, and its chart say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import raters
import raters_chart
import raters_people

from plaudit.data.judged import Judged, Rated

BENCHMARKS = Path(raters.__file__).parent


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((BENCHMARKS / "raters.json").read_text(encoding="utf-8"))
    return read


def test_every_size_of_the_kinds_that_are_drawn_is_recorded(found: dict[str, Any]) -> None:
    cells = {(row["kind"], row["labels"]) for row in found["simulated"]}
    for kind in raters.KINDS:
        sizes = raters.SIZES if kind in raters.SEEDS else raters.FEWER_SIZES
        assert {labels for of, labels in cells if of == kind} == set(sizes), kind
    assert set(raters_chart.PANELS) == set(raters.SEEDS)


def test_the_tables_of_the_page_are_those_of_the_record(found: dict[str, Any]) -> None:
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8").splitlines()
    for line in map(raters.row_of, found["simulated"]):
        assert line in page
    for line in raters_people.table(found["people"]).splitlines():
        assert line in page


def test_both_groups_of_mlqe_are_told_of_and_nobody_in_them_is_called_careless(found: dict[str, Any]) -> None:
    rows = [row for row in found["people"] if row.get("groups")]
    assert [row["name"] for row in rows] == [
        f"MLQE-PE {pair}, all six, by group" for pair in ("en-zh", "en-de")
    ]
    for row in rows:
        assert set(row["groups"]) == set(raters_people.GROUPS)
        assert len(row["called"]["aware"]) == 6
        assert {word for words in row["called"]["aware"].values() for word in words} == {"like the crowd"}
    german = rows[1]["called"]["aware ordinal"]
    assert {rater: set(words) for rater, words in german.items()} == {
        f"position {n}": {"like the crowd" if n < 4 else "shared taste"} for n in range(1, 7)
    }


def test_a_groups_scores_are_its_own_alone() -> None:
    item = Judged(
        "k", [1], [[2]], ["a"], ratings=[Rated(0, n / 10, rater=f"position {n}") for n in range(1, 7)]
    )
    kept = {
        name: [one.rating for one in raters_people.given_by(positions, [item])[0].ratings]
        for name, positions in raters_people.GROUPS.items()
    }
    assert kept == {"positions 1 to 3": [0.1, 0.2, 0.3], "positions 4 to 6": [0.4, 0.5, 0.6]}
    assert len(item.ratings) == 6


def test_the_chart_shows_shares_with_their_intervals_and_cuts_what_is_beyond_it() -> None:
    def row(labels: int, share: float | None, low: float, high: float) -> dict[str, Any]:
        won = {"share": share, "interval": [low, high]}
        return {"kind": "colluding", "labels": labels, "aware_won_back": won, "dawid_skene_won_back": won}

    rows = [row(100, None, 0, 0), row(200, 0.5, -3.0, 0.75), row(400, -2.0, -5.0, 0.0)]
    drawn = raters_chart.figure(rows)
    curve = drawn["data"][4]
    assert (curve["xaxis"], curve["y"]) == ("x3", [0.5])
    assert curve["error_y"]["array"] == [0.25]
    assert curve["error_y"]["arrayminus"] == [1.5]
    assert "below" in str(drawn["layout"]["annotations"])
    assert "below" not in str(raters_chart.figure(rows[:2])["layout"]["annotations"])
