"""Fifty steps of reinforce_feedback by its command, on judged completions, beside what transformers and peft gave.

The golden's numbers come from goldens/record_feedback_tiny.py, which reads and learns from the same judgements without
any of Plaudit's forward pass, packing, scores, losses or advantages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runs import EACH_SPLIT, SPLITS, by_command, held_to

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "goldens" / "feedback_tiny.json").read_text())


@pytest.mark.parametrize("split", EACH_SPLIT)
def test_fifty_steps_match_the_recorded_trajectory(tmp_path: Path, split: str) -> None:
    files = {}
    for name in ("feedback", "samples"):
        files[name] = [str(tmp_path / f"{name}.jsonl")]
        Path(files[name][0]).write_text("".join(json.dumps(row) + "\n" for row in GOLDEN[name]))
    with held_to(GOLDEN["expected"]):
        found = by_command("reinforce_feedback", GOLDEN["settings"] | SPLITS[split] | files, tmp_path / "run")
    assert len(found) == len(GOLDEN["expected"]) == 50
    for row, expected in zip(found, GOLDEN["expected"], strict=True):
        for number, value in expected.items():
            assert row[number] == pytest.approx(value, rel=1e-9, abs=1e-9), (row["step"], number)


def test_the_golden_is_one_that_says_something() -> None:
    """The policy moves away, weights are capped and gradients held at times, the price of the KL is steered."""
    rows = GOLDEN["expected"]
    assert max(row["kl"] for row in rows) > 0.02
    assert 0 < sum(row["grad_norm"] > GOLDEN["settings"]["max_grad_norm"] for row in rows) < 50
    assert sum(row["importance_capped"] > 0 for row in rows) > 10
    assert len({row["kl_coef"] for row in rows}) > 40
    assert len({row["length"] for row in rows}) > 3
