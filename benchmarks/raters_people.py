"""The part of benchmarks/raters.py that reads real people's judgements, and its table."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from plaudit.data.judged import Judged, group_by_prompt
from plaudit.models.branch import Branch
from plaudit.models.load import Model, load_model
from plaudit.randomness import rng
from plaudit.recipes.reward_model import exit_depth
from plaudit.reward.judgements import Reading, begin
from plaudit.reward.measure_raters import measure_raters
from plaudit.reward.probe import Examples, fit, leave_out, standardised, states_of
from plaudit.reward.rater_figures import rater_figures
from plaudit.training import machine
from plaudit.types import Message, Preference, Rating, Record

FOLDS = 5
STUDENT = 2.776
"""Of a 95 % interval over five folds."""

GROUPS = {"positions 1 to 3": (1, 2, 3), "positions 4 to 6": (4, 5, 6)}
"""Of MLQE-PE's six."""


def pandalm(folder: Path) -> list[Record]:
    """Each annotator's comparison of each pair; 0 was a tie."""
    rows = json.loads((folder / "pandalm_3raters" / "testset-v1.json").read_text(encoding="utf-8"))
    choices = {0: "tie", 1: 0, 2: 1}
    found: list[Record] = []
    for row in rows:
        prompt = (Message("user", "\n\n".join(filter(None, (row["instruction"], row["input"])))),)
        answers = (str(row["response1"]), str(row["response2"]))
        found += [
            Preference(prompt, answers, choices[row[f"annotator{n}"]], rater=f"annotator {n}")  # type: ignore[arg-type]
            for n in (1, 2, 3)
            if answers[0] != answers[1]
        ]
    return found


def mlqe(folder: Path, pair: str, of_six: int) -> list[Record]:
    """Direct-assessment scores of dev, by position; of_six: how many of them an item keeps, drawn.

    Positions 1 to 3 are one person each; those of 4 to 6 are not known to be. The two groups were asked apart, and the
    means of what they gave hardly agree (a correlation of 0.27 in en-zh, 0.23 in en-de).
    """
    path = folder / "mlqe_pe_da" / f"{pair}-dev.tar.gz"
    with tarfile.open(path) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith(".df.short.tsv"))
        file = archive.extractfile(member)
        assert file is not None
        text = file.read().decode("utf-8")
    found: list[Record] = []
    for row in csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE):
        scores = json.loads(row["scores"])
        kept = rng("mlqe", pair, row["index"]).permutation(len(scores))[:of_six]
        prompt = (Message("user", f"Translate: {row['original']}"),)
        found += [
            Rating(prompt, row["translation"], {"overall": scores[i] / 100}, rater=f"position {i + 1}")
            for i in sorted(kept.tolist())
        ]
    return found


def given_by(positions: Sequence[int], groups: Sequence[Judged]) -> list[Judged]:
    """The same items with these positions' scores alone."""
    names = {f"position {n}" for n in positions}
    return [replace(g, ratings=[one for one in g.ratings if one.rater in names]) for g in groups]


def states(name: str, groups: Sequence[Judged], model: Model, cache: Path) -> list[torch.Tensor]:
    """The frozen trunk's, half-way up, the mean over tokens; computed once and kept."""
    path = cache / f"{name}.safetensors"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        branch = Branch(model.trunk, exit=exit_depth(0.5, model.trunk.shape.depth), pool="mean")
        save_file({"states": torch.cat(states_of(branch, groups, 4096)).float()}, path)
    sizes = [len(group.completions) for group in groups]
    return list(torch.split(load_file(path)["states"], sizes))


