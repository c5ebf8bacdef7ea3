"""Behaviour counts where it foretells opinions, by as much as it does, and not otherwise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from plaudit.feedback.implicit import FOLDS, LEAST, RATER, RIDGE, Calibration, calibrate, of_store
from plaudit.feedback.served import Opinion, Response, Said, Served
from plaudit.feedback.store import Store
from plaudit.types import Message

PROMPT = (Message("user", "Hi"),)


def people(count: int, *, copies: float, seed: int = 0) -> tuple[list[dict[str, float]], list[float]]:
    """Behaviour and opinions of so many. copies: by how much likelier who is content copies an answer."""
    draw = np.random.default_rng(seed)
    scores = (draw.random(count) < 0.5).astype(float)
    copied = draw.random(count) < 0.2 + copies * scores
    return [
        {"dwell": float(draw.exponential(10)), **({"copy": 1.0} if one else {})} for one in copied
    ], scores.tolist()


def test_the_fit_is_the_minimum_of_its_loss() -> None:
    """No step in any direction lowers the penalised likelihood, written anew here in numpy."""
    signals, scores = people(200, copies=0.5)
    found = calibrate(signals, scores)
    x = np.array([[1, math.log1p(s["dwell"]), s.get("copy", 0.0), 0, 0] for s in signals])
    y = np.array(scores)

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float((np.logaddexp(0, z) - y * z).sum() + 0.5 * RIDGE * (w[1:] ** 2).sum())

    assert found.weights is not None
    best = np.array(found.weights)
    for place in range(5):
        for step in (-1e-3, 1e-3):
            moved = best.copy()
            moved[place] += step
            assert loss(moved) > loss(best)
    z = float(best @ [1, math.log1p(3.0), 1, 0, 0])
    assert found.score({"dwell": 3.0, "copy": 1.0}) == pytest.approx(1 / (1 + math.exp(-z)), abs=1e-6)


def test_behaviour_that_says_something_counts_and_noise_does_not() -> None:
    telling = calibrate(*people(300, copies=0.6))
    assert telling.counts
    assert 0.1 < telling.gain < math.log(2)
    assert telling.score({"copy": 1.0}) > 0.7 > 0.3 > telling.score({})
    assert not any(calibrate(*people(300, copies=0.0, seed=seed)).counts for seed in range(8))


def test_too_few_or_all_alike_say_nothing() -> None:
    few = calibrate(*people(LEAST - 1, copies=0.6))
    alike = calibrate([{"copy": 1.0}] * 100, [1.0] * 100)
    for found in (few, alike):
        assert not found.counts
        with pytest.raises(ValueError, match="nothing was fitted"):
            found.score({})
    assert few.both == LEAST - 1
    assert FOLDS < LEAST
    assert not Calibration(100, 1.0, 1.0, (0.0,) * 5).counts


def test_answers_that_nobody_judged_are_guessed_and_those_that_somebody_did_are_not(tmp_path: Path) -> None:
    signals, scores = people(120, copies=0.6)
    with Store.open(tmp_path / "feedback.db") as store:
        served = Served(store)
        who = served.requester("shop", "ann")
        for number, (done, score) in enumerate(zip(signals, scores, strict=True)):
            token = served.keep(
                Response(
                    f"r{number}", 1.0, who, "c", "m", "v", 1.0, PROMPT, (Said(f"answer {number}", "stop"),)
                )
            )
            for kind, value in done.items():
                served.notice(token, kind, value, 2.0)  # type: ignore[arg-type]
            if number < 100:
                served.judge(token, Opinion(score=score))
            elif number == 100:
                served.judge(token, Opinion(correction="Better."))
        found, guessed = of_store(store)
        assert found.both == 100
        assert found.counts
        ratings = [one.rating for one in guessed]
        assert {one.response.id for one in guessed} == {f"r{number}" for number in range(101, 120)}
        assert {one.completion for one in ratings} == {f"answer {number}" for number in range(101, 120)}
        assert {one.rater for one in ratings} == {RATER}
        for one in ratings:
            done = signals[int(one.completion.split()[1])]
            assert dict(one.scores) == {"overall": pytest.approx(found.score(done))}
        store.retract_rater(who)
        assert of_store(store)[1] == []
