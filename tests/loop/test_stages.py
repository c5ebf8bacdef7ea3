"""The transitions' own rules: what is paired, whose turn it is, and what a kill in the middle may not change."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from plaudit import files
from plaudit.feedback import panel
from plaudit.feedback.assignments import Assignment
from plaudit.feedback.events import Event, Item, comparison_event, drawn_order, rating_event
from plaudit.feedback.panel import Impression, Rater
from plaudit.feedback.store import Store
from plaudit.loop import drawing, judging
from plaudit.loop.quickstart import Config
from plaudit.loop.rounds import Journal
from plaudit.loop.stages import Stage
from plaudit.types import Message, UserError, prompt_to_json

TEXTS = (
    "a great day",
    "a sad day",
    "what a terrible thing",
    "nice",
    "fine, thanks",
    "I love it",
    "no",
    "hm ok",
)


def stage_of(directory: Path, store: Store, *, prompts: int = 6, ask: Any = None, **settings: Any) -> Stage:
    """A stage of round 1 whose four samples a prompt, and how they look, are written down; it has no model."""
    config = Config(training_prompts=prompts, **settings)
    asked: drawing.Prompts = [(Message("user", f"opener {n}"),) for n in range(prompts)]
    stage = Stage(
        config=config,
        directory=directory,
        number=1,
        model=cast(Any, None),
        store=store,
        splits={"train": asked, "heldout": []},
        console=Console(quiet=True),
        ask=ask,
    )
    rows = [
        {
            "prompt": prompt_to_json(stage.prompts[n]),
            "completion": f"{TEXTS[(4 * n + s) % 7]} {n} {s}",
            "policy_version": "start",
        }
        for n in range(len(stage.prompts))
        for s in range(4)
    ]
    files.write_rows(stage.place / "samples.jsonl", rows)
    looks = [{"relevance": (i * 7 % 10) / 10, "fluency": (i * 3 % 10) / 10} for i in range(len(rows))]
    files.write_rows(stage.place / "looks.jsonl", looks)
    return stage


def said(store: Store) -> list[tuple[Any, ...]]:
    return [
        (e.seq, e.id, e.kind, e.item, e.rater, dict(e.payload), e.presented, e.assignment)
        for e in store.log()
    ]


def row(prompt: str, completion: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


def test_neighbours_of_one_prompt_are_paired_where_they_differ() -> None:
    rows = [row("p", "a"), row("p", "b"), row("p", "c"), row("p", "c"), row("q", "a"), row("q", "d")]
    assert list(judging.pairs_of(rows)) == [(0, 1), (4, 5)]


def test_no_pair_crosses_prompts_where_their_samples_are_odd() -> None:
    rows = [row(p, f"{p}{i}") for p in "pqr" for i in range(3)]
    assert list(judging.pairs_of(rows)) == [(0, 1), (4, 5), (6, 7)]
    assert list(judging.pairs_of(rows[:1])) == []
    assert list(judging.pairs_of([])) == []


def test_a_person_is_shown_as_many_prompts_as_there_are() -> None:
    items = [Item(p, (f"{p}{i}", "x"), id=f"{p}{i}") for p in "pqr" for i in range(3)]
    assert [item.id for item in judging._spread_out(items, 5)] == ["p0", "q0", "r0", "p1", "q1"]
    assert len(judging._spread_out(items, 99)) == 9


def test_opinions_can_be_replayed() -> None:
    rater = panel.training_raters(0)[3]
    item = Item("p", ("a great day", "a terrible day"), policy_version="start")
    pair = (Impression(item.completions[0], 0.8, 0.9), Impression(item.completions[1], 0.2, 0.7))
    events = judging.opinions(rater, item, pair, 1, 7)
    assert judging.opinions(rater, item, pair, 1, 7) == events
    assert [e.kind for e in events] == ["comparison", "rating", "rating"]
    assert [e.assignment for e in events] == [7, None, None]
    assert [e.payload.get("completion") for e in events] == [None, 0, 1]
    assert events[0].payload["choice"] == 0
    order = drawn_order(2, 0, rater.name, 1, item.id)
    assert {e.presented for e in events} == {order}
    assert {e.policy_version for e in events} == {"start"}
    again = judging.opinions(rater, item, pair, 2, 7)
    assert not {e.id for e in events} & {e.id for e in again}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], Any]:
    """The log of a round that nobody disturbed, and the transition's result."""
    directory = tmp_path_factory.mktemp("judged")
    with Store.open(directory / "feedback.db") as store:
        result = judging.judge(stage_of(directory, store))
        return store.log(), result


