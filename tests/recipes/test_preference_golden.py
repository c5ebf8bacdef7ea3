"""Fifty steps of dpo with each of its losses, and of kto, by their commands, beside what transformers and peft gave for
them.

The golden's numbers come from goldens/record_preference_tiny.py, which learns from the same records without any of
Plaudit's tokenizing, forward pass, packing or losses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runs import EACH_SPLIT, SPLITS, by_command, held_to

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "goldens" / "preference_tiny.json").read_text())


@pytest.mark.parametrize("split", EACH_SPLIT)
@pytest.mark.parametrize("name", GOLDEN["runs"])
def test_the_steps_match_the_recorded_trajectory(tmp_path: Path, name: str, split: str) -> None:
    run = GOLDEN["runs"][name]
    records = GOLDEN["comparisons"] + (GOLDEN["ratings"] if run["recipe"] == "kto" else [])
    data = tmp_path / "feedback.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in records))
    settings = run["settings"] | SPLITS[split] | {"data": [str(data)]}
    with held_to(run["expected"]):
        rows = by_command(run["recipe"], settings, tmp_path / "run")
    assert len(rows) == len(run["expected"])
    for row, expected in zip(rows, run["expected"], strict=True):
        for number, value in expected.items():
            assert row[number] == pytest.approx(value, rel=1e-9, abs=1e-9), (row["step"], number)
        held = {number for number in row if number.startswith("heldout_")}
        assert held == {number for number in expected if number.startswith("heldout_")}


def test_the_golden_is_one_that_says_something() -> None:
    """Fifty steps, gradients that are clipped and others, baselines on both sides of the clamp, a policy that moves."""
    runs = GOLDEN["runs"]
    assert {len(run["expected"]) for run in runs.values()} == {50}
    for run in (runs["dpo"], runs["kto"]):
        clipped = [row["grad_norm"] > run["settings"]["max_grad_norm"] for row in run["expected"]]
        assert 0 < sum(clipped) < 50
        assert sum("heldout_loss" in row for row in run["expected"]) == 10
    zero = [row["baseline"] == 0 for row in runs["kto"]["expected"]]
    assert 5 < sum(zero) < 45
    assert runs["dpo"]["expected"][-1]["margin"] > 1
