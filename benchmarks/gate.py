"""How often the gate publishes what is no better, and how often what is: simulated rounds, judged prompt by prompt.

    python benchmarks/gate.py [--rounds 1000]

A round's outcomes are wins, ties (three of ten) and losses, drawn independently; the gate is looked at after every
prompt and stops by itself. Writes benchmarks/results/gate.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from plaudit import files
from plaudit.evaluation.gate import Gate, Rules
from plaudit.feedback.agreement import wilson

PLACE = Path(__file__).parent / "results" / "gate.json"
TIES = 0.3
MEANS = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
CAREER = 5
"""Rounds in a row, of which none has a gain."""


def one(draw: np.random.Generator, mean: float, rules: Rules, round: int) -> tuple[bool, int]:
    """Whether a round publishes, and after how many prompts it knew."""
    gate = Gate(rules, round, ["parent"])
    while True:
        kind = draw.random()
        value = 0.5 if kind < TIES else float(draw.random() < (mean - TIES / 2) / (1 - TIES))
        gate.judge({"parent": value})
        if (found := gate.decision()) != "go on":
            return found == "publish", gate.prompts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000)
    given = parser.parse_args()
    draw, rules, began = np.random.default_rng(0), Rules(), time.monotonic()
    rows: list[dict[str, Any]] = []
    for mean in MEANS:
        found = [one(draw, mean, rules, 1) for _ in range(given.rounds)]
        published = sum(won for won, _ in found)
        low, high = wilson(published, given.rounds) or (0.0, 1.0)
        rows.append(
            {
                "mean": mean,
                "published": published / given.rounds,
                "interval": [round(low, 4), round(high, 4)],
                "prompts": statistics.median(prompts for _, prompts in found),
            }
        )
        print(rows[-1], flush=True)
    careers = given.rounds // CAREER
    wrong = sum(
        any(one(draw, 0.5, rules, number)[0] for number in range(1, CAREER + 1)) for _ in range(careers)
    )
    low, high = wilson(wrong, careers) or (0.0, 1.0)
    told = {
        "name": "gate",
        "rules": {"alpha": rules.alpha, "effect": rules.effect, "beta": rules.beta, "most": rules.most},
        "rounds": given.rounds,
        "rows": rows,
        "careers": {"rounds": CAREER, "count": careers, "ever_published": wrong / careers,
                    "interval": [round(low, 4), round(high, 4)]},
        "minutes": round((time.monotonic() - began) / 60, 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": "python benchmarks/gate.py",
    }  # fmt: skip
    files.write_json(PLACE, told)
    print(json.dumps(told["careers"]))


if __name__ == "__main__":
    main()
