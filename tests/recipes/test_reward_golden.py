"""Fifty steps of the reward_model recipe by its command, four times, beside what transformers and peft gave for them,
and the scores that stand at their end.

The golden's numbers come from goldens/record_reward_tiny.py, which learns from the same judgements without any of
Plaudit's tokenizing, forward pass, packing, heads or losses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.models.load import load_model
from plaudit.reward.model import load_reward_model
from plaudit.reward.score import ids_of
from runs import EACH_SPLIT, SPLITS, by_command, held_to

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "goldens" / "reward_tiny.json").read_text())


@pytest.mark.parametrize("split", EACH_SPLIT)
@pytest.mark.parametrize("name", GOLDEN["runs"])
def test_fifty_steps_match_the_recorded_trajectory(tmp_path: Path, name: str, split: str) -> None:
    """pairs: margins by strength, ties and ratings beside, the last token. rankings: Plackett and Luce's, the mean over
    tokens, read after three blocks of five. levels: ordinal ratings, whose cut-points are learned at a rate of their
    own. criteria: two of them, with shares, rated apart and together."""
    data, run = tmp_path / "judgements.jsonl", GOLDEN["runs"][name]
    records = GOLDEN["comparisons"] + run.get("ratings", GOLDEN["ratings"])
    data.write_text("".join(json.dumps(row) + "\n" for row in records))
    with held_to(run["steps"]):
        found = by_command(
            "reward_model", run["settings"] | SPLITS[split] | {"data": [str(data)]}, tmp_path / "run"
        )
    assert len(found) == len(run["steps"]) == 50
    for row, expected in zip(found, run["steps"], strict=True):
        for number, value in expected.items():
            assert row[number] == pytest.approx(value, rel=1e-9, abs=1e-9), (row["step"], number)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["heldout_accuracy"] == run["heldout_accuracy"]
    scorer = load_reward_model(tmp_path / "run" / "model", load_model("tiny", torch.float64))
    ids = [ids_of({"prompt": prompt, "completion": text}, "", scorer) for prompt, text, _ in run["scores"]]
    scores = scorer.score_ids([prompt for prompt, _ in ids], [completion for _, completion in ids])
    assert scores == pytest.approx([score for _, _, score in run["scores"]], rel=1e-9, abs=1e-9)


def test_the_golden_is_one_that_says_something() -> None:
    """Gradients that are clipped and others, batches with ratings and without, a reward that learns."""
    for run in GOLDEN["runs"].values():
        clipped = [row["grad_norm"] > run["settings"]["max_grad_norm"] for row in run["steps"]]
        assert 5 < sum(clipped) < 45
        right = [row["accuracy"] for row in run["steps"] if "accuracy" in row]
        assert sum(right[-10:]) > sum(right[:10]) + 1
        assert 0 < run["heldout_accuracy"] < 1
    for name in ("pairs", "levels", "criteria"):
        rated = [row["rating_loss"] for row in GOLDEN["runs"][name]["steps"]]
        assert 5 < sum(loss > 0 for loss in rated) <= 50
    levels = [row["scores"]["overall"] for row in GOLDEN["runs"]["levels"]["ratings"]]
    assert len(set(levels)) == 4
    criteria = [row["scores"].keys() for row in GOLDEN["runs"]["criteria"]["ratings"]]
    assert {"overall"} in criteria
    assert {"tone", "help"} in criteria
