"""Mixing rates by hand and by their papers, and draws that follow them."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from plaudit.config import parse
from plaudit.training.mixture import (
    MixtureConfig,
    draw_batch,
    excess_weights,
    first_weights,
    next_weights,
    ratio_weights,
    reference_losses,
    task_names,
    temperature_weights,
)
from plaudit.types import UserError


@pytest.mark.parametrize(
    ("temperature", "limit", "expected"),
    [
        (1.0, None, [0.1, 0.9]),  # in proportion to 100 and 900
        (2.0, None, [0.25, 0.75]),  # to 10 and 30
        (1.0, 300, [0.25, 0.75]),  # to 100 and 300
        (2.0, 400, [1 / 3, 2 / 3]),  # to 10 and 20
        (1e9, None, [0.5, 0.5]),
    ],
)
def test_t5s_mixing_rates_by_hand(temperature: float, limit: int | None, expected: list[float]) -> None:
    found = temperature_weights([100, 900], temperature=temperature, limit=limit)
    assert found == pytest.approx(expected, rel=1e-7)


def test_doremis_update_by_hand() -> None:
    """Golden: excesses ln 2, 0 (clipped from below) and ln 4 on equal weights are 2 : 1 : 4; then 0.3 is spread."""
    goals = [1.0, 1.0, 1.0]
    losses = [1 + math.log(2), 0.2, 1 + math.log(4)]
    found = excess_weights([1 / 3] * 3, losses, goals, strength=1.0, floor=0.0)
    assert found == pytest.approx([2 / 7, 1 / 7, 4 / 7], rel=1e-12)
    found = excess_weights([1 / 3] * 3, losses, goals, strength=2.0, floor=0.3)
    assert found == pytest.approx([0.1 + 0.7 * 4 / 21, 0.1 + 0.7 / 21, 0.1 + 0.7 * 16 / 21], rel=1e-12)
    again = excess_weights([0.5, 0.25, 0.25], losses, goals, strength=1.0, floor=0.0)
    assert again == pytest.approx([4 / 9, 1 / 9, 4 / 9], rel=1e-12)  # it goes on from the weights before


def test_loss_ratios_by_hand() -> None:
    """Golden: half learned against nothing learned, on weights 2 : 1, is 1 : 1; squared 1 : 2."""
    found = ratio_weights([2 / 3, 1 / 3], [1.0, 3.0], [2.0, 3.0], strength=1.0, floor=0.0)
    assert found == pytest.approx([0.5, 0.5], rel=1e-12)
    found = ratio_weights([2 / 3, 1 / 3], [1.0, 3.0], [2.0, 3.0], strength=2.0, floor=0.1)
    assert found == pytest.approx([0.05 + 0.9 / 3, 0.05 + 0.9 * 2 / 3], rel=1e-12)


def test_weights_stay_numbers_at_the_edges() -> None:
    huge = excess_weights([0.5, 0.5], [1e6, 0.0], [0.0, 0.0], strength=10.0, floor=0.0)
    assert huge == [1.0, 0.0]
    learned = ratio_weights([0.5, 0.5], [0.0, 0.0], [1.0, 1.0], strength=1.0, floor=0.0)
    assert learned == pytest.approx([0.5, 0.5])


SIZES = {"b": 3, "a": 5}


def drawn(weights: dict[str, float], steps: int, count: int = 4) -> list[list[tuple[str, int]]]:
    taken = dict.fromkeys(SIZES, 0)
    found = []
    for step in range(steps):
        one, taken = draw_batch(SIZES, weights, taken, count=count, seed=0, step=step)
        found.append(one)
    assert taken == {name: sum(n == name for one in found for n, _ in one) for name in SIZES}
    return found


def test_every_example_of_a_task_comes_before_any_comes_again() -> None:
    flat = [place for one in drawn({"a": 0.5, "b": 0.5}, 25) for place in one]
    for name, size in SIZES.items():
        places = [place for n, place in flat if n == name]
        turns = [places[at : at + size] for at in range(0, len(places) - size + 1, size)]
        assert len(turns) > 5
        assert all(sorted(turn) == list(range(size)) for turn in turns)
        assert len({tuple(turn) for turn in turns}) > 1  # in another order each time


def test_draws_follow_the_weights_and_nothing_else() -> None:
    """Chance: 4,000 draws of probability 0.8 have a standard deviation of 25."""
    counts = Counter(name for one in drawn({"a": 0.8, "b": 0.2}, 1000) for name, _ in one)
    assert abs(counts["a"] - 3200) < 100
    other = draw_batch(
        dict(reversed(SIZES.items())), {"b": 0.2, "a": 0.8}, {"b": 0, "a": 0}, count=4, seed=0, step=0
    )
    assert other[0] == drawn({"a": 0.8, "b": 0.2}, 1)[0]  # not in which order tasks are named
    assert len({tuple(one) for one in drawn({"a": 0.5, "b": 0.5}, 10)}) == 10


def test_names_are_short_where_they_can_be() -> None:
    assert task_names(["a/qa.jsonl", "b/mt.zh.jsonl.gz"]) == ["qa", "mt"]
    assert task_names(["a/qa.jsonl", "b/qa.jsonl", "c.txt"]) == ["a/qa.jsonl", "b/qa.jsonl", "c"]


def test_given_weights_go_with_their_files() -> None:
    mixture = MixtureConfig(rule="fixed", weights=[3.0, 1.0])
    assert first_weights(mixture, ["z", "a"], {"a": 10, "z": 10}) == {"a": 0.25, "z": 0.75}
    by_size = MixtureConfig(rule="fixed", temperature=2.0)
    assert first_weights(by_size, ["z", "a"], {"a": 100, "z": 900}) == {"a": 0.25, "z": 0.75}


def test_the_rule_that_is_named_is_the_one_that_acts() -> None:
    weights, losses, first, goals = (
        {"a": 0.5, "b": 0.5},
        {"a": 1.0, "b": 2.0},
        {"a": 2.0, "b": 2.0},
        {"a": 1.0, "b": 1.0},
    )
    how: dict[str, Any] = {"begun": weights, "first": first, "goals": goals}
    assert next_weights(MixtureConfig(rule="fixed"), weights, losses, **how) == weights
    found = next_weights(MixtureConfig(rule="ratio", floor=0.0), {"a": 0.9, "b": 0.1}, losses, **how)
    assert found == pytest.approx({"a": 1 / 3, "b": 2 / 3})  # from the weights at the beginning, not the last
    mixture = MixtureConfig(rule="excess", reference="run", floor=0.0)
    found = next_weights(mixture, {"a": 0.9, "b": 0.1}, losses, **how)
    assert found == pytest.approx({"a": 0.9 / (0.9 + 0.1 * math.e), "b": 0.1 * math.e / (0.9 + 0.1 * math.e)})


def test_a_reference_is_an_earlier_runs_summary(tmp_path: Path) -> None:
    mixture = MixtureConfig(rule="excess", reference=str(tmp_path))
    with pytest.raises(
        UserError, match=r"summary\.json: does not say the held-out loss of every task \(File"
    ):
        reference_losses(mixture, ["a"])
    (tmp_path / "summary.json").write_text(json.dumps({"heldout_losses": {"a": 1.5, "c": 2}}))
    assert reference_losses(mixture, ["a"]) == {"a": 1.5}
    with pytest.raises(UserError, match=r"\(KeyError: 'b'\); name a finished sft run"):
        reference_losses(mixture, ["a", "b"])
    assert reference_losses(MixtureConfig(), ["a"]) == {}


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"weights": [1.0, 2.0]}, "rule all takes every example once; weights want rule fixed"),
        (
            {"rule": "fixed", "weights": [1.0, 0.0]},
            "weights must be above 0; leave a task's file out instead",
        ),
        ({"rule": "fixed", "weights": [1.0, math.inf]}, "weights"),
        ({"rule": "excess"}, "reference names the run"),
        (
            {"rule": "ratio", "reference": "runs/a"},
            "reference names the run whose held-out losses rule excess",
        ),
        ({"rule": "best"}, "rule: input should be 'all', 'fixed', 'excess' or 'ratio'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        parse(MixtureConfig, settings, "sft.yaml")