def test_each_item_is_compared_by_as_many_raters_as_asked(judged: Any) -> None:
    log, result = judged
    comparisons = Counter(e.item for e in log if e.kind == "comparison")
    assert set(comparisons.values()) == {3}
    assert len(comparisons) == result["items"] == 12
    assert result["seq"] == len(log)
    assert result["judgements"] == sum(e.kind != "skip" for e in log)
    for item in comparisons:
        raters = [e.rater for e in log if e.item == item and e.kind in ("comparison", "skip")]
        assert len(set(raters)) == len(raters)


def test_a_skipped_item_goes_to_another_rater(judged: Any) -> None:
    log, _ = judged
    skips = [e for e in log if e.kind == "skip"]
    assert skips, "the panel skipped nothing: choose another seed for this test"
    for skip in skips:
        others = {e.rater for e in log if e.item == skip.item and e.kind == "comparison"}
        assert len(others) == 3
        assert skip.rater not in others


def test_raters_take_turns(judged: Any) -> None:
    log, _ = judged
    turns = [e.rater for e in log if e.assignment is not None]
    assert turns[:8] == [f"rater-{n % 7}" for n in range(8)]


def test_the_rater_after_the_last_who_answered_is_next_whoever_was_idle(tmp_path: Path) -> None:
    raters = panel.training_raters(0)
    with Store.open(tmp_path / "feedback.db") as store:
        assert judging._next_turn(store, raters) == 0
        store.add_items([Item("p", ("a", "b"), id="i")])
        store.assign(["i"], overlap=2)
        for name, turn in (("rater-4", 5), ("rater-6", 7)):  # rater-5 came, and found nothing
            claimed = store.claim(name, now=0, lease_seconds=1)
            assert claimed is not None
            store.append(comparison_event("i", name, 0, assignment=claimed.id))
            store.append(rating_event("i", "rater-0", {"overall": 0.5}))
            assert judging._next_turn(store, raters) == turn


def choosy(seed: int) -> list[Rater]:
    """The panel, but they skip 2 items of 5: so some find nothing left for them when their turn comes."""
    return [replace(rater, skip=0.4) for rater in panel_of(seed)]


panel_of = panel.training_raters


class Killed(BaseException):
    """In place of a kill: nothing of ours catches it."""


@pytest.mark.parametrize("when", ["between claim and answer", "after the answer"])
def test_judging_is_the_same_however_often_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(panel, "training_raters", choosy)
    claim, claims = Store.claim, list[bool]()

    def noted_claim(self: Store, rater: str, now: float, lease_seconds: float) -> Assignment | None:
        found = claim(self, rater, now, lease_seconds)
        claims.append(found is not None)
        return found

    (tmp_path / "undisturbed").mkdir()
    with monkeypatch.context() as patch, Store.open(tmp_path / "undisturbed" / "feedback.db") as store:
        patch.setattr(Store, "claim", noted_claim)
        result = judging.judge(stage_of(tmp_path / "undisturbed", store, prompts=3))
        log = said(store)
    assert (
        False in claims[: max(i for i, found in enumerate(claims) if found)]
    )  # somebody was idle in between

    clock = iter(range(0, 10**9, 10_000))  # every claim comes when the leases before it have run out
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    extend, left, lives = Store.extend, 1, 0

    def one_answer(self: Store, events: Sequence[Event]) -> list[int]:
        nonlocal left
        if left == 0 and when == "between claim and answer":
            raise Killed
        done = extend(self, events)
        left -= 1
        if left < 1 and when == "after the answer":
            raise Killed
        return done

    monkeypatch.setattr(Store, "extend", one_answer)
    while True:
        left, lives = 1, lives + 1
        with Store.open(tmp_path / "feedback.db") as store:
            try:
                again = judging.judge(stage_of(tmp_path, store, prompts=3))
            except Killed:
                continue
            assert said(store) == log
            assert again == result
            break
    assert lives >= sum(claims)  # one answer a life


