"""What people did with an answer, as a guess at what they would have said of it: measured before it is believed.

Where the same answers have opinions too, a logistic regression learns from behaviour to opinion. It counts only where
it foretells opinions that it was not fitted to better than their mean does; otherwise behaviour says nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit.feedback.events import Event, Item
from plaudit.feedback.served import SERVED, Response, Served
from plaudit.feedback.store import Store
from plaudit.randomness import rng
from plaudit.types import Rating

Floats = NDArray[np.float64]
SIGNALS = ("dwell", "copy", "regenerate", "abandon")
LEAST, FOLDS, RIDGE = 50, 5, 1.0
"""Answers with both that are wanted; parts of cross-validation; the weight of the coefficients' squares."""
CONFIDENCE = 1.645
"""Standard errors by which the held-out gain must be above 0 (one-sided, 5 %)."""
RATER = "behaviour"
"""Whose the guessed ratings are."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How behaviour foretells opinion. both: answers that have both; gain: nats an answer by which held-out opinions
    are foretold better than by their mean, with its standard error; weights: of the intercept and each of SIGNALS
    (dwell as the logarithm of 1 + seconds), None where nothing could be fitted."""

    both: int
    gain: float
    error: float
    weights: tuple[float, ...] | None

    @property
    def counts(self) -> bool:
        """Whether it may train anything."""
        return self.weights is not None and self.gain > CONFIDENCE * self.error

    def score(self, signals: Mapping[str, float]) -> float:
        """The opinion to be expected, 0 to 1. ValueError where nothing was fitted."""
        if self.weights is None:
            raise ValueError("nothing was fitted")
        return float(_sigmoid(_features([signals]) @ np.asarray(self.weights))[0])


def calibrate(signals: Sequence[Mapping[str, float]], scores: Sequence[float], seed: int = 0) -> Calibration:
    """signals: what was done with each answer; scores: what was said of it, 0 to 1."""
    count = len(scores)
    if count < LEAST or len({score > 0.5 for score in scores}) < 2:
        return Calibration(count, 0.0, math.inf, None)
    features, said = _features(signals), np.asarray(scores, dtype=np.float64)
    part = rng(seed, "implicit folds").permutation(count) % FOLDS
    gains = np.empty(count)
    for fold in range(FOLDS):
        out = part == fold
        weights = _fit(features[~out], said[~out])
        mean = float(np.clip(said[~out].mean(), 1e-6, 1 - 1e-6))
        foretold = _likelihood(_sigmoid(features[out] @ weights), said[out])
        gains[out] = foretold - _likelihood(np.full(int(out.sum()), mean), said[out])
    error = float(gains.std(ddof=1) / math.sqrt(count))
    return Calibration(count, float(gains.mean()), error, tuple(map(float, _fit(features, said))))


def _features(signals: Sequence[Mapping[str, float]]) -> Floats:
    rows = [
        [1.0, math.log1p(one.get("dwell", 0.0)), *(min(1.0, one.get(name, 0.0)) for name in SIGNALS[1:])]
        for one in signals
    ]
    return np.asarray(rows, dtype=np.float64)


def _sigmoid(x: Floats) -> Floats:
    found: Floats = 1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0)))
    return found


def _likelihood(chance: Floats, said: Floats) -> Floats:
    chance = np.clip(chance, 1e-6, 1 - 1e-6)
    found: Floats = said * np.log(chance) + (1 - said) * np.log1p(-chance)
    return found


def _fit(features: Floats, said: Floats) -> Floats:
    """Ridge logistic regression by Newton's method; the intercept is not shrunk."""
    ridge = np.diag([1e-6] + [RIDGE] * (features.shape[1] - 1))
    weights = np.zeros(features.shape[1])
    for _ in range(50):
        chance = _sigmoid(features @ weights)
        slope = features.T @ (chance - said) + ridge @ weights
        curve = (features * (chance * (1 - chance))[:, None]).T @ features + ridge
        step = np.linalg.solve(curve, slope)
        weights -= step
        if float(np.abs(step).max()) < 1e-9:
            break
    return weights


@dataclass(frozen=True, slots=True)
class Guess:
    """A rating to be expected of an answer that nobody has judged."""

    response: Response
    rating: Rating


def of_store(store: Store, seed: int = 0) -> tuple[Calibration, list[Guess]]:
    """How behaviour foretells opinion in this store, and, where it does, the ratings to be expected of answers that
    nobody has judged, in order of their ids. What somebody said of an answer stands; it is never replaced by a guess,
    nor is anything guessed of what whoever was retracted has done."""
    served = Served(store)
    done, events = served.signals(), store.current()
    items = store.items({event.item for event in events if event.item is not None})
    said = _opinions(events, items)
    both = [response for response in done if response in said]
    found = calibrate([done[response] for response in both], [said[response] for response in both], seed)
    if not found.counts:
        return found, []
    guessed, active = list[Guess](), {name for name, state in store.raters().items() if state == "active"}
    for response in sorted(set(done) - _judged(events, items)):
        kept = served.get(response)
        if kept.requester not in active:
            continue
        if kept.prompt is not None and kept.completions is not None and len(kept.completions) == 1:
            score = {"overall": found.score(done[response])}
            guessed.append(Guess(kept, Rating(kept.prompt, kept.completions[0].text, score, RATER)))
    return found, guessed


def _opinions(events: Sequence[Event], items: Mapping[str, Item]) -> dict[str, float]:
    """What was said of each answer as a whole, 0 to 1."""
    found = dict[str, float]()
    for event in events:
        item = items.get(event.item or "")
        response: Any = None if item is None else item.meta.get(SERVED)
        if event.kind == "rating" and isinstance(response, str) and "overall" in event.payload["scores"]:
            found[response] = float(event.payload["scores"]["overall"])
    return found


def _judged(events: Sequence[Event], items: Mapping[str, Item]) -> set[str]:
    """Answers of which anything was said."""
    found = set[str]()
    for event in events:
        item = items.get(event.item or "")
        named: Any = [] if item is None else item.meta.get(SERVED, [])
        found |= {named} if isinstance(named, str) else set(named)
    return found
