"""Who judges what next: no slot twice, no item twice for one rater, and nothing lost when time runs out."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit.feedback.assignments import Assignment
from plaudit.feedback.events import Item, comparison_event, skip_event
from plaudit.feedback.store import Store
from plaudit.types import UserError

IDS = ["i0", "i1", "i2"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        opened.add_items(Item("p", ("a", "b"), id=id) for id in IDS)
        yield opened


def claim(store: Store, rater: str, now: float = 0.0) -> Assignment:
    found = store.claim(rater, now, 60)
    assert found is not None
    return found


def answer(store: Store, held: Assignment, id: str | None = None) -> int:
    return store.append(comparison_event(held.item, held.rater, 0, assignment=held.id, id=id))


def test_every_item_gets_its_overlap_from_different_raters(store: Store) -> None:
    assert store.assign(IDS, overlap=2) == 6
    assert store.assign(IDS, overlap=2) == 0
    seen = []
    for rater in ("ann", "bob", "cy"):
        while (held := store.claim(rater, 0, 60)) is not None:
            seen.append((held.item, rater))
            answer(store, held)
    assert len(seen) == len(set(seen)) == 6
    assert Counter(item for item, _ in seen) == {"i0": 2, "i1": 2, "i2": 2}
    assert {rater for _, rater in seen} == {"ann", "bob"}
    assert store.assign(IDS, overlap=3) == 3
    assert claim(store, "cy").item == "i0"


def test_every_item_is_judged_once_before_any_is_judged_twice(store: Store) -> None:
    store.assign(IDS, overlap=2)
    assert [claim(store, rater).item for rater in ("a", "b", "c", "d")] == ["i0", "i1", "i2", "i0"]


def test_a_rater_holds_one_item_at_a_time_and_gets_it_again_on_reload(store: Store) -> None:
    store.assign(IDS)
    first = claim(store, "ann", now=0)
    again = claim(store, "ann", now=30)
    assert (again.id, again.item, again.expires) == (first.id, first.item, 90)
    assert claim(store, "bob").item == "i1"
    answer(store, again)
    assert claim(store, "ann").item == "i2"


def test_what_a_rater_holds_comes_before_what_has_become_free(store: Store) -> None:
    store.assign(["i0", "i1"], overlap=2)
    assert claim(store, "bob", now=0).item == "i0"
    held = claim(store, "ann", now=50)
    assert held.item == "i1"
    assert claim(store, "ann", now=70).id == held.id  # bob's slot of i0 has been free for 10 s
    assert claim(store, "ann", now=1e6).id == held.id  # ann's own time is over, but nobody took it
    assert claim(store, "bob", now=1e6).item == "i0"


def test_an_item_returns_when_its_time_runs_out(store: Store) -> None:
    store.assign(["i0"])
    held = claim(store, "ann", now=100)
    assert held.expires == 160
    assert store.claim("bob", 159.9, 60) is None
    taken = claim(store, "bob", now=160)
    assert (taken.id, taken.rater) == (held.id, "bob")
    assert store.claim("ann", 161, 60) is None


def test_an_answer_that_comes_late_is_kept(store: Store) -> None:
    store.assign(["i0"])
    late = claim(store, "ann", now=0)
    taken = claim(store, "bob", now=100)
    answer(store, late, id="late")
    assert [event.id for event in store.current()] == ["late"]
    answer(store, taken, id="in time")
    assert {event.id for event in store.current()} == {"late", "in time"}
    # late, but nobody else took it: it completes the slot as ever
    store.assign(["i1"])
    answer(store, claim(store, "ann", now=0), id="later")
    assert store.claim("cy", 1e9, 60) is None
    # what ann has judged is never given to her, though the slot was bob's
    store.assign(["i0"], overlap=3)
    assert store.claim("ann", 1e9, 60) is None
    assert claim(store, "cy", 1e9).item == "i0"


def test_an_item_judged_elsewhere_is_not_given_to_the_same_rater(store: Store) -> None:
    store.append(comparison_event("i0", "ann", 0))
    assert store.assign(["i0"]) == 0  # one judgement stands, though no slot was answered
    assert store.assign(["i0"], overlap=2) == 1
    assert store.claim("ann", 0, 60) is None
    assert claim(store, "bob").item == "i0"


def test_a_skip_opens_a_slot_for_somebody_else(store: Store) -> None:
    store.assign(["i0"])
    held = claim(store, "ann")
    store.append(skip_event("i0", "ann", assignment=held.id))
    assert store.claim("ann", 0, 60) is None
    answer(store, claim(store, "bob"))
    assert store.claim("cy", 0, 60) is None
    assert store.assign(["i0"]) == 0


def test_answering_twice_is_refused_unless_it_corrects_or_replays(store: Store) -> None:
    store.assign(["i0"], overlap=1)
    held = claim(store, "ann")
    event = comparison_event("i0", "ann", 0, assignment=held.id, id="a")
    assert store.append(event) == store.append(event) == 1
    with pytest.raises(UserError, match="already answered by event a; correct that event"):
        store.append(comparison_event("i0", "ann", 1, assignment=held.id, id="b"))
    assert store.correct("a", comparison_event("i0", "ann", 1, assignment=held.id, id="b")) == 2
    with pytest.raises(UserError, match="of item i0, not i1"):
        store.append(comparison_event("i1", "ann", 1, assignment=held.id))
    with pytest.raises(UserError, match="no assignment 99"):
        store.append(comparison_event("i1", "ann", 1, assignment=99))
    with pytest.raises(UserError, match="no such item"):
        store.assign(["nowhere"])


def test_a_late_answer_is_given_once_unless_it_corrects_or_was_taken_back(store: Store) -> None:
    store.assign(["i0"])
    late = claim(store, "ann", now=0)
    claim(store, "bob", now=100)
    answer(store, late, id="a")
    with pytest.raises(UserError, match="already answered by event a; correct that event"):
        answer(store, late, id="b")
    store.append(comparison_event("i0", "ann", 0, id="elsewhere"))
    with pytest.raises(UserError, match="already answered by event a"):
        store.correct("elsewhere", comparison_event("i0", "ann", 1, assignment=late.id))
    store.correct("a", comparison_event("i0", "ann", 1, assignment=late.id, id="b"))
    store.retract("b")
    taken_back = store.log()[-1].id
    with pytest.raises(UserError, match="already answered"):
        answer(store, late)
    store.correct(taken_back, comparison_event("i0", "ann", 1, assignment=late.id, id="c"))
    assert [event.id for event in store.current()] == ["elsewhere", "c"]


def test_judgements_that_stand_are_counted_however_they_came(store: Store) -> None:
    store.assign(["i0"])
    answer(store, claim(store, "ann"), id="a")
    store.correct("a", comparison_event("i0", "ann", 1, id="b"))
    assert store.assign(["i0"]) == 0  # corrected, and still one judgement
    store.append(comparison_event("i0", "ann", 0))
    store.append(skip_event("i0", "bob"))
    assert store.assign(["i0"], overlap=2) == 1  # ann twice is one rater, and a skip is no judgement
    store.retract("b")
    assert store.assign(["i0"], overlap=2) == 0  # her second still stands, and a slot is open


def test_a_slot_whose_judgement_was_withdrawn_is_opened_by_assigning_again(store: Store) -> None:
    store.assign(IDS)
    for rater in ("ann", "bob"):
        answer(store, claim(store, rater), id=rater)
    store.retract_rater("ann")
    store.forget_rater("bob")
    assert store.assign(IDS) == 2
    assert [claim(store, rater).item for rater in ("cy", "dee", "eve")] == ["i2", "i0", "i1"]


def test_forgetting_gives_open_work_back_and_hides_the_forgottens_own_words(store: Store) -> None:
    store.add_items([Item("ann's own", ("a", "b"), author="ann", id="own")])
    store.assign(["i0", "own"])
    claim(store, "ann")
    store.forget_rater("ann")
    held = claim(store, "bob")
    assert held.item == "i0"
    answer(store, held)
    assert store.claim("bob", 0, 60) is None


def test_the_database_keeps_slots_and_raters_apart(store: Store, tmp_path: Path) -> None:
    store.assign(["i0"], overlap=2)
    claim(store, "ann")
    with sqlite3.connect(tmp_path / "feedback.db") as raw:
        for statement in (
            "INSERT INTO assignments (item, slot) VALUES ('i0', 0)",
            "UPDATE assignments SET rater = 'ann'",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
                raw.execute(statement)
    raw.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["answer", "skip", "leave"]), st.integers(0, 100)),
        max_size=25,
    )
)
def test_no_item_is_answered_twice_by_one_rater_nor_more_often_than_wanted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int]]
) -> None:
    with Store.open(tmp_path_factory.mktemp("store") / "f.db") as store:
        store.add_items(Item("p", ("a", "b"), id=id) for id in IDS)
        store.assign(IDS, overlap=2)
        now = 0.0
        for rater, deed, wait in steps:
            now += wait
            held = store.claim(rater, now, 60)
            if held is not None and deed == "answer":
                answer(store, held)
            elif held is not None and deed == "skip":
                store.append(skip_event(held.item, rater, assignment=held.id))
        events = store.current()
        assert len({(event.item, event.rater) for event in events}) == len(events)
        judged = Counter(event.item for event in events if event.kind != "skip")
        assert all(count <= 2 for count in judged.values())


def _work(path: str, rater: str, gate: object, out: object) -> None:
    with Store.open(path) as store:
        gate.wait()  # type: ignore[attr-defined]
        held = []
        while (assignment := store.claim(rater, 0.0, 60.0)) is not None:
            held.append((assignment.id, assignment.item))
            store.append(comparison_event(assignment.item, rater, 0, assignment=assignment.id))
        out.put((rater, held))  # type: ignore[attr-defined]


def test_processes_that_claim_at_once_never_get_the_same_slot(tmp_path: Path) -> None:
    path = str(tmp_path / "feedback.db")
    with Store.open(path) as store:
        ids = store.add_items(Item(f"p{i}", ("a", "b")) for i in range(40))
        store.assign(ids, overlap=1)
    context = multiprocessing.get_context("spawn")
    gate, out = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_work, args=(path, f"r{i}", gate, out)) for i in range(3)]
    for worker in workers:
        worker.start()
    found = dict(out.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    slots = [slot for held in found.values() for slot, _ in held]
    assert len(slots) == len(set(slots)) == 40
    with Store.open(path) as store:
        assert [event.seq for event in store.log()] == list(range(1, 41))
        assert {event.item for event in store.current()} == set(ids)


def _open(path: str, gate: object, out: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    with Store.open(path) as store:
        out.put(store.last_seq())  # type: ignore[attr-defined]


def test_processes_that_make_the_store_at_once_make_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gate, out = context.Barrier(3), context.Queue()
    path = str(tmp_path / "feedback.db")
    workers = [context.Process(target=_open, args=(path, gate, out)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert [out.get(timeout=5) for _ in workers] == [0, 0, 0]


def test_a_store_being_made_by_another_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # as between another's first look and its change to WAL
    threading.Timer(0.3, other.close).start()
    with Store.open(path) as store:
        assert store.last_seq() == 0
