"""Names and the models behind them: published, split, taken back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from plaudit.feedback.releases import Arm, Releases
from plaudit.feedback.store import Store
from plaudit.types import Missing, UserError

A, B, C = (Arm(version, f"models/{version}") for version in "abc")


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[Releases]:
    with Store.open(tmp_path / "feedback.db") as store:
        yield Releases(store)


def test_what_is_published_last_stands(releases: Releases) -> None:
    assert releases.last() == 0
    one = releases.publish("helper", [A], by="ann")
    assert releases.publish("helper", [A], by="ben") == one
    two = releases.publish("helper", [A, B], by="ben", note="half and half")
    other = releases.publish("poet", [C], by="ann")
    assert releases.newest() == {"helper": two, "poet": other}
    assert releases.history("helper") == [one, two]
    assert [one.number, two.number, other.number, releases.last()] == [1, 2, 3, 3]


def test_going_back_goes_back_and_further_back(releases: Releases) -> None:
    for arm in (A, B, C):
        releases.publish("helper", [arm], by="ann")
    assert releases.roll_back("helper", by="ann").arms == (B,)
    assert releases.roll_back("helper", by="ann").arms == (A,)
    with pytest.raises(UserError, match="nothing was published before"):
        releases.roll_back("helper", by="ann")
    # What is published then follows what stands, not what was given up.
    releases.publish("helper", [C], by="ann")
    back = releases.roll_back("helper", by="ann")
    assert (back.arms, back.restores) == ((A,), 1)
    assert len(releases.history("helper")) == 7
    with pytest.raises(Missing):
        releases.roll_back("nobody", by="ann")
    # One that was published a second time, and not gone back to, has the other behind it.
    for arm in (B, A):
        releases.publish("helper", [arm], by="ann")
    assert releases.roll_back("helper", by="ann").arms == (B,)


@pytest.mark.parametrize(
    ("name", "arms", "what"),
    [
        ("", [A], "is empty"),
        ("x", [], "has 0 models"),
        ("x", [Arm(str(n), "m") for n in range(17)], "has 17 models"),
        ("x", [A, Arm("a", "other")], "the same version"),
        ("x", [Arm("a", "m", 0.0)], "weights"),
        ("x", [Arm("a", "m", -1.0), B], "weights"),
        ("x", [Arm("a", "m", math.nan)], "weights"),
        ("x", [Arm("a", "m", math.inf)], "weights"),
    ],
)
def test_what_cannot_be_published_is_refused(
    releases: Releases, name: str, arms: list[Arm], what: str
) -> None:
    with pytest.raises(UserError, match=what):
        releases.publish(name, arms, by="ann")
    assert releases.last() == 0
