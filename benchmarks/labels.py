"""What the queue saves and whether the forecast holds, replayed on judgements that people have made.

python benchmarks/labels.py prepare --data DIR [--run DIR]   # vectors, once: PandaLM, and a quickstart's panel; and how
                                                             # long the page waits for ranks after a vote
python benchmarks/labels.py saved                            # labels saved by the queue, against random order
python benchmarks/labels.py coverage                         # how often the forecast's interval holds

Saved: the prompts are split, a quarter held out; both orders begin with the same 24 judgements, and then take 16 at a
time, the queue those of which the head could learn most (mutual information), random any. Where random has taken all,
its accuracy on the held-out prompts is the goal; how many judgements the queue needs for it. Accuracy is smoothed
over three looks, since a single one swings. Coverage: at several sizes the head's curve and forecast are worked out
from that many judgements alone; then a hundred more are taken, and the gain on prompts that neither saw is compared
with the interval, widened by the error with which so many prompts measure it.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plaudit import files
from plaudit.data.formats import read_records
from plaudit.feedback import value, vectors
from plaudit.feedback.jobs import Jobs
from plaudit.feedback.judgements import preferences
from plaudit.feedback.projects import Projects
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Task
from plaudit.feedback.value import Pairs
from plaudit.randomness import rng
from plaudit.types import Preference

PLACE = Path(__file__).parent / "results" / "labels.json"
KEPT = Path("runs") / "labels"
SEEDS = 20
BEGIN, TAKE = 24, 16
SIZES = (100, 150, 200, 300, 400)
MODEL = "smollm2"


def prepare(data: Path | None, run: Path | None) -> None:
    """Vectors of each set, in runs/labels/NAME.npz."""
    from plaudit.loop.worker import Worker
    from plaudit.training import machine

    sets: dict[str, list[Preference]] = {}
    if data is not None:
        found = read_records(data / "pandalm_3raters" / "testset-v1.json")
        sets["PandaLM"] = [record for record in found if isinstance(record, Preference)]
    if run is not None:
        with Store.open(run / "feedback.db") as store:
            sets["panel"] = [judged.record for judged in preferences(store)]
    device, dtype = machine.prepare("auto")
    for name, records in sets.items():
        with tempfile.TemporaryDirectory() as place, Store.open(Path(place) / "feedback.db") as store:
            projects = Projects(store)
            project = projects.create(name, Task(kind="comparison", overlap=1)).id
            projects.take_in(project, records)
            Jobs(store.engine).put("vectors", {"project": project, "model": MODEL}, by="study")
            Worker(store, dtype, device, lambda line: print(line, file=sys.stderr)).run(once=True)
            read = value.read(projects, project)
            assert vectors.of_project(store.engine, project)
            KEPT.mkdir(parents=True, exist_ok=True)
            pairs = read.pairs
            np.savez(
                KEPT / f"{name}.npz", features=read.features, first=pairs.first, second=pairs.second,
                better=pairs.better, prompt=pairs.prompt, at=pairs.at,
            )  # fmt: skip
            took = [_timed(functools.partial(value.standings, projects, project)) for _ in range(5)]
            row = {
                "judgements": len(pairs), "completions": len(read.features),
                "seconds": round(statistics.median(took), 2), "cores": machine.available_cores(),
            }  # fmt: skip
            _note("standings", name, row)
            print(name, row)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _note(what: str, name: str, row: dict[str, Any]) -> None:
    """Writes one figure beside those that are there."""
    result: dict[str, Any] = files.read_json(PLACE, "run it again") if PLACE.exists() else {"name": "labels"}
    result["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    result.setdefault(what, {})[name] = row
    files.write_json(PLACE, result)


def load(name: str) -> tuple[Pairs, NDArray[np.float64]]:
    with np.load(KEPT / f"{name}.npz", allow_pickle=False) as file:
        pairs = Pairs(file["first"], file["second"], file["better"], file["prompt"], file["at"])
        return pairs, file["features"]


def split(pairs: Pairs, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Judgements to learn from, in random order, and decided ones of held-out prompts."""
    random = rng(seed, "value study")
    prompts = random.permutation(np.unique(pairs.prompt))
    out = prompts[: len(prompts) // 4]
    held = np.isin(pairs.prompt, out)
    order = random.permutation(len(pairs))
    return order[~held[order]], np.flatnonzero(held & (pairs.better != 0.5))


def saved(name: str, seed: int) -> dict[str, Any]:
    """One replay: how many judgements each order needs for the accuracy that random has with all."""
    pairs, features = load(name)
    differences = features[pairs.first] - features[pairs.second]
    pool, test = split(pairs, seed)

    def look(taken: NDArray[Any]) -> float:
        head = value.fit(differences[taken], pairs.better[taken])
        return float(value.right(head, differences[test], pairs.better[test]).mean())

    curves: dict[str, list[tuple[int, float]]] = {"random": [], "queue": []}
    for order, curve in curves.items():
        taken, left = pool[:BEGIN], pool[BEGIN:]
        while True:
            curve.append((len(taken), look(taken)))
            if not len(left):
                break
            if order == "random":
                more = np.arange(min(TAKE, len(left)))
            else:
                head = value.fit(differences[taken], pairs.better[taken])
                x = differences[left]
                mean, variance = x @ head.weights, np.einsum("nk,kl,nl->n", x, head.covariance, x)
                worth = np.array([value.information(m, v) for m, v in zip(mean, variance, strict=True)])
                more = np.argsort(-worth, kind="stable")[:TAKE]
            taken, left = np.concatenate([taken, left[more]]), np.delete(left, more)
    goal = curves["random"][-1][1]
    needs = {order: first_at(curve, goal) for order, curve in curves.items()}
    return {"seed": seed, "all": len(pool), "goal": round(goal, 4), **needs}


def first_at(curve: list[tuple[int, float]], goal: float) -> int:
    """The first size at which the mean of three looks is at the goal; the last where none is."""
    for number in range(1, len(curve) - 1):
        if statistics.fmean(a for _, a in curve[number - 1 : number + 2]) >= goal - 1e-9:
            return curve[number][0]
    return curve[-1][0]


def coverage(name: str, seed: int) -> list[dict[str, Any]]:
    """Forecasts of one replay beside what came."""
    pairs, features = load(name)
    differences = features[pairs.first] - features[pairs.second]
    pool, test = split(pairs, seed)
    found = []
    for size in SIZES:
        if size + value.NEXT > len(pool):
            continue
        said = value.forecast(value.learning_curve(pairs.of(pool[:size]), features, seed), size)
        if said is None:
            continue
        before, after = (
            value.right(
                value.fit(differences[taken], pairs.better[taken]), differences[test], pairs.better[test]
            )
            for taken in (pool[:size], pool[: size + value.NEXT])
        )
        came = float((after - before).mean())
        # The interval is of all prompts to come; what came is measured by the held-out ones.
        half = (said["high"] - said["low"]) / 2
        measured = value.NORMAL * value.error(after - before, pairs.prompt[test]) ** 0.5
        row = {"size": size, "came": came, "said": said["gain"], "half": half, "measured": measured}
        off = abs(came - said["gain"])
        found.append(row | {"holds": off <= math.hypot(half, measured), "by_error_alone": off <= measured})
    return found


def spread(values: list[float]) -> list[float]:
    """The mean and a 95 % interval of it over replays."""
    mean, half = statistics.fmean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5
    return [round(mean, 4), round(mean - half, 4), round(mean + half, 4)]


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("what", choices=["prepare", "saved", "coverage"])
    given.add_argument("--data", type=Path)
    given.add_argument(
        "--run", type=Path, help="a quickstart's directory, whose panel's judgements are replayed"
    )
    words = given.parse_args()
    if words.what == "prepare":
        prepare(words.data, words.run)
        return
    for name in sorted(path.stem for path in KEPT.glob("*.npz")):
        if words.what == "saved":
            rows = [saved(name, seed) for seed in range(SEEDS)]
            shares = [1 - row["queue"] / row["random"] for row in rows]
            row = {"replays": SEEDS, "saved": spread(shares), "rows": rows}
        else:
            every = [one for seed in range(SEEDS) for one in coverage(name, seed)]
            holds = round(statistics.fmean(one["holds"] for one in every), 3)
            row = {"replays": SEEDS, "forecasts": len(every), "holds": holds}
            row["by_error_alone"] = round(statistics.fmean(one["by_error_alone"] for one in every), 3)
            row |= {
                name: spread([one[name] for one in every]) for name in ("came", "said", "half", "measured")
            }
        _note(words.what, name, row)
        print(name, {key: x for key, x in row.items() if key != "rows"})


if __name__ == "__main__":
    main()
