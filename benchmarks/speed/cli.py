"""`python -m benchmarks NAME`: measure, write benchmarks/results/NAME.json, and say it in a table.

    python -m benchmarks rollout [--quick] [--repeats N] [--peer vllm] [--row TEXT]
    python -m benchmarks all         # every name; hours
    python -m benchmarks page        # docs/speed.md and its pictures from the results
    python -m benchmarks time_to_reward
    python -m benchmarks growth      # how the cost of a step grows, and that memory does not

--quick takes the row that the target is about, two rounds, and writes NAME.quick.json, which the page does not read.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from plaudit.types import UserError


def parser() -> argparse.ArgumentParser:
    from speed.cases import CASES

    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("name", choices=[*CASES, "all", "page", "growth", "time_to_reward"])
    made.add_argument("--quick", action="store_true", help="one row, two rounds: a few minutes")
    made.add_argument("--repeats", type=int, help="rounds of a row; 5, with --quick 2")
    made.add_argument("--peer", help="only rows against this peer: transformers, vllm, trl, trl-ppo")
    made.add_argument("--row", help="only rows with this in their name")
    made.add_argument("--seed", type=int, nargs="+", help="of time_to_reward; 0 1 2")
    made.add_argument("--threads", type=int, default=0, help="of each side; 0: one a core")
    made.add_argument(
        "--out",
        type=Path,
        help="where results go; benchmarks/results, or its float32 where bfloat16 is not native",
    )
    return made


def run(name: str, given: argparse.Namespace) -> list[str]:
    """Measure the rows of one name; each is written as soon as it is there. Returns what went wrong, a row that did
    not work each: the others are measured all the same."""
    from plaudit.training import machine
    from speed import harness, page, results
    from speed.cases import CASES, chosen
    from speed.protocol import WorkerDied

    native = machine.fast_bfloat16()
    cases = chosen(name, quick=given.quick, peer=given.peer, row=given.row, native=native)
    if left := len(CASES[name]) - len(cases):
        why = (
            "" if native else "; bfloat16 is not native here, so that no peer runs in it unless --row says so"
        )
        print(f"{name}: {len(cases)} rows, {left} left out{why}", file=sys.stderr)
    if not cases:
        raise UserError("no row is left", where="--peer, --row", fix="leave one of them out")
    repeats = given.repeats or (2 if given.quick else 5)
    path = (given.out or results.place(native)) / (f"{name}.quick.json" if given.quick else f"{name}.json")
    rows, failed = list[dict[str, Any]](), list[str]()
    for case in cases:
        print(f"{name}: {case.name}", file=sys.stderr, flush=True)
        try:
            row, about = harness.measure(case, repeats=repeats, threads=given.threads)
        except WorkerDied as error:
            failed.append(f"{name}, {case.name}: {error}")
            continue
        rows.append(row)
        results.write(path, name, [row], about, shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]))
    if rows:
        print(page.table(rows))
        print(f"written: {path}", file=sys.stderr)
    return failed


def main() -> None:
    from speed.cases import CASES
    from speed.protocol import WorkerDied

    given = parser().parse_args()
    try:
        if given.name == "page":
            from speed import page

            page.write()
        elif given.name == "growth":
            from speed import growth

            growth.run(given.quick, given.out, given.threads)
        elif given.name == "time_to_reward":
            from speed import time_to_reward

            time_to_reward.run(given.quick, given.out, given.threads, given.seed or time_to_reward.SEEDS)
        else:
            names = CASES if given.name == "all" else [given.name]
            if failed := [line for name in names for line in run(name, given)]:
                raise WorkerDied("\n".join(failed))
    except (UserError, WorkerDied) as error:
        sys.exit(f"error: {error}")
