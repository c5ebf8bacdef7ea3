"""Fifty steps of the sft recipe by its command, twice, beside numbers that transformers, peft and torch.optim gave for
them.

The golden's numbers come from goldens/record_sft_tiny.py, which learns from the same batches without any of Plaudit's
forward pass, packing, dropout, schedules, mixing or regularisation.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runs import EACH_SPLIT, SPLITS, by_command, held_to

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "sft_tiny.json").read_text())


@pytest.mark.parametrize("split", EACH_SPLIT)
@pytest.mark.parametrize("which", GOLDEN["runs"])
def test_fifty_steps_match_the_recorded_trajectory(tmp_path: Path, which: str, split: str) -> None:
    """adapter: AdamW, cosine, L1, adapter dropout, a mixture by loss ratios. whole: TensorFlow's Adam with L2,
    exponential, dropout of what attention and MLP add."""
    for task, pairs in GOLDEN["tasks"].items():
        rows = [json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs]
        (tmp_path / f"{task}.jsonl").write_text("".join(rows))
    golden = GOLDEN["runs"][which]
    settings = golden["settings"] | {"data": [str(tmp_path / f"{task}.jsonl") for task in GOLDEN["tasks"]]}
    with held_to(golden["steps"]):
        found = by_command("sft", settings | SPLITS[split], tmp_path / "run")
    assert len(found) == len(golden["steps"]) == 50
    for row, expected in zip(found, golden["steps"], strict=True):
        assert row.keys() - {"step"} == expected.keys()
        for name, number in expected.items():
            assert row[name] == pytest.approx(number, rel=1e-9, abs=1e-9), (row["step"], name)


def test_the_golden_is_one_that_says_something() -> None:
    """Clips and steps without one, weights that move, losses that fall, warm-up and the end of each schedule."""
    for golden in GOLDEN["runs"].values():
        clipped = [row["grad_norm"] > golden["settings"]["max_grad_norm"] for row in golden["steps"]]
        assert 5 <= sum(clipped) <= 45
        losses = [row["loss"] for row in golden["steps"]]
        assert sum(losses[-10:]) < sum(losses[:10]) - 2
        rates = [row["learning_rate"] / golden["settings"]["learning_rate"] for row in golden["steps"]]
        assert rates[-1] == pytest.approx(golden["settings"]["rate_end"], rel=0.1)
    weights = [row["weight/mood"] for row in GOLDEN["runs"]["adapter"]["steps"]]
    assert len(set(weights)) == 50 // 6 + 1
    assert max(weights) - min(weights) > 0.02
