"""report.html of one training run that learned from its own samples: the diagnosis first, then every curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit import config as configs
from plaudit import files
from plaudit.evaluation import plots
from plaudit.evaluation.diagnosis import diagnose
from plaudit.evaluation.page import fill, number, read_text
from plaudit.evaluation.plots import Figure, Series
from plaudit.training import metrics

CURVES = (
    ("reward", "Reward", "what the scorer gives the samples, on average", ".3f"),
    ("gold", "Gold", "what the gold scorer gives them, which nothing is trained on", ".3f"),
    ("kl", "KL", "how far the policy is from its reference, in nats a token", ".3f"),
    ("entropy", "Entropy", "how undecided the policy is about the next token, in nats", ".2f"),
    ("length", "Length", "tokens a completion", ".1f"),
    ("eos_rate", "Ended by itself (EOS)", "share of completions that end before the limit", ".0%"),
    ("reward_std", "Spread of the reward", "its standard deviation within a step", ".3f"),
    ("equal_groups", "Groups without a difference", "share of prompts whose completions all earn the same", ".0%"),
    ("clip_fraction", "Clip fraction", "share of ratios whose update was held back", ".1%"),
    ("approx_kl", "KL of the step", "how far the last epoch had gone from the samples' policy, in nats", ".4f"),
    ("policy_loss", "Policy loss", "what is minimised; its level means little", ".4f"),
    ("value_error", "Value error", "how far the forecast of the return is off, squared", ".3f"),
    ("explained_variance", "Explained variance", "of the returns, by the values; 1 is all, below 0 is nothing", ".2f"),
    ("nll", "Loss", "of the imitated completions, in nats a token", ".3f"),
    ("kept_reward", "Reward of the kept", "what the imitated completions scored", ".3f"),
    ("accuracy", "Accuracy", "share of pairs where the chosen one is likelier than the start has it", ".0%"),
    ("kl_coef", "Price of the KL", "its coefficient", ".3g"),
    ("grad_norm", "Gradient norm", "before it is clipped", ".3g"),
    ("sampler_difference", "Sampler and trainer", "how far their log-probabilities are apart, in nats", ".1e"),
    ("learning_rate", "Learning rate", "as scheduled", ".1e"),
    ("tokens_per_second", "Speed", "tokens a second, sampling and learning together", ".0f"),
)  # fmt: skip
"""Of each metric: its name in metrics.jsonl, its title, what it means, its format."""


def write_run_report(directory: Path, summary: Mapping[str, Any]) -> Path:
    """Write report.html of a run with metrics.jsonl and return its path; summary: what summary.json holds or will
    hold. UserError where a file of the run cannot be read, or the report not written."""
    path = directory / "report.html"
    files.write_text(path, render(directory, summary))
    return path


def render(directory: Path, summary: Mapping[str, Any]) -> str:
    """The page."""
    rows = metrics.read(directory / "metrics.jsonl")
    tree = configs.read_yaml(directory / "config.yaml") if (directory / "config.yaml").exists() else {}
    figures, logged = curve_figures(rows, tree), bool(tree.get("feedback"))
    content = {
        "recipe": tree.get("recipe", "training"),
        "model": tree.get("model", "a model"),
        "seed": tree.get("seed", "–"),
        "steps": summary.get("steps"),
        "planned": tree.get("steps"),
        "findings": diagnose(rows, summary.get("stopped"), logged=logged, settings=configs.leaves(tree)),
        "logged": logged,
        "rows": rows,
        "first": rows[0] if rows else {},
        "last": rows[-1] if rows else {},
        "curves": [curve for curve in CURVES if any(number(row.get(curve[0])) is not None for row in rows)],
        "config_text": read_text(directory / "config.yaml"),
        "directory": str(directory),
    }
    return fill("run.html.j2", content, figures)


def curve_figures(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Figure]:
    """One figure a metric that the run has; where there is a gold score, both on one scale beside each other."""
    figures: dict[str, Figure] = {}
    stop, kl = config.get("stop") or {}, config.get("kl") or {}
    marks = {"limit, where it stops": number(stop.get("max_kl")), "target": number(kl.get("target"))}
    for name, _, _, shape in CURVES:
        points = [(row["step"], value) for row in rows if (value := number(row.get(name))) is not None]
        if len({value for _, value in points}) < 2:
            continue  # a level line says no more than the table
        highest = max(value for _, value in points)
        # A limit far above the curve would flatten it.
        lines = (
            {text: at for text, at in marks.items() if at is not None and at < 3 * highest}
            if name == "kl"
            else {}
        )
        series = Series(name, [step for step, _ in points], [value for _, value in points], 0)
        figures[f"curve-{name}"] = plots.curves([series], format=shape, lines=lines or None)
    if "curve-gold" in figures:
        together = [
            Series("reward (trained on)", *_standardised(rows, "reward"), 0),
            Series("gold", *_standardised(rows, "gold"), 1),
        ]
        figures["apart"] = plots.curves(together, format=".2f", lines={"the start": 0.0})
        figures["apart"]["layout"]["height"] = 300
    return figures


def _standardised(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float | None]]:
    """Steps, and the figure as its distance from the first step's in standard deviations of a completion's score; of
    the whole curve where that is not known."""
    known = [row for row in rows if number(row.get(name)) is not None]
    values = [float(row[name]) for row in known]
    spread = number(known[0].get("reward_std")) if name == "reward" else None
    if not spread:
        mean = sum(values) / len(values)
        spread = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5 or 1.0
    return [row["step"] for row in known], [(value - values[0]) / spread for value in values]
