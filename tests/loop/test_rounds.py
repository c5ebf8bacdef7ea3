"""The journal: a transition is done once, recorded before it is given back, and never done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plaudit import files
from plaudit.loop.rounds import Journal
from plaudit.training import machine
from plaudit.types import UserError


def gives(value: int, calls: list[int]) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        calls.append(value)
        return {"value": value}

    return work


def test_a_transition_is_done_once(tmp_path: Path) -> None:
    calls: list[int] = []
    journal = Journal(tmp_path)
    assert journal.done(1, "sample") is None
    assert journal.do(1, "sample", gives(1, calls)) == {"value": 1}
    assert journal.do(1, "sample", gives(2, calls)) == {"value": 1}
    assert journal.do(2, "sample", gives(3, calls)) == {"value": 3}
    assert journal.do(1, "judge", gives(4, calls)) == {"value": 4}
    assert calls == [1, 3, 4]


def test_a_journal_read_again_says_the_same(tmp_path: Path) -> None:
    calls: list[int] = []
    first = Journal(tmp_path)
    first.do(1, "sample", gives(1, calls))
    first.do(1, "judge", gives(2, calls))
    again = Journal(tmp_path)
    assert again.entries == first.entries
    assert [(e["round"], e["step"], e["result"]) for e in again.entries] == [
        (1, "sample", {"value": 1}),
        (1, "judge", {"value": 2}),
    ]
    assert again.do(1, "judge", gives(3, calls)) == {"value": 2}
    assert calls == [1, 2]


def test_it_is_on_disk_before_it_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    journal, calls = Journal(tmp_path), list[int]()
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", cut)
        with pytest.raises(KeyboardInterrupt):
            journal.do(1, "sample", gives(1, calls))
    assert not (tmp_path / "loop.json").exists()
    assert Journal(tmp_path).do(1, "sample", gives(2, calls)) == {"value": 2}


def test_work_that_failed_is_not_recorded(tmp_path: Path) -> None:
    def fails() -> dict[str, Any]:
        raise UserError("too few answers")

    journal, calls = Journal(tmp_path), list[int]()
    journal.do(1, "sample", gives(1, calls))
    with pytest.raises(UserError, match="too few answers"):
        journal.do(1, "judge", fails)
    for one in (journal, Journal(tmp_path)):
        assert [entry["step"] for entry in one.entries] == ["sample"]
    assert journal.do(1, "judge", gives(2, calls)) == {"value": 2}


def test_seconds_are_summed_by_step_over_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.25, 10.0, 12.0, 20.0, 20.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(machine, "release", lambda: None)
    journal, calls = Journal(tmp_path), list[int]()
    for round, step in ((1, "sample"), (1, "judge"), (2, "sample")):
        journal.do(round, step, gives(0, calls))
    assert journal.seconds() == {"sample": 1.75, "judge": 2.0, "total": 3.75}


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"transitions": 5}',
        '{"transitions": ["sample"]}',
        '{"transitions": [{"round": 1, "step": "sample", "seconds": 1.0}]}',
        '{"transitions": [{"round": 1, "step": "sample", "seconds": 1.0, "result": null}]}',
        '{"transitions": [{"round": 1, "step": "sample", "seconds": "long", "result": {}}]}',
    ],
)
def test_a_journal_that_cannot_be_read_is_refused_and_left_alone(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "loop.json"
    path.write_text(broken, encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read") as caught:
        Journal(tmp_path)
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)
    assert path.read_text(encoding="utf-8") == broken


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.json").write_bytes(json.dumps({"transitions": []}).encode("utf-16"))
    with pytest.raises(UserError, match="cannot be read"):
        Journal(tmp_path)
