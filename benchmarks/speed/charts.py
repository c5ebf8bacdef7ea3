"""The pictures of docs/speed.md: ratios, shares of the ceiling, and how the cost of a step grows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import picture

from plaudit.evaluation import plots
from speed.cases import SHARE, TARGETS

RUNS = Path(__file__).parents[2] / "runs" / "speed"
Figure = dict[str, Any]
GRID = {
    "gridcolor": "var(--line)",
    "zeroline": False,
    "automargin": True,
    "tickfont": {"size": 13, "color": "var(--soft)"},
}
LAYOUT: Figure = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"size": 14, "color": "var(--ink)"},
    "margin": {"l": 16, "r": 30, "t": 50, "b": 60},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
}


def bars(values: Mapping[str, float], name: str, colour: str) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": list(values.values()),
        "y": list(values),
        "marker": {"color": colour},
        "text": [f"{value:.2f}" for value in values.values()],
        "textposition": "inside",
        "insidetextanchor": "start",
        "cliponaxis": False,
    }


def ticks(values: Mapping[str, float], name: str, symbol: str, colour: str) -> Figure:
    """A mark at each value."""
    marker = {"symbol": symbol, "size": 14, "color": colour, "line": {"width": 3, "color": colour}}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(values.values()),
        "y": list(values),
    } | {"marker": marker}


def ratios(rows: Mapping[str, dict[str, Any] | None]) -> Figure:
    """The peer's seconds to ours by aim, with what was aimed at."""
    measured = {name: row["ratio"] for name, row in rows.items() if row is not None}
    least = {name: TARGETS[name].least for name in measured}
    moon = {name: at for name in measured if (at := TARGETS[name].moonshot) is not None}
    axis = {"title": {"text": "the peer's seconds to ours"}, "rangemode": "tozero", **GRID}
    data = [
        bars(measured, "measured", "var(--round-0)"),
        ticks(least, "at least", "line-ns-open", "var(--ink)"),
        ticks(moon, "moonshot", "star", "var(--round-3)"),
    ]
    return {"data": data, "layout": {**LAYOUT, "xaxis": axis, "yaxis": {"autorange": "reversed", **GRID}}}


def ceilings(rows: Mapping[str, dict[str, Any] | None]) -> Figure:
    """How near each side comes to what the machine can do."""
    shares = {
        side: {name: row["roofline"][side] for name, row in rows.items() if row is not None}
        for side in ("ours", "peer")
    }
    axis = {"title": {"text": "share of the machine's ceiling"}, "range": [0, 1], "tickformat": ".0%", **GRID}
    lines = [
        {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper",
         "line": {"color": "var(--soft)", "dash": "dash", "width": 1.2}}
        for at in (SHARE.least, SHARE.moonshot)
    ]  # fmt: skip
    data = [bars(shares["ours"], "ours", "var(--round-0)"), bars(shares["peer"], "peer", "var(--round-1)")]
    layout = {
        **LAYOUT,
        "xaxis": axis,
        "yaxis": {"autorange": "reversed", **GRID},
        "shapes": lines,
        "barmode": "group",
    }
    return {"data": data, "layout": layout}


def growth_of(growth: Mapping[str, Any]) -> Figure:
    """Small charts side by side: each way that the work grows, with its line, and the memory held."""
    data: list[Figure] = []
    layout: Figure = {**LAYOUT, "showlegend": False, "annotations": []}
    panels = [(one["name"], one["unit"], one["x"], one["seconds"], one["fit"]) for one in growth["series"]]
    memory = growth["memory"]
    steps = list(range(1, len(memory["rss_gb"]) + 1))
    panels.append((f"memory, GB: {memory['work']}", "step", steps, memory["rss_gb"], None))
    for place, (name, unit, x, y, fit) in enumerate(panels):
        column, row, suffix = place % 3, place // 3, "" if place == 0 else str(place + 1)
        across, down = (
            [column / 3 + 0.03, column / 3 + 0.29],
            [0.56 - 0.56 * row + 0.05, 1 - 0.56 * row - 0.05],
        )
        down = [max(0.0, down[0]), min(1.0, down[1])]
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        mode = "markers" if fit else "lines"
        data.append({"type": "scatter", "mode": mode, "x": x, "y": y, "marker": {"size": 9}, "line": {"width": 2},
                     **axes} | {"marker": {"size": 9, "color": "var(--round-0)"}})  # fmt: skip
        if fit:
            ends = [0, max(x)]
            drawn = [fit["intercept"] + fit["slope"] * end for end in ends]
            data.append({"type": "scatter", "mode": "lines", "x": ends, "y": drawn,
                         "line": {"color": "var(--soft)", "dash": "dash", "width": 1.5}, **axes})  # fmt: skip
        layout[f"xaxis{suffix}"] = {"domain": across, "anchor": f"y{suffix}", "title": {"text": unit}, "nticks": 4,
                                    "rangemode": "tozero", **GRID}  # fmt: skip
        layout[f"yaxis{suffix}"] = {
            "domain": down,
            "anchor": f"x{suffix}",
            "rangemode": "tozero",
            "nticks": 5,
            **GRID,
        }
        layout["annotations"].append({"text": plots.label(name), "x": across[0], "y": down[1], "xref": "paper",
                                      "yref": "paper", "xanchor": "left", "yanchor": "bottom", "showarrow": False,
                                      "font": {"size": 13}})  # fmt: skip
    return {"data": data, "layout": layout}


def draw_ratios(rows: Mapping[str, dict[str, Any] | None], images: Path, suffix: str = "") -> None:
    for name, figure in ((f"speed{suffix}", ratios(rows)), (f"speed_ceiling{suffix}", ceilings(rows))):
        figure["layout"] |= {"height": 640, "width": 980}
        picture.draw(figure, RUNS / f"{name}.html", images / f"{name}.png", (1000, 660))


def draw_growth(growth: Mapping[str, Any], images: Path) -> None:
    figure = growth_of(growth)
    figure["layout"] |= {"height": 700, "width": 1180}
    picture.draw(figure, RUNS / "speed_growth.html", images / "speed_growth.png", (1200, 720))
