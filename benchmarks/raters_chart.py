"""The chart of benchmarks/raters.py: the share won back against the number of labels, a panel a kind of rater."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import picture

Row = dict[str, Any]
PANELS = {
    "careless": "Three of ten toss a coin",
    "inverted": "Two of ten say the opposite",
    "colluding": "Three of ten toss one coin together",
}
LEARNERS = {
    "aware": ("rater-aware", "var(--round-0)", "solid"),
    "dawid_skene": ("Dawid-Skene", "var(--round-2)", "dash"),
}
LOW, HIGH = -1.0, 1.25
"""What the chart shows; Dawid and Skene's share among colluding raters is below it."""
SIZE = (1080, 440)
GAP, WIDTH = 0.04, (1 - 2 * 0.04) / 3


def figure(rows: Sequence[Row]) -> dict[str, Any]:
    """Plotly's data and layout. Points outside LOW to HIGH are left out, intervals are cut there."""
    data, notes = [], []
    layout: dict[str, Any] = {
        "width": SIZE[0], "height": SIZE[1], "margin": {"l": 60, "r": 16, "t": 56, "b": 56},
        "paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff", "font": {"color": "var(--ink)"},
        "legend": {"orientation": "h", "x": 0, "y": 1.17}, "shapes": [],
    }  # fmt: skip
    for number, (kind, title) in enumerate(PANELS.items(), 1):
        own = [row for row in rows if row["kind"] == kind]
        left = (number - 1) * (WIDTH + GAP)
        for learner, (name, colour, dash) in LEARNERS.items():
            data.append(_curve(own, learner, number) | {
                "name": name, "line": {"color": colour, "width": 2.4, "dash": dash}, "showlegend": number == 1,
            })  # fmt: skip
        axis = {
            "gridcolor": "var(--line)",
            "tickfont": {"size": 13, "color": "var(--soft)"},
            "zeroline": False,
        }
        ticks = [row["labels"] for row in own]
        layout[f"xaxis{number}"] = axis | {
            "type": "log", "domain": [left, left + WIDTH], "anchor": f"y{number}", "title": {"text": "labels"},
            "tickvals": ticks, "ticktext": [f"{labels:,}" for labels in ticks], "range": [1.93, 3.28],
        }  # fmt: skip
        layout[f"yaxis{number}"] = axis | {
            "range": [LOW, HIGH], "anchor": f"x{number}", "tickformat": ".0%", "showticklabels": number == 1,
            "tickvals": [-1, -0.5, 0, 0.5, 1],
            "title": {"text": "of the gap to the oracle won back"} if number == 1 else None,
        }  # fmt: skip
        notes.append({
            "text": title, "x": left, "y": 1.0, "xref": "paper", "yref": "paper", "xanchor": "left",
            "yanchor": "bottom", "showarrow": False, "font": {"size": 14},
        })  # fmt: skip
        if any((row["dawid_skene_won_back"]["share"] or 0) < LOW for row in own):
            notes.append(notes[-1] | {
                "text": "Dawid-Skene, where not drawn: below −100%", "x": left + 0.01, "y": 0.02,
                "font": {"size": 12, "color": "var(--round-2)"},
            })  # fmt: skip
        layout["shapes"] += [
            {"type": "line", "xref": f"x{number} domain", "yref": f"y{number}", "x0": 0, "x1": 1, "y0": y, "y1": y,
             "line": {"color": "var(--soft)", "width": 1.2, "dash": dash}}
            for y, dash in ((0.0, "solid"), (0.5, "dot"))
        ]  # fmt: skip
    return {"data": data, "layout": layout | {"annotations": notes}}


def _curve(rows: Sequence[Row], learner: str, number: int) -> Row:
    found = [(row["labels"], row[f"{learner}_won_back"]) for row in rows]
    found = [(at, won) for at, won in found if won["share"] is not None and LOW <= won["share"] <= HIGH]
    shares = [won["share"] for _, won in found]
    low, high = ([min(max(won["interval"][end], LOW), HIGH) for _, won in found] for end in (0, 1))
    # A learner's points stand a little beside the other's, so that their intervals can be told apart.
    aside = 0.97 if learner == "aware" else 1.03
    return {
        "type": "scatter", "mode": "lines+markers", "xaxis": f"x{number}", "yaxis": f"y{number}",
        "x": [at * aside for at, _ in found], "y": shares,
        "error_y": {"type": "data", "symmetric": False, "width": 4, "thickness": 1.4,
                    "array": [top - at for top, at in zip(high, shares, strict=True)],
                    "arrayminus": [at - bottom for bottom, at in zip(low, shares, strict=True)]},
    }  # fmt: skip


def draw(rows: Sequence[Row], page: Path, image: Path) -> None:
    """The chart as a page and, where there is a Chromium, as a picture."""
    page.parent.mkdir(parents=True, exist_ok=True)
    picture.draw(figure(rows), page, image, SIZE)
