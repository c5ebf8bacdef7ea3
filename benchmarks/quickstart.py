"""The quickstart for several seeds, start to finish, and its figures in one table.

    python benchmarks/quickstart.py --runs runs/benchmark 0 1 2

Runs `plaudit quickstart --seed N` once a seed (a finished run is read, an unfinished one goes on), writes
benchmarks/quickstart.json and prints the table that benchmarks/README.md holds. About 15 minutes a seed on two cores
with nothing else running; the recorded results say when and on what.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURES = (
    "win_rate", "win_rate_ci95", "win_rate_unseen_words", "overall_before", "overall_after", "relevance_before",
    "relevance_after", "kl_per_token", "distinct2_ratio", "perplexity_ratio",
)  # fmt: skip


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of one run: each round's figures, the baselines, minutes, memory, machine and versions."""
    return {
        "seed": summary["seed"],
        "minutes": round(summary["seconds"]["total"] / 60, 1),
        "peak_rss_gb": summary["peak_rss_gb"],
        "judgements": summary["judgements"],
        "alpha": round(summary["agreement"]["alpha"], 3),
        "reward_heldout": round(summary["reward_model"]["heldout_accuracy"], 3),
        "reward_length_only": round(summary["reward_model"]["length_only_accuracy"], 3),
        "rounds": [
            {name: _rounded(found["policy"][name]) for name in FIGURES} for found in summary["rounds"]
        ],
        "baselines": {
            name: {key: _rounded(summary["baselines"][name][key]) for key in ("overall", "win_rate")}
            for name in ("constant", "best_of_4")
        },
        "machine": summary["machine"],
        "versions": summary["versions"],
    }


def _rounded(value: Any) -> Any:
    return [round(x, 3) for x in value] if isinstance(value, list) else round(value, 3)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| seed | round | win rate (95 %) | unseen words | overall before / after | relevance before / after "
        "| KL a token | distinct-2 | perplexity | constant | best of 4 | minutes | GB |",
        "|---" * 13 + "|",
    ]
    for row in rows:
        for number, r in enumerate(row["rounds"], 1):
            last = number == len(row["rounds"])
            low, high = r["win_rate_ci95"]
            lines.append(
                f"| {row['seed']} | {number} | {r['win_rate']:.3f} ({low:.2f} to {high:.2f}) "
                f"| {r['win_rate_unseen_words']:.3f} | {r['overall_before']:.3f} / {r['overall_after']:.3f} "
                f"| {r['relevance_before']:.3f} / {r['relevance_after']:.3f} | {r['kl_per_token']:.3f} "
                f"| {r['distinct2_ratio']:.3f} | {r['perplexity_ratio']:.3f} "
                + (
                    "".join(
                        f"| {row['baselines'][name]['overall']:.3f}, {row['baselines'][name]['win_rate']:.3f} "
                        for name in ("constant", "best_of_4")
                    )
                    + f"| {row['minutes']} | {row['peak_rss_gb']:.1f} |"
                    if last
                    else "| | | | |"
                )
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs' directories are, or go")
    given = parser.parse_args()
    rows = []
    for seed in given.seeds:
        out = given.runs / f"seed-{seed}"
        command = ["plaudit", "quickstart", "--out", str(out), "--seed", str(seed)]
        if subprocess.run(command, check=False).returncode:
            sys.exit(1)
        rows.append(figures(json.loads((out / "summary.json").read_text(encoding="utf-8"))))
    (HERE / "quickstart.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