def learned(
    groups: list[Judged], there: list[torch.Tensor], asked: Reading
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The weights on raw states, as the recipe's probe fits them, and what was told of each rater."""
    reading, effects = begin(groups, asked)
    told: dict[str, Any] = {}
    if reading.aware:
        seen = measure_raters(groups, there, reading=reading, effects=effects, seed=0)
        told = rater_figures(groups, seen, reading, effects)
    even, _, scale = standardised(there)
    penalty = leave_out(groups, even, reading, effects, (1.0,), 0).penalty
    weights = fit(Examples.of(groups, even, reading, effects), penalty).weights
    return weights[0, :-1] / scale, told


def majority(group: Judged) -> dict[tuple[int, int], float]:
    """By pair, what most raters chose (0 or 1); pairs without a majority for either are left out."""
    votes: dict[tuple[int, int], list[float]] = {}
    for pair in group.pairs:
        votes.setdefault((pair.a, pair.b), []).append(pair.target)
    return {
        key: side for key, cast in votes.items() for side in (0.0, 1.0) if cast.count(side) * 2 > len(cast)
    }


def accuracy(weights: torch.Tensor, groups: list[Judged], there: list[torch.Tensor]) -> float:
    """On majorities that are no ties."""
    right = []
    for group, x in zip(groups, there, strict=True):
        score = x.double() @ weights
        right += [float((score[a] > score[b]) == (side == 1)) for (a, b), side in majority(group).items()]
    return float(np.mean(right))


def correlation(weights: torch.Tensor, groups: list[Judged], there: list[torch.Tensor]) -> float:
    """Of the score with the mean of all raters' standardised scores (each by the rater's own mean and deviation)."""
    by_rater: dict[str, list[float]] = {}
    for group in groups:
        for one in group.ratings:
            by_rater.setdefault(str(one.rater), []).append(one.rating)
    unit = {name: (np.mean(given), np.std(given)) for name, given in by_rater.items()}
    wanted = [
        np.mean([(one.rating - unit[str(one.rater)][0]) / unit[str(one.rater)][1] for one in group.ratings])
        for group in groups
    ]
    scores = [float(x[0].double() @ weights) for x in there]
    return float(np.corrcoef(scores, wanted)[0, 1])


READINGS = {
    "comparisons": {"plain": Reading(), "aware": Reading(aware=True)},
    "ratings": {
        "plain": Reading(),
        "ordinal": Reading(rating="ordinal"),
        "aware": Reading(aware=True),
        "aware ordinal": Reading(rating="ordinal", aware=True),
    },
    "ratings by group": {
        "plain": Reading(),
        "aware": Reading(aware=True),
        "aware ordinal": Reading(rating="ordinal", aware=True),
    },
}


def cross_validated(
    name: str,
    whole: list[Judged],
    there: list[torch.Tensor],
    kind: str,
    judged: list[Judged] | None = None,
    groups: Mapping[str, Sequence[int]] | None = None,
    folds: str | None = None,
) -> dict[str, Any]:
    """By reading, the figure on each fold by prompt and its difference from plain's; judged: what is learned from,
    where that is less than what is measured with; groups: positions whose own mean is measured with, too; folds: the
    row whose folds these are (None: its own)."""
    begun = time.process_time()
    judged = judged or whole
    fold = [int(rng("raters study", folds or name, group.key).integers(FOLDS)) for group in whole]
    figure = accuracy if kind == "comparisons" else correlation
    found: dict[str, list[float]] = {reading: [] for reading in READINGS[kind]}
    own = {group: given_by(positions, whole) for group, positions in (groups or {}).items()}
    by_group = {group: {reading: list[float]() for reading in found} for group in own}
    told: dict[str, Any] = {}
    called: dict[str, dict[str, list[str]]] = {}
    for left_out in range(FOLDS):
        inside, outside = ([i for i, f in enumerate(fold) if (f == left_out) is out] for out in (False, True))
        for reading, asked in READINGS[kind].items():
            weights, raters = learned([judged[i] for i in inside], [there[i] for i in inside], asked)
            found[reading].append(figure(weights, [whole[i] for i in outside], [there[i] for i in outside]))
            for group, items in own.items():
                by_group[group][reading].append(
                    figure(weights, [items[i] for i in outside], [there[i] for i in outside])
                )
            if raters and not left_out:
                told[reading] = raters
            for rater, row in raters.items():
                called.setdefault(reading, {}).setdefault(rater, []).append(row["label"])
        print(name, {reading: round(values[-1], 4) for reading, values in found.items()}, flush=True)

    def less_plain(values: dict[str, list[float]]) -> dict[str, list[float]]:
        gaps = {reading: np.array(values[reading]) - np.array(values["plain"]) for reading in values}
        return {
            reading: [float(gap.mean()), float(STUDENT * gap.std(ddof=1) / np.sqrt(FOLDS))]
            for reading, gap in gaps.items()
            if reading != "plain"
        }

    return {
        "name": name,
        "figure": figure.__name__,
        "prompts": len(whole),
        "judgements": sum(len(group.pairs) + len(group.ratings) for group in judged),
        "folds": found,
        "less_plain": less_plain(found),
        "groups": {
            group: {"folds": values, "less_plain": less_plain(values)} for group, values in by_group.items()
        },
        "raters": told,
        "called": called,
        "cpu_minutes": round((time.process_time() - begun) / 60, 1),
    }


def people(
    folder: Path, cache: Path, keep: Callable[[list[dict[str, Any]]], None], found: list[dict[str, Any]]
) -> None:
    """Every set of judgements that `found` lacks; `keep` is given all rows after each."""
    _, dtype = machine.prepare("auto", 1)
    model = load_model("smollm2", dtype)
    known = {row["name"] for row in found}

    def gathered(records: list[Record]) -> list[Judged]:
        return group_by_prompt(records, model.tokenizer, {}, context=model.trunk.shape.context)

    def add(name: str, *rest: Any) -> None:
        if name not in known:
            found.append(cross_validated(name, *rest))
            keep(found)

    pandas = gathered(pandalm(folder))
    add("PandaLM", pandas, states("pandalm", pandas, model, cache), "comparisons")
    for pair in ("en-zh", "en-de"):
        whole, few = gathered(mlqe(folder, pair, 6)), gathered(mlqe(folder, pair, 2))
        there = states(pair, whole, model, cache)
        add(f"MLQE-PE {pair}, two of six", whole, there, "ratings", few)
        everyone = f"MLQE-PE {pair}, all six"
        add(everyone, whole, there, "ratings")
        add(f"{everyone}, by group", whole, there, "ratings by group", None, GROUPS, everyone)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Means over folds and the paired difference from plain with its 95 % interval."""
    lines = ["| people | figure | reading | mean of five folds | less plain (95 %) |", "|---" * 5 + "|"]
    for row in found:
        by_group = {f"{row['name']}: {group}": part for group, part in row.get("groups", {}).items()}
        for name, part in (by_group or {row["name"]: row}).items():
            for reading, values in part["folds"].items():
                gap = part["less_plain"].get(reading)
                shown = "" if gap is None else f"{gap[0]:+.3f} ± {gap[1]:.3f}"
                lines.append(f"| {name} | {row['figure']} | {reading} | {np.mean(values):.3f} | {shown} |")
    return "\n".join(lines)
