"""A session at the terminal, driven key by key."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from plaudit.feedback.events import Event, Item, drawn_order
from plaudit.feedback.store import Store
from plaudit.feedback.terminal import Session, compare_pairs
from plaudit.types import Message, UserError

IDS = [f"i{n}" for n in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        opened.add_items(Item(f"prompt {id}", (f"zero {id}", f"one {id}"), id=id) for id in IDS)
        yield opened


def keys(*lines: str) -> Callable[[str], str]:
    waiting = list(lines)

    def ask(_question: str) -> str:
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    return ask


def run(store: Store, *lines: str, items: list[str] = IDS) -> tuple[Session, str]:
    out = io.StringIO()
    session = compare_pairs(store, items, "me", keys(*lines), Console(file=out, width=80), key=(7,))
    return session, out.getvalue()


def payloads(events: list[Event]) -> list[object]:
    return [event.payload.get("choice", event.kind) for event in events]


def test_choices_are_indices_of_completions_whatever_stood_first(store: Store) -> None:
    session, _ = run(store, "1", "", "1", "4", "2", "1", "t", "B", " s ", "")
    assert session == Session(6, 0)
    events = store.current()
    orders = [drawn_order(2, 7, "me", id) for id in IDS]
    assert set(orders) == {(0, 1), (1, 0)}
    assert [event.presented for event in events] == orders
    assert payloads(events) == [orders[0][0], orders[1][0], orders[2][1], "tie", "both_bad", "skip"]
    assert [event.payload.get("strength") for event in events] == [2, 4, 1, None, None, None]


def test_the_screen_shows_the_drawn_order_as_it_stands(store: Store) -> None:
    store.add_items([Item((Message("user", "[bold]hi[/bold]"),), ("\x1b[2Jwiped", "plain [red]x"), id="odd")])
    _, screen = run(store, items=["odd"])
    assert "user: [bold]hi[/bold]" in screen
    assert "plain [red]x" in screen
    assert "\x1b[2J" not in screen
    first = drawn_order(2, 7, "me", "odd")[0]
    assert (screen.index("wiped") < screen.index("plain")) == (first == 0)


@pytest.mark.parametrize("ending", [["q"], [], ["1", "q"], ["1"], ["nonsense", "5", "q"]])
def test_quitting_keeps_what_was_answered_and_the_session_goes_on_later(
    store: Store, ending: list[str]
) -> None:
    session, screen = run(store, "t", "t", *ending)
    assert session == Session(2, 4)
    assert "2 answered and kept, 4 left" in screen
    assert payloads(store.current()) == ["tie", "tie"]
    assert run(store, "b", "q")[0] == Session(1, 3)
    assert [event.item for event in store.current()] == IDS[:3]


def test_undo_asks_again_and_the_first_answer_stays_in_the_log(store: Store) -> None:
    session, screen = run(store, "u", "t", "u", "b", "u", "s", "t", "q")
    assert "Nothing to undo yet" in screen
    assert session == Session(2, 4)
    assert payloads(store.current()) == ["skip", "tie"]
    assert payloads(store.log()) == ["tie", "both_bad", "skip", "tie"]
    assert [event.supersedes for event in store.log()[1:3]] == [store.log()[0].id, store.log()[1].id]


def test_undo_of_the_strength_and_of_the_last_pair(store: Store) -> None:
    run(store, "1", "u", "t", "u", "b", "", items=["i0"])
    assert payloads(store.log()) == ["tie", "both_bad"]
    assert payloads(store.current()) == ["both_bad"]


def test_a_pair_taken_back_elsewhere_is_asked_again(store: Store) -> None:
    run(store, "t", "q")
    store.retract(store.log()[0].id)
    assert store.current() == []
    assert run(store, "t", "q")[0] == Session(1, 5)
    assert payloads(store.current()) == ["tie"]


def test_items_that_are_no_pairs_are_refused_before_the_first_question(store: Store) -> None:
    store.add_items([Item("p", ("only",), id="one")])
    with pytest.raises(UserError, match="1 completions, not two"):
        run(store, items=["i0", "one"])
    with pytest.raises(UserError, match="no such item"):
        run(store, items=["nowhere"])
    assert run(store, items=[])[0] == Session(0, 0)
