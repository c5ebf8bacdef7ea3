"""The report's charts, as plain Plotly figures: dicts of data and layout, ready for JSON.

Colours are names of the page's own colours, such as "var(--ink)", which the page's script fills in, so that one
figure serves light, dark and paper. Names that come from the run go through `label`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Figure = dict[str, Any]
NOTHING = "rgba(0,0,0,0)"
COLOURS = 4
"""How many colours of rounds the page knows, --round-0 (the newest) to --round-3."""
DASHES = ("solid", "dot", "dash", "dashdot")
QUARTERS = {
    "tickvals": [0, 0.25, 0.5, 0.75, 1],
    "ticktext": [f"{quarter}\u202f%" for quarter in range(0, 101, 25)],
}
MARKERS_UP_TO = 40
"""Steps of a curve up to which each is marked."""


class Win(NamedTuple):
    """A row of the chart of win rates; interval: (low, high) at 95 %; colour: a page colour."""

    name: str
    rate: float
    interval: tuple[float, float] | None
    colour: str
    symbol: str


class Series(NamedTuple):
    """One round's points; age: 0 for the newest round, 1 for the one before, and so on."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    age: int


def label(text: str) -> str:
    """Text of the run, which Plotly would otherwise read as markup."""
    return html.escape(text, quote=False)


def share(value: float, digits: int = 0) -> str:
    """0.62 -> 62 %, with a narrow space that does not break."""
    return f"{100 * value:.{digits}f}\u202f%"


def colour(age: int) -> str:
    return f"var(--round-{age % COLOURS})"


def win_rates(rows: Sequence[Win]) -> Figure:
    """Win rates from top to bottom, with intervals where there are any, and the line of no difference."""
    data = []
    for place, row in enumerate(rows):
        low, high = row.interval or (row.rate, row.rate)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [row.rate],
                "y": [place],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [max(0.0, high - row.rate)],
                    "arrayminus": [max(0.0, row.rate - low)],
                    "visible": row.interval is not None,
                    "color": row.colour,
                    "thickness": 2.5,
                    "width": 6,
                },
                "marker": {"size": 13, "color": row.colour, "symbol": row.symbol},
                "hoverinfo": "text",
                "hovertext": [
                    f"{row.name}: {share(row.rate, 1)}"
                    + (f" ({share(low, 1)} to {share(high, 1)})" if row.interval else "")
                ],
            }
        )
    notes = [
        {
            "x": (row.interval or (0.0, row.rate))[1],
            "y": place,
            "text": f"<b>{share(row.rate)}</b>",
            "xanchor": "left",
            "xshift": 12,
            "showarrow": False,
            "bgcolor": "var(--page)",
            "font": {"size": 14, "color": "var(--ink)"},
        }
        for place, row in enumerate(rows)
    ]
    notes.append(
        {
            "x": 0.5,
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "text": "no difference",
            "showarrow": False,
            "font": {"size": 12, "color": "var(--soft)"},
        }
    )
    return figure(
        data,
        height=110 + 46 * len(rows),
        margin={"l": 8, "r": 16, "t": 26, "b": 44},
        xaxis=axis("share of comparisons won against the start", range=[0, 1.06], **QUARTERS),
        yaxis=axis(
            None,
            tickvals=list(range(len(rows))),
            ticktext=[row.name for row in rows],
            range=[len(rows) - 0.4, -0.6],
            showgrid=False,
            ticks="outside",
            ticklen=8,
            tickcolor=NOTHING,
        ),
        shapes=[_line(x0=0.5, x1=0.5, y0=0, y1=1, yref="paper")],
        annotations=notes,
    )


def curves(
    series: Sequence[Series], *, format: str, lines: Mapping[str, float] | None = None, unit: str = "step"
) -> Figure:
    """Curves of the same measure by round; lines: levels to draw across, with what each is."""
    points = max((len(one.x) for one in series), default=0)
    places = [x for one in series for x in one.x] or [1]
    first, last = min(places), max(places)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if points <= MARKERS_UP_TO else "lines",
            "name": one.name,
            "x": list(one.x),
            "y": list(one.y),
            "line": {"color": colour(one.age), "width": 2.4, "dash": DASHES[one.age % COLOURS]},
            "marker": {"size": 5, "color": colour(one.age)},
            "hovertemplate": f"{one.name}, {unit} %{{x}}: %{{y:{format}}}<extra></extra>",
        }
        for one in series
    ]
    levels = lines or {}
    notes = [
        {
            "x": 1,
            "xref": "paper",
            "xanchor": "right",
            "y": level,
            "yanchor": "bottom" if level == max(levels.values()) else "top",
            "text": name,
            "showarrow": False,
            "font": {"size": 11, "color": "var(--soft)"},
        }
        for name, level in levels.items()
    ]
    return figure(
        data,
        height=180,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis=axis(None, tickformat="d", nticks=6, range=[first - 0.5, last + 0.5], showgrid=False),
        yaxis=axis(
            None,
            nticks=5,
            showgrid=not levels,
            tickformat=".1~%" if "%" in format else "",
            **_range(series, list(levels.values())),
        ),
        shapes=[_line(x0=0, x1=1, xref="paper", y0=level, y1=level) for level in levels.values()],
        annotations=notes,
        hovermode="closest",
    )


def _range(series: Sequence[Series], levels: Sequence[float]) -> dict[str, Any]:
    """Room around the values, so that a level curve does not look wild and no line lies on the frame."""
    values = [y for one in series for y in one.y if y is not None] + list(levels)
    if not values:
        return {"range": [0, 1]}
    low, high = min(values), max(values)
    pad = 0.12 * max(high - low, 0.02 * max(abs(low), abs(high)), 1e-3)
    return {"range": [low - pad, high + pad]}


