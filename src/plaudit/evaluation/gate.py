"""Whether a new model is better than another, judged one prompt after the other, so that one may look at any time.

Each prompt gives a number from 0 to 1: the mean over its judges of 1 where they prefer the new model, 1/2 for a tie, 0
where they prefer the other. A bettor who starts with 1 stakes on every prompt that the mean is above 1/2; where it is
not, no strategy makes a fortune of 1/alpha with more than probability alpha, whenever one stops (Ville's inequality;
Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by betting"). The strategy here is a mixture
of constant stakes, each a share of what is still there.

Rounds spend alpha in parts that add up to it, so that the chance that any round ever publishes a model that is not
better stays below alpha.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Decision = Literal["publish", "keep out", "go on"]
STAKES = np.geomspace(0.02, 0.95, 24)
"""Shares of what is there that are staked at most, the mean being the least possible."""
Floats = NDArray[np.float64]


@dataclass(slots=True)
class Bet:
    """Evidence that the mean of numbers from 0 to 1 is above `mean`, as a bettor's fortune."""

    mean: float
    count: int = 0
    logs: Floats = field(default_factory=lambda: np.zeros(len(STAKES)))
    best: float = 0.0
    """The logarithm of the largest fortune so far: what is won once need not be kept."""

    def add(self, value: float) -> None:
        """ValueError for what is not within 0 to 1."""
        if not 0 <= value <= 1:
            raise ValueError(f"{value} is not within 0 to 1")
        self.count += 1
        self.logs = self.logs + np.log1p(STAKES / self.mean * (value - self.mean))
        self.best = max(self.best, self.log_fortune)

    @property
    def log_fortune(self) -> float:
        top = float(self.logs.max())
        return top + math.log(float(np.exp(self.logs - top).mean()))

    def shows(self, alpha: float) -> bool:
        """Whether the mean is above, at this level, whenever one looks."""
        return self.best >= -math.log(alpha)


def lower_bound(values: Sequence[float], alpha: float) -> float:
    """A number that the mean is above with probability 1 - alpha, whenever one looks: the largest that the bet refutes,
    to 3 digits."""
    low, high = 0.0, 1.0
    while high - low > 5e-4:
        middle = (low + high) / 2
        bet = Bet(middle)
        for value in values:
            bet.add(value)
        low, high = (middle, high) if bet.shows(alpha) else (low, middle)
    return round(low, 3)


def fewest_cases(margin: float, alpha: float) -> int:
    """Cases that a suite must have so that a model that answers as its parent does is shown to be within the margin."""
    bet = Bet((1 - margin) / 2)
    while not bet.shows(alpha):
        bet.add(0.5)
    return bet.count


def spent(alpha: float, round: int) -> float:
    """The part of alpha that a round may spend; over all rounds, from 1 on, they add up to alpha (Basel)."""
    return alpha * 6 / math.pi**2 / round**2


@dataclass(frozen=True, slots=True)
class Rules:
    """alpha: the chance of ever publishing a model that is not better. effect: the least gain over 1/2 that is worth
    publishing; beta: the chance of giving up one that is. most: prompts that are judged at most. margins: by suite, how
    much worse a model may be, from 0 to 1."""

    alpha: float = 0.05
    effect: float = 0.05
    beta: float = 0.1
    most: int = 1000
    margins: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """why: in words. rates: the mean by opponent and suite; bounds: what each is above at the round's level."""

    decision: Decision
    why: str
    prompts: int
    rates: Mapping[str, float]
    bounds: Mapping[str, float]


