"""Reward models on what people preferred: the recipe, a rule that knows the length alone, and trl's RewardTrainer.

    python benchmarks/rewards.py ours --data DIR                              # DIR: pandalm_3raters, hh_harmless
    python benchmarks/rewards.py trl --data DIR --python VENV/bin/python      # VENV: trl 1.16.0 and peft
    python benchmarks/rewards.py table

PandaLM: 999 pairs, three annotators; a pair is what at least two of them chose, ties left out: 894 of 158 prompts. HH:
the 1,796 harmless pairs of 1,800 that have no empty answer. Folds are drawn by prompt (HH: by the dialogue's opening,
which several pairs share), anew for each seed; nothing of a left-out prompt is learned from. Both sides get the same
ids of the same texts, cut as `cut` says, one epoch, and LoRA of rank 16, alpha 32 on every linear map of six blocks:

- quickstart: the recipe as the quickstart sets it: the head first fitted, 16 of 30 blocks read, mean over tokens.
- head: the same without the tuning: the head fitted to the trunk as it is.
- defaults: the recipe as it is without a setting: all blocks, last token, no fit.
- trl RATE: RewardTrainer's defaults but for the adapter and, where it says so, the learning rate.
- length: the longer or the shorter answer, whichever was right more often in training; in tokens, uncut (the
  recipe's own, and on PandaLM the harder one), and in characters.

Every fold is written to benchmarks/rewards.json when it is done, and read there when the command comes again. A fold
takes a core some minutes (figures in benchmarks/README.md): trl 13 of PandaLM and 26 of HH, quickstart 3 and 17, head 2
and 7. Figures: the share of left-out pairs put right (equal scores are half right), and differences with the 95 %
interval of the bootstrap over prompts, all folds and seeds of a prompt together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from rewards_people import FOLDS, SETS, Choice, choices, fold_of, parts

from plaudit import files
from plaudit.data.formats import write_records
from plaudit.data.judged import Judged, group_by_prompt, prompt_key
from plaudit.models.llama import LINEARS
from plaudit.models.load import Model, find_model, load_model
from plaudit.randomness import rng
from plaudit.recipes import reward_model
from plaudit.reward.model import load_reward_model
from plaudit.training import machine, rundir
from plaudit.types import Record

HERE = Path(__file__).parent
RANK, ALPHA, BLOCKS, TRL = 16, 32, 6, "1.16.0"
ARMS: dict[str, dict[str, Any]] = {
    "quickstart": {"pool": "mean", "exit": 0.53, "probe": True, "learning_rate": 2e-4},
    "head": {"pool": "mean", "exit": 0.53, "probe": True, "epochs": 0},
    "defaults": {},
}
LENGTH = "length in tokens"
Row = dict[str, Any]
Keep = Callable[[Row], None]
Place = tuple[str, str, int, int]
"""Whose judgements, which arm, which seed, which fold."""


# 1. One fold ---------------------------------------------------------------------------------------------------------


def outcome(margins: Sequence[float]) -> list[float]:
    """1 where the chosen one is ahead, 0.5 where neither is."""
    return [0.5 if margin == 0 else float(margin > 0) for margin in margins]


def by_length(unit: str, training: Sequence[Choice], heldout: Sequence[Choice]) -> list[float]:
    """What the length rule puts right."""
    gaps, new = ([c.lengths[unit][0] - c.lengths[unit][1] for c in part] for part in (training, heldout))
    longer = 1 if np.sign(gaps).sum() >= 0 else -1
    return outcome([longer * gap for gap in new])


def by_recipe(
    training: Sequence[Choice],
    heldout: Sequence[Choice],
    config: reward_model.Config,
    place: Path,
    model: Model,
) -> list[float]:
    """What the recipe's reward puts right, trained in a run directory of its own or gone on with there."""
    write_records([choice.record for choice in training], Path(config.data[0]))
    if not (place / "config.yaml").exists():
        rundir.start(place, "reward_model", config)
    if not (place / "summary.json").exists():
        reward_model.run(config, place, model=model)
    reward = load_reward_model(place / "model", model)
    records: list[Record] = [choice.record for choice in heldout]
    groups: dict[str, Judged] = {
        g.key: g for g in group_by_prompt(records, model.tokenizer, {}, context=model.trunk.shape.context)
    }
    pairs = [(key, c) for key, g in groups.items() for c in g.completions]
    scores = iter(reward.score_ids([groups[key].prompt for key, _ in pairs], [c for _, c in pairs]))
    given = {(key, text): next(scores) for key, g in groups.items() for text in g.texts}
    margins = []
    for choice in heldout:
        key = prompt_key(choice.record.prompt)
        better, worse = choice.record.completions
        margins.append(given[key, better] - given[key, worse])
    return outcome(margins)