def disagreement(
    names: Sequence[str], shares: Sequence[Sequence[float | None]], counts: Sequence[Sequence[int]]
) -> Figure:
    """How often two raters differ on what both judged; shares and counts: [raters, raters], None for too few."""
    shown = [None if one is None else round(one, 4) for row in shares for one in row]
    size = len(names)
    grid = [shown[i * size : (i + 1) * size] for i in range(size)]
    known = [one for one in shown if one is not None]
    top = max(0.3, *known) if known else 0.3
    ticks = [label(name) for name in names]
    named = {
        "tickvals": list(range(size)),
        "ticktext": ticks,
        "showgrid": False,
        "ticks": "outside",
        "tickcolor": NOTHING,
    }
    notes = [
        {
            "x": x,
            "y": y,
            "text": share(value),
            "showarrow": False,
            "font": {"size": 12, "color": "var(--ink)" if value < 0.72 * top else "var(--on-strong)"},
        }
        for y, row in enumerate(grid)
        for x, value in enumerate(row)
        if value is not None and size <= 12
    ]
    return figure(
        [
            {
                "type": "heatmap",
                "z": grid,
                "hoverinfo": "text",
                "hovertext": [
                    [
                        ""
                        if one is None
                        else f"{ticks[x]} and {ticks[y]} differ on {share(one)} of {counts[y][x]}"
                        for x, one in enumerate(row)
                    ]
                    for y, row in enumerate(grid)
                ],
                "colorscale": [[0, "var(--heat-0)"], [1, "var(--heat-1)"]],
                "zmin": 0,
                "zmax": top,
                "xgap": 3,
                "ygap": 3,
                "showscale": False,
                "hoverongaps": False,
            }
        ],
        height=90 + 44 * size,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis=axis(None, **named, range=[-0.5, size - 0.5]),
        yaxis=axis(None, **named, range=[size - 0.5, -0.5]),
        annotations=notes,
    )


def calibration(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Predicted against observed; the area of a point follows its count."""
    most = max((row["count"] for row in rows), default=1)
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 1],
        "y": [0, 1],
        "line": {"color": "var(--soft)", "dash": "dash", "width": 1.2},
        "hoverinfo": "skip",
    }
    points = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [row["predicted"] for row in rows],
        "y": [row["observed"] for row in rows],
        "text": [str(row["count"]) for row in rows],
        "textposition": "top center",
        "textfont": {"size": 12, "color": "var(--soft)"},
        "cliponaxis": False,
        "marker": {
            "size": [8 + 18 * math.sqrt(row["count"] / most) for row in rows],
            "color": colour(0),
            "opacity": 0.85,
            "line": {"width": 1, "color": "var(--page)"},
        },
        "hoverinfo": "text",
        "hovertext": [
            f"said {share(row['predicted'])}, chosen {share(row['observed'])} of {row['count']}"
            for row in rows
        ],
    }
    frame = {"range": [-0.04, 1.06], **QUARTERS}
    return figure(
        [diagonal, points],
        height=330,
        margin={"l": 8, "r": 12, "t": 12, "b": 44},
        xaxis=axis("the model said", **frame),
        yaxis=axis("the raters chose it", **frame),
    )


def stages(names: Sequence[str], rounds: Sequence[tuple[str, Sequence[float], int]]) -> Figure:
    """Seconds by stage, rounds side by side in one bar; rounds: (name, seconds by stage, age)."""
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": list(seconds),
            "y": list(range(len(names))),
            "width": 0.6,
            "marker": {"color": colour(age), "line": {"width": 1, "color": "var(--page)"}},
            "hovertemplate": f"{name}: %{{x:.3~s}} s<extra></extra>",
        }
        for name, seconds, age in rounds
    ]
    return figure(
        data,
        height=70 + 34 * len(names),
        barmode="stack",
        margin={"l": 8, "r": 12, "t": 8, "b": 44},
        xaxis=axis("seconds", rangemode="tozero"),
        yaxis=axis(
            None,
            tickvals=list(range(len(names))),
            ticktext=list(names),
            range=[len(names) - 0.4, -0.6],
            showgrid=False,
        ),
    )


def figure(data: list[dict[str, Any]], **layout: Any) -> Figure:
    return {
        "data": data,
        "layout": {
            "autosize": True,
            "showlegend": False,
            "dragmode": False,
            "paper_bgcolor": NOTHING,
            "plot_bgcolor": NOTHING,
            "font": {"size": 13, "color": "var(--ink)"},
            "hoverlabel": {
                "bgcolor": "var(--card)",
                "bordercolor": "var(--line)",
                "font": {"color": "var(--ink)"},
            },
            **layout,
        },
    }


def axis(title: str | None, **more: Any) -> dict[str, Any]:
    """fixedrange: a finger on a chart scrolls the page."""
    named = {"title": {"text": title, "font": {"size": 12, "color": "var(--soft)"}}} if title else {}
    return {
        "automargin": True,
        "fixedrange": True,
        "gridcolor": "var(--line)",
        "zeroline": False,
        "tickfont": {"size": 12, "color": "var(--soft)"},
        **named,
        **more,
    }


def _line(**place: Any) -> dict[str, Any]:
    return {"type": "line", "line": {"color": "var(--soft)", "dash": "dash", "width": 1.2}, **place}
