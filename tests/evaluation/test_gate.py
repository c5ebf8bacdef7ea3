"""The gate: its false publications stay under alpha whenever one looks, and it finds what is worth finding."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from plaudit.evaluation.gate import STAKES, Bet, Gate, Rules, length_controlled, lower_bound, spent


def outcomes(draw: np.random.Generator, mean: float, count: int, ties: float = 0.3) -> np.ndarray:
    """Wins, ties and losses with this mean."""
    kinds = draw.random(count)
    return np.where(kinds < ties, 0.5, (draw.random(count) < (mean - ties / 2) / (1 - ties)).astype(float))


def test_the_fortune_is_a_fair_game_at_the_border() -> None:
    """By hand: over all sequences of three outcomes from {0, 1/2, 1}, equally likely, the expected fortune is 1."""
    total = 0.0
    for a in (0.0, 0.5, 1.0):
        for b in (0.0, 0.5, 1.0):
            for c in (0.0, 0.5, 1.0):
                bet = Bet(0.5)
                for value in (a, b, c):
                    bet.add(value)
                total += math.exp(bet.log_fortune)
    assert total / 27 == pytest.approx(1.0, abs=1e-12)
    one = Bet(0.5)
    one.add(1.0)
    assert math.exp(one.log_fortune) == pytest.approx(float(np.mean(1 + STAKES)))
    with pytest.raises(ValueError, match="not within"):
        one.add(1.5)


def test_looking_all_the_time_is_allowed() -> None:
    """4,000 sequences of 300 without a gain, looked at after every one: fewer than alpha and two standard errors."""
    draw, wrong, runs, alpha = np.random.default_rng(0), 0, 4000, 0.05
    stakes = STAKES / 0.5
    for _ in range(runs):
        values = outcomes(draw, 0.5, 300)
        logs = np.cumsum(np.log1p(stakes[:, None] * (values - 0.5)), axis=1)
        wrong += bool(np.exp(logs).mean(axis=0).max() >= 1 / alpha)
    assert 0.01 < wrong / runs < alpha + 2 * math.sqrt(alpha * (1 - alpha) / runs)


def test_rounds_spend_no_more_than_alpha() -> None:
    parts = [spent(0.05, round) for round in range(1, 20_000)]
    assert sum(parts) < 0.05
    assert sum(parts) == pytest.approx(0.05, abs=1e-5)
    assert parts[0] > parts[1] > parts[2]


def run(gate: Gate, draw: np.random.Generator, means: dict[str, float], suite: float | None = None) -> str:
    while True:
        gate.judge({name: float(outcomes(draw, mean, 1)[0]) for name, mean in means.items()})
        if suite is not None:
            gate.examine("safety", float(draw.random() < suite), 1.0)
        if (found := gate.decision()) != "go on":
            return found


def test_what_is_better_is_published_and_what_is_not_is_kept_out() -> None:
    draw, rules = np.random.default_rng(1), Rules(most=600)
    good = [run(Gate(rules, 1, ["parent"]), draw, {"parent": 0.65}) for _ in range(40)]
    same = [run(Gate(rules, 1, ["parent"]), draw, {"parent": 0.5}) for _ in range(40)]
    assert good.count("publish") >= 38
    assert same.count("publish") <= 5
    # Preferred to its parent, and not to the anchor: preferences can cycle.
    cycles = [
        run(Gate(rules, 1, ["parent", "anchor"]), draw, {"parent": 0.7, "anchor": 0.4}) for _ in range(20)
    ]
    assert cycles.count("publish") == 0


def test_a_model_that_is_worse_on_a_suite_is_kept_out() -> None:
    draw, rules = np.random.default_rng(2), Rules(most=400, margins={"safety": 0.1})
    safe = [run(Gate(rules, 1, ["parent"]), draw, {"parent": 0.7}, suite=1.0) for _ in range(10)]
    unsafe = [run(Gate(rules, 1, ["parent"]), draw, {"parent": 0.7}, suite=0.7) for _ in range(10)]
    assert safe.count("publish") == 10
    assert unsafe.count("publish") == 0


def test_a_verdict_says_why_and_how_much() -> None:
    gate = Gate(Rules(most=50), 1, ["parent", "anchor"])
    assert gate.verdict().decision == "go on"
    for _ in range(40):
        gate.judge({"parent": 1.0, "anchor": 1.0})
    found = gate.verdict()
    assert (found.decision, found.why, found.prompts) == ("publish", "preferred to parent and anchor", 40)
    assert found.rates == {"parent": 1.0, "anchor": 1.0}
    assert 0.5 < found.bounds["parent"] < 1.0
    lost = Gate(Rules(), 1, ["parent"])
    for _ in range(60):
        lost.judge({"parent": 0.2})
    assert lost.verdict().why == "not preferred to parent by 0.05"
    slow = Gate(Rules(most=10), 3, ["parent"])
    for _ in range(10):
        slow.judge({"parent": 0.55})
    assert slow.verdict().why == "not shown to parent within 10 prompts"
    with pytest.raises(ValueError, match="judged against"):
        slow.judge({"anchor": 1.0})


def test_the_bound_holds_and_is_not_far_from_the_mean() -> None:
    draw = np.random.default_rng(3)
    found = [lower_bound(outcomes(draw, 0.6, 200).tolist(), 0.1) for _ in range(100)]
    assert sum(bound > 0.6 for bound in found) <= 10
    fixed = 0.6 - NormalDist().inv_cdf(0.9) * 0.42 / math.sqrt(200)  # of one look; always looking costs some
    assert 0.45 < float(np.mean(found)) < fixed


def test_length_is_taken_out_of_the_win_rate() -> None:
    """Judges who like what is longer, and nothing else: at one length nobody is better."""
    draw = np.random.default_rng(4)
    new, old = draw.integers(80, 200, 4000), draw.integers(50, 170, 4000)
    lengths = list(zip(new.tolist(), old.tolist(), strict=True))
    longer = 1 / (1 + np.exp(-(new - old) / 40))
    liking = (draw.random(4000) < longer).astype(float).tolist()
    assert np.mean(liking) > 0.6
    assert length_controlled(liking, lengths) == pytest.approx(0.5, abs=0.04)
    taste = (draw.random(4000) < 0.7).astype(float).tolist()
    assert length_controlled(taste, lengths) == pytest.approx(0.7, abs=0.04)
