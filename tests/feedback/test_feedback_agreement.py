"""Agreement against published figures, and every odd case without a crash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from plaudit.feedback.agreement import Level, alpha, pairwise, report, wilson
from plaudit.feedback.events import Item, comparison_event, rating_event, skip_event
from plaudit.feedback.store import Store
from plaudit.feedback.transfer import import_file
from plaudit.types import UserError

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units.
OBSERVERS = {
    "A": "1 2 3 3 2 1 4 1 2 . . .",
    "B": "1 2 3 3 2 2 4 1 2 5 . 3",
    "C": ". 3 3 3 2 3 4 2 2 5 1 .",
    "D": "1 2 3 3 2 4 4 1 2 5 1 .",
}
TABLE = {
    unit: {rater: float(row.split()[unit]) for rater, row in OBSERVERS.items() if row.split()[unit] != "."}
    for unit in range(12)
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        opened.add_items(Item(f"p{i}", ("left", "right"), id=f"i{i}") for i in range(40))
        yield opened


@pytest.mark.parametrize(
    ("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_is_krippendorffs(level: Level, published: float) -> None:
    value, reason = alpha(TABLE, level)
    assert reason is None
    assert value == pytest.approx(published, abs=5e-4)


def test_alpha_without_enough_to_go_on_says_why() -> None:
    assert alpha({}, "nominal") == (None, "needs two raters")
    assert alpha({1: {"a": 1.0}, 2: {"a": 2.0}}, "nominal") == (None, "needs two raters")
    assert alpha({1: {"a": 1.0}, 2: {"b": 2.0}}, "ordinal") == (None, "no item was judged by two raters")
    same = {1: {"a": 1.0, "b": 1.0}, 2: {"a": 1.0, "b": 1.0}}
    assert (
        alpha(same, "interval")[1] == "all judgements are the same, so that there is nothing to disagree on"
    )


def test_pairwise_agreement_is_counted_over_pairs_and_its_interval_covers() -> None:
    table = {1: {"a": 0, "b": 0, "c": 1}, 2: {"a": 1, "b": 1}, 3: {"a": 0}, 4: {"b": 1, "c": 0}}
    found = pairwise(table)
    assert (found["pairs"], found["share"]) == (5, 2 / 5)  # by hand: 1 of 3, 1 of 1, 0 of 1
    assert found == pairwise(table)
    # 400 items of one pair each: the bootstrap of a share is near its binomial interval
    rng = np.random.default_rng(0)
    wide = pairwise({i: {"a": 1, "b": int(rng.random() < 0.8)} for i in range(400)})
    half = 1.96 * np.sqrt(wide["share"] * (1 - wide["share"]) / 400)
    np.testing.assert_allclose(wide["interval"], [wide["share"] - half, wide["share"] + half], atol=0.008)
    assert pairwise({1: {"a": 1}})["reason"] == "no item was judged by two raters"


def test_wilsons_interval_matches_published_figures() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), interval in published.items():
        assert wilson(successes, n) == pytest.approx(interval, abs=5e-5)
    assert wilson(0, 0) is None


def test_the_report_of_each_rater_by_hand(store: Store) -> None:
    def say(item: int, rater: str, choice: object, first: int) -> None:
        order = (first, 1 - first)
        store.append(comparison_event(f"i{item}", rater, choice, presented=order))  # type: ignore[arg-type]

    say(0, "ann", 0, 0)
    say(1, "ann", 1, 0)
    say(2, "ann", "tie", 0)
    store.append(skip_event("i3", "ann"))
    say(0, "bob", 0, 1)
    say(1, "bob", 0, 0)
    say(0, "cy", 0, 0)
    say(1, "cy", 0, 0)
    say(2, "cy", "both_bad", 1)
    store.append(rating_event("i4", "ann", {"overall": 0.2, "tone": 1}))
    store.append(rating_event("i4", "ann", {"overall": 0.6}, completion=1))
    store.append(rating_event("i4", "bob", {"overall": 0.5}))
    found = json.loads(json.dumps(report(store), allow_nan=False))
    ann = found["raters"]["ann"]
    assert (ann["judgements"], ann["skips"], ann["skip_share"]) == (5, 1, 1 / 6)
    # i0: the others both say 0, ann too; i1: both say 0, ann 1; i2: cy says both_bad, ann tie
    assert ann["majority"] == {"items": 3, "agreement": pytest.approx(1 / 3)}
    # of two decided ones, the one that stood first won once; the tie does not count
    assert (ann["first"]["comparisons"], ann["first"]["share"]) == (2, 0.5)
    assert ann["scores"]["overall"] == {"n": 2, "mean": pytest.approx(0.4), "sd": pytest.approx(0.2)}
    assert found["raters"]["bob"]["first"]["share"] == 0.5
    comparisons = found["comparisons"]
    assert (comparisons["judgements"], comparisons["overlapping_items"]) == (8, 3)
    # i0: 3 of 3 pairs, i1: 1 of 3, i2: a tie is not both bad
    assert comparisons["agreement"]["share"] == pytest.approx(4 / 7)
    assert [pair["agreement"]["share"] for pair in comparisons["pairs"]] == pytest.approx([1 / 2, 1 / 3, 1])
    # Wilson's of 1 of 2, by hand: 1/2 +- 1.96 / 3 * sqrt(1 / 8 + 3.8415 / 16), over 1 + 3.8415 / 2
    assert comparisons["pairs"][0]["agreement"]["interval"] == pytest.approx([0.0945, 0.9055], abs=5e-4)
    overall = found["ratings"]["overall"]
    assert (overall["judgements"], overall["overlapping_items"]) == (3, 1)
    assert overall["difference"] == pytest.approx(0.3)
    assert found["ratings"]["tone"]["alpha"]["ordinal"] == {"value": None, "reason": "needs two raters"}


def test_ordinal_alpha_takes_ties_for_the_middle_and_nominal_keeps_four_names(store: Store) -> None:
    for item, (a, b) in enumerate([(0, "tie"), (1, "both_bad"), ("tie", "both_bad"), (0, 0), (1, 1)]):
        store.append(comparison_event(f"i{item}", "ann", a))  # type: ignore[arg-type]
        store.append(comparison_event(f"i{item}", "bob", b))  # type: ignore[arg-type]
    figures = report(store)["comparisons"]["alpha"]
    as_numbers = {0: (-1, 0), 1: (1, 0), 2: (0, 0), 3: (-1, -1), 4: (1, 1)}
    # by hand, interval: observed 2(1+1)/10 over expected: n=10, values -1 x3, 0 x4, 1 x3
    observed = sum(2 * (a - b) ** 2 for a, b in as_numbers.values()) / 10
    expected = 2 * (3 * 4 * 1 + 3 * 3 * 4 + 4 * 3 * 1) / (10 * 9)
    assert figures["interval"]["value"] == pytest.approx(1 - observed / expected)
    # by hand, nominal: 0 x3, 1 x3, tie x2, both_bad x2
    observed, expected = 6 / 10, (100 - 9 - 9 - 4 - 4) / 90
    assert figures["nominal"]["value"] == pytest.approx(1 - observed / expected)


def test_an_item_judged_again_is_a_further_unit(store: Store) -> None:
    for rater, choices in (("ann", (0, 1)), ("bob", (0, 0))):
        for choice in choices:
            store.append(comparison_event("i0", rater, choice))  # type: ignore[arg-type]
    found = report(store)["comparisons"]
    assert (found["judgements"], found["overlapping_items"], found["agreement"]["share"]) == (4, 1, 0.5)
    assert found["agreement"]["pairs"] == 2
    for rater in ("ann", "bob"):
        store.append(rating_event("i0", rater, {"overall": 0.5}))
        store.append(rating_event("i0", rater, {"overall": 0.5}, completion=1))
    assert report(store)["ratings"]["overall"]["overlapping_items"] == 1


def test_an_older_snapshot_a_retraction_and_an_empty_store(store: Store) -> None:
    assert report(store)["comparisons"]["agreement"]["share"] is None
    assert report(store)["raters"] == {}
    for rater, choices in (("ann", (0, 1, 0)), ("bob", (0, 1, 1)), ("cy", (1, 0, 1))):
        for item, choice in enumerate(choices):
            store.append(comparison_event(f"i{item}", rater, choice))  # type: ignore[arg-type]
    before = report(store)
    store.retract_rater("cy")
    assert report(store, up_to=9) == before
    with pytest.raises(UserError, match="there are 10 events, not 11"):
        report(store, up_to=11)
    after = report(store)
    assert set(after["raters"]) == {"ann", "bob"}
    assert after["comparisons"]["agreement"]["share"] == pytest.approx(2 / 3)
    store.retract_rater("bob")
    assert report(store)["comparisons"]["alpha"]["nominal"] == {"value": None, "reason": "needs two raters"}


def test_ratings_that_differ_by_less_than_the_grid_and_many_of_them(store: Store) -> None:
    for item in range(40):
        store.append(rating_event(f"i{item}", "ann", {"overall": item / 40}))
        store.append(rating_event(f"i{item}", "bob", {"overall": min(1.0, item / 40 + 0.001)}))
    overall = report(store)["ratings"]["overall"]
    assert overall["step"] == 0.01
    assert overall["alpha"]["interval"]["value"] > 0.999
    assert overall["difference"] == pytest.approx(0.001)


def test_pandalms_three_raters(tmp_path: Path, real_data: Path) -> None:
    with Store.open(tmp_path / "f.db") as store:
        counts = import_file(store, real_data / "pandalm_3raters" / "testset-v1.json", "pandalm")
        assert counts == {"records": 2997, "items": 900, "events": 2997, "known": 0, "left_out": 0}
        found = report(store)
    comparisons = found["comparisons"]
    assert comparisons["judgements"] == 2997
    assert comparisons["overlapping_items"] == 900  # 99 pairs stand in the file twice, and were judged twice
    assert comparisons["agreement"]["pairs"] == 3 * 999
    # the data's README says 0.864, which is the nominal level's
    assert comparisons["alpha"]["nominal"]["value"] == pytest.approx(0.864, abs=5e-4)
    assert set(found["raters"]) == {"annotator1", "annotator2", "annotator3"}
    assert all(rater["judgements"] == 999 for rater in found["raters"].values())
    labels = json.loads((real_data / "pandalm_3raters" / "testset-v1.json").read_text(encoding="utf-8"))
    same = np.mean([row["annotator1"] == row["annotator2"] for row in labels])
    pair = next(p for p in comparisons["pairs"] if p["raters"] == ["annotator1", "annotator2"])
    assert pair["agreement"]["share"] == pytest.approx(same)
