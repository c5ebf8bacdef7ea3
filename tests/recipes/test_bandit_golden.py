"""Fifty steps of the bandit recipe by its command, from a log and choosing labels itself, beside what transformers and
peft gave for them.

The golden's numbers come from goldens/record_bandit_tiny.py, which has none of Plaudit's forward pass, packing, heads,
losses or policies: the labels that it chooses, and with which chances, are its own, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runs import EACH_SPLIT, SPLITS, by_command, held_to

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "goldens" / "bandit_tiny.json").read_text())


@pytest.mark.parametrize("split", EACH_SPLIT)
@pytest.mark.parametrize("name", GOLDEN["runs"])
def test_fifty_steps_match_the_recorded_trajectory(tmp_path: Path, name: str, split: str) -> None:
    """log: four blocks of five, the upper two adapted, the last token. choosing: the head alone, half-way up, on the
    mean over tokens."""
    run = GOLDEN["runs"][name]
    more: dict[str, Any] = {}
    if name == "log":
        rows, more = GOLDEN["log"], {"data": [str(tmp_path / "rows.jsonl")]}
    else:
        rows, more = (
            [{"prompt": text} for text in GOLDEN["contexts"]],
            {"contexts": str(tmp_path / "rows.jsonl")},
        )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with held_to(run["steps"]):
        found = by_command("bandit", run["settings"] | SPLITS[split] | more, tmp_path / "run")
    assert len(found) == len(run["steps"]) == 50
    for row, expected in zip(found, run["steps"], strict=True):
        assert row.keys() - {"step"} == expected.keys()
        for number, value in expected.items():
            assert row[number] == pytest.approx(value, rel=1e-9, abs=1e-9), (row["step"], number)
    if name == "choosing":
        lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
        chosen = [json.loads(line) for line in lines]
        for one, (context, label, chance) in zip(chosen, run["chosen"], strict=True):
            assert (one["context"], one["completion"]) == (context, label)
            assert one["propensity"] == pytest.approx(chance, rel=1e-9)


def test_the_golden_is_one_that_says_something() -> None:
    """Gradients that are clipped and others, losses that fall, labels chosen with many chances."""
    for run in GOLDEN["runs"].values():
        clipped = [row["grad_norm"] > run["settings"]["max_grad_norm"] for row in run["steps"]]
        assert 5 < sum(clipped) < 45
    errors = [row["rating_error"] for row in GOLDEN["runs"]["log"]["steps"]]
    assert sum(errors[-10:]) < sum(errors[:10]) / 4
    chosen = GOLDEN["runs"]["choosing"]["chosen"]
    assert {label for _, label, _ in chosen} == {"good", "bad", "neither"}
    assert len({round(chance, 3) for _, _, chance in chosen}) > 50
