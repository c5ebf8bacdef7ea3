"""The unit of a reward: reference samples score mean 0 and standard deviation 1, empty ones among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.models.load import load_model
from plaudit.recipes import reward_model
from plaudit.reward.model import load_reward_model
from plaudit.reward.score import ids_of
from plaudit.types import UserError


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config(tmp_path: Path, reference: list[dict[str, Any]]) -> reward_model.Config:
    judged = [
        {"prompt": f"day {n}", "completions": ["a good day", "a bad day"], "choice": n % 2} for n in range(12)
    ]
    return reward_model.Config(
        model="tiny",
        data=[write(tmp_path / "judged.jsonl", judged)],
        reference=[write(tmp_path / "reference.jsonl", reference)],
        precision="float32",
        threads=1,
    )


def test_reference_samples_set_the_unit_even_where_one_ended_at_once(tmp_path: Path) -> None:
    texts = ["", "good", "bad day", "a great, great day", "no"]
    rows = [{"prompt": "day 1", "completion": text} for text in texts]
    reward_model.run(config(tmp_path, rows), tmp_path / "run")
    scorer = load_reward_model(tmp_path / "run" / "model", load_model("tiny", torch.float32))
    pairs = [ids_of(row, "", scorer) for row in rows]
    assert pairs[0][1] == [1]  # nothing but the end of the text
    scores = torch.tensor(scorer.score_ids([p for p, _ in pairs], [c for _, c in pairs]))
    assert float(scores.mean()) == pytest.approx(0, abs=1e-4)
    assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_a_reference_that_is_no_sample_is_refused_before_any_step(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completions": ["a", "b"], "choice": 0}]
    with pytest.raises(UserError, match="lacks a text as completion"):
        reward_model.run(config(tmp_path, rows), tmp_path / "run")
    assert not (tmp_path / "run").exists()
