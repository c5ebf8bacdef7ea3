"""How much a rater's comparisons are worth, from what others said of the same."""

from __future__ import annotations

import pytest

from plaudit.feedback.events import Event, comparison_event, rating_event
from plaudit.feedback.reliability import of_events, raters_wanted
from plaudit.randomness import rng
from plaudit.types import Choice


def crowd(count: int, *raters: tuple[str, float]) -> list[Event]:
    """Each rater is right so often, on items whose better side is drawn."""
    draw, events = rng("crowd", count, len(raters)), list[Event]()
    for number in range(count):
        better = int(draw.random() < 0.5)
        for name, right in raters:
            choice: Choice = 0 if (better == 0) == (draw.random() < right) else 1
            events.append(comparison_event(f"i{number}", name, choice, id=f"{number} {name}"))
    return events


def test_who_contradicts_the_others_counts_for_nothing_and_who_guesses_for_little() -> None:
    found = of_events(crowd(200, ("ann", 0.9), ("bo", 0.85), ("carl", 0.9), ("mole", 0.1), ("dice", 0.5)))
    assert found["ann"].weight > 0.9
    assert found["bo"].weight > 0.85
    assert found["mole"].weight == 0
    assert found["dice"].weight < 0.25
    assert found["mole"].shared == 200
    assert found["mole"].accuracy == pytest.approx(0.1, abs=0.08)


def test_few_answers_prove_little() -> None:
    events = crowd(100, ("ann", 0.9), ("bo", 0.9), ("carl", 0.9))
    new = [
        comparison_event(f"i{n}", "new", other_than_most(events, f"i{n}"), id=f"new {n}") for n in range(2)
    ]
    assert of_events([*events, *new])["new"].weight > 0.6


def other_than_most(events: list[Event], item: str) -> Choice:
    said = [int(event.payload["choice"]) for event in events if event.item == item]
    return 0 if 2 * sum(said) > len(said) else 1


def test_who_shares_nothing_counts_whole() -> None:
    alone = [comparison_event(f"a{n}", "user", 0, id=f"a{n}") for n in range(5)]
    rated = [rating_event("r", "user-2", {"overall": 0.4}, id="r")]
    found = of_events([*alone, *rated])
    assert {name: one.weight for name, one in found.items()} == {"user": 1.0, "user-2": 1.0}
    assert found["user"].accuracy is None


@pytest.mark.parametrize(
    ("alpha", "wanted"),
    # By hand: 0.8 (1 - a) / (a 0.2); at 0.5 four raters, at 0.8 one, at 0.667 two (1.997).
    [(0.5, 4), (0.8, 1), (0.667, 2), (0.3, 6), (0.0, 6), (-0.2, 6), (1.0, 1)],
)
def test_raters_wanted_by_spearman_and_brown(alpha: float, wanted: int) -> None:
    assert raters_wanted(alpha, 1, 6) == wanted
