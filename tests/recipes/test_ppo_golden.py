"""Fifty steps of the ppo recipe by its command on recorded tokens, beside numbers that transformers and peft gave for
them.

The golden's numbers come from goldens/record_ppo_tiny.py, which learns from the same tokens without any of Plaudit's
forward pass, packing, losses or advantages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Key, Sample, SamplingParams
from runs import EACH_SPLIT, SPLITS, by_command, held_to

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "ppo_tiny.json").read_text())


def replayed(
    self: LocalEngine, prompt_ids: Sequence[Sequence[int]], n: int, params: SamplingParams, key: Key
) -> Iterator[Sample]:
    """The recorded samples of the step that the key names."""
    recorded: list[dict[str, Any]] = GOLDEN["steps"][int(key[-1])]["samples"]
    assert len(recorded) == n * len(prompt_ids)
    for row in recorded:
        assert list(prompt_ids[row["prompt"]]) == row["prompt_ids"], "another prompt was due"
        yield Sample(
            prompt=row["prompt"],
            index=row["index"],
            prompt_ids=tuple(row["prompt_ids"]),
            completion_ids=tuple(row["completion_ids"]),
            text=self.tokenizer.decode(row["completion_ids"]),
            logprobs=tuple(row["logprobs"]),
            finish_reason=row["finish_reason"],
            policy_version=self.version,
            params=params,
            tokenizer=self.tokenizer.fingerprint,
        )


@pytest.mark.parametrize("split", EACH_SPLIT)
def test_fifty_steps_match_the_recorded_trajectory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setattr(LocalEngine, "sample", replayed)
    (tmp_path / "prompts.txt").write_text("\n".join(GOLDEN["about"]["prompts"]) + "\n")
    settings = GOLDEN["about"]["settings"] | {"prompts": str(tmp_path / "prompts.txt")} | SPLITS[split]
    with held_to([step["expected"] for step in GOLDEN["steps"]]):
        rows = by_command("ppo", settings, tmp_path / "run")
    assert len(rows) == len(GOLDEN["steps"]) == 50
    for row, step in zip(rows, GOLDEN["steps"], strict=True):
        for name, expected in step["expected"].items():
            assert row[name] == pytest.approx(expected, rel=1e-9, abs=1e-9), (row["step"], name)


def test_the_golden_is_one_that_says_something() -> None:
    """Clips, both KL directions of the controller, ends, and a policy that moves are all in it."""
    expected = [step["expected"] for step in GOLDEN["steps"]]
    assert sum(row["clip_fraction"] > 0 for row in expected) > 10
    assert len({row["kl_coef"] for row in expected}) > 10
    assert max(row["kl"] for row in expected) > 0.02
    assert any(row["grad_norm"] > GOLDEN["about"]["settings"]["max_grad_norm"] for row in expected)
    assert all(row["importance_mean"] != 1 for row in expected)
    ends = [s["finish_reason"] for step in GOLDEN["steps"] for s in step["samples"]]
    assert ends.count("stop") >= 2
