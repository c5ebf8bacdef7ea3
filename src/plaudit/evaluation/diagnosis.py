"""What the curves of a training run say is wrong with it, in words: what, since when, what to try.

Rules over the rows of metrics.jsonl. A mean of one batch is noisy, so levels are compared as means over windows, beside
the noise that successive steps show (`training.stop.level_error`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from plaudit.training.stop import broader, closer, level_error, price

Row = Mapping[str, float]
Level = Literal["alarm", "warning", "fine"]
ENOUGH = 6
"""Steps below which no trend is spoken of."""
SURE = 2.0
"""Standard errors that a difference must exceed to be spoken of."""
SURE_OF_PEAK = 4.0
"""The same where one of the two levels was chosen as the highest of all: noise alone reaches 3 now and then."""


class Finding(NamedTuple):
    """level: how bad; what: one sentence with its figures; fix: what to try."""

    level: Level
    what: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure over the steps that have it. steps and values are equally long."""

    steps: list[int]
    values: list[float]

    @classmethod
    def of(cls, rows: Sequence[Row], name: str) -> Curve:
        known = [(int(row["step"]), row[name]) for row in rows if _finite(row.get(name))]
        return cls([step for step, _ in known], [float(value) for _, value in known])

    @property
    def width(self) -> int:
        """Steps that a level is the mean of."""
        return max(3, len(self.values) // 6)

    def until(self, step: int) -> int:
        """The place after the last of its steps that is no later than this one."""
        return sum(own <= step for own in self.steps)

    def level(self, end: int) -> float:
        """The mean over the window that ends before this place."""
        window = self.values[max(0, end - self.width) : end]
        return sum(window) / len(window)

    @property
    def error(self) -> float:
        """The standard error of the difference between two levels."""
        return level_error(self.values, self.width)

    @property
    def first(self) -> float:
        return self.level(min(self.width, len(self.values)))

    @property
    def last(self) -> float:
        return self.level(len(self.values))


def diagnose(
    rows: Sequence[Row],
    stopped: str | None = None,
    *,
    logged: bool = False,
    judged: Sequence[Finding] | None = None,
    settings: Container[str] = (),
) -> list[Finding]:
    """What is wrong with a run that learned from samples, the worst first; what is fine comes last.

    rows: of its metrics.jsonl. stopped: why it ended by itself, or None. logged: the samples were not the policy's own,
    so that their rewards, lengths and ends say nothing of it. judged: of a run that was judged at its end what
    `against_judges` found, in place of a gold score's rule. settings: of the run, by dotted name: what is advised is
    there.
    """
    found = [Finding("alarm", f"The run stopped by itself: {stopped}.")] if stopped else []
    found += judged or []
    if rows:
        if not logged:
            for look in (_alike, _length, _ends):
                found += look(rows)
            for advise in (_flat, *([_gamed] if judged is None else [])):
                found += advise(rows, settings)
        found += [*_distance(rows, settings), *_entropy(rows, settings)]
        for look in (steps_too_large, _critic, _sampler):
            found += look(rows)
    return worst_first(found)


def worst_first(found: Sequence[Finding]) -> list[Finding]:
    """Alarms, then warnings, then what is fine."""
    order = {"alarm": 0, "warning": 1, "fine": 2}
    return sorted(found, key=lambda finding: order[finding.level])


def against_judges(rose: float, wins: tuple[float, float]) -> Finding:
    """Whether judges who took no part in training see what the reward sees. rose: the reward's rise on held-out
    prompts, in its own unit; wins: the 95 % interval of the share of them that the trained model wins, 0 to 1."""
    low, high = wins
    moved = f"On held-out prompts the reward {'rose by' if rose > 0 else 'did not rise, but fell by'} {abs(rose):.3g}"
    share = f"the trained model wins {low:.0%} to {high:.0%}"
    refit = "Collect judgements of today's samples and refit the reward; hold the KL lower."
    if high < 0.5:
        hacked = "Reward hacking: " if rose > 0 else ""
        return Finding("alarm", f"{hacked}{moved}, and the judges prefer the start ({share}).", refit)
    if low <= 0.5:
        return Finding("warning", f"{moved}, and the judges see no sure difference ({share}).", refit)
    if rose <= 0:
        return Finding("warning", f"{moved}, and yet the judges prefer the trained model ({share}).", refit)
    return Finding("fine", f"{moved}, and the judges agree: {share}.")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _gamed(rows: Sequence[Row], settings: Container[str]) -> list[Finding]:
    """Reward hacking: the gold score falls, or stays, while the trained reward does not (Gao et al. 2022)."""
    reward, gold = Curve.of(rows, "reward"), Curve.of(rows, "gold")
    if not gold.values:
        return [
            Finding(
                "warning",
                "No gold scorer was set, so nobody would see it if the reward were gamed.",
                "Set gold: to a scorer that nothing is trained on (another reward model, a rule, a judge).",
            )
        ]
    if len(gold.values) < ENOUGH:
        return []
    ends = range(gold.width, len(gold.values) + 1)
    peak = max(ends, key=gold.level)
    at = gold.steps[peak - 1]
    since = reward.last - reward.level(reward.until(at))
    fell = gold.level(peak) - gold.last
    if fell > SURE_OF_PEAK * gold.error:
        gone = f"after step {at} the gold score fell by {fell:.3g} (from {gold.level(peak):.3g} to {gold.last:.3g})"
        if since < -SURE_OF_PEAK * reward.error:
            what = f"{gone[0].upper()}{gone[1:]}, and the reward by {-since:.3g}."
            return [Finding("warning", what, f"Take the model of about step {at}; lower the learning rate.")]
        moved = f"rose by {since:.3g}" if since > 0 else f"hardly moved ({since:+.3g})"
        return [
            Finding(
                "alarm",
                f"Reward hacking: {gone} while the reward {moved}.",
                f"Take the model of about step {at}; {closer(settings)}; collect judgements of today's samples and "
                "refit the reward; score with an ensemble's worst case.",
            )
        ]
    rose, followed = reward.last - reward.first, gold.last - gold.first
    if rose > SURE * reward.error and followed < SURE * gold.error:
        return [
            Finding(
                "warning",
                f"The reward rose by {rose:.3g}, and the gold score did not follow ({followed:+.3g}).",
                "The reward has learned something else than the gold scorer: refit it, or read the samples.",
            )
        ]
    return [Finding("fine", f"Reward and gold went together: {rose:+.3g} and {followed:+.3g}.")]


def _alike(rows: Sequence[Row]) -> list[Finding]:
    """No differences to learn from."""
    found = []
    spread = Curve.of(rows, "reward_std")
    if spread.values and max(spread.values) == 0:
        found.append(
            Finding(
                "alarm",
                "Every completion of every step has the same reward.",
                "Look at what the reward measures.",
            )
        )
    equal = Curve.of(rows, "equal_groups")
    if not found and equal.values and equal.last > 0.5:
        found.append(
            Finding(
                "warning",
                f"In {equal.last:.0%} of the groups all completions earn the same, and teach nothing.",
                "Raise samples_per_prompt, set dynamic_sampling, or take harder (or easier) prompts.",
            )
        )
    return found


def _flat(rows: Sequence[Row], settings: Container[str]) -> list[Finding]:
    held = price(settings)
    reward, kl = Curve.of(rows, "reward"), Curve.of(rows, "kl")
    if len(reward.values) < ENOUGH or not kl.values:
        return []
    rose = reward.last - reward.first
    if rose > SURE * reward.error:
        return [Finding("fine", f"The reward rose from {reward.first:.3g} to {reward.last:.3g}.")]
    if rose < -SURE * reward.error:
        return [
            Finding(
                "alarm",
                f"The reward fell from {reward.first:.3g} to {reward.last:.3g}.",
                "Lower the learning rate"
                + (f"; if it falls from the first steps on, look at {held}." if held else "."),
            )
        ]
    if kl.last - kl.first > 0.05:
        return [
            Finding(
                "warning",
                f"The reward has not clearly moved ({rose:+.3g}), yet the KL rose to {kl.last:.2g} nats a token.",
                "Take more samples a step, or lower the learning rate: the steps follow noise.",
            )
        ]
    return [
        Finding(
            "warning",
            f"Neither reward ({rose:+.3g}) nor policy (KL {kl.last:.2g} nats a token) has moved.",
            "Raise the learning rate or the steps" + (f"; lower {held}." if held else "."),
        )
    ]


def _distance(rows: Sequence[Row], settings: Container[str]) -> list[Finding]:
    kl = Curve.of(rows, "kl")
    if kl.values and kl.last > 0.5:
        return [
            Finding(
                "warning",
                f"The policy is {kl.last:.2g} nats a token from its reference, where its rewards mean little.",
                f"{closer(settings).capitalize()}; refit the reward on new judgements.",
            )
        ]
    return []


def _entropy(rows: Sequence[Row], settings: Container[str]) -> list[Finding]:
    entropy = Curve.of(rows, "entropy")
    if len(entropy.values) >= ENOUGH and entropy.last < 0.4 * entropy.first:
        return [
            Finding(
                "warning",
                f"Entropy fell from {entropy.first:.2g} to {entropy.last:.2g} nats a token: it says ever fewer things.",
                f"{broader(settings).capitalize()}, or stop earlier.",
            )
        ]
    return []


def _length(rows: Sequence[Row]) -> list[Finding]:
    length = Curve.of(rows, "length")
    if len(length.values) < ENOUGH or not (ratio := length.last / max(length.first, 1e-9)):
        return []
    if 0.5 < ratio < 2:
        return []
    grew = "grew" if ratio > 1 else "shrank"
    return [
        Finding(
            "warning",
            f"Completions {grew} from {length.first:.0f} to {length.last:.0f} tokens.",
            "See whether the reward has a taste for length; compare it with a reward that knows the length alone.",
        )
    ]


def _ends(rows: Sequence[Row]) -> list[Finding]:
    ends = Curve.of(rows, "eos_rate")
    if len(ends.values) >= ENOUGH and ends.last < ends.first - 0.2:
        return [
            Finding(
                "warning",
                f"Completions that end by themselves fell from {ends.first:.0%} to {ends.last:.0%}.",
                "Set missing_eos_penalty, or raise max_new_tokens.",
            )
        ]
    return []


def steps_too_large(rows: Sequence[Row]) -> list[Finding]:
    """Steps too large, or a few that threw the run."""
    found = []
    clipped = Curve.of(rows, "clip_fraction")
    if clipped.values and clipped.last > 0.3:
        found.append(
            Finding(
                "warning",
                f"{clipped.last:.0%} of the ratios are clipped: most of a step's work is thrown away.",
                "Lower the learning rate or the epochs.",
            )
        )
    norm = Curve.of(rows, "grad_norm")
    if len(norm.values) >= ENOUGH:
        median = sorted(norm.values)[len(norm.values) // 2]
        worst = max(norm.values)
        if worst > 10 * median > 0:
            at = norm.steps[norm.values.index(worst)]
            found.append(
                Finding(
                    "warning",
                    f"The gradient's norm was {worst:.3g} at step {at}, the median {median:.3g}.",
                    "Look at that step's batch; lower max_grad_norm.",
                )
            )
    return found


def _critic(rows: Sequence[Row]) -> list[Finding]:
    explained = Curve.of(rows, "explained_variance")
    if len(explained.values) >= ENOUGH and explained.last < 0:
        return [
            Finding(
                "warning",
                f"The values explain nothing of the returns (explained variance {explained.last:.2f}).",
                "Raise value_coef or the epochs; let the value begin as a reward model.",
            )
        ]
    return []


def _sampler(rows: Sequence[Row]) -> list[Finding]:
    """Sampler and trainer disagree."""
    capped, apart = Curve.of(rows, "importance_capped"), Curve.of(rows, "sampler_difference")
    if capped.values and capped.last > 0.01:
        return [
            Finding(
                "warning",
                f"{capped.last:.1%} of the tokens are {apart.last:.2g} nats and more likelier to the trainer than "
                "to the sampler, and are cut off at importance_cap.",
                "Set precision: float32; take fewer epochs; with logged samples take newer ones.",
            )
        ]
    return []