def row_of(name: str, arm: str, seed: int, fold: int, heldout: Sequence[Choice], right: list[float]) -> Row:
    """What is recorded of a fold: by prompt (a number), how many pairs and how many of them right."""
    numbers: dict[str, list[float]] = {}
    for choice, one in zip(heldout, right, strict=True):
        said = numbers.setdefault(choice.key, [choice.number, 0, 0])
        said[1] += 1
        said[2] += one
    accuracy = round(float(np.mean(right)), 4)
    head = {"data": name, "arm": arm, "seed": seed, "fold": fold, "pairs": len(right), "accuracy": accuracy}
    return {**head, "prompts": [[int(a), int(b), c] for a, b, c in numbers.values()]}


# 2. The sides --------------------------------------------------------------------------------------------------------


def ours(
    name: str,
    every: Sequence[Choice],
    todo: Sequence[tuple[int, int]],
    model: Model,
    given: argparse.Namespace,
    known: Set[Place],
    keep: Keep,
) -> None:
    """The length rules and the recipe's arms on each fold that is not recorded."""
    for seed, fold in todo:
        training, heldout = parts(name, every, seed, fold)
        for unit in ("tokens", "characters"):
            if (name, arm := f"length in {unit}", seed, fold) not in known:
                keep(row_of(name, arm, seed, fold, heldout, by_length(unit, training, heldout)))
        for arm in given.arms:
            if (name, arm, seed, fold) in known:
                continue
            begun, cpu = time.perf_counter(), time.process_time()
            place = given.work / f"{name}-{seed}-{fold}-{arm}"
            anew = not place.exists()
            config = reward_model.Config(
                model=given.model, data=[str(place) + ".jsonl"], seed=seed, heldout=0, threads=given.threads,
                adapter=reward_model.AdapterConfig(rank=RANK, alpha=ALPHA, blocks=BLOCKS), **ARMS[arm],
            )  # fmt: skip
            row = row_of(name, arm, seed, fold, heldout, by_recipe(training, heldout, config, place, model))
            took = {
                "minutes": minutes(begun, time.perf_counter()),
                "cpu_minutes": minutes(cpu, time.process_time()),
            }
            keep(row | (took if anew else {}))  # of a fold that was gone on with, nobody knows


def recorded(path: Path) -> list[Row]:
    """A row a fold that is done."""
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return rows


def minutes(begun: float, ended: float) -> float:
    return round((ended - begun) / 60, 2)


def write_folds(name: str, every: Sequence[Choice], seeds: Sequence[int], model: Model, path: Path) -> None:
    """For the peer: each comparison's ids, and the fold in which each seed leaves it out."""
    lines = []
    for choice in every:
        prompt = model.tokenizer.render(choice.record.prompt)
        chosen, rejected = (prompt + model.tokenizer.complete(text) for text in choice.record.completions)
        folds = {str(seed): fold_of(name, seed, choice.key) for seed in seeds}
        line = {"number": choice.number, "chosen_ids": chosen, "rejected_ids": rejected, "folds": folds}
        lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def peer(
    name: str,
    every: Sequence[Choice],
    todo: Sequence[tuple[int, int]],
    model: Model,
    given: argparse.Namespace,
    known: Set[Place],
    keep: Keep,
) -> None:
    """trl on each fold that is neither recorded nor in its file of scores."""
    for rate in given.rates:
        arm, stem = f"trl {rate:g}", f"{name}-trl-{rate:g}"
        scores, plan = given.work / f"{stem}.scores.jsonl", given.work / f"{stem}.plan.json"
        folds = given.work / f"{name}.folds.jsonl"
        wanted = [place for place in todo if (name, arm, *place) not in known]
        missing = [place for place in wanted if place not in scored(scores)]
        if missing:
            write_folds(name, every, sorted({seed for seed, _ in todo}), model, folds)
            depth = model.trunk.shape.depth
            settings = {
                "trl": TRL, "model": str(model.directory), "folds": str(folds), "out": str(scores),
                "work": str(given.work / stem), "todo": missing, "epochs": 1, "batch": 8, "learning_rate": rate,
                "rank": RANK, "alpha": ALPHA, "linears": LINEARS, "layers": [*range(depth - BLOCKS, depth)],
                "bfloat16": machine.fast_bfloat16(), "threads": given.threads,
            }  # fmt: skip
            plan.write_text(json.dumps(settings), encoding="utf-8")
            subprocess.run([given.python, str(HERE / "rewards_trl.py"), str(plan)], check=True)
        for (seed, fold), line in scored(scores).items():
            if (seed, fold) in wanted:
                _, heldout = parts(name, every, seed, fold)
                both = [line["scores"][str(choice.number)] for choice in heldout]
                row = row_of(name, arm, seed, fold, heldout, outcome([a - b for a, b in both]))
                keep({**row, "minutes": line["minutes"], "cpu_minutes": line["cpu_minutes"]})


