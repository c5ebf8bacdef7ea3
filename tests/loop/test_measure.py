"""The figures of an evaluation, by hand and beside transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from plaudit.feedback import panel
from plaudit.feedback.panel import Impression
from plaudit.loop import measure
from plaudit.models import tiny
from plaudit.models.load import load_model
from plaudit.reward.model import RewardModel
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import SamplingParams


def test_a_win_is_one_a_tie_a_half() -> None:
    before = np.array([[0.4, 0.7, 0.50], [0.9, 0.3, 0.1]])
    after = np.array([[0.5, 0.6, 0.515], [0.9, 0.1, 0.2]])
    # judge 1: wins, loses, no difference under 0.02; judge 2: the same, loses, wins
    overall, by_prompt = measure.win_rate(after, before)
    assert overall == pytest.approx((1 + 0 + 0.5 + 0.5 + 0 + 1) / 6)
    assert by_prompt == pytest.approx([0.75, 0.0, 0.75])
    back, _ = measure.win_rate(before, after)
    assert back == pytest.approx(1 - overall)


def test_a_difference_counts_from_where_a_judge_sees_one() -> None:
    assert panel.TIE_BELOW == 0.02
    for difference, share in ((0.0, 0.5), (0.019, 0.5), (-0.019, 0.5), (0.021, 1.0), (-0.021, 0.0)):
        assert measure.win_rate(np.array([[difference]]), np.array([[0.0]])) == (share, [share])


def test_the_same_model_is_no_distance_from_itself(tmp_path: Path) -> None:
    model = load_model(str(tiny.make(tmp_path)), torch.float32)
    rows = [
        {"prompt_ids": [3, 9, 4], "completion_ids": [7, 8, 1]},
        {"prompt_ids": [5], "completion_ids": [9]},
    ]
    assert measure.kl_per_token(model, model, rows) == 0.0


def test_kl_a_token_is_transformers_own(tmp_path: Path) -> None:
    places = [tiny.make(tmp_path, seed) for seed in (0, 1)]
    rows = [
        {"prompt_ids": [3, 9, 4], "completion_ids": [70, 80, 11, 1]},
        {"prompt_ids": [5, 33], "completion_ids": [90, 12]},
    ]
    models = [AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64) for place in places]
    gaps = []
    for row in rows:
        ids = torch.tensor([[*row["prompt_ids"], *row["completion_ids"]]])
        with torch.no_grad():
            p, q = (torch.log_softmax(model(ids).logits[0], -1) for model in models)
        at = range(len(row["prompt_ids"]) - 1, ids.shape[1] - 1)
        gaps += [float(p[i, ids[0, i + 1]] - q[i, ids[0, i + 1]]) for i in at]
    policy, start = (load_model(str(place), torch.float64) for place in places)
    ours = measure.kl_per_token(policy, start, rows)
    assert ours == pytest.approx(sum(gaps) / 6, rel=1e-4)  # transformers' norm goes through float32
    assert abs(ours) > 1e-3


def test_a_steered_policy_is_read_from_what_it_drew_with(tmp_path: Path) -> None:
    """Rows drawn by a model, in another order than the pack's: its log-probabilities give the same KL as the model."""
    policy, start = (load_model(str(tiny.make(tmp_path, seed)), torch.float64) for seed in (0, 1))
    engine = LocalEngine(policy.trunk, policy.tokenizer)
    drawn = engine.sample([[3, 9, 4], [5], [7, 8]], 2, SamplingParams(max_new_tokens=9), (0, "kl"))
    rows: list[dict[str, Any]] = [
        {
            "prompt_ids": list(s.prompt_ids),
            "completion_ids": list(s.completion_ids),
            "logprobs": list(s.logprobs),
        }
        for s in drawn
    ]
    by_model = measure.kl_per_token(policy, start, rows)
    assert measure.kl_per_token(None, start, rows) == pytest.approx(by_model, rel=1e-9)
    for row in rows:
        row["logprobs"] = [logprob + 0.5 for logprob in row["logprobs"]]
    assert measure.kl_per_token(None, start, rows) == pytest.approx(by_model + 0.5, rel=1e-9)


def test_the_best_of_four_is_not_the_first_of_five() -> None:
    """The first of each prompt's five samples is the one that the others are compared with: no candidate."""
    start = [{"prompt_ids": [p], "completion_ids": [s]} for p in range(3) for s in range(5)]
    scores = [9, 1, 3, 2, 0, 9, 4, 3, 2, 1, 9, 1, 2, 3, 4]

    def score_ids(prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> list[float]:
        return [float(scores[5 * p[0] + c[0]]) for p, c in zip(prompts, completions, strict=True)]

    best = measure.best(start, cast(RewardModel, SimpleNamespace(score_ids=score_ids)))
    assert [(row["prompt_ids"][0], row["completion_ids"][0]) for row in best] == [(0, 2), (1, 1), (2, 4)]
    assert measure.CANDIDATES == 4


def test_the_constant_is_as_cheerful_as_the_judges_could_wish() -> None:
    """The baseline bites only if the judges, who read words, like it: relevance and fluency alike, it beats others."""
    texts = [measure.CONSTANT, "I had a nice day.", "It was a terrible day.", "The train leaves at nine."]
    seen = [Impression(text, 0.5, 0.5) for text in texts]
    for unseen in (False, True):
        scores: Any = panel.overall_scores(panel.judging_raters(0, unseen_only=unseen), seen)
        assert (scores[:, :1] >= scores).all()
    scores = panel.criterion_scores(panel.judging_raters(0), seen)["valence"]
    assert (scores[:, 0] > 0.95).all()
