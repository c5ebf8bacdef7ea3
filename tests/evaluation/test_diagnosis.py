"""The diagnosis of a run: each rule speaks where it should, says when and what to try, and is silent elsewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest

from plaudit.evaluation.diagnosis import Curve, Finding, against_judges, diagnose
from plaudit.randomness import rng

STEPS = 60


def rows(seed: int = 0, **curves: Any) -> list[dict[str, float]]:
    """A run in which all is well, but for the curves given: functions of the share of the run that is over."""
    draw = rng("diagnosis", seed)
    well: dict[str, Any] = {
        "reward": lambda t: 2 * t,
        "gold": lambda t: 0.5 * t,
        "reward_std": lambda _: 1.0,
        "kl": lambda t: 0.2 * t,
        "entropy": lambda t: 3 - 0.5 * t,
        "length": lambda t: 40 + 4 * t,
        "eos_rate": lambda _: 0.9,
        "clip_fraction": lambda _: 0.05,
        "explained_variance": lambda t: 0.5 * t,
        "importance_capped": lambda _: 0.0,
        "sampler_difference": lambda _: 1e-4,
        "grad_norm": lambda _: 0.5,
    }
    noise = {"reward": 0.15, "gold": 0.05}
    return [
        {"step": step + 1}
        | {
            name: curve(step / (STEPS - 1)) + noise.get(name, 0.0) * float(draw.normal())
            for name, curve in (well | curves).items()
            if curve is not None
        }
        for step in range(STEPS)
    ]


def alarms(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.level == "alarm"]


@pytest.mark.parametrize("seed", range(40))
def test_a_run_in_which_all_is_well_has_nothing_to_look_at(seed: int) -> None:
    found = diagnose(rows(seed))
    assert {finding.level for finding in found} == {"fine"}
    assert any("Reward and gold went together" in finding.what for finding in found)


@pytest.mark.parametrize("seed", range(40))
def test_reward_hacking_is_named_where_gold_and_reward_part(seed: int) -> None:
    """Gold turns at a third of the run; the alarm says about where, and comes first."""
    found = diagnose(rows(seed, gold=lambda t: t if t < 1 / 3 else 2 / 3 - t))
    assert found[0].level == "alarm"
    assert found[0].what.startswith("Reward hacking: after step ")
    at = int(found[0].what.split("after step ")[1].split()[0])
    assert 15 <= at <= 29
    assert f"about step {at}" in found[0].fix


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("after", [0.0, -0.1], ids=["saturated", "a little lower"])
def test_a_reward_that_has_saturated_hides_no_hacking(seed: int, after: float) -> None:
    """Both rise until half-way; then gold falls, though not to where it began, and the reward as good as stays."""
    found = diagnose(
        rows(
            seed,
            reward=lambda t: 4 * t if t < 0.5 else 2 + after * (2 * t - 1),
            gold=lambda t: t if t < 0.5 else 0.5 - 0.8 * (t - 0.5),
        )
    )
    assert found[0].what.startswith("Reward hacking: after step ")
    assert not any("together" in finding.what for finding in found)


def test_reward_and_gold_that_turn_together_are_told_of_and_are_no_hacking() -> None:
    found = diagnose(rows(reward=lambda t: 2 - abs(4 * t - 2), gold=lambda t: 0.5 - abs(t - 0.5)))
    assert not any("hacking" in finding.what or "together" in finding.what for finding in found)
    assert any(
        re.match(r"After step \d+ the gold score fell by .*, and the reward by ", f.what) for f in found
    )


def test_a_gold_score_of_every_third_step_is_held_against_the_reward_of_its_own_steps() -> None:
    """Gold turns at the end of the first third. The reward falls until then, and rises after it."""
    some = rows(reward=lambda t: abs(6 * t - 2), gold=lambda t: t if t < 1 / 3 else 2 / 3 - t)
    for row in some:
        if row["step"] % 3:
            del row["gold"]
    found = diagnose(some)
    told = re.match(r"Reward hacking: after step .* the reward rose by (\S+)\.$", found[0].what)
    assert told is not None
    assert 2.5 < float(told.group(1)) < 4


@pytest.mark.parametrize("seed", range(40))
def test_noise_in_the_gold_score_is_no_reward_hacking(seed: int) -> None:
    assert not alarms(diagnose(rows(seed, gold=lambda _: 0.0)))
    draw = rng("noisy gold", seed)
    assert not alarms(diagnose(rows(seed, gold=lambda t: 0.2 * t + 0.5 * float(draw.normal()))))


def test_both_falling_is_no_reward_hacking_but_is_named() -> None:
    found = diagnose(rows(reward=lambda t: -2 * t, gold=lambda t: -t))
    (alarm,) = alarms(found)
    assert alarm.what.startswith("The reward fell from -0.")
    assert not any("hacking" in finding.what for finding in found)


def test_gold_that_stays_while_the_reward_rises_is_told() -> None:
    """At two standard errors noise alone passes for a rise now and then: one time in forty."""
    told = [
        any(
            "the gold score did not follow" in finding.what
            for finding in diagnose(rows(s, gold=lambda _: 0.0))
        )
        for s in range(40)
    ]
    assert sum(told) >= 35


def test_without_a_gold_scorer_it_says_what_cannot_be_seen() -> None:
    (first, *_) = diagnose(rows(gold=None))
    assert (first.level, "No gold scorer" in first.what) == ("warning", True)


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ({"reward": lambda _: 0.0}, "The reward has not clearly moved"),
        ({"reward": lambda _: 0.0, "kl": lambda _: 0.001}, "Neither reward"),
        ({"kl": lambda t: 0.8 * t}, "nats a token from its reference"),
        ({"entropy": lambda t: 3 - 2.5 * t}, "Entropy fell from 2.8 to 0.69"),
        ({"length": lambda t: 20 + 60 * t}, "Completions grew from 25 to 75"),
        ({"length": lambda t: 80 - 60 * t}, "Completions shrank from 75 to 25"),
        ({"eos_rate": lambda t: 0.9 - 0.6 * t}, "end by themselves fell from 85% to 35%"),
        ({"clip_fraction": lambda t: 0.5 * t}, "of the ratios are clipped"),
        ({"explained_variance": lambda _: -0.3}, "explain nothing of the returns"),
        ({"importance_capped": lambda _: 0.05, "sampler_difference": lambda _: 0.7}, "5.0% of the tokens"),
        ({"equal_groups": lambda _: 0.8}, "In 80% of the groups"),
        ({"reward_std": lambda _: 0.0}, "Every completion of every step has the same reward"),
    ],
)
def test_each_rule_speaks_of_its_own(curves: dict[str, Any], said: str) -> None:
    found = [finding for finding in diagnose(rows(**curves)) if finding.level != "fine"]
    assert any(said in finding.what and finding.fix for finding in found), found


def test_one_wild_step_is_found() -> None:
    found = rows()
    found[41]["grad_norm"] = 30.0
    assert any("norm was 30 at step 42" in finding.what for finding in diagnose(found))


def test_a_run_that_stopped_says_so_first() -> None:
    (first, *_) = diagnose(rows(), stopped="KL 1.2 nats a token is over 1.0")
    assert first.what == "The run stopped by itself: KL 1.2 nats a token is over 1.0."


def test_of_logged_samples_only_what_the_policy_did_is_said() -> None:
    """Their rewards, lengths and ends are not the policy's; its distance and its steps are."""
    odd = rows(
        gold=None, reward=lambda t: -2 * t, length=lambda t: 80 - 60 * t, eos_rate=lambda t: 0.9 - 0.6 * t
    )
    assert diagnose(odd, logged=True) == []
    assert len(diagnose(odd)) == 4
    (far,) = diagnose(rows(kl=lambda t: 0.8 * t), logged=True)
    assert "nats a token from its reference" in far.what


