"""What knowing who judged is worth: rater-aware reward models on simulated raters, and on real people.

    python benchmarks/raters.py simulated            # about 20 minutes on one core
    python benchmarks/raters.py people --data DIR    # PandaLM's three raters and MLQE-PE's six; about 20 minutes

Simulated: an item is two answers, each 32 features; gold is a linear taste of them, and a careful rater prefers the
first with probability sigmoid(gold gap). Ten raters, three an item. Some of them are careless (toss a coin), inverted
(say the opposite), colluding (toss one coin together), copying (say what a careful one said) or of a taste of their
own.
Learners, each with its penalty chosen on left-out items: plain Bradley-Terry; the same on Dawid and Skene's truth, of
raters whom they find better than chance; rater-aware; and an oracle, who is plain and knows whom to leave out (or, of
inverted ones, to turn round; of copies, to keep one). Figures are accuracies on 4,000 new pairs, by gold; the share won
back is (aware - plain) / (oracle - plain) of the means over seeds, its interval the bootstrap over seeds.

People: five folds by prompt; the head is fitted to frozen states of smollm2 (half-way up, mean of tokens) as the
reward_model recipe's probe does. Nothing is tuned on the folds that are measured.

Both write what they find to benchmarks/raters.json, row by row, and go on from there when they are stopped; then they
draw the chart, one self-contained page and a picture of it for docs/, and print the tables of benchmarks/README.md
(`table` does that alone).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import raters_chart
import raters_people
import torch
from numpy.typing import NDArray

from plaudit import files
from plaudit.data.judged import Judged, Pair
from plaudit.feedback.dawid_skene import dawid_skene
from plaudit.randomness import rng
from plaudit.reward.judgements import Reading
from plaudit.reward.measure_raters import measure_raters
from plaudit.reward.probe import Examples, fit, leave_out, standardised
from plaudit.reward.rater_figures import rater_figures
from plaudit.reward.raters import RaterEffects

HERE = Path(__file__).parent
SIZES = (100, 200, 400, 800, 1600)
SEEDS = {"careless": range(100, 124), "inverted": range(100, 108), "colluding": range(100, 108)}
"""Of the kinds that are run at every size, and drawn."""
FEWER_SIZES, FEWER_SEEDS = (200, 800), range(100, 105)
"""Of every other kind."""
KINDS = {"careless": 3, "inverted": 2, "colluding": 3, "careful": 0, "copying": 3, "own taste": 3}
"""How many of the ten raters are of the kind."""
RATERS, OVERLAP, WIDTH = 10, 3, 32
GAP_SD, UNSEEN_SD = 2.0, 0.5
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class World:
    """Judged items with their states, what the raters are, and the taste that is the gold reward."""

    groups: list[Judged]
    states: list[torch.Tensor]
    kinds: list[str]
    taste: Floats


def world(kind: str, labels: int, seed: int) -> World:
    draw = rng("raters study", kind, labels, seed)
    taste, other = draw.normal(size=(2, WIDTH))
    other -= taste * (taste @ other) / (taste @ taste)
    taste, other = (w * GAP_SD / np.sqrt(2 * w @ w) for w in (taste, other))
    kinds = [kind] * KINDS[kind] + ["careful"] * (RATERS - KINDS[kind])
    items = labels // OVERLAP
    features = draw.normal(size=(items, 2, WIDTH))
    unseen = draw.normal(0, UNSEEN_SD, (items, 2))
    gaps = {w: np.squeeze(-np.diff(features @ v + unseen)) for w, v in (("gold", taste), ("own", other))}
    groups = []
    for item in range(items):
        coin, together = float(draw.random() < 0.5), None
        pairs = []
        for rater in sorted(draw.choice(RATERS, OVERLAP, replace=False).tolist()):
            what = kinds[rater]
            gap = gaps["own" if what == "own taste" else "gold"][item]
            answer = float(draw.random() < 1 / (1 + np.exp(-gap)))
            if what == "careless":
                answer = float(draw.random() < 0.5)
            elif what == "inverted":
                answer = 1 - answer
            elif what == "colluding":
                answer = coin
            elif what == "copying":
                answer = together = answer if together is None else together
            pairs.append(Pair(0, 1, answer, None, f"rater {rater}", int(draw.integers(2))))
        groups.append(Judged(f"item {item}", [item], [[0], [1]], ["a", "b"], pairs))
    share = KINDS[kind] / RATERS if kind == "own taste" else 0.0
    return World(groups, [torch.from_numpy(x) for x in features], kinds, (1 - share) * taste + share * other)


def learned(
    groups: Sequence[Judged],
    states: Sequence[torch.Tensor],
    effects: RaterEffects | None = None,
    reading: Reading | None = None,
) -> Floats:
    """The weights on raw states: plain without effects or a reading."""
    kept = [i for i, group in enumerate(groups) if group.pairs or group.ratings]
    groups = [groups[i] for i in kept]
    even, _, scale = standardised(states)
    even = [even[i] for i in kept]
    reading, effects = reading or Reading(aware=effects is not None), effects or RaterEffects()
    penalty = leave_out(groups, even, reading, effects, (1.0,), 0).penalty
    weights = fit(Examples.of(groups, even, reading, effects), penalty).weights
    return np.asarray((weights[0, :-1] / scale).numpy())


def by_dawid_skene(groups: Sequence[Judged]) -> list[Judged]:
    """One soft comparison an item: its truth, by the raters who put more than 60 % of items right."""
    answers = [(group.key, pair.rater, pair.target) for group in groups for pair in group.pairs]
    good = {rater for rater, right in dawid_skene(answers, smoothing=1.0).accuracy().items() if right > 0.6}
    kept = [answer for answer in answers if answer[1] in good] or answers
    truth = dawid_skene(kept, smoothing=1.0).truth()
    return [
        replace(group, pairs=[Pair(0, 1, truth[group.key].get(1.0, 0.0))] if group.key in truth else [])
        for group in groups
    ]


def by_oracle(here: World) -> list[Judged]:
    def kind(pair: Pair) -> str:
        return here.kinds[int(str(pair.rater).split()[1])]

    def known(pairs: list[Pair]) -> list[Pair]:
        copies = [pair for pair in pairs if kind(pair) == "copying"]
        kept = [
            pair for pair in pairs if kind(pair) not in ("careless", "colluding") and pair not in copies[1:]
        ]
        return [pair._replace(target=1 - pair.target) if kind(pair) == "inverted" else pair for pair in kept]

    return [replace(group, pairs=known(group.pairs)) for group in here.groups]


def trial(kind: str, labels: int, seed: int) -> dict[str, Any]:
    """Accuracies of the learners in one world, and the labels that raters were given."""
    here = world(kind, labels, seed)
    new = rng("raters study", "new pairs", seed).normal(size=(4000, WIDTH))

    def accuracy(weights: Floats) -> float:
        return float(np.mean((new @ weights > 0) == (new @ here.taste > 0)))

    effects = RaterEffects([f"rater {i}" for i in range(RATERS)])
    reading = Reading(aware=True)
    seen = measure_raters(here.groups, here.states, reading=reading, effects=effects, seed=0)
    told = rater_figures(here.groups, seen, reading, effects)
    return {
        "plain": accuracy(learned(here.groups, here.states)),
        "dawid_skene": accuracy(learned(by_dawid_skene(here.groups), here.states)),
        "aware": accuracy(learned(here.groups, here.states, effects)),
        "oracle": accuracy(learned(by_oracle(here), here.states)),
        "labels": {
            what: [told[f"rater {i}"]["label"] for i in range(RATERS) if here.kinds[i] == what]
            for what in dict.fromkeys(here.kinds)
        },
    }


LEARNERS = ("plain", "dawid_skene", "aware", "oracle")


def won_back(rows: list[dict[str, Any]], learner: str) -> dict[str, Any]:
    """The share of the gap to the oracle, of means over seeds, with its 95 % bootstrap interval; None where the gap is
    not a hundredth's half wide, since a share of nothing says nothing."""
    table = np.array([[row[name] for name in ("plain", learner, "oracle")] for row in rows])

    def share(chosen: Floats) -> float:
        plain, own, oracle = chosen.mean(0)
        return float((own - plain) / (oracle - plain)) if oracle > plain else float("nan")

    if table.mean(0)[2] - table.mean(0)[0] < 0.005:
        return {"share": None, "interval": None}
    draw = rng("raters study", "bootstrap")
    shares = [share(table[draw.integers(0, len(table), len(table))]) for _ in range(2000)]
    return {"share": share(table), "interval": np.nanquantile(shares, (0.025, 0.975)).round(3).tolist()}


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (Student's t over seeds)."""
    t = {4: 2.776, 7: 2.365, 23: 2.069}[len(values) - 1]
    return float(np.mean(values)), float(t * np.std(values, ddof=1) / np.sqrt(len(values)))


def simulated(keep: Callable[[list[dict[str, Any]]], None], found: list[dict[str, Any]]) -> None:
    """Every kind and size that `found` lacks; `keep` is given all rows after each."""
    for kind in KINDS:
        sizes, seeds = (SIZES, SEEDS[kind]) if kind in SEEDS else (FEWER_SIZES, FEWER_SEEDS)
        for labels in sizes:
            if any((row["kind"], row["labels"]) == (kind, labels) for row in found):
                continue
            begun = time.process_time()
            rows = [trial(kind, labels, seed) for seed in seeds]
            found.append(
                {
                    "kind": kind,
                    "labels": labels,
                    "seeds": list(seeds),
                    "accuracy": {name: mean_and_interval([row[name] for row in rows]) for name in LEARNERS},
                    "dawid_skene_won_back": won_back(rows, "dawid_skene"),
                    "aware_won_back": won_back(rows, "aware"),
                    "aware_less_plain": mean_and_interval([row["aware"] - row["plain"] for row in rows]),
                    "told": told(rows),
                    "cpu_seconds": round(time.process_time() - begun),
                }
            )
            keep(found)
            print(row_of(found[-1]), flush=True)


def told(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By kind of rater, the share of those whom each label was given."""
    shares: dict[str, dict[str, float]] = {}
    for what in rows[0]["labels"]:
        given = [label for row in rows for label in row["labels"][what]]
        shares[what] = {label: round(given.count(label) / len(given), 3) for label in sorted(set(given))}
    return shares


HEAD = (
    "| raters | labels | plain | Dawid-Skene | rater-aware | oracle | won back (95 %) | Dawid-Skene's |\n"
    + "|---" * 8
    + "|"
)


def row_of(row: dict[str, Any]) -> str:
    def shown(won: dict[str, Any]) -> str:
        return (
            ""
            if won["share"] is None
            else f"{won['share']:.2f} ({won['interval'][0]:.2f} to {won['interval'][1]:.2f})"
        )

    cells = [f"{row['accuracy'][name][0]:.3f} ± {row['accuracy'][name][1]:.3f}" for name in LEARNERS]
    who = row["kind"] if not KINDS[row["kind"]] else f"{KINDS[row['kind']]} of 10 {row['kind']}"
    shares = [shown(row["aware_won_back"]), shown(row["dawid_skene_won_back"])]
    return f"| {' | '.join([who, str(row['labels']), *cells, *shares])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", choices=("simulated", "people", "table"))
    parser.add_argument("--figure", type=Path, default=Path("runs/raters.html"), help="the chart to draw")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "images" / "raters.png")
    parser.add_argument("--afresh", action="store_true", help="measure again what raters.json holds")
    parser.add_argument("--data", type=Path, help="the folder that holds pandalm_3raters and mlqe_pe_da")
    parser.add_argument("--cache", type=Path, default=Path("runs/raters-cache"), help="where states are kept")
    given = parser.parse_args()
    if given.study == "people" and given.data is None:
        parser.error("people needs --data, the folder that holds pandalm_3raters and mlqe_pe_da")
    torch.set_num_threads(1)
    record = HERE / "raters.json"
    found: dict[str, Any] = {"simulated": [], "people": []}
    if record.exists() and not given.afresh:
        found = json.loads(record.read_text(encoding="utf-8"))

    def keep(part: str, rows: list[dict[str, Any]]) -> None:
        found[part] = rows
        files.write_text(record, json.dumps(found) + "\n")

    if given.study == "simulated":
        simulated(partial(keep, "simulated"), found["simulated"])
    elif given.study == "people":
        raters_people.people(given.data, given.cache, partial(keep, "people"), found["people"])
    rows = sorted(found["simulated"], key=lambda row: (list(KINDS).index(row["kind"]), row["labels"]))
    raters_chart.draw(rows, given.figure, given.picture)
    print("\n".join([HEAD, *map(row_of, rows)]), end="\n\n")
    print(raters_people.table(found["people"]))


if __name__ == "__main__":
    main()
