"""Who is answered by which model, and models that come and go while requests go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from plaudit.feedback.releases import Arm, Releases
from plaudit.feedback.store import Store
from plaudit.serving.backend import Ask, Reply
from plaudit.serving.fleet import Fleet, draw
from plaudit.types import Missing, UserError
from servers import alone

PEOPLE = [f"user-{number}" for number in range(4000)]


def test_shares_are_as_the_weights_say() -> None:
    """Of 4,000 people; the bounds are five standard deviations of a binomial."""
    found = Counter(draw({"a": 1.0, "b": 3.0, "c": 0.0}, who) for who in PEOPLE)
    assert set(found) == {("a", 0.25), ("b", 0.75)}
    assert abs(found["a", 0.25] - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5


def test_people_stay_with_their_model_and_no_more_change_than_must() -> None:
    before = {who: draw({"a": 1.0, "b": 1.0}, who)[0] for who in PEOPLE}
    assert before == {who: draw({"b": 1.0, "a": 1.0}, who)[0] for who in PEOPLE}
    after = {who: draw({"a": 1.0, "b": 3.0}, who)[0] for who in PEOPLE}
    moved = Counter((before[who], after[who]) for who in PEOPLE if before[who] != after[who])
    assert set(moved) == {("a", "b")}  # a quarter of all; nobody the other way
    assert abs(moved["a", "b"] - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5


class Mute:
    """A model that says nothing, and notes when it ends."""

    def __init__(self, arm: Arm, log: list[str]) -> None:
        self.version, self.log = arm.version, log

    async def answer(self, ask: Ask) -> Reply:
        raise NotImplementedError

    async def ready(self) -> bool:
        return self.version != "slow"

    async def close(self, seconds: float) -> None:
        self.log.append(f"{self.version} ends" + ("" if seconds else " at once"))


A, B = Arm("a", "models/a"), Arm("b", "models/b")


def test_models_are_exchanged_and_those_that_go_answer_first(tmp_path: Path) -> None:
    async def scene() -> list[str]:
        log = list[str]()

        async def load(arm: Arm) -> Mute:
            if "broken" in arm.model:
                raise UserError("cannot be read", where=arm.model)
            log.append(f"{arm.version} loads")
            return Mute(arm, log)

        fleet = Fleet(load)
        with Store.open(tmp_path / "feedback.db") as store:
            releases = Releases(store)
            assert not await fleet.ready()
            with pytest.raises(Missing):
                fleet.choose("helper", "ann")
            releases.publish("helper", [A], by="ann")
            assert await fleet.follow(releases)
            assert not await fleet.follow(releases)
            assert await fleet.ready()
            chosen = fleet.choose("helper", "ann")
            assert chosen.propensity == 1.0
            async with fleet.using(chosen):
                releases.publish("helper", [B], by="ann")
                assert await fleet.follow(releases)
                await asyncio.sleep(0.01)
                assert log == ["a loads", "b loads"]  # a is still asked something
                assert fleet.choose("helper", "ann").running.arm.version == "b"
            await asyncio.sleep(0.01)
            assert log == ["a loads", "b loads", "a ends"]
            # Weights change without a model being loaded again; a new one beside it is.
            releases.publish("helper", [Arm("b", "models/b", 3.0), A], by="ann")
            await fleet.follow(releases)
            assert log[3:] == ["a loads"]
            assert {fleet.choose("helper", who).propensity for who in PEOPLE[:100]} == {0.75, 0.25}
            # One that cannot be loaded changes nothing, and says so.
            releases.publish("helper", [Arm("c", "models/c"), Arm("d", "broken")], by="ann")
            await fleet.follow(releases)
            assert "release 4 of helper: broken: cannot be read" in fleet.fault
            assert log[4:] == ["c loads", "c ends at once"]
            assert {each.arm.version for each in fleet.names["helper"]} == {"a", "b"}
            releases.roll_back("helper", by="ann")
            await fleet.follow(releases)
            assert fleet.fault == ""
            assert log[6:] == []
            # Another model under a version's name is another model.
            releases.publish("helper", [Arm("slow", "x"), Arm("b", "models/b", adapter="y")], by="ann")
            await fleet.follow(releases)
            assert not await fleet.ready()
            await fleet.close()
            return log

    log = alone(scene())
    assert Counter(log[6:]) == {
        "slow loads": 1, "b loads": 1, "a ends": 1, "b ends": 2, "slow ends": 1,
    }  # fmt: skip
