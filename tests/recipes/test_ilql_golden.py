"""Fifty steps of the ilql recipe by its command for each target, beside numbers that transformers, peft and whole
tables of Q gave.

The golden's numbers come from goldens/record_ilql_tiny.py, which has none of Plaudit's forward pass, packing, heads or
losses, and its own reading of what each record is worth.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runs import EACH_SPLIT, SPLITS, by_command, held_to

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "ilql_tiny.json").read_text())
TARGETS = ("ilql", "q_learning", "sarsa")


@pytest.mark.parametrize("split", EACH_SPLIT)
@pytest.mark.parametrize("target", TARGETS)
def test_fifty_steps_match_the_recorded_trajectory(tmp_path: Path, target: str, split: str) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in GOLDEN["about"]["records"]))
    settings = GOLDEN["about"]["settings"] | SPLITS[split] | {"target": target, "data": [str(data)]}
    with held_to([*GOLDEN[target], *[{}] * 1000]):
        rows = by_command("ilql", settings, tmp_path / "run")
    assert len(rows) >= len(GOLDEN[target]) == 50
    for row, expected in zip(rows, GOLDEN[target], strict=False):
        for name, number in expected.items():
            assert row[name] == pytest.approx(number, rel=1e-9, abs=1e-9), (row["step"], name)


def test_the_golden_is_one_that_says_something() -> None:
    """The three targets part, the gradient is clipped at times and not at others, and Q learns."""
    last = {target: GOLDEN[target][-1] for target in TARGETS}
    assert len({round(row["q_loss"], 6) for row in last.values()}) == 3
    for target in TARGETS:
        clipped = [row["grad_norm"] > GOLDEN["about"]["settings"]["max_grad_norm"] for row in GOLDEN[target]]
        assert True in clipped
        assert False in clipped
        first, final = (
            sum(row["q_loss"] for row in part) for part in (GOLDEN[target][:3], GOLDEN[target][-3:])
        )
        assert final < first / 2  # an epoch's steps together
