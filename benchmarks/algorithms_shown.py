"""The study of algorithms as a table and as a chart: a page that opens from disk, and a picture of it."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly

from plaudit import files
from plaudit.evaluation import plots
from plaudit.evaluation.metrics import bootstrap

Row = dict[str, Any]
NAMES = {"ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO", "rejection": "rejection sampling",
         "dpo": "DPO", "kto": "KTO", "ilql": "ILQL, steered"}  # fmt: skip
BASELINES = ("best of 4", "rejection")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAPER = {
    "page": "#ffffff", "card": "#f5f2eb", "ink": "#1e2328", "soft": "#59636e", "line": "#dedad0",
    "round-0": "#0b766f", "round-1": "#6a74b8", "round-2": "#a8527f", "round-3": "#7d6a1e",
}  # fmt: skip
"""The report's colours, as on paper."""
KIND = {
    "reward": ("var(--round-0)", "circle"),
    "log": ("var(--round-1)", "diamond"),
    "none": ("var(--soft)", "square"),
}


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row an algorithm: means over seeds, and the interval of the mean over the prompts, which all seeds share."""
    found = []
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        wins = [statistics.fmean(each) for each in zip(*(row["wins"] for row in mine), strict=True)]
        figures = {
            key: statistics.fmean(row["policy"][key] for row in mine)
            for key, value in mine[0]["policy"].items()
            if isinstance(value, float)
        }
        found.append(
            figures
            | {
                "name": name,
                "shown": NAMES.get(name.split(",")[0], name) + name[len(name.split(",")[0]) :],
                "interval": bootstrap(wins, seed=0),
                "taken": " / ".join(dict.fromkeys(row["taken"] for row in mine)),
                "rate": mine[0]["rate"],
                "reward_seconds": statistics.fmean(row["reward_seconds"] for row in mine),
                "seconds": statistics.fmean(row["seconds"] for row in mine),
                "seeds": [row["policy"]["win_rate"] for row in mine],
            }
        )
    return found


def kind(row: Row) -> str:
    """What it learns from: the reward model, the log of judgements, or nothing (no weight moves)."""
    return "none" if row["rate"] is None else "reward" if row["reward_seconds"] else "log"


HEAD = (
    "| algorithm | rate | training | seconds (reward + training) | win rate (95 %) | unseen words | relevance "
    "| KL a token | distinct-2 | perplexity |"
)


def table(rows: Sequence[Row]) -> str:
    """In Markdown. The start against itself is what every figure is measured from."""
    many = len({row["seed"] for row in rows}) > 1
    found = over_seeds(rows)
    start = f"| start | | | | 0.500 | 0.500 | {found[0]['relevance_before']:.3f} | 0 | 1 | 1 |"
    lines = [HEAD + " by seed |" * many, "|---" * (10 + many) + "|", start + " |" * many]
    for row in found:
        low, high = row["interval"]
        spent = [row["reward_seconds"]] * bool(row["reward_seconds"]) + [row["seconds"]] * (
            row["rate"] is not None
        )
        cells = [
            row["shown"],
            "" if row["rate"] is None else f"{row['rate']:g}",
            row["taken"],
            " + ".join(f"{seconds:.0f}" for seconds in spent),
            f"{row['win_rate']:.3f} ({low:.2f} to {high:.2f})",
            f"{row['win_rate_unseen_words']:.3f}",
            f"{row['relevance_after']:.3f}",
            "at most " * (kind(row) == "none") + f"{row['kl_per_token']:.3f}",
            f"{row['distinct2_ratio']:.3f}",
            f"{row['perplexity_ratio']:.3f}",
        ]
        cells += [", ".join(f"{rate:.2f}" for rate in row["seeds"])] * many
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def chart(rows: Sequence[Row]) -> plots.Figure:
    """Win rates with their intervals, the best on top, and beside each what it cost in KL."""
    found = sorted(over_seeds(rows), key=lambda row: -row["win_rate"])
    wins = [
        plots.Win(plots.label(row["shown"]), row["win_rate"], row["interval"], *KIND[kind(row)])
        for row in found
    ]
    figure = plots.win_rates(wins)
    places, layout = list(range(len(found))), figure["layout"]
    figure["data"].append(
        {
            "type": "bar",
            "orientation": "h",
            "xaxis": "x2",
            "x": [row["kl_per_token"] for row in found],
            "y": places,
            "width": 0.34,
            "marker": {"color": [KIND[kind(row)][0] for row in found], "opacity": 0.75},
            "text": [f"{row['kl_per_token']:.2f}".replace("-0.00", "0.00") for row in found],
            "textposition": "outside",
            "cliponaxis": False,
            "hovertemplate": "%{x:.3f} nats a token<extra></extra>",
        }
    )
    layout["xaxis"] |= {"domain": [0, 0.66]}
    layout["xaxis2"] = layout["xaxis"] | {
        "domain": [0.76, 0.97],
        "anchor": "y",
        "title": {"text": "KL from the start, nats a token", "font": layout["xaxis"]["title"]["font"]},
        "range": [min(0.0, *(row["kl_per_token"] for row in found)), 1.15 * max(r["kl_per_token"] for r in found)],
        "tickvals": None,
        "ticktext": None,
        "nticks": 4,
    }  # fmt: skip
    return figure


def page(rows: Sequence[Row]) -> str:
    """The chart's page; plotly's script inside, nothing loaded."""
    figure = chart(rows)
    figure["layout"] |= {"width": 880, "autosize": False}
    drawn = json.dumps(figure).replace("<", "\\u003c")
    for name, colour in PAPER.items():
        drawn = drawn.replace(f"var(--{name})", colour)
    seeds = sorted({row["seed"] for row in rows})
    said = (
        f"Equal judgements, about {rows[0]['budget']:g} s of training each, "
        f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}."
    )
    script: str = plotly.offline.get_plotlyjs()
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Which algorithm</title>"
        "<style>body { margin: 20px 24px; width: 880px; font: 15px/1.5 system-ui, sans-serif; background: #ffffff; "
        "color: #1e2328 } h1 { font-size: 20px; margin: 0 } p { margin: 0; color: #59636e }"
        "b { font-weight: 650 }</style>"
        f"<h1>Which algorithm for my feedback?</h1><p>{said}<br>"
        "<b style='color: #0b766f'>● from the reward model</b> · <b style='color: #6a74b8'>◆ straight from the "
        "judgements</b> · ■ no weight moved</p>"
        f"<script>{script}</script><div id=chart></div><script>Plotly.newPlot('chart', {drawn}.data, "
        f"{drawn}.layout, {{displayModeBar: false}})</script></html>\n"
    )


def draw(rows: Sequence[Row], figure: Path, picture: Path) -> None:
    """The page, and where a Chromium is found its picture."""
    files.write_text(figure, page(rows))
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        print(f"no Chromium, so no picture; the chart is {figure}", file=sys.stderr)
        return
    height = chart(rows)["layout"]["height"] + 110
    picture.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   f"--user-data-dir={profile}", "--force-device-scale-factor=2", f"--window-size=928,{height}",
                   "--virtual-time-budget=5000", f"--screenshot={picture.resolve()}",
                   figure.resolve().as_uri()]  # fmt: skip
        done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    if done.returncode or not picture.exists():
        print(f"{browser} drew no picture; the chart is {figure}", file=sys.stderr)
