"""The current view as records to learn from, each with its item and the policy that it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from plaudit.feedback.events import Event, Item
from plaudit.feedback.store import Store
from plaudit.types import Demonstration, Preference, Ranking, Rating, Record

PROJECT = "project"
"""In an item's meta: the project that it belongs to."""
ADJUDICATES = "adjudicates"
"""In an event's payload: a reviewer decided where raters disagree. It is learned from, and is nobody's agreement."""
REPEATS = "repeats"
"""In an item's meta: the one that it shows again to who has judged it. What is asked twice is learned from once."""
R = TypeVar("R", bound=Demonstration | Preference | Ranking | Rating, covariant=True)


@dataclass(frozen=True, slots=True)
class Judged(Generic[R]):
    """One judgement that stands: the record, and where it comes from.

    item: its id; all judgements of an item have the same prompt and completions. event: id in the log.
    policy_version: the event's, or else the item's. seq: the event's number.
    """

    item: str
    record: R
    policy_version: str | None
    rater: str
    event: str
    seq: int


def everything(store: Store, up_to: int | None = None, project: str | None = None) -> list[Judged[Record]]:
    """All that stands as records, in order of seq; of one project, or of the whole store. An edit is a demonstration
    and, where it changed something or chose between two, a preference or ranking too: edited > chosen > rejected."""
    found = list[Judged[Record]]()
    events = store.current(up_to)
    items = store.items({event.item for event in events if event.item is not None})
    for event in events:
        item = items.get(event.item or "")
        if (
            item is None
            or REPEATS in item.meta
            or (project is not None and item.meta.get(PROJECT) != project)
        ):
            continue
        version = event.policy_version or item.policy_version
        for record in records_of(item, event):
            found.append(Judged(item.id, record, version, event.rater, event.id, event.seq))
    return found


def records_of(item: Item, event: Event) -> list[Record]:
    """What one judgement says, as records."""
    return _READ.get(event.kind, _nothing)(item, event)


def preferences(store: Store, up_to: int | None = None) -> list[Judged[Preference]]:
    """The comparisons that stand as of event `up_to` (None: now), and edits of one text, in order of seq."""
    return _of(Preference, store, up_to)


def ratings(store: Store, up_to: int | None = None) -> list[Judged[Rating]]:
    """The ratings that stand."""
    return _of(Rating, store, up_to)


def rankings(store: Store, up_to: int | None = None) -> list[Judged[Ranking]]:
    """The rankings that stand, and edits of the better of two texts."""
    return _of(Ranking, store, up_to)


def demonstrations(store: Store, up_to: int | None = None) -> list[Judged[Demonstration]]:
    """The demonstrations that stand, edits among them, and the categories: a label is what should have been said."""
    return _of(Demonstration, store, up_to)


def _of(kind: type[R], store: Store, up_to: int | None) -> list[Judged[R]]:
    return [cast(Judged[R], judged) for judged in everything(store, up_to) if isinstance(judged.record, kind)]


def _preference(item: Item, event: Event) -> Preference:
    first, second = item.completions
    presented = None if event.presented is None else (event.presented[0], event.presented[1])
    payload = event.payload
    return Preference(
        item.prompt, (first, second), payload["choice"], payload.get("strength"), presented, event.rater
    )


def _rating(item: Item, event: Event) -> Rating:
    completion = item.completions[event.payload.get("completion", 0)]
    return Rating(item.prompt, completion, dict(event.payload["scores"]), event.rater)


def _ranking(item: Item, event: Event) -> Ranking:
    return Ranking(item.prompt, item.completions, tuple(event.payload["ranking"]), event.rater)


def _demonstration(item: Item, event: Event) -> Demonstration:
    return Demonstration(item.prompt, event.payload["completion"], event.rater)


def _edit(item: Item, event: Event) -> list[Record]:
    """What is written, and that it is better than what it was made of."""
    said = _demonstration(item, event)
    chosen = event.payload.get("chosen", 0 if len(item.completions) == 1 else None)
    if type(chosen) is not int or not 0 <= chosen < len(item.completions) <= 2:
        return [said]
    texts = [
        said.completion,
        *(item.completions[i] for i in (chosen, 1 - chosen) if i < len(item.completions)),
    ]
    texts = [text for place, text in enumerate(texts) if text not in texts[:place]]
    if len(texts) == 2:
        return [said, Preference(item.prompt, (texts[0], texts[1]), 0, rater=event.rater)]
    if len(texts) > 2:
        return [said, Ranking(item.prompt, tuple(texts), tuple(range(len(texts))), event.rater)]
    return [said]


def _nothing(_item: Item, _event: Event) -> list[Record]:
    return []


def _category(item: Item, event: Event) -> Demonstration:
    return Demonstration(item.prompt, event.payload["label"], event.rater)


_READ: dict[str, Callable[[Item, Event], list[Record]]] = {
    "comparison": lambda item, event: [_preference(item, event)],
    "rating": lambda item, event: [_rating(item, event)],
    "ranking": lambda item, event: [_ranking(item, event)],
    "demonstration": _edit,
    "category": lambda item, event: [_category(item, event)],
}
