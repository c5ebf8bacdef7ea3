"""report.html of one training run: the diagnosis first, then every curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit import config as configs
from plaudit import files
from plaudit.evaluation import plots
from plaudit.evaluation.diagnosis import diagnose
from plaudit.evaluation.fitting import diagnose_fit, heldout_curve
from plaudit.evaluation.page import fill, number, read_text
from plaudit.evaluation.plots import Figure, Series
from plaudit.training import metrics

Curve = tuple[str, str, str, str]
GIVEN = ("sft", "dpo", "kto", "ilql", "reward_model", "bandit", "online")
"""The recipes that learn from given data."""
CURVES: tuple[Curve, ...] = (
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

GIVEN_CURVES: tuple[Curve, ...] = (
    ("loss", "Loss", "what is minimised, on average over the batch", ".3f"),
    ("heldout_loss", "Held-out loss", "the same on what is never trained on", ".3f"),
    ("accuracy", "Accuracy", "share of the batch's judgements that the model agrees with", ".0%"),
    ("heldout_accuracy", "Held-out accuracy", "share of those never trained on that it agrees with", ".0%"),
    ("margin", "Margin", "by how much the better one's reward leads, on average", ".3g"),
    ("heldout_margin", "Held-out margin", "the same on what is never trained on", ".3g"),
    ("reward_chosen", "Reward of the chosen", "on average, as the loss counts it", ".3g"),
    ("reward_rejected", "Reward of the rejected", "on average, as the loss counts it", ".3g"),
    ("reward_desirable", "Reward of the good", "how much likelier than before the good ones are, in nats", ".3g"),
    ("reward_undesirable", "Reward of the bad", "how much likelier than before the bad ones are, in nats", ".3g"),
    ("baseline", "Baseline", "what a reward is held against, in nats", ".3f"),
    ("kl", "KL", "how far the policy is from the start, in nats a token", ".3f"),
    ("replayed", "Replayed", "older judgements beside the new ones", ".0f"),
    ("rating_loss", "Loss of the ratings", "its share of the loss", ".3f"),
    ("rating_error", "Error", "how far forecasts are from what was given, on average", ".3f"),
    ("round_reward", "Reward of a round", "what the labels chosen in it earned, on average", ".3f"),
    ("q_loss", "Q loss", "how far Q is from its targets, squared", ".3f"),
    ("value_loss", "V loss", "how far V is from the expectile of Q", ".4f"),
    ("cql", "CQL term", "what holds Q down where nothing was logged", ".3f"),
    ("q", "Q", "of the logged tokens, on average", ".3f"),
    ("value", "V", "of the logged places, on average", ".3f"),
    ("advantage", "Advantage", "of the logged tokens, Q less V, on average", ".3f"),
    ("weight", "Weight", "of the imitated tokens by their advantage, on average", ".3f"),
    ("nll", "Loss of imitation", "in nats a token", ".3f"),
    ("heldout_nll", "Held-out loss of imitation", "in nats a token never trained on", ".3f"),
    ("heldout_reward_error", "Held-out error", "how far Q at the end is from rewards never trained on", ".3f"),
    ("heldout_constant_error", "Error of the mean", "how far the rewards' mean alone is from them", ".3f"),
    ("heldout_correlation", "Held-out correlation", "of Q at the end with rewards never trained on", ".2f"),
    ("heldout_value", "Held-out V", "before a token is drawn, on average", ".3f"),
    ("tokens", "Tokens", "that a batch learns from", ".0f"),
    ("comparisons", "Comparisons", "that a batch learns from", ".0f"),
    ("l1_norm", "L1 norm", "sum of the weights' sizes", ".3g"),
    ("grad_norm", "Gradient norm", "before it is clipped", ".3g"),
    ("learning_rate", "Learning rate", "as scheduled", ".1e"),
)  # fmt: skip
"""The same of a run that learned from demonstrations, judgements or a log."""
TASKS = {"heldout_loss/": "Held-out loss of {}", "weight/": "Weight of {}"}
"""What a mixture logs of each of its tasks."""
KEY_FIGURES: tuple[Curve, ...] = (
    ("demonstrations", "Demonstrations", "That were learned from.", ".0f"),
    ("prompts", "Prompts", "Whose judgements were learned from.", ".0f"),
    ("comparisons", "Comparisons", "That were learned from.", ".0f"),
    ("desirable", "Called good", "Completions that were learned from.", ".0f"),
    ("undesirable", "Called bad", "Completions that were learned from.", ".0f"),
    ("episodes", "Episodes", "That were learned from.", ".0f"),
    ("rows", "Rows", "That were learned from.", ".0f"),
    ("heldout_loss", "Held-out loss", "On what was never trained on, at the end.", ".3f"),
    ("heldout_accuracy", "Held-out accuracy", "Share of judgements never trained on that it agrees with.", ".1%"),
    ("length_only_accuracy", "Length alone", "The same share by the rule that knows the length alone.", ".1%"),
    ("rating_correlation", "Correlation", "Of the score with ratings never trained on.", ".2f"),
    ("heldout_correlation", "Held-out correlation", "Of Q at the end with rewards never trained on.", ".2f"),
    ("heldout_reward_error", "Held-out error", "How far Q at the end is from rewards never trained on.", ".3f"),
    ("heldout_error", "Held-out error", "How far Q is from rewards never trained on.", ".3f"),
    ("heldout_reward", "Held-out reward", "What the best labels by Q earn on texts never trained on.", ".3f"),
)  # fmt: skip
"""Of summary.json's figures those that stand on top: name, title, meaning, format."""


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
    logged = bool(tree.get("feedback"))
    given = tree.get("recipe") in GIVEN if tree else any("loss" in row and "kl" not in row for row in rows)
    known = given_curves(rows) if given else CURVES
    figures = curve_figures(rows, tree, known)
    if given and (held := heldout_curve(rows, summary)).values:
        together = [
            Series("training", *_points(rows, "loss"), 0),
            Series("held out", held.steps, held.values, 1),
        ]
        figures["apart"] = plots.curves(together, format=".3f")
        figures["apart"]["layout"]["height"] = 300
    settings = configs.leaves(tree)
    content = {
        "recipe": tree.get("recipe", "training"),
        "model": tree.get("model", "a model"),
        "seed": tree.get("seed", "–"),
        "steps": summary.get("steps", rows[-1]["step"] if rows else 0),
        "planned": tree.get("steps"),
        "findings": diagnose_fit(rows, summary, settings)
        if given
        else diagnose(rows, summary.get("stopped"), logged=logged, settings=settings),
        "logged": logged,
        "given": given,
        "key_figures": [figure for figure in KEY_FIGURES if number(summary.get(figure[0])) is not None],
        "summary": summary,
        "rows": rows,
        "first": rows[0] if rows else {},
        "last": rows[-1] if rows else {},
        "curves": [curve for curve in known if any(number(row.get(curve[0])) is not None for row in rows)],
        "config_text": read_text(directory / "config.yaml"),
        "directory": str(directory),
    }
    return fill("run.html.j2", content, figures)