def scored(path: Path) -> dict[tuple[int, int], Row]:
    """The folds that a file of scores holds; a last line that a kill cut short does not count."""
    if not path.exists():
        return {}
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines()]
    return {(line["seed"], line["fold"]): line for line in lines}


# 3. The table --------------------------------------------------------------------------------------------------------


def paired(one: Sequence[Row], other: Sequence[Row]) -> tuple[float, float, float] | None:
    """How much more of the pairs `one` puts right, with its 95 % interval; on the folds that both have."""
    totals: dict[int, list[float]] = {}
    left = {(row["seed"], row["fold"]): row["prompts"] for row in other}
    for row in one:
        if (row["seed"], row["fold"]) in left:
            for mine, theirs in zip(row["prompts"], left[row["seed"], row["fold"]], strict=True):
                assert mine[:2] == theirs[:2]
                said = totals.setdefault(mine[0], [0, 0])
                said[0] += mine[1]
                said[1] += mine[2] - theirs[2]
    if not totals:
        return None
    counts, gains = np.array([*totals.values()]).T
    drawn = rng("rewards study", "bootstrap").integers(0, len(counts), (4000, len(counts)))
    low, high = np.quantile(gains[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return float(gains.sum() / counts.sum()), float(low), float(high)


def table(found: Sequence[Row]) -> str:
    """By data and arm: accuracy, pooled; its differences from the length rule and from each of trl's arms; and below,
    in words, who does not beat the length rule."""
    arms = sorted({row["arm"] for row in found}, key=lambda arm: (arm.startswith("length"), arm))
    against = [LENGTH, *(arm for arm in arms if arm.startswith("trl"))]
    heads = ["people", "reward", "seeds", "folds", "pairs", "accuracy"]
    heads += [*(f"less {arm} (95 %)" for arm in against), "CPU minutes a fold"]
    lines, words = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], []
    for name in SETS:
        of = {arm: [row for row in found if (row["data"], row["arm"]) == (name, arm)] for arm in arms}
        for arm, mine in of.items():
            if not mine:
                continue
            pairs = sum(row["pairs"] for row in mine)
            right = sum(prompt[2] for row in mine for prompt in row["prompts"])
            cells = [name, arm, len({row["seed"] for row in mine}), len(mine), pairs, f"{right / pairs:.3f}"]
            for other in against:
                gap = None if other == arm else paired(mine, of.get(other, []))
                cells.append("" if gap is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*gap))
                if other == LENGTH and gap and not arm.startswith("length"):
                    verdict = "beats" if gap[1] > 0 else "FAILS, it does not beat"
                    words.append(f"{name}, {arm}: {verdict} {LENGTH}")
            took = [row["cpu_minutes"] for row in mine if "cpu_minutes" in row]
            cells.append(f"{np.mean(took):.1f}" if took else "")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", *words])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("ours", "trl", "table"))
    parser.add_argument("--data", type=Path, help="the folder that holds pandalm_3raters and hh_harmless")
    parser.add_argument("--python", help="the interpreter that has trl and peft")
    parser.add_argument("--sets", nargs="+", choices=[*SETS], default=[*SETS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, nargs="+", help="these alone")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS], help="of ours")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4], help="trl's learning rates")
    parser.add_argument("--model", default="smollm2", help="each with a --work and a --record of its own")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/rewards"), help="where runs are kept")
    parser.add_argument("--record", type=Path, default=HERE / "rewards.json")
    given = parser.parse_args(argv)
    if given.what != "table" and given.data is None:
        parser.error("name the folder of real data: --data DIR")
    if given.what == "trl" and given.python is None:
        parser.error(f"name an interpreter that has trl {TRL} and peft: --python VENV/bin/python")
    found = recorded(given.record)
    if given.what != "table" and any(row["model"] != given.model for row in found):
        parser.error(f"{given.record} is of another model: name another --record, and another --work")

    def keep(row: Row) -> None:
        found[:] = [
            *recorded(given.record),
            {"model": given.model} | row,
        ]  # the other side may have written since
        lines = ",\n".join(json.dumps(one) for one in found)
        files.write_text(given.record, f"[\n{lines}\n]\n")
        print({key: value for key, value in row.items() if key != "prompts"}, flush=True)

    if given.what != "table":
        known = {(row["data"], row["arm"], row["seed"], row["fold"]) for row in found}
        given.work.mkdir(parents=True, exist_ok=True)
        device, dtype = machine.prepare("auto", given.threads)
        model = load_model(str(find_model(given.model)), dtype, device)
        for name in given.sets:
            every = choices(SETS[name](given.data), model.tokenizer)
            folds = given.folds or range(FOLDS[name])
            todo = [(seed, fold) for seed in given.seeds for fold in folds]
            (ours if given.what == "ours" else peer)(name, every, todo, model, given, known, keep)
    print(table(found))


if __name__ == "__main__":
    main()
