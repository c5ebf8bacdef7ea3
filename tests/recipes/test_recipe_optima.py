"""Where recipes end that go on until nothing moves: at the shares, the log-odds or the policy that theory names.

As tests/algorithms/test_known_optima.py has it of the losses, here of whole recipes: a small Llama, two prompts, few
answers of one word, every step on all the data there is, and a rate that falls to 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plaudit.models.load import load_model
from plaudit.recipes import dpo, reward_model, sft
from plaudit.reward.model import load_reward_model
from plaudit.reward.score import ids_of
from plaudit.tensors import Sample
from random_walks import FIRST, LETTERS, make_model
from runs import shipped

PROMPTS, ANSWERS = ("a", "b"), ("c", "d", "e")
SHOWN = {"a": (5, 3, 2), "b": (1, 6, 3)}
"""How often each answer was shown."""
VOTES = {"a": ((2, 1), (6, 1), (3, 1)), "b": ((1, 3), (1, 1), (3, 1))}
"""For and against the first of c and d, c and e, d and e: odds that agree (2 * 3 = 6; 1/3 * 3 = 1)."""
COUPLES = ((0, 1), (0, 2), (1, 2))
COMMON: dict[str, Any] = {
    "heldout": 0.0, "precision": "float64", "threads": 1, "checkpoint_every": 1000, "epochs": 200,
    "learning_rate": 2e-2,
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(make_model(tmp_path / "base", width=16, depth=1))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def comparisons() -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "completions": [ANSWERS[one], ANSWERS[other]], "choice": choice}
        for prompt in PROMPTS
        for (one, other), votes in zip(COUPLES, VOTES[prompt], strict=True)
        for choice in (0, 1)
        for _ in range(votes[choice])
    ]


@torch.no_grad()
def next_logprobs(model: str | Path, ids: list[int]) -> Tensor:
    """[V]: of what may follow these ids, by transformers."""
    from transformers import AutoModelForCausalLM

    logits = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float64)(torch.tensor([ids])).logits
    found: Tensor = logits[0, -1].log_softmax(-1)
    return found


def answers_logprobs(model: str | Path, prompt: str) -> Tensor:
    """[3]: of each answer, and of its end."""
    start = FIRST + LETTERS.index(prompt)
    words = [FIRST + LETTERS.index(answer) for answer in ANSWERS]
    first = next_logprobs(model, [start])
    return torch.stack([first[word] + next_logprobs(model, [start, word])[1] for word in words])


def test_sft_ends_at_the_shares_of_what_was_shown(base: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "completion": answer}
        for prompt in PROMPTS
        for answer, count in zip(ANSWERS, SHOWN[prompt], strict=True)
        for _ in range(count)
    ]
    settings: dict[str, Any] = COMMON | {
        "model": base, "data": [write(tmp_path / "data.jsonl", rows)], "batch_size": len(rows), "weight_decay": 0.0,
        "adapter": {"rank": 0},
    }  # fmt: skip
    config = sft.Config(**settings)
    sft.run(config, tmp_path / "run")
    for prompt in PROMPTS:
        found = answers_logprobs(tmp_path / "run" / "model", prompt).exp()
        assert found.tolist() == pytest.approx([count / 10 for count in SHOWN[prompt]], abs=0.005)


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_dpo_ends_where_the_votes_are(base: str, tmp_path: Path, loss: str) -> None:
    """dpo: log-ratios to the reference apart by the log-odds of the votes over beta. ipo: by the shares less a half
    over beta, a token, as near as three couples can be that do not agree (numpy's least squares)."""
    beta = 0.7
    data = write(tmp_path / "data.jsonl", comparisons())
    settings: dict[str, Any] = COMMON | {
        "model": base, "data": [data], "prompts_per_step": 2, "loss": loss, "beta": beta, "adapter": {"rank": 0},
    }  # fmt: skip
    config = dpo.Config(**settings)
    dpo.run(config, tmp_path / "run")
    for prompt in PROMPTS:
        ratio = answers_logprobs(tmp_path / "run" / "model", prompt) - answers_logprobs(base, prompt)
        found = [float(ratio[one] - ratio[other]) for one, other in COUPLES]
        votes = np.array(VOTES[prompt], dtype=np.float64)
        if loss == "dpo":
            wanted = np.log(votes[:, 0] / votes[:, 1]) / beta
        else:
            asked = 2 * (votes[:, 0] / votes.sum(1) - 0.5) / beta  # of two tokens
            sides = np.array([[1, 0], [0, 0], [0, 1]], dtype=np.float64)  # unknown: c less d, d less e
            sides[1] = 1
            weight = np.sqrt(votes.sum(1))
            c_d, d_e = np.linalg.lstsq(sides * weight[:, None], asked * weight, rcond=None)[0]
            wanted = np.array([c_d, c_d + d_e, d_e])
        assert found == pytest.approx(wanted.tolist(), abs=0.005)


def test_a_reward_ends_at_the_log_odds_of_the_votes(base: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", comparisons())
    settings: dict[str, Any] = COMMON | {
        "model": base, "data": [data], "prompts_per_step": 2, "adapter": {"rank": 8, "blocks": 0},
    }  # fmt: skip
    config = reward_model.Config(**settings)
    reward_model.run(config, tmp_path / "run")
    scorer = load_reward_model(tmp_path / "run" / "model", load_model(base, torch.float64))
    assert scorer.branch.head is not None
    for prompt in PROMPTS:
        ids = [ids_of({"prompt": prompt, "completion": answer}, "", scorer) for answer in ANSWERS]
        scores = scorer.score_ids([p for p, _ in ids], [c for _, c in ids])
        unit = float(scorer.branch.head.gain)
        for (one, other), (won, lost) in zip(COUPLES, VOTES[prompt], strict=True):
            assert (scores[one] - scores[other]) / unit == pytest.approx(math.log(won / lost), abs=0.005)


def worth(samples: Sequence[Sample]) -> list[float]:
    """Of the one token that was drawn: a rule, "test_recipe_optima:worth"."""
    return [math.sin(sample.completion_ids[0] + 2 * sample.prompt_ids[-1]) for sample in samples]


@pytest.mark.proof
@pytest.mark.parametrize("name", ["rloo", "dr_grpo", "grpo", "ppo"])
def test_the_price_of_the_kl_in_the_reward_stops_a_policy_at_the_optimum(
    base: str, tmp_path: Path, name: str
) -> None:
    """ref(y) exp(r(y) / beta) over all 23 words, the end among them."""
    beta = 0.5
    recipe, config = shipped(
        name, model=base, prompts=write(tmp_path / "prompts.jsonl", [{"prompt": p} for p in PROMPTS]),
        reward="test_recipe_optima:worth", steps=120, prompts_per_step=2, samples_per_prompt=48, max_new_tokens=1,
        missing_eos_penalty=None, learning_rate=1e-2, epochs=2, adapter={"rank": 0}, precision="float64", threads=1,
        kl={"coef": beta, "place": "reward", "estimator": "k1"}, checkpoint_every=1000,
        stop={"max_kl": 10.0, "patience": 1000},
    )  # fmt: skip
    recipe.run(config, tmp_path / "run")
    for prompt in PROMPTS:
        start = [FIRST + LETTERS.index(prompt)]
        ref, found = next_logprobs(base, start), next_logprobs(tmp_path / "run" / "model", start).exp()
        reward = torch.tensor(
            [math.sin(token + 2 * start[0]) for token in range(len(ref))], dtype=torch.float64
        )
        best = (ref + reward / beta).softmax(0)
        assert float((best - ref.exp()).abs().sum() / 2) > 0.3
        assert float((found - best).abs().sum() / 2) < 0.03  # reached: 0.0026


@pytest.mark.parametrize("name", ["online_dpo", "rejection"])
def test_without_a_price_nearly_the_best_reward_is_reached(base: str, tmp_path: Path, name: str) -> None:
    """Both want the best answer alone; what the policy expects is exact, over all 23 words."""
    recipe, config = shipped(
        name, model=base, prompts=write(tmp_path / "prompts.jsonl", [{"prompt": p} for p in PROMPTS]),
        reward="test_recipe_optima:worth", steps=100, prompts_per_step=2, samples_per_prompt=12, max_new_tokens=1,
        missing_eos_penalty=None, learning_rate=1e-2 if name == "online_dpo" else 4e-3, adapter={"rank": 0},
        precision="float64", threads=1,
        checkpoint_every=1000, stop={"max_kl": 30.0, "min_entropy": 0.0, "patience": 1000},
    )  # fmt: skip
    recipe.run(config, tmp_path / "run")
    for prompt in PROMPTS:
        start = FIRST + LETTERS.index(prompt)
        before, after = (next_logprobs(model, [start]).exp() for model in (base, tmp_path / "run" / "model"))
        reward = torch.tensor(
            [math.sin(token + 2 * start) for token in range(len(before))], dtype=torch.float64
        )
        assert float((before * reward).sum()) < 0.4
        assert float((after * reward).sum()) > 0.8 * float(reward.max())  # reached: 0.93 of 0.99