# A person judges -------------------------------------------------------------------------------------------


class Person:
    """Answers each comparison with the next of these, and the strength with the default; then the input ends."""

    def __init__(self, answers: str) -> None:
        self.answers, self.asked = iter(answers), 0

    def __call__(self, question: str) -> str:
        if question.startswith(("By how much", "That was the last")):
            return ""
        answer = next(self.answers, None)
        if answer is None:
            raise EOFError
        self.asked += 1
        return answer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


def by_me(directory: Path, store: Store, person: Person, **settings: Any) -> dict[str, Any]:
    stage = stage_of(directory, store, ask=person, raters="me", **settings)
    return Journal(directory).do(1, "judge", lambda: judging.judge(stage))


def test_a_persons_answers_are_the_judgements(tmp_path: Path, store: Store) -> None:
    person = Person("12" * 5)
    result = by_me(tmp_path, store, person, answers=10)
    assert person.asked == 10
    assert result == {"items": 12, "judgements": 10, "seq": 10}


@pytest.mark.parametrize("end", ["q", ""])
def test_a_person_may_stop_when_there_is_enough_to_learn_from(tmp_path: Path, store: Store, end: str) -> None:
    assert by_me(tmp_path, store, Person("12121212" + end), answers=12)["judgements"] == 8


@pytest.mark.parametrize("end", ["q", ""])
def test_too_few_answers_are_kept_and_more_can_be_given(tmp_path: Path, store: Store, end: str) -> None:
    with pytest.raises(UserError, match="of 2 answers, which are kept, 2 prefer a side") as caught:
        by_me(tmp_path, store, Person("12" + end), answers=12)
    assert f"plaudit resume {tmp_path}" in caught.value.fix
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "loop.json").exists()
    kept = said(store)
    assert len(kept) == 2
    person = Person("1" * 50)
    assert by_me(tmp_path, store, person, answers=12)["judgements"] == 12
    assert person.asked == 10
    assert said(store)[:2] == kept


def test_in_place_of_ties_and_skips_new_pairs_are_shown(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UserError, match="of 5 answers, which are kept, 2 prefer a side, and at least 5 must"):
        by_me(tmp_path, store, Person("t1b2s"), answers=5)
    person = Person("1" * 50)
    assert by_me(tmp_path, store, person, answers=5)["judgements"] == 4 + person.asked  # the skip is none
    assert person.asked == 3
    assert len({e.item for e in store.log()}) == 8


def test_where_every_pair_is_a_tie_the_fix_says_so(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UserError) as caught:
        by_me(tmp_path, store, Person("t" * 50), answers=40)
    assert "12 answers" in caught.value.what
    assert "another --out and --seed" in caught.value.fix
    with pytest.raises(UserError) as again:
        by_me(tmp_path, store, Person(""), answers=40)
    assert again.value.fix == caught.value.fix
    assert len(store.log()) == 12


def test_a_person_killed_while_judging_goes_on_with_the_same_pairs(tmp_path: Path, store: Store) -> None:
    def killed(question: str) -> str:
        if question.startswith("Which") and len(store.log()) == 6:
            raise KeyboardInterrupt
        return "t" if len(store.log()) % 2 and question.startswith("Which") else "1"

    with pytest.raises(KeyboardInterrupt):
        by_me(tmp_path, store, cast(Any, killed), answers=11)
    person = Person("1" * 50)
    by_me(tmp_path, store, person, answers=11)
    assert person.asked == 5


# Files -----------------------------------------------------------------------------------------------------


def test_rows_come_back_whatever_ends_a_line_elsewhere(tmp_path: Path) -> None:
    rows = [{"completion": f"a{mark}b"} for mark in "\n\r\x0b\x0c\x1c\x85\u2028\u2029\ufeff"]
    files.write_rows(tmp_path / "rows.jsonl", rows)
    assert drawing.read_rows(tmp_path / "rows.jsonl") == rows
    files.write_rows(tmp_path / "none.jsonl", [])
    assert drawing.read_rows(tmp_path / "none.jsonl") == []


def test_rows_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for content in (None, b'{"a": 1}\n{"a"', b"\xff\xfe"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read") as caught:
            drawing.read_rows(path)
        assert caught.value.where == str(path)
