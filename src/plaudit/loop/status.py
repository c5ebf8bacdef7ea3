"""How a loop stands: status.json, which `plaudit loop status` and the studio read, and the report's page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plaudit import files
from plaudit.evaluation import plots
from plaudit.evaluation.page import fill
from plaudit.evaluation.plots import Figure, Win
from plaudit.loop.rounds import Journal
from plaudit.loop.settings import Config

STEPS = ("sample", "collect", "agree", "reward", "improve", "evaluate", "gate", "publish")


def write(
    config: Config, directory: Path, *, at: tuple[int, str] | None = None, ended: str | None = None
) -> None:
    """status.json, as `of`, with what the loop is at."""
    found = of(config, directory)
    found["at"] = None if at is None else {"round": at[0], "step": at[1]}
    found["ended"] = ended
    files.write_json(directory / "status.json", found)


def of(config: Config, directory: Path) -> dict[str, Any]:
    """{"name", "rounds": [...], "champion": {"round", "version"}, "target", "waiting", "judgements", "seconds"}.

    A round's: "round", "steps" (seconds by step), "judgements" (by source), "alpha", "accuracy" (the reward's, held
    out), "drift", "decision", "why", "rates", "bounds", "intervals" (by opponent), "kl_per_token", "version".
    """
    journal = Journal(directory)
    rounds = [_round(journal, number) for number in sorted({entry["round"] for entry in journal.entries})]
    published = [one for one in rounds if one["published"]]
    waiting = directory / "waiting.json"
    return {
        "name": config.name,
        "rounds": rounds,
        "of_rounds": config.stop.rounds,
        "champion": {
            "round": published[-1]["round"] if published else 0,
            "version": published[-1]["version"] if published else "the start",
        },
        "target": config.stop.target,
        "judgements": sum(sum(one["judgements"].values()) for one in rounds),
        "seconds": journal.seconds(),
        "waiting": files.read_json(waiting, "start the run again") if waiting.exists() else None,
    }


def _round(journal: Journal, number: int) -> dict[str, Any]:
    found = {step: journal.done(number, step) or {} for step in STEPS}
    seconds = {entry["step"]: entry["seconds"] for entry in journal.entries if entry["round"] == number}
    verdict = found["gate"]
    return {
        "round": number,
        "steps": seconds,
        "judgements": found["collect"].get("by_source", {}),
        "alpha": found["agree"].get("alpha", {}),
        "doubted": found["agree"].get("doubted", {}),
        "drift": found["agree"].get("drift", {}).get("changed", False),
        "accuracy": found["reward"].get("accuracy"),
        "by_source": found["reward"].get("by_source", {}),
        "kl_per_token": found["evaluate"].get("kl_per_token"),
        "decision": verdict.get("decision"),
        "why": verdict.get("why"),
        "prompts": verdict.get("prompts"),
        "rates": verdict.get("rates", {}),
        "bounds": verdict.get("bounds", {}),
        "intervals": verdict.get("intervals", {}),
        "suites": {
            name: {"difference": rate, "above": verdict["bounds"][name]}
            for name, rate in verdict.get("rates", {}).items()
            if name not in ("parent", "anchor")
        },
        "length_controlled": verdict.get("length_controlled", {}),
        "published": bool(found["publish"].get("published")),
        "version": found["publish"].get("candidate"),
        "kl_target": found["publish"].get("kl_target"),
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """How it stands, in words, a line each."""
    told = [f"{found['name']}: {found['champion']['version']} answers (round {found['champion']['round']})"]
    for one in found["rounds"]:
        judged = sum(one["judgements"].values())
        parts = [f"round {one['round']}", f"{judged} judgements"]
        if one["accuracy"] is not None:
            parts.append(f"reward right {one['accuracy']:.0%}")
        for name, (low, high) in one["intervals"].items():
            parts.append(f"{one['rates'][name]:.0%} ({low:.0%} to {high:.0%}) against {name}")
        for name, suite in one["suites"].items():
            parts.append(f"{suite['difference']:+.2f} on {name}")
        if one["decision"] is not None:
            parts.append("published" if one["published"] else f"kept out: {one['why']}")
        parts.append(f"{sum(one['steps'].values()) / 60:.1f} min")
        told.append(", ".join(parts))
    if found["target"] is not None:
        told.append(f"target: above {found['target']:.0%} against the start")
    if (waiting := found["waiting"]) is not None:
        told.append(f"waits for {waiting['for']}: {waiting['have']} of {waiting['want']}")
    elif (at := found.get("at")) is not None:
        told.append(f"at round {at['round']}: {at['step']}")
    if found.get("ended"):
        told.append(f"ended: {found['ended']}")
    return told


# The report ------------------------------------------------------------------------------------------------


def report(config: Config, summary: Mapping[str, Any]) -> str:
    """report.html of a loop: the gain of every round with its interval, and what it cost."""
    rounds = summary["rounds"]
    figures: dict[str, Figure] = {}
    wins = [
        Win(
            f"Round {one['round']} against {'the start' if name == 'anchor' else 'its parent'}",
            one["rates"][name],
            tuple(one["intervals"][name]),
            "var(--round-0)" if one["published"] else "var(--soft)",
            "circle" if name == "anchor" else "diamond",
        )
        for one in rounds
        for name in one["intervals"]
    ]
    if wins:
        figures["gain"] = plots.win_rates(wins)
    names = [step for step in STEPS if any(step in one["steps"] for one in rounds)]
    if names:
        figures["seconds"] = plots.stages(
            names,
            [
                (
                    f"Round {one['round']}",
                    [one["steps"].get(step, 0.0) for step in names],
                    len(rounds) - 1 - i,
                )
                for i, one in enumerate(rounds)
            ],
        )
    return fill("loop.html.j2", {"summary": summary, "config": config}, figures)
