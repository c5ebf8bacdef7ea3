"""The study of algorithms as a table and as a chart: a page that opens from disk, and a picture of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import picture

from plaudit.evaluation import plots
from plaudit.evaluation.metrics import bootstrap

Row = dict[str, Any]
NAMES = {"ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO", "rejection": "rejection sampling",
         "dpo": "DPO", "kto": "KTO", "ilql": "ILQL, steered"}  # fmt: skip
BASELINES = ("best of 4", "rejection")
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
                "wins": wins,
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
    "| algorithm | rate | training | seconds (reward + training) | win rate (95 %) | less PPO's (95 %) "
    "| unseen words | relevance | KL a token | distinct-2 | perplexity |"
)


def table(rows: Sequence[Row]) -> str:
    """In Markdown. The start against itself is what every figure is measured from."""
    many = len({row["seed"] for row in rows}) > 1
    found = over_seeds(rows)
    start = f"| start | | | | 0.500 | | 0.500 | {found[0]['relevance_before']:.3f} | 0 | 1 | 1 |"
    lines = [HEAD + " by seed |" * many, "|---" * (11 + many) + "|", start + " |" * many]
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
            less(row, found),
            f"{row['win_rate_unseen_words']:.3f}",
            f"{row['relevance_after']:.3f}",
            "at most " * (kind(row) == "none") + f"{row['kl_per_token']:.3f}",
            f"{row['distinct2_ratio']:.3f}",
            f"{row['perplexity_ratio']:.3f}",
        ]
        cells += [", ".join(f"{rate:.2f}" for rate in row["seeds"])] * many
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def less(row: Row, found: Sequence[Row]) -> str:
    """The win rate less PPO's, with the interval of the difference by prompt; nothing of PPO itself, and without it."""
    ppo = next((one for one in found if one["name"] == "ppo"), row)
    if ppo is row:
        return ""
    gaps = [mine - other for mine, other in zip(row["wins"], ppo["wins"], strict=True)]
    low, high = bootstrap(gaps, seed=0)
    return f"{statistics.fmean(gaps):+.3f} ({low:+.2f} to {high:+.2f})"


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


def above(rows: Sequence[Row]) -> str:
    """What stands over the chart."""
    seeds = sorted({row["seed"] for row in rows})
    said = (
        f"Equal judgements, about {rows[0]['budget']:g} s of training each, "
        f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}."
    )
    return (
        "<style>body { margin: 20px 24px; width: 880px } h1 { font-size: 20px; margin: 0 } "
        "p { margin: 0; color: var(--soft) } b { font-weight: 650 }</style>"
        f"<h1>Which algorithm for my feedback?</h1><p>{said}<br>"
        "<b style='color: var(--round-0)'>● from the reward model</b> · "
        "<b style='color: var(--round-1)'>◆ straight from the judgements</b> · "
        "■ no weight moved (its KL: a bound)</p>"
    )


def draw(rows: Sequence[Row], figure: Path, image: Path) -> None:
    """The page, and where a Chromium is found its picture."""
    drawn = chart(rows)
    drawn["layout"] |= {"width": 880, "autosize": False}
    picture.draw(drawn, figure, image, (928, drawn["layout"]["height"] + 125), above=above(rows))