def given_curves(rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Those of a run that learned from given data, a mixture's tasks each with its own."""
    names = dict.fromkeys(name for row in rows for name in row)
    tasks = [
        (name, title.format(name.removeprefix(prefix)), "of this task", ".3f")
        for prefix, title in TASKS.items()
        for name in names
        if name.startswith(prefix)
    ]
    return [*GIVEN_CURVES, *tasks]


def curve_figures(
    rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], known: Sequence[Curve] = CURVES
) -> dict[str, Figure]:
    """One figure a metric that the run has; where there is a gold score, both on one scale beside each other."""
    figures: dict[str, Figure] = {}
    stop, kl = config.get("stop") or {}, config.get("kl") or {}
    marks = {"limit, where it stops": number(stop.get("max_kl")), "target": number(kl.get("target"))}
    for name, _, _, shape in known:
        steps, values = _points(rows, name)
        if len(set(values)) < 2:
            continue  # a level line says no more than the table
        highest = max(values)
        # A limit far above the curve would flatten it.
        lines = (
            {text: at for text, at in marks.items() if at is not None and at < 3 * highest}
            if name == "kl"
            else {}
        )
        series = Series(name, steps, values, 0)
        figures[f"curve-{name}"] = plots.curves([series], format=shape, lines=lines or None)
    if "curve-gold" in figures:
        together = [
            Series("reward (trained on)", *_standardised(rows, "reward"), 0),
            Series("gold", *_standardised(rows, "gold"), 1),
        ]
        figures["apart"] = plots.curves(together, format=".2f", lines={"the start": 0.0})
        figures["apart"]["layout"]["height"] = 300
    return figures


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps that have the figure, and the figure."""
    points = [(row["step"], value) for row in rows if (value := number(row.get(name))) is not None]
    return [step for step, _ in points], [value for _, value in points]


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
