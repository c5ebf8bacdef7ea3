"""report.html of a quickstart run: one file that opens from disk, with every figure that the run came to."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit import config as configs
from plaudit import files
from plaudit.evaluation import plots
from plaudit.evaluation.diagnosis import Finding, against_judges, diagnose
from plaudit.evaluation.page import dig, fill, interval, number, read_json, read_rows, read_text
from plaudit.evaluation.plots import Figure, Series, Win
from plaudit.feedback import panel
from plaudit.randomness import rng
from plaudit.training import metrics

PAIRS_TO_READ = 8
ENOUGH_SHARED = 20
"""Comparisons that two raters must share before the chart says how often they differ."""
SETS = {
    "before": "Start",
    "after": "Improved",
    "best_of_4": "Best of 4 of the start",
    "constant": "One sentence for all",
}
STAGES = {
    "sample": "Sample completions",
    "look": "Relevance and fluency",
    "judge": "Judge",
    "agree": "Agreement",
    "reward": "Learn the reward",
    "improve": "Improve the model (PPO)",
    "evaluate": "Measure",
}
CURVES = (
    ("reward", "Reward", "what the reward model thinks of the samples; 0 is the start's mean", ".2f"),
    ("kl", "KL", "how far the model has moved from the start, in nats a token", ".3f"),
    ("entropy", "Entropy", "how undecided the model is about the next token, in nats", ".2f"),
    ("clip_fraction", "Clip fraction", "share of tokens whose update was held back", ".1%"),
    ("value_error", "Value error", "how far the forecast of the reward is off, squared", ".2f"),
    ("eos_rate", "Ended by itself (EOS)", "share of samples that end before the length limit", ".0%"),
    ("length", "Length", "tokens a sample", ".1f"),
    ("tokens_per_second", "Speed", "tokens a second, sampling and learning together", ".0f"),
)  # fmt: skip
"""Of each metric: its name in metrics.jsonl, its title, what it means, its format."""
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round left; parts that are not there are empty. age: 0 for the newest round."""

    number: int
    age: int
    summary: dict[str, Any]
    ppo: list[dict[str, float]]
    reward: list[dict[str, float]]
    agreement: dict[str, Any]
    evaluation: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return f"Round {self.number}"


def write_report(directory: Path, summary: dict[str, Any]) -> Path:
    """Write report.html of a quickstart run and return its path; summary: what summary.json holds or will hold.

    Parts that the run does not have are left out. UserError where a file of the run cannot be read, or the report
    not written.
    """
    path = directory / "report.html"
    files.write_text(path, render(directory, summary))
    return path


def render(directory: Path, summary: dict[str, Any]) -> str:
    """The page."""
    rounds = read_rounds(directory, summary)
    last = rounds[-1]
    config = configs.read_yaml(directory / "config.yaml") if (directory / "config.yaml").exists() else {}
    mine = dig(summary, "policy", "judges") == "me" or summary.get("raters") == "me"
    figures: dict[str, Figure] = {}
    content: dict[str, Any] = {
        "summary": summary,
        "config": config,
        "mine": mine,
        "rounds": rounds,
        "last": last,
        "findings": findings(last, config),
        "characters": [] if mine else characters(summary.get("seed")),
        "sets": SETS,
        "curves": CURVES,
        "heldout": len(last.evaluation) or config.get("heldout_prompts"),
        "criteria": panel.CRITERIA,
        "enough": ENOUGH_SHARED,
        "pairs": pairs_to_read(last.evaluation, summary.get("seed")),
        "stages": STAGES,
        "spent": spent(directory, rounds),
        "config_text": read_text(directory / "config.yaml"),
        "again": again(summary),
        "model": shlex.quote(str(directory / "model")),
        "prompts": shlex.quote(str(directory / "prompts" / "heldout.jsonl")),
    }
    figures |= win_figures(rounds, mine) | curve_figures(rounds, config) | reward_figures(rounds)
    figures |= agreement_figures(last) | time_figures(content["spent"], rounds)
    return fill("report.html.j2", content, figures)


# What the run holds ----------------------------------------------------------------------------------------


def read_rounds(directory: Path, summary: dict[str, Any]) -> list[Round]:
    """At least one round; what the summary says of it, and its files."""
    found = summary.get("rounds") or [summary]
    rounds = []
    for at, own in enumerate(found, start=1):
        place = directory / "rounds" / str(at)
        agreement = read_json(place / "agreement.json") or own.get("agreement") or {}
        rounds.append(
            Round(
                number=at,
                age=len(found) - at,
                summary=own,
                ppo=metrics.read(place / "ppo" / "metrics.jsonl"),
                reward=metrics.read(place / "reward" / "metrics.jsonl"),
                agreement=agreement,
                evaluation=read_rows(place / "evaluation.jsonl"),
            )
        )
    return rounds


def findings(last: Round, config: Row) -> list[Finding]:
    """What the last round's training says of itself, and the panel's judges, who took no part in it, of the model."""
    measured = last.summary.get("policy") or {}
    begin, end = number(measured.get("reward_before")), number(measured.get("reward_after"))
    wins, judged = interval(measured.get("win_rate_ci95")), list[Finding]()
    if measured.get("judges") == "panel" and begin is not None and end is not None and wins is not None:
        judged.append(against_judges(end - begin, wins))
    return diagnose(
        last.ppo, dig(last.summary, "ppo", "stopped"), judged=judged, settings=configs.leaves(config)
    )


