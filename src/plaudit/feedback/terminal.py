"""The person at the terminal compares pairs, one key each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from plaudit.feedback.events import Event, Item, comparison_event, drawn_order, event_id, skip_event
from plaudit.feedback.store import Store
from plaudit.types import Choice, Missing, Prompt, UserError

HELP = "1 or 2 the better, t tie, b both bad, s skip, u undo, q quit"
_ANSWERS = {"1": "1", "2": "2", "t": "tie", "b": "both_bad", "s": "skip", "u": "undo", "q": "quit"}
_DEFAULT_STRENGTH = 2
Answer = tuple[Choice, int | None] | Literal["skip", "undo", "quit"]


@dataclass(frozen=True, slots=True)
class Session:
    """How a session at the terminal ended: pairs answered (compared or skipped) and pairs left."""

    answered: int
    left: int


def compare_pairs(
    store: Store,
    items: Sequence[str],
    rater: str,
    ask: Callable[[str], str],
    console: Console,
    *,
    key: Sequence[int | str] = (),
    guideline_version: str | None = None,
) -> Session:
    """Shows each pair in an order drawn from the key, asks which is better, and stores every answer at once.

    ask: gives a question, returns the line typed; raises EOFError at the end of input, which ends the session
    as q does. Pairs that the rater has answered before are passed over, so that a session can be taken up
    again. Undo asks the pair before once more; the new answer supersedes the old one, and both stay in the log.
    UserError for an item that is not there or is no pair.
    """
    pairs = _pairs(store, items)
    answered = {e.item for e in store.current() if e.rater == rater and e.kind in ("comparison", "skip")}
    todo = [item for item in pairs if item.id not in answered]
    tips = _tips(store, rater)
    mine: set[str] = set()
    at = 0
    while todo:
        if at == len(todo):
            if not _undo_last(ask):
                break
            at -= 1
        item = todo[at]
        order = drawn_order(2, *key, rater, item.id)
        _show(console, item, order, f"{at + 1} of {len(todo)}")
        answer = _answer(ask, console, order, first=at == 0)
        if answer == "quit":
            break
        if answer == "undo":
            at -= 1
            continue
        before = tips.get(item.id)
        id = event_id("terminal", *key, rater, item.id, before or "")
        fields = {"id": id, "presented": order, "supersedes": before, "guideline_version": guideline_version}
        store.append(_event(item.id, rater, answer, fields))
        tips[item.id] = id
        mine.add(item.id)
        at += 1
    console.print(f"Thank you: {len(mine)} answered and kept, {len(todo) - len(mine)} left.")
    return Session(len(mine), len(todo) - len(mine))


def _pairs(store: Store, ids: Sequence[str]) -> list[Item]:
    known = store.items(ids)
    for id in ids:
        if id not in known:
            raise Missing("item", id, fix="add it first")
        if len(known[id].completions) != 2:
            raise UserError(f"has {len(known[id].completions)} completions, not two", where=f"item {id}")
    return [known[id] for id in dict.fromkeys(ids)]


def _tips(store: Store, rater: str) -> dict[str, str]:
    """What a new answer supersedes: the rater's last word on each item, even where it was taken back."""
    log = [e for e in store.log() if e.rater == rater and e.kind in ("comparison", "skip", "retract")]
    superseded = {event.supersedes for event in log}
    return {event.item: event.id for event in log if event.item is not None and event.id not in superseded}


def _event(
    item: str, rater: str, answer: tuple[Choice, int | None] | Literal["skip"], fields: dict[str, Any]
) -> Event:
    if answer == "skip":
        return skip_event(item, rater, **fields)
    choice, strength = answer
    return comparison_event(item, rater, choice, strength=strength, **fields)


def _show(console: Console, item: Item, order: tuple[int, ...], progress: str) -> None:
    console.rule(progress)
    console.print(Panel(_shown(_text(item.prompt)), title="prompt"))
    for place, index in enumerate(order, 1):
        console.print(Panel(_shown(item.completions[index]), title=str(place)))


def _shown(text: str) -> str:
    """The text as it stands: neither markup nor what would steer the terminal."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text))


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.role}: {message.content}" for message in prompt)


def _answer(ask: Callable[[str], str], console: Console, order: tuple[int, ...], first: bool) -> Answer:
    """Asks until the line means something; the choice is an index into the completions, not a place."""
    try:
        while True:
            match _ANSWERS.get(ask(f"Which is better? ({HELP}) ").strip().lower()):
                case "1" | "2" as place:
                    strength = _strength(ask, console)
                    if strength is None:
                        continue
                    return (1 if order[int(place) - 1] else 0), strength
                case "tie":
                    return "tie", None
                case "both_bad":
                    return "both_bad", None
                case "skip":
                    return "skip"
                case "undo" if first:
                    console.print("Nothing to undo yet.")
                case "undo":
                    return "undo"
                case "quit":
                    return "quit"
                case _:
                    console.print(f"Please type {HELP}.")
    except EOFError:
        return "quit"


def _strength(ask: Callable[[str], str], console: Console) -> int | None:
    """1 to 4; None when the person takes the choice back with u. EOFError on q as at the end of input."""
    while True:
        line = ask(f"By how much? (1 slightly to 4 very much, u undo) [{_DEFAULT_STRENGTH}] ").strip().lower()
        if line == "":
            return _DEFAULT_STRENGTH
        if line in ("1", "2", "3", "4"):
            return int(line)
        if line == "u":
            return None
        if line == "q":
            raise EOFError
        console.print("Please type 1, 2, 3 or 4.")


def _undo_last(ask: Callable[[str], str]) -> bool:
    try:
        return ask("That was the last pair. (enter to finish, u undo) ").strip().lower() == "u"
    except EOFError:
        return False
