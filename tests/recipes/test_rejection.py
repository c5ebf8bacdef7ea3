"""The rejection recipe: which completions are imitated, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.config import parse
from plaudit.models.branch import token_logprobs
from plaudit.models.load import load_model
from plaudit.recipes import rejection
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import FinishReason, Sample
from plaudit.types import UserError
from runs import changed, rows, write_prompts
from tiny_models import as_samples


def grouped(prompts: Sequence[int]) -> list[Sample]:
    made = as_samples([[4, p] for p in prompts], [[5, 1] for _ in prompts])
    return [replace(s, prompt=p) for s, p in zip(made, prompts, strict=True)]


@pytest.mark.parametrize(
    ("keep", "earned", "expected"),
    [
        (1, [0.1, 0.3, 0.2, 5.0, 4.0, 6.0], [1, 5]),
        (2, [0.1, 0.3, 0.2, 5.0, 4.0, 6.0], [1, 2, 3, 5]),
        (1, [0.3, 0.3, 0.1, -1.0, -0.5, -0.5], [0, 4]),
        (2, [0.3, 0.5, 0.3, -1.0, -1.0, -2.0], [0, 1, 3, 4]),
        (1, [0.3, 0.5, 0.3, -1.0, -1.0, -1.0], [1]),
        (2, [0.3, 0.3, 0.3, -1.0, -1.0, -1.0], []),
    ],
)
def test_the_best_of_each_prompt_are_kept_and_of_equals_the_first(
    keep: int, earned: list[float], expected: list[int]
) -> None:
    samples = grouped([0, 0, 0, 1, 1, 1])
    assert rejection.best_of(samples, torch.tensor(earned), keep) == expected


def alike(samples: Sequence[Sample]) -> list[float]:
    """A rule that tells nothing apart."""
    return [0.5] * len(samples)


def test_a_step_of_equal_scores_changes_nothing(config: rejection.Config, tmp_path: Path) -> None:
    summary = rejection.run(changed(config, reward="test_rejection:alike", steps=2), tmp_path / "run")
    assert summary["steps"] == 2
    for row in rows(tmp_path / "run"):
        assert row["kept"] == 0
        assert row["kl"] == pytest.approx(0, abs=1e-12)
        assert not {"nll", "grad_norm", "kept_reward"} & row.keys()
    after, before = (load_model(str(name), torch.float64) for name in (tmp_path / "run" / "model", "tiny"))
    assert after.trunk.fingerprint() == before.trunk.fingerprint()


def test_a_prompt_that_came_twice_in_a_step_is_two() -> None:
    samples = [replace(s, prompt_ids=(4, 4)) for s in grouped([0, 0, 1, 1])]
    assert rejection.best_of(samples, torch.tensor([1.0, 2.0, 4.0, 3.0]), 1) == [1, 2]


@pytest.fixture
def config(tmp_path: Path) -> rejection.Config:
    return rejection.Config(
        model="tiny", prompts=write_prompts(tmp_path), reward="rules:fourths", steps=1, prompts_per_step=5,
        samples_per_prompt=4, max_new_tokens=5, temperature=0.8, missing_eos_penalty=None, learning_rate=1e-3,
        precision="float64", threads=1,
    )  # fmt: skip


def test_the_best_grow_likelier_and_no_others_are_looked_at(
    config: rejection.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Sample] = []
    sample = LocalEngine.sample

    def watched(self: LocalEngine, *args: Any) -> Any:
        drawn.extend(found := list(sample(self, *args)))
        return iter(found)

    monkeypatch.setattr(LocalEngine, "sample", watched)
    rejection.run(config, tmp_path / "run")
    drawn.sort(key=lambda s: (s.prompt, s.index))
    scores = [sum(i % 4 == 0 for i in s.completion_ids) / len(s.completion_ids) for s in drawn]
    best = [max(range(at, at + 4), key=lambda i: scores[i]) for at in range(0, 20, 4)]
    (row,) = rows(tmp_path / "run")
    assert row["reward"] == pytest.approx(sum(scores) / 20)
    assert row["kept_reward"] == pytest.approx(sum(scores[i] for i in best) / 5)
    tokens = [-x for i in best for x in drawn[i].logprobs]
    assert row["nll"] == pytest.approx(sum(tokens) / len(tokens), rel=1e-9), "as they were drawn, at 0.8"
    after = load_model(str(tmp_path / "run" / "model"), torch.float64)
    gains = [likelihood(after, drawn[i]) - sum(drawn[i].logprobs) for i in best]
    assert min(gains) > 0


def test_a_minibatch_is_a_mean_of_its_own_tokens(config: rejection.Config, tmp_path: Path) -> None:
    """Five prompts, a minibatch each: their means weigh the same."""
    for minibatches in (1, 5):
        still = changed(config, minibatches=minibatches, learning_rate=0.0, max_new_tokens=9)
        rejection.run(still, tmp_path / str(minibatches))
    together, apart = (rows(tmp_path / name)[0]["nll"] for name in ("1", "5"))
    assert apart == pytest.approx(together, rel=0.05)
    assert together > 5


def likelihood(model: Any, sample: Sample) -> float:
    from plaudit.data.collate import pack
    from plaudit.models.branch import Branch

    packed = pack([sample.prompt_ids], [sample.completion_ids])
    with torch.no_grad():
        return float(token_logprobs(Branch(model.trunk), packed, temperature=0.8).logprobs.sum())


def test_a_completion_without_an_end_is_chosen_by_its_penalty(
    config: rejection.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its score is what is logged, not what it is chosen by."""
    monkeypatch.setattr("rules.first_id", lambda samples: [1.0 + len(s.completion_ids) for s in samples])
    sample = LocalEngine.sample

    def every_fourth_ends(self: LocalEngine, *args: Any) -> Any:
        for one in sample(self, *args):
            ends = one.index == 2
            ids = (*one.completion_ids[:1], 1) if ends else (*one.completion_ids[:-1], 9)
            why: FinishReason = "stop" if ends else "length"
            yield replace(one, completion_ids=ids, logprobs=one.logprobs[: len(ids)], finish_reason=why)

    monkeypatch.setattr(LocalEngine, "sample", every_fourth_ends)
    monkeypatch.setattr(rejection, "preflight", lambda *_: None)
    settings = {"reward": "rules:first_id"}
    rejection.run(changed(config, missing_eos_penalty=-1.0, **settings), tmp_path / "penalty")
    rejection.run(changed(config, **settings), tmp_path / "none")
    assert rows(tmp_path / "penalty")[0]["kept_reward"] == 3.0, "the short ones that end"
    assert rows(tmp_path / "none")[0]["kept_reward"] == 6.0
    assert rows(tmp_path / "penalty")[0]["reward"] == rows(tmp_path / "none")[0]["reward"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples_per_prompt": 1}, "samples_per_prompt"),
        ({"keep": 0}, "keep"),
        ({"keep": 4}, "keep must be less than samples_per_prompt, or nothing is rejected"),
        ({"kl": {"coef": 0.1}}, "unknown setting 'kl'"),
    ],
    ids=str,
)
def test_a_setting_without_meaning_is_refused(
    config: rejection.Config, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        parse(rejection.Config, config.model_dump() | settings, "a.yaml")