def characters(seed: Any) -> list[panel.Rater]:
    """The panel's drawn raters."""
    return panel.training_raters(seed) if isinstance(seed, int) else []


def pairs_to_read(rows: Sequence[dict[str, Any]], seed: Any) -> list[dict[str, Any]]:
    """Pairs drawn by the seed from all, in the order of the prompts."""
    order = rng(seed if isinstance(seed, int) else 0, "report", "pairs").permutation(len(rows))
    return [rows[i] for i in sorted(order[:PAIRS_TO_READ])]


def spent(directory: Path, rounds: Sequence[Round]) -> dict[str, list[float]]:
    """Seconds by stage, one number a round, of the stages that took place."""
    seconds = {step: [0.0] * len(rounds) for step in STAGES}
    seen = set()
    for entry in dig(read_json(directory / "loop.json"), "transitions") or []:
        step, took, at = entry.get("step"), number(entry.get("seconds")), entry.get("round")
        if step in seconds and took is not None and at in range(1, len(rounds) + 1):
            seconds[step][at - 1] += took
            seen.add(step)
    return {step: took for step, took in seconds.items() if step in seen}


# Charts ----------------------------------------------------------------------------------------------------


def win_figures(rounds: Sequence[Round], mine: bool) -> dict[str, Figure]:
    """Of a person's run the baselines are left out: nobody judged them blind."""
    rows = []
    for one in rounds:
        policy = one.summary.get("policy")
        if (rate := number(dig(policy, "win_rate"))) is not None:
            rows.append(
                Win(one.name, rate, interval(dig(policy, "win_rate_ci95")), plots.colour(one.age), "circle")
            )
    for one in rounds if rows and not mine else ():
        if (rate := number(dig(one.summary, "baselines", "best_of_4", "win_rate"))) is not None:
            which = f"<br>(round {one.number})" if len(rounds) > 1 else ""
            rows.append(Win(f"Best of 4{which}", rate, None, "var(--soft)", "diamond"))
    rate = number(dig(rounds[-1].summary, "baselines", "constant", "win_rate"))
    if rows and not mine and rate is not None:
        rows.append(Win("One sentence<br>for all", rate, None, "var(--soft)", "square"))
    return {"wins": plots.win_rates(rows)} if rows else {}


def _series(rounds: Sequence[Round], part: str, name: str) -> list[Series]:
    series = []
    for one in rounds:
        rows = getattr(one, part)
        values = [number(row.get(name)) for row in rows]
        if any(value is not None for value in values):
            series.append(Series(one.name, [row["step"] for row in rows], values, one.age))
    return series


def curve_figures(rounds: Sequence[Round], config: Row) -> dict[str, Figure]:
    limit, target = (number(dig(config, "policy", name)) for name in ("max_kl", "kl_target"))
    levels = {
        name: value
        for name, value in (("limit, where it stops", limit), ("target", target))
        if value is not None
    }
    return {
        f"curve-{name}": plots.curves(series, format=shape, lines=levels if name == "kl" else None)
        for name, _, _, shape in CURVES
        if (series := _series(rounds, "ppo", name))
    }


def agreement_figures(last: Round) -> dict[str, Figure]:
    names, shares, counts = disagreements(last)
    enough = any(share is not None for row in shares for share in row)
    return {"disagreement": plots.disagreement(names, shares, counts)} if enough else {}


def disagreements(last: Round) -> tuple[list[str], list[list[float | None]], list[list[int]]]:
    """Raters; how often each two differ, None where they share too few comparisons; how many they share."""
    pairs = [
        (pair["raters"], number(dig(pair, "agreement", "share")), int(dig(pair, "agreement", "pairs") or 0))
        for pair in dig(last.agreement, "comparisons", "pairs") or []
    ]
    names = sorted({name for raters, _, _ in pairs for name in raters})
    shares: list[list[float | None]] = [[None] * len(names) for _ in names]
    counts = [[0] * len(names) for _ in names]
    for (a, b), share, count in pairs:
        for i, j in ((names.index(a), names.index(b)), (names.index(b), names.index(a))):
            counts[i][j] = count
            shares[i][j] = 1 - share if share is not None and count >= ENOUGH_SHARED else None
    return names, shares, counts


def reward_figures(rounds: Sequence[Round]) -> dict[str, Figure]:
    found = {}
    if series := _series(rounds, "reward", "loss"):
        found["reward-loss"] = plots.curves(series, format=".2f")
        found["reward-loss"]["layout"]["height"] = 330
    if rows := dig(rounds[-1].summary, "reward_model", "calibration"):
        found["calibration"] = plots.calibration(rows)
    return found


def time_figures(seconds: Mapping[str, Sequence[float]], rounds: Sequence[Round]) -> dict[str, Figure]:
    if not seconds:
        return {}
    bars = [(one.name, [took[one.number - 1] for took in seconds.values()], one.age) for one in rounds]
    return {"time": plots.stages([STAGES[step] for step in seconds], bars)}


# The page --------------------------------------------------------------------------------------------------


def again(summary: Mapping[str, Any]) -> str:
    """Options of a quickstart of the same model with the next seed."""
    seed, model = summary.get("seed"), str(summary.get("model", "smollm2"))
    return f"--model {shlex.quote(model)} --seed {seed + 1 if isinstance(seed, int) else 1}"
