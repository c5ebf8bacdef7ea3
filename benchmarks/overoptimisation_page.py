"""The tables and the chart of benchmarks/overoptimisation.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import picture
from numpy.typing import NDArray

from plaudit.evaluation import plots

METHODS = {
    "single": "one model",
    "ensemble": "four, mean − deviation",
    "aware": "rater-aware",
    "oracle": "oracle",
}
"""By method, what it is called; its place is its colour's."""
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Of the 95 % interval, by the number of seeds."""
LAST = 5
"""Steps whose mean is the end of a run."""
STOP = 16.0
"""Nats a completion where the default stop.max_kl, 1 nat a token, ends a run of 16 tokens."""
SIZE = (1280, 900)
LEGEND = (
    "Solid: gold, mean of the worlds; thin: of each world. Dashed: what the proxy says, mean. "
    "Dotted: where the default stop.max_kl ends a run."
)
Row = dict[str, Any]
Floats = NDArray[np.float64]


def mean_and_interval(values: Sequence[Any]) -> tuple[Any, Any]:
    """Over the first axis, seeds: the mean, and half the width of its 95 % interval (Student's t; NaN for one seed)."""
    table = np.asarray(values, dtype=float)
    count = len(table)
    half = (
        STUDENT[count] * table.std(0, ddof=1) / np.sqrt(count)
        if count > 1
        else np.full(table.shape[1:], np.nan)
    )
    return table.mean(0), half


def smoothed(points: Sequence[Row], name: str) -> tuple[Floats, Floats]:
    """Square roots of KL upward, and the figure there: the mean of each point and its two neighbours."""
    upward = sorted(points, key=lambda point: point["kl"])
    x = np.sqrt([max(0.0, point["kl"]) for point in upward])
    y = np.array([point[name] for point in upward])
    padded = np.concatenate([y[:1], y, y[-1:]])
    return x, (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def curve(rows: Sequence[Row], kind: str, method: str, name: str) -> tuple[Floats, Floats, Floats]:
    """Over the seeds of rows: square roots of KL, the mean of proxy or gold there, and half its interval's width. PPO's
    runs are read between their steps, as far as the shortest went."""
    if kind == "best_of_n":
        points = [row[kind][method]["points"] for row in rows]
        x = np.sqrt([point["kl"] for point in points[0]])
        return x, *mean_and_interval([[point[name] for point in one] for one in points])
    runs = [smoothed(row[kind][method], name) for row in rows]
    x = np.arange(0, min(float(own[-1]) for own, _ in runs), 0.25)
    return x, *mean_and_interval([np.interp(x, own, y) for own, y in runs])


def figures_of(row: Row, method: str) -> dict[str, float]:
    """What the tables hold of one seed; peak: the highest of the smoothed gold, and the KL there; fall: from where the
    default limit is to the end, both of them known beforehand, so that noise alone makes none."""
    best = row["best_of_n"][method]
    found = {
        "correlation": best["correlation"],
        "best_gold": best["points"][-1]["gold"],
        "best_proxy": best["points"][-1]["proxy"],
    }
    if method in row["ppo"]:
        points = row["ppo"][method]
        x, y = smoothed(points, "gold")
        end = {name: float(np.mean([p[name] for p in points[-LAST:]])) for name in ("kl", "proxy", "gold")}
        found |= {"peak": float(y.max()), "peak_kl": float(x[y.argmax()] ** 2), "end": end["gold"]}
        found["stop"] = float(np.interp(np.sqrt(STOP), x, y))
        found["rise"] = end["proxy"] - float(np.interp(np.sqrt(STOP), *smoothed(points, "proxy")))
        found |= {"end_proxy": end["proxy"], "end_kl": end["kl"], "fall": found["stop"] - end["gold"]}
    return found


def tables(rows: Sequence[Row]) -> list[str]:
    """Markdown: best-of-n, PPO, and both less the single model of the same seed."""
    most = rows[0]["best_of_n"]["single"]["points"][-1]["n"]
    best = {
        "correlation": "correlation",
        "best_proxy": f"proxy, best of {most}",
        "best_gold": f"gold, best of {most}",
    }
    ppo = {
        "peak": "gold at its peak", "peak_kl": "KL there", "stop": f"gold at {STOP:g} nats",
        "end": "gold at the end", "fall": f"fall from {STOP:g} nats on",
        "rise": "the proxy's rise from there on", "end_proxy": "proxy at the end",
        "end_kl": "KL at the end",
    }  # fmt: skip
    paired = {
        "best_gold": f"best of {most}",
        "peak": "PPO at its peak",
        "stop": f"PPO at {STOP:g} nats",
        "end": "PPO at the end",
    }
    return [_table(rows, best), _table(rows, ppo), _table(rows, paired, less_single=True)]


def _table(rows: Sequence[Row], columns: dict[str, str], less_single: bool = False) -> str:
    lines = ["| labels | proxy | " + " | ".join(columns.values()) + " |", "|---" * (2 + len(columns)) + "|"]
    for labels in sorted({row["labels"] for row in rows}):
        here = [row for row in rows if row["labels"] == labels]
        for method, called in METHODS.items():
            if less_single and method == "single":
                continue
            seeds = [figures_of(row, method) for row in here]
            if less_single:
                single = [figures_of(row, "single") for row in here]
                seeds = [
                    {k: own[k] - plain[k] for k in own} for own, plain in zip(seeds, single, strict=True)
                ]
            if columns.keys().isdisjoint(seeds[0]):
                continue
            cells = [
                _cell([one[k] for one in seeds], k, less_single) if k in seeds[0] else "" for k in columns
            ]
            lines.append(f"| {labels} | {called} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], name: str, signed: bool) -> str:
    middle, half = mean_and_interval(values)
    digits = 1 if name.endswith("_kl") else 2
    return f"{middle:{'+' if signed else ''}.{digits}f} ± {half:.{digits}f}"


def figure(rows: Sequence[Row]) -> plots.Figure:
    """Two rows, best-of-n and PPO, and a column a number of labels; gold solid, thin for each world, proxies dashed."""
    sizes = sorted({row["labels"] for row in rows})
    data: list[Row] = []
    layout: Row = {"annotations": [_note(LEGEND, 0.045, 0.942)], "shapes": []}
    rooms = {"best_of_n": (0.63, 0.895), "ppo": (0.06, 0.505)}
    titles = {"best_of_n": "Best of n", "ppo": "PPO"}
    width = 1 / len(sizes)
    for row, kind in enumerate(titles):
        ranges = [np.inf, -np.inf]
        for column, labels in enumerate(sizes):
            here = [one for one in rows if one["labels"] == labels]
            number = row * len(sizes) + column + 1
            for method in METHODS:
                if method in here[0][kind]:
                    lines = _lines(here, kind, method, number)
                    data += lines
                    values = [y for line in lines for y in line["y"]]
                    ranges = [min(ranges[0], *values), max(ranges[1], *values)]
            left = column * width
            layout[f"xaxis{number}"] = _axis("√KL, KL in nats", f"y{number}") | {
                "domain": [left + 0.045, left + width - 0.012],
                "rangemode": "tozero",
            }
            layout[f"yaxis{number}"] = _axis("standard deviations" if column == 0 else "", f"x{number}") | {
                "domain": rooms[kind]
            }
            layout["annotations"].append(
                _note(f"<b>{titles[kind]}</b>, {labels} labels", left + 0.045, rooms[kind][1] + 0.012)
            )
        low, high = ranges
        for column in range(len(sizes)):
            if kind == "ppo":
                layout["shapes"].append(_stop(len(sizes) + column + 1, low, high))
            pad = 0.04 * (high - low)
            layout[f"yaxis{row * len(sizes) + column + 1}"]["range"] = [low - pad, high + pad]
    return {
        "data": data,
        "layout": layout
        | {
            "width": SIZE[0],
            "height": SIZE[1],
            "margin": {"l": 24, "r": 12, "t": 8, "b": 24},
            "font": {"size": 15, "color": "var(--ink)", "family": "DejaVu Sans, Arial, sans-serif"},
            "paper_bgcolor": "#ffffff",
            "plot_bgcolor": "#ffffff",
            "legend": {"orientation": "h", "x": 0.04, "y": 1.0, "yanchor": "top", "font": {"size": 15}},
        },
    }


def _lines(rows: Sequence[Row], kind: str, method: str, number: int) -> list[Row]:
    """Gold of each world, the mean gold and the mean proxy of one method, in the panel of that number."""
    place = {"xaxis": f"x{number}", "yaxis": f"y{number}", "type": "scatter", "mode": "lines"}
    line = {"color": plots.colour(list(METHODS).index(method)), "width": 3.2}

    def drawn(which: Sequence[Row], figure: str, **more: Any) -> Row:
        x, y, _ = curve(which, kind, method, figure)
        return place | {"x": [*x], "y": [*y], "showlegend": False, "line": line} | more

    thin = line | {"width": 1}
    legend = {"showlegend": number == 1, "name": METHODS[method]}
    return [
        *(drawn([row], "gold", line=thin, opacity=0.55) for row in rows),
        drawn(rows, "gold", **legend),
        drawn(rows, "proxy", line=line | {"width": 2, "dash": "dash"}),
    ]


def _axis(title: str, anchor: str) -> Row:
    return {
        "title": {"text": title, "font": {"size": 14}, "standoff": 6},
        "anchor": anchor,
        "gridcolor": "var(--line)",
        "zerolinecolor": "var(--soft)",
        "tickfont": {"size": 13, "color": "var(--soft)"},
    }


def _note(text: str, x: float, y: float) -> Row:
    return {
        "text": text, "x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom",
        "showarrow": False, "font": {"size": 15},
    }  # fmt: skip


def _stop(number: int, low: float, high: float) -> Row:
    """Where the default limit would have ended a run."""
    line = {"color": "var(--soft)", "dash": "dot", "width": 1.5}
    place = {
        "xref": f"x{number}",
        "yref": f"y{number}",
        "x0": STOP**0.5,
        "x1": STOP**0.5,
        "y0": low,
        "y1": high,
    }
    return {"type": "line", "line": line, **place}


def draw(rows: Sequence[Row], page: Path, image: Path) -> None:
    """The chart as a page and, where there is a Chromium, as a picture."""
    picture.draw(figure(rows), page, image, SIZE)
