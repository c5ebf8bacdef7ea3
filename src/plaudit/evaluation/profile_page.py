"""profile.html of a run: where a second of its step goes, from the figures of `training.profile`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit import files
from plaudit.evaluation import plots
from plaudit.evaluation.page import fill
from plaudit.evaluation.plots import Figure
from plaudit.training.attribution import KINDS

MEANINGS = {
    "products": "matrix products of blocks, adapters and heads",
    "output layer": "products that make logits, and what comes back through them",
    "output softmax": "exponentials and sums over the vocabulary, the draw among them",
    "attention": "its products and softmax",
    "norms": "before attention and MLP, and at the end",
    "rotary": "turning queries and keys by their position",
    "gate": "the MLP's gate",
    "gathers, copies": "numbers moved, none made: caches, tiles, other types and layouts",
    "elementwise": "all other arithmetic",
    "optimiser": "the gradients' norm and the step",
    "Python": "no operator is at work: the interpreter, calls, files, waiting, memory asked for",
}
"""Of each kind: what is in it."""
WORDS = {"look": "the look at the samples", "log": "the log", "checkpoint": "the checkpoint"}
"""Of groups of phases whose name alone says little: what they are called in a sentence."""
DISTURBED = 0.7
"""Of a step's time: where processors were at work for this process for less, it waited for others."""
SAID = 4
"""Groups of phases that the sentence names at most, and only those of which two digits show anything."""
SEEN = 0.005
Page = Callable[[Path, Mapping[str, Any]], object]


def page_if(wanted: bool) -> Page | None:
    """What `Metrics` makes the page with; None where no profile is wanted."""
    return write_profile if wanted else None


def write_profile(directory: Path, figures: Mapping[str, Any]) -> Path:
    """Write profile.html and return its path; figures: what profile.json holds or will hold. UserError where it cannot
    be written."""
    path = directory / "profile.html"
    files.write_text(path, render(directory, figures))
    return path


def render(directory: Path, figures: Mapping[str, Any]) -> str:
    """The page."""
    seconds, phases = figures["seconds"], figures["phases"]
    by_phase = {phase: sum(kinds.values()) for phase, kinds in phases.items()}
    kinds = [kind for kind in KINDS if any(kind in of_phase for of_phase in phases.values())]
    content = {
        "profile": figures,
        "second": 1000 / seconds if seconds else 0.0,
        "by_phase": by_phase,
        "by_kind": {kind: sum(of.get(kind, 0.0) for of in phases.values()) for kind in kinds},
        "said": in_words(by_phase, seconds),
        "kinds": kinds,
        "labels": labels(phases),
        "meanings": MEANINGS,
        "colours": {kind: colour(kind) for kind in kinds},
        "beside": {phase: sum(of.values()) for phase, of in figures["beside"].items()},
        "disturbed": figures["processor_seconds"] < DISTURBED * seconds and not figures["device_seconds"],
        "directory": str(directory),
    }
    return fill("profile.html.j2", content, {"phases": bars(phases, kinds, seconds)})


def in_words(by_phase: Mapping[str, float], seconds: float) -> list[tuple[str, float]]:
    """(words, seconds of a second) of the groups of phases that take most, the dearest first; then the rest, unless
    that is nothing to two digits."""
    groups: dict[str, float] = {}
    for phase, spent in by_phase.items():
        group = phase.partition(":")[0]
        groups[group] = groups.get(group, 0.0) + spent / seconds
    ordered = sorted(groups.items(), key=lambda item: -item[1])
    said = [(WORDS.get(group, group), share) for group, share in ordered[:SAID] if share >= SEEN]
    rest = sum(share for _, share in ordered[len(said) :])
    return [*said, ("all else", rest)] if rest >= SEEN else said


def labels(phases: Iterable[str]) -> dict[str, str]:
    """What each phase is called: where others are parts of it, what they leave of it is its rest."""
    wholes = {phase.partition(":")[0] for phase in phases if ":" in phase}
    return {phase: f"{phase}: rest" if phase in wholes else phase for phase in phases}


def colour(kind: str) -> str:
    return f"var(--kind-{KINDS.index(kind)})"


def bars(phases: Mapping[str, Mapping[str, float]], kinds: Sequence[str], seconds: float) -> Figure:
    """Phases from top to bottom, each as long as its share of a second (ms), made up of its kinds."""
    names = [labels(phases)[phase] for phase in phases]
    second = 1000 / seconds
    data = []
    for kind in kinds:
        spent = [second * of.get(kind, 0.0) for of in phases.values()]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": kind,
                "x": spent,
                "y": list(range(len(names))),
                "width": 0.78,
                "text": [kind if one else "" for one in spent],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
                "constraintext": "inside",
                "marker": {"color": colour(kind), "line": {"width": 0.5, "color": "var(--page)"}},
                "hoverinfo": "text",
                "hovertext": [
                    f"{name}<br>{kind}: {one:.1f} ms of a second"
                    for name, one in zip(names, spent, strict=True)
                ],
            }
        )
    totals = [second * sum(of.values()) for of in phases.values()]
    notes = [
        {
            "x": total,
            "y": place,
            "text": f"<b>{total:.0f}</b>" if total >= 1 else "<1",
            "xanchor": "left",
            "xshift": 4,
            "showarrow": False,
            "font": {"size": 12, "color": "var(--ink)"},
        }
        for place, total in enumerate(totals)
    ]
    return plots.figure(
        data,
        height=76 + 30 * len(names),
        barmode="stack",
        uniformtext={"mode": "hide", "minsize": 11},
        margin={"l": 8, "r": 8, "t": 8, "b": 44},
        xaxis=plots.axis("milliseconds of a second", range=[0, 1.1 * max(totals)]),
        yaxis=plots.axis(
            None,
            tickvals=list(range(len(names))),
            ticktext=names,
            range=[len(names) - 0.4, -0.6],
            showgrid=False,
            ticks="outside",
            ticklen=4,
            tickcolor=plots.NOTHING,
        ),
        annotations=notes,
        hovermode="closest",
    )
