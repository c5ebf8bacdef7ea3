"""The current view as records to learn from, each with its item and the policy that it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from plaudit.feedback.events import Event, Item, Judgement
from plaudit.feedback.store import Store
from plaudit.types import Demonstration, Preference, Ranking, Rating

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


def preferences(store: Store, up_to: int | None = None) -> list[Judged[Preference]]:
    """The comparisons that stand as of event `up_to` (None: now), in order of seq."""
    return _judged(store, up_to, "comparison", _preference)


def ratings(store: Store, up_to: int | None = None) -> list[Judged[Rating]]:
    """The ratings that stand."""
    return _judged(store, up_to, "rating", _rating)


def rankings(store: Store, up_to: int | None = None) -> list[Judged[Ranking]]:
    """The rankings that stand."""
    return _judged(store, up_to, "ranking", _ranking)


def demonstrations(store: Store, up_to: int | None = None) -> list[Judged[Demonstration]]:
    """The demonstrations that stand."""
    return _judged(store, up_to, "demonstration", _demonstration)


def _judged(
    store: Store, up_to: int | None, kind: Judgement, record: Callable[[Item, Event], R]
) -> list[Judged[R]]:
    events = [event for event in store.current(up_to) if event.kind == kind]
    items = store.items({event.item for event in events if event.item is not None})
    return [
        Judged(
            item.id,
            record(item, event),
            event.policy_version or item.policy_version,
            event.rater,
            event.id,
            event.seq,
        )
        for event in events
        if event.item is not None and (item := items.get(event.item)) is not None
    ]


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