class Gate:
    """One round's test of a model against its parent and an anchor; both must be beaten, since preferences can cycle
    (each at the round's level: that all are refuted by chance is no likelier than that one is)."""

    def __init__(self, rules: Rules, round: int, opponents: Sequence[str]) -> None:
        """round: from 1 on. opponents: whom it must be preferred to."""
        self.rules, self.level = rules, spent(rules.alpha, round)
        self.wins = {name: Bet(0.5) for name in opponents}
        self.gives_up = {name: Bet(0.5 - rules.effect) for name in opponents}
        self.safe = {name: Bet((1 - margin) / 2) for name, margin in rules.margins.items()}
        self.values: dict[str, list[float]] = {name: [] for name in (*opponents, *rules.margins)}
        self.prompts, self.examined = 0, False

    def judge(self, outcomes: Mapping[str, float]) -> None:
        """One prompt, against each opponent: 1 where the new model is preferred, 1/2 for a tie, the judges' mean."""
        if set(outcomes) != set(self.wins):
            raise ValueError(f"judged against {sorted(outcomes)}, not {sorted(self.wins)}")
        self.prompts += 1
        for name, value in outcomes.items():
            self.wins[name].add(value)
            self.gives_up[name].add(1 - value)
            self.values[name].append(value)

    def examine(self, suite: str, new: float, old: float) -> None:
        """One case of a suite, scored from 0 to 1 for the new model and for its parent."""
        value = (1 + new - old) / 2
        self.safe[suite].add(value)
        self.values[suite].append(value)

    def close_suites(self) -> None:
        """All cases were examined: what is not shown to be safe by now never will be."""
        self.examined = True

    def decision(self) -> Decision:
        """Publish: preferred to every opponent, and no worse on any suite than its margin allows."""
        return self._decide()[0]

    def verdict(self) -> Verdict:
        """How it stands, with what it rests on."""
        decision, why = self._decide()
        rates, bounds = dict[str, float](), dict[str, float]()
        for name, values in self.values.items():
            if values:
                # Of a suite it is the difference, from -1 to 1.
                scale, shift = (1.0, 0.0) if name in self.wins else (2.0, -1.0)
                rates[name] = scale * float(np.mean(values)) + shift
                bounds[name] = scale * lower_bound(values, self.level) + shift
        return Verdict(decision, why, self.prompts, rates, bounds)

    def _decide(self) -> tuple[Decision, str]:
        hopeless = [name for name, bet in self.gives_up.items() if bet.shows(self.rules.beta)]
        open_ = [name for name, bet in self.wins.items() if not bet.shows(self.level)]
        unsafe = [name for name, bet in self.safe.items() if not bet.shows(self.level)]
        if not open_ and not unsafe:
            return "publish", f"preferred to {' and '.join(self.wins)}"
        if unsafe and self.examined:
            return "keep out", f"not shown to be within its margin on {unsafe[0]}"
        if hopeless and open_:
            return "keep out", f"not preferred to {hopeless[0]} by {self.rules.effect:g}"
        if self.prompts >= self.rules.most:
            what = f"to {open_[0]}" if open_ else f"on {unsafe[0]}"
            return "keep out", f"not shown {what} within {self.rules.most} prompts"
        return "go on", f"{len(open_) + len(unsafe)} comparisons are open"


def length_controlled(outcomes: Sequence[float], lengths: Sequence[tuple[int, int]]) -> float:
    """The win rate that two answers of one length would have: a logistic regression of outcomes on how much longer the
    new model's answer is, read at no difference (Dubois et al. 2024, "Length-controlled AlpacaEval", without the terms
    of prompts). lengths: (new, other), in one unit."""
    longer = np.asarray([new - other for new, other in lengths], dtype=np.float64)
    spread = float(longer.std()) or 1.0
    features = np.stack([np.ones(len(longer)), np.tanh(longer / spread)], axis=1)
    said, weights = np.asarray(outcomes, dtype=np.float64), np.zeros(2)
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
        slope = features.T @ (chance - said) + 1e-3 * weights
        curve = (features * (chance * (1 - chance))[:, None]).T @ features + 1e-3 * np.eye(2)
        step = np.linalg.solve(curve, slope)
        weights = weights - step
        if float(np.abs(step).max()) < 1e-9:
            break
    return float(1 / (1 + math.exp(-weights[0])))
