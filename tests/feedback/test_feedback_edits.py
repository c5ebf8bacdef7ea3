"""An edit is a demonstration, and says that the mended text is better than what it was made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plaudit.feedback.events import Item, category_event, demonstration_event
from plaudit.feedback.judgements import demonstrations, everything, preferences, rankings
from plaudit.feedback.store import Store
from plaudit.types import Demonstration, Preference, Ranking


@pytest.mark.parametrize(
    ("texts", "mended", "chosen", "said"),
    [
        ((), "new", None, []),
        (("old",), "new", None, [Preference("p", ("new", "old"), 0, rater="ann")]),
        (("old",), "old", None, []),
        (("a", "b"), "b, mended", 1, [Ranking("p", ("b, mended", "b", "a"), (0, 1, 2), "ann")]),
        (("a", "b"), "a, mended", 0, [Ranking("p", ("a, mended", "a", "b"), (0, 1, 2), "ann")]),
        (("a", "b"), "b", 1, [Preference("p", ("b", "a"), 0, rater="ann")]),
    ],
)
def test_what_an_edit_says(
    tmp_path: Path, texts: tuple[str, ...], mended: str, chosen: int | None, said: list[Preference | Ranking]
) -> None:
    with Store.open(tmp_path / "feedback.db") as store:
        (item,) = store.add_items([Item("p", texts)])
        event = demonstration_event(item, "ann", mended, id="1")
        if chosen is not None:
            event = replace(event, payload={**event.payload, "chosen": chosen})
        store.append(event)
        found = [judged.record for judged in everything(store)]
        assert found == [Demonstration("p", mended, "ann"), *said]
        assert [judged.record for judged in demonstrations(store)] == found[:1]
        paired = [judged.record for judged in preferences(store)]
        ranked = [judged.record for judged in rankings(store)]
        assert [*paired, *ranked] == said


def test_a_category_is_what_should_have_been_said(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db") as store:
        (item,) = store.add_items([Item("Nice film.", ())])
        store.append(category_event(item, "ann", "good", id="1"))
        assert [judged.record for judged in everything(store)] == [Demonstration("Nice film.", "good", "ann")]


def test_a_project_s_records_are_its_own(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db") as store:
        items = store.add_items([Item("p", ("a",), meta={"project": name}) for name in ("one", "other")])
        for number, item in enumerate(items):
            store.append(demonstration_event(item, "ann", f"new {number}", id=str(number)))
        found = everything(store, project="other")
        assert {judged.item for judged in found} == {items[1]}
        assert len(found) == 2
