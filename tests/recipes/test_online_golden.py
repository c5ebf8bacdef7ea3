"""Fifty steps of each variant by its command on recorded tokens, beside numbers that transformers and peft gave for
them.

The goldens' numbers come from goldens/record_online_tiny.py and record_online_dpo_tiny.py, which learn from the same
tokens without any of Plaudit's forward pass, packing, losses, advantages or pairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Key, Sample, SamplingParams
from runs import EACH_SPLIT, ONLINE, SPLITS, by_command, held_to

GOLDENS = {
    path.stem.removeprefix("online_"): json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "goldens").glob("online_*.json"))
}


def replay(golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine gives the recorded samples of the step, and of its further draw, that the key names."""

    def sample(
        self: LocalEngine, prompt_ids: Sequence[Sequence[int]], n: int, params: SamplingParams, key: Key
    ) -> Iterator[Sample]:
        step, again = int(key[2]), int(key[3]) if len(key) > 3 else 0
        recorded = golden["steps"][step]["draws"][again]
        assert len(recorded) == n * len(prompt_ids)
        for prompt, index, its_ids, ids, logprobs in recorded:
            assert list(prompt_ids[prompt]) == its_ids, "another prompt was due"
            yield Sample(
                prompt=prompt,
                index=index,
                prompt_ids=tuple(its_ids),
                completion_ids=tuple(ids),
                text=self.tokenizer.decode(ids),
                logprobs=tuple(logprobs),
                finish_reason="stop" if ids[-1] == 1 else "length",
                policy_version=self.version,
                params=params,
                tokenizer=self.tokenizer.fingerprint,
            )

    monkeypatch.setattr(LocalEngine, "sample", sample)


@pytest.mark.parametrize("split", EACH_SPLIT)
@pytest.mark.parametrize("name", GOLDENS)
def test_fifty_steps_match_the_recorded_trajectory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str
) -> None:
    golden = GOLDENS[name]
    replay(golden, monkeypatch)
    (tmp_path / "prompts.txt").write_text("\n".join(golden["about"]["prompts"]) + "\n")
    settings = golden["about"]["settings"] | {"prompts": str(tmp_path / "prompts.txt")} | SPLITS[split]
    with held_to([step["expected"] for step in golden["steps"]]):
        found = by_command(name.removesuffix("_clipped"), settings, tmp_path / "run")
    assert len(found) == len(golden["steps"]) == 50
    for row, step in zip(found, golden["steps"], strict=True):
        for name, expected in step["expected"].items():
            assert row[name] == pytest.approx(expected, rel=1e-9, abs=1e-9), (row["step"], name)


def test_there_is_one_of_each_variant() -> None:
    assert GOLDENS.keys() == {*ONLINE, "reinforce", "rloo_clipped"} - {"ppo"}, "ppo has a test of its own"
    losses = {name: GOLDENS[name]["about"]["settings"].get("loss") for name in ("rloo", "rloo_clipped")}
    assert losses == {"rloo": None, "rloo_clipped": "clipped"}, "as it is shipped, and with the other loss"


@pytest.mark.parametrize("name", GOLDENS)
def test_the_golden_is_one_that_says_something(name: str) -> None:
    """Clips and caps bind, the policy moves away, gradients are held, lengths differ and completions end."""
    steps, settings = GOLDENS[name]["steps"], GOLDENS[name]["about"]["settings"]
    expected = [step["expected"] for step in steps]
    assert max(row["kl"] for row in expected) > 0.02
    assert any(row.get("grad_norm", 0.0) > settings["max_grad_norm"] for row in expected)
    assert len({row["length"] for row in expected}) > 5
    assert 0.2 < sum(row["eos_rate"] for row in expected) / 50 < 0.8
    if name == "rejection":
        assert {row["kept"] for row in expected} == {0, 1, 2}  # and a step that teaches nothing
        assert sum(row["kept_reward"] > row["reward"] for row in expected if row["kept"]) > 20
        return
    if name == "online_dpo":
        assert {row["pairs"] for row in expected} == {0, 1, 2, 3}  # and a step that teaches nothing
        assert sum(0 < row["accuracy"] < 1 for row in expected if "accuracy" in row) > 5
        return
    assert sum(row["importance_capped"] > 0 for row in expected) > 10
    if name not in ("reinforce", "rloo"):
        assert sum(row["clip_fraction"] > 0 for row in expected) > 10
    if "target" in settings.get("kl", {}):
        assert len({row["kl_coef"] for row in expected}) > 40
    if name == "dapo":
        assert {row["draws"] for row in expected} == {1, 2, 3}
        assert any(len(draw) == 3 for draw in ([*step["draws"]] for step in steps))
