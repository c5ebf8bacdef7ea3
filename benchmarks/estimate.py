"""How near the doctor's prediction of a run is to the run: `plaudit doctor CONFIG.yaml` beside `plaudit train`.

    python benchmarks/estimate.py --data DIR                 # DIR: sft_seeds, hh_harmless
    python benchmarks/estimate.py --data DIR ppo dpo         # some alone

Each case is predicted, then run whole, in a process that the same code watches: total time, and the most memory that
the process held (VmHWM). Writes benchmarks/results/estimate.json, a case in its own place, and prints the table that
benchmarks/README.md holds. About half an hour on two cores with nothing else running, which the times need.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from rewards_people import hh

from plaudit import config as configs
from plaudit import files
from plaudit.cli import RECIPES
from plaudit.data.formats import write_records
from plaudit.data.sources import rows
from plaudit.loop import estimate
from plaudit.loop.prediction import Prediction
from plaudit.loop.rehearsal import Timeline
from plaudit.training import machine
from plaudit.types import Demonstration, Message, Prompt

HERE = Path(__file__).parent
PLACE = HERE / "results" / "estimate.json"
AIM = 0.25
"""A prediction is good that is within this share of what happened."""
ONLINE = [
    "prompts={prompts}",
    "reward=plaudit.reward.rules:length",
    "prompts_per_step=4",
    "max_new_tokens=32",
]
CASES: dict[str, tuple[str, list[str]]] = {
    "ppo": ("ppo", [*ONLINE, "steps=10"]),
    "ppo, whole model": ("ppo", [*ONLINE, "steps=6", "samples_per_prompt=2", "adapter.rank=0"]),
    "grpo": ("grpo", [*ONLINE, "samples_per_prompt=4", "steps=24"]),
    "sft": ("sft", ["data=[{demonstrations}]", "epochs=1"]),
    "sft, whole model": ("sft", ["data=[{demonstrations}]", "epochs=1", "adapter.rank=0"]),
    "dpo": ("dpo", ["data=[{pairs}]"]),
    "reward_model": ("reward_model", ["data=[{pairs}]"]),
}
"""A case's recipe and its settings beside those of configs/RECIPE.yaml."""
LONGEST = 600
"""Characters of a prompt, an answer or a pair's dialogue and answers together (twice): longer ones are left out."""


def write_data(folder: Path, place: Path, count: int) -> dict[str, str]:
    """Prompts, demonstrations and pairs from people's, by their names in CASES."""
    shown = []
    for name in ("self_instruct_seed_en.jsonl", "user_oriented_instructions.jsonl"):
        for _, row in rows(folder / "sft_seeds" / name):
            asked = "\n\n".join(filter(None, [row["instruction"], row["instances"][0]["input"]]))
            answer = row["instances"][0]["output"].strip()
            if len(asked) <= LONGEST and 0 < len(answer) <= LONGEST:
                prompt: Prompt = (Message("user", asked),)
                shown.append(Demonstration(prompt, answer))
    pairs = [
        record
        for _, record in hh(folder)
        if sum(len(turn.content) for turn in record.prompt if isinstance(turn, Message))
        + sum(map(len, record.completions))
        <= 2 * LONGEST
    ]
    named = {name: place / f"{name}.jsonl" for name in ("prompts", "demonstrations", "pairs")}
    files.write_rows(
        named["prompts"],
        [{"prompt": [{"role": "user", "content": turn.content} for turn in one.prompt if isinstance(turn, Message)]}
         for one in shown],
    )  # fmt: skip
    write_records(shown, named["demonstrations"])
    write_records(pairs[:count], named["pairs"])
    return {name: str(path) for name, path in named.items()}


def measure(name: str, data: dict[str, str], extra: list[str]) -> dict[str, Any]:
    """A row of the record: what was predicted, and what happened. extra: settings for all cases."""
    recipe, settings = CASES[name]
    words = [setting.format(**data) for setting in settings] + extra
    path = HERE.parent / "configs" / f"{recipe}.yaml"
    tree = configs.with_overrides(configs.read_yaml(path), words)
    del tree["recipe"]
    module = __import__(RECIPES[recipe], fromlist=["Config"])
    began, load = time.monotonic(), os.getloadavg()[0]
    asked = estimate.ask(recipe, configs.parse(module.Config, tree, str(path)))
    predicted = estimate.predict(asked)
    took = time.monotonic() - began
    asked.say("the whole run")
    real = asked.rehearse({})
    return {
        "name": name,
        "settings": settings + extra,
        "predicted": figures(predicted),
        "real": figures(real),
        "seconds_to_predict": round(took, 1),
        "off": {key: off(figures(predicted)[key], figures(real)[key]) for key in ("total", "memory_gb")},
        "load_before": round(load, 2),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def figures(found: Prediction | Timeline) -> dict[str, float]:
    """Seconds and 10^9 bytes."""
    if isinstance(found, Timeline):
        parts = {"setup": found.ready, "stepping": found.last - found.ready, "finish": found.end - found.last}
    else:
        parts = {"setup": found.setup, "stepping": found.stepping, "finish": found.finish}
    told = {name: round(seconds, 1) for name, seconds in parts.items()}
    return told | {
        "total": round(sum(parts.values()), 1),
        "memory_gb": round(found.memory / 1e9, 3),
        "disk_gb": round(found.disk / 1e9, 3),
    }


def off(predicted: float, real: float) -> float:
    """By which share of what happened the prediction is above it."""
    return round(predicted / real - 1, 3)


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| run | predicted, s | real, s | off | predicted, GB | real, GB | off |", "|---" * 7 + "|"]
    for row in found:
        cells = [row["name"]]
        for key in ("total", "memory_gb"):
            digits = 0 if key == "total" else 2
            cells += [f"{row[side][key]:.{digits}f}" for side in ("predicted", "real")]
            cells.append(f"{row['off'][key]:+.0%}" + " misses" * (abs(row["off"][key]) > AIM))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--data", type=Path, required=True, help="the folder with sft_seeds and hh_harmless")
    parser.add_argument("--pairs", type=int, default=120, help="pairs that dpo and reward_model learn from")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings for all cases")
    parser.add_argument("--out", type=Path, default=PLACE, help="where the record is")
    given = parser.parse_args(argv)
    record = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"rows": []}
    done = {row["name"]: row for row in record["rows"]}
    with tempfile.TemporaryDirectory(prefix="plaudit-estimate-") as place:
        data = write_data(given.data, Path(place), given.pairs)
        for name in given.cases or CASES:
            done[name] = measure(name, data, given.set)
            ordered = [done[case] for case in CASES if case in done]
            files.write_json(given.out, {"machine": machine.record(), "aim": AIM, "rows": ordered})
    print(table(ordered))


if __name__ == "__main__":
    main()