def test_short_and_empty_runs_and_holes_are_no_trouble() -> None:
    assert diagnose([]) == []
    assert diagnose([], stopped="x")[0].level == "alarm"
    assert not alarms(diagnose(rows()[:3]))
    holed = rows()
    for row in holed[::2]:
        row["gold"] = None  # type: ignore[assignment]
    assert not alarms(diagnose(holed))


def test_a_curves_levels_and_noise_by_hand() -> None:
    """Windows of three; differences 1, -1, 1, ... have the mean square 1, so a step's variance is a half."""
    curve = Curve.of([{"step": i + 1, "x": float(i % 2)} for i in range(12)], "x")
    assert curve.width == 3
    assert curve.first == pytest.approx(1 / 3)
    assert curve.last == pytest.approx(2 / 3)
    assert curve.error == pytest.approx((0.5 * 2 / 3) ** 0.5)


@pytest.mark.parametrize(
    ("rose", "wins", "level", "said"),
    [
        (0.4, (0.55, 0.7), "fine", r"rose by 0\.4, and the judges agree: .* wins 55% to 70%"),
        (0.4, (0.45, 0.7), "warning", r"no sure difference \(.* 45% to 70%\)"),
        (0.4, (0.5, 0.7), "warning", "no sure difference"),
        (0.4, (0.2, 0.4), "alarm", r"^Reward hacking: .*rose by 0\.4, and the judges prefer the start .*20% to 40%"),
        (-0.1, (0.55, 0.7), "warning", r"fell by 0\.1, and yet the judges prefer the trained model .*55% to 70%"),
        (-0.1, (0.1, 0.3), "alarm", r"^On held-out .*fell by 0\.1, and the judges prefer the start .*10% to 30%"),
    ],
)  # fmt: skip
def test_judges_say_whether_the_reward_was_gamed(
    rose: float, wins: tuple[float, float], level: str, said: str
) -> None:
    found = against_judges(rose, wins)
    assert found.level == level
    assert re.search(said, found.what)
    assert bool(found.fix) == (level != "fine")


def test_a_run_that_was_judged_needs_no_gold_score() -> None:
    judged = against_judges(1.0, (0.1, 0.3))
    found = diagnose(rows(gold=None), judged=[judged])
    assert found[0] is judged
    assert not any("gold" in finding.what for finding in found)
    assert not any("gold" in finding.what for finding in diagnose(rows(gold=None), judged=[]))
    assert diagnose([], judged=[judged]) == [judged]


def test_a_policy_that_began_far_from_its_reference_has_not_moved() -> None:
    found = diagnose(rows(reward=lambda _: 1.0, kl=lambda _: 0.3))
    assert any(finding.what.startswith("Neither reward") for finding in found)
