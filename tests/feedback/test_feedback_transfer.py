"""In from files, out to files, and figures."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from plaudit.data.formats import read_records, write_records
from plaudit.feedback.events import skip_event
from plaudit.feedback.store import Store
from plaudit.feedback.transfer import export_file, import_file, stats
from plaudit.types import Demonstration, Message, Preference, Ranking, Rating, Record, UserError

RECORDS: list[Record] = [
    Preference("p", ("a", "b"), 0, 3, (1, 0), "ann"),
    Preference("p", ("a", "b"), "tie", rater="bob"),
    Preference("p", ("a", "b"), "both_bad"),
    Rating((Message("user", "hi"),), "hello", {"overall": 0.5, "tone": 1.0}, "ann"),
    Ranking("q", ("x", "y", "z"), (2, 0, 1), "bob"),
    Demonstration("q", "as it should be"),
    Preference("p", ("a", "b"), 0, 3, (1, 0), "ann"),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_records(RECORDS, tmp_path / "in.jsonl")
    return tmp_path / "in.jsonl"


def test_what_went_in_comes_out_in_order(store: Store, file: Path, tmp_path: Path) -> None:
    counts = import_file(store, file)
    assert counts == {"records": 7, "items": 4, "events": 7, "known": 0, "left_out": 0}
    assert export_file(store, tmp_path / "out.jsonl") == {"records": 7, "left_out": 0}
    assert read_records(tmp_path / "out.jsonl") == RECORDS
    assert export_file(store, tmp_path / "two.jsonl", up_to=2)["records"] == 2
    assert read_records(tmp_path / "two.jsonl") == RECORDS[:2]
    with pytest.raises(UserError, match="there are 7 events, not 8"):
        export_file(store, tmp_path / "eight.jsonl", up_to=8)


def test_importing_again_adds_nothing_even_in_another_order(store: Store, file: Path, tmp_path: Path) -> None:
    import_file(store, file)
    assert import_file(store, file) == {"records": 7, "items": 0, "events": 0, "known": 7, "left_out": 0}
    write_records(RECORDS[::-1], tmp_path / "turned.jsonl")
    assert import_file(store, tmp_path / "turned.jsonl")["events"] == 0
    write_records([*RECORDS, Preference("p", ("a", "b"), 1, rater="ann")], tmp_path / "more.jsonl")
    assert import_file(store, tmp_path / "more.jsonl")["events"] == 1
    assert store.last_seq() == 8


def test_a_score_written_otherwise_is_the_same_score(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    for scores in ('{"overall": 1, "tone": 0}', '{"tone": -0.0, "overall": 1.0}'):
        file.write_text(f'{{"prompt": "p", "completion": "c", "scores": {scores}, "rater": "ann"}}\n')
        import_file(store, file)
    assert store.last_seq() == 1


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "c"},
        {"prompt": "p", "completion": "c", "label": True},
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"chosen": "p a", "rejected": "p b"},
        {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
    ],
)
def test_whose_it_is_comes_along_from_every_shape_so_that_it_can_be_forgotten(
    store: Store, tmp_path: Path, row: dict[str, Any]
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(row | {"rater": "ann"}))
    import_file(store, tmp_path / "in.jsonl")
    assert set(store.raters()) == {"ann"}
    export_file(store, tmp_path / "out.jsonl")
    assert [record.rater for record in read_records(tmp_path / "out.jsonl")] == ["ann"]
    store.forget_rater("ann")
    assert import_file(store, tmp_path / "in.jsonl")["left_out"] == 1


def test_an_import_that_fails_leaves_nothing(store: Store, file: Path, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "feedback.db") as raw:
        raw.execute(
            "CREATE TRIGGER full BEFORE INSERT ON events WHEN NEW.kind = 'ranking' "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    raw.close()
    with pytest.raises(IntegrityError):
        import_file(store, file)
    assert (store.items(), store.log(), store.raters()) == ({}, [], {})


def test_what_was_retracted_or_forgotten_does_not_come_back(store: Store, file: Path, tmp_path: Path) -> None:
    import_file(store, file)
    store.forget_rater("ann")
    store.retract_rater("bob")
    counts = import_file(store, file)
    assert counts == {"records": 7, "items": 0, "events": 0, "known": 2, "left_out": 5}
    export_file(store, tmp_path / "out.jsonl")
    assert read_records(tmp_path / "out.jsonl") == [RECORDS[2], RECORDS[5]]


def test_the_policy_that_wrote_the_completions_is_kept(store: Store, file: Path) -> None:
    import_file(store, file, policy_version="sft-1")
    versions = {item.policy_version for item in store.items().values() if item.completions}
    assert versions == {"sft-1"}


def test_a_format_that_cannot_hold_a_record_says_so_or_leaves_it_out(
    store: Store, file: Path, tmp_path: Path
) -> None:
    import_file(store, file)
    with pytest.raises(UserError):
        export_file(store, tmp_path / "out.jsonl", "hh-rlhf")
    counts = export_file(store, tmp_path / "out.jsonl", "trl", skip_unrepresentable=True)
    assert counts["records"] + counts["left_out"] == 7
    assert counts["left_out"] > 0
    with pytest.raises(UserError, match="unknown format"):
        import_file(store, file, "pandalms")


def test_an_empty_store_has_nothing_to_export(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no feedback to export"):
        export_file(store, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_figures_by_hand(store: Store, file: Path) -> None:
    import_file(store, file)
    pair = next(id for id, item in store.items().items() if item.completions == ("a", "b"))
    store.append(skip_event(pair, "cy"))
    store.correct(store.log()[1].id, skip_event(pair, "bob"))
    store.retract(store.log()[0].id)
    store.assign([pair], 5)  # two stand
    store.claim("dee", 0, 60)
    store.name_snapshot("m", 9)
    store.append(skip_event(pair, "eve"))
    store.retract_rater("eve")
    found = json.loads(json.dumps(stats(store), allow_nan=False))
    assert found["events"] == 12
    assert found["items"] == 4
    assert found["written"] == {
        "comparison": 4,
        "demonstration": 1,
        "ranking": 1,
        "rating": 1,
        "retract": 1,
        "retract_rater": 1,
        "skip": 3,
    }
    assert found["standing"] == {"comparison": 2, "demonstration": 1, "ranking": 1, "rating": 1, "skip": 2}
    assert found["raters"]["ann"] == {"state": "active", "judgements": 2, "skips": 0}
    assert found["raters"]["eve"] == {"state": "retracted", "judgements": 0, "skips": 0}
    assert found["overlap"] == {"1": 3, "2": 1}  # the pair: ann (said twice, once taken back) and the unnamed
    assert found["superseded"] == 2
    assert found["hidden"] == {"retracted": 1, "forgotten": 0}
    assert found["assignments"] == {"open": 2, "held": 1, "answered": 0}
    assert found["snapshots"] == {"m": 9}
