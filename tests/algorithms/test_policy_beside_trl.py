# mypy: disable-error-code="no-untyped-call"
"""Policy gradients beside what trl 1.16.0's GRPOTrainer and RLOOTrainer computed from the same tensors.

Recorded by tests/goldens/record_trl_policy.py; each of trl's losses is put together here from our functions as a
recipe does it: advantages, one loss, what it is divided by, and the KL beside it or in the score. Loss, its gradient
with respect to the log-probabilities, and the shares that are clipped. trl's log-probabilities of padding are
numbers; ours may be anything, so here they are NaN.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.advantages import group_advantages, leave_one_out, overlong_penalty
from plaudit.algorithms.kl import k1, k3
from plaudit.algorithms.masking import masked_mean, masked_sum, sequence_mean, zero_masked
from plaudit.algorithms.policy_loss import ppo_policy_loss, sequence_policy_loss

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "goldens" / "trl_policy.json").read_text())
CASES: dict[str, dict[str, Any]] = GOLDEN["cases"]
WHOLE = [
    name for name, case in CASES.items() if case["parts"] == 1 and name != "weight of a whole completion"
]
PARTS = [name for name, case in CASES.items() if case["parts"] > 1]


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_agrees(ours: Tensor | None, theirs: Tensor) -> None:
    """Far tighter than the 1e-6 asked for: both are float64."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


MASK = torch.tensor(GOLDEN["data"]["mask"])
GROUP = torch.tensor(GOLDEN["data"]["group"])
SCORES = f64(GOLDEN["data"]["scores"])
OLD, NEW, REF, SAMPLED = (
    f64(GOLDEN["data"][name]).masked_fill(~MASK, math.nan) for name in ("old", "logprobs", "ref", "sampled")
)
COMPLETIONS, TOKENS = len(SCORES), int(MASK.sum())


def our_advantages(name: str) -> Tensor:
    settings = CASES[name]["settings"]
    if not name.startswith("rloo"):
        return group_advantages(SCORES, GROUP, scale=settings.get("scale_rewards", "group"))
    apart = masked_sum(k1(OLD, REF), MASK, dim=1)
    advantages = leave_one_out(SCORES - settings["beta"] * apart, GROUP)
    if settings.get("normalize_advantages"):  # the whole batch as one group
        return group_advantages(advantages, torch.zeros_like(GROUP))
    return advantages


def our_loss(name: str, logprobs: Tensor, rows: slice) -> LossOutput:
    """The loss of some rows; divided so that the parts' losses sum to the whole batch's."""
    case = CASES[name]
    settings = case["settings"]
    old, ref, mask, advantages = OLD[rows], REF[rows], MASK[rows], f64(case["advantages"])[rows]
    per_token = advantages.unsqueeze(1).expand_as(mask)
    options: dict[str, Any] = {
        "clip": settings.get("epsilon", 0.2),
        "clip_high": settings.get("epsilon_high"),
    }
    if case["vllm"]:
        cap = settings["vllm_importance_sampling_clip_max"]
        options |= {"sampled_logprobs": SAMPLED[rows], "importance_cap": cap}
    coef = 0.0 if name.startswith("rloo") else settings.get("beta", 0.0)
    apart = k3(zero_masked(logprobs, mask), zero_masked(ref, mask))
    if settings.get("use_bias_correction_kl"):
        apart = apart * torch.exp(zero_masked(logprobs - old, mask))

    if name.startswith("rloo"):
        return sequence_policy_loss(
            logprobs, old, advantages, mask, total=COMPLETIONS, ratio="product", **options
        )
    if name.startswith("gspo"):
        loss, metrics = sequence_policy_loss(
            logprobs, old, advantages, mask, total=COMPLETIONS, ratio="mean", **options
        )
        return LossOutput(loss + coef * sequence_mean(apart, mask, total=COMPLETIONS), metrics)
    if name.startswith("grpo"):
        loss, metrics = ppo_policy_loss(
            logprobs, old, per_token, mask, total=COMPLETIONS, per_sequence=True, **options
        )
        return LossOutput(loss + coef * sequence_mean(apart, mask, total=COMPLETIONS), metrics)
    loss, metrics = ppo_policy_loss(logprobs, old, per_token, mask, total=TOKENS, **options)
    loss = loss + coef * masked_mean(apart, mask, total=TOKENS)
    if name.startswith("dr_grpo"):  # divided by what all completions might have had, not by what they have
        loss = loss * TOKENS / (COMPLETIONS * GOLDEN["longest"])
    return LossOutput(loss, metrics)


def test_the_record_is_of_the_peer_that_it_names_and_binds_where_it_should() -> None:
    assert GOLDEN["peer"] == "trl 1.16.0"
    assert MASK.sum(1).unique().numel() > 4  # lengths differ
    assert MASK.shape[1] < GOLDEN["longest"]
    deviations = [SCORES[group == GROUP].std().item() for group in GROUP.unique()]
    assert 0.0 in deviations
    for name in WHOLE:
        assert 0 < CASES[name]["clip_ratio/low_mean"] < 0.5
        assert 0 < CASES[name]["clip_ratio/high_mean"] < 0.5


@pytest.mark.parametrize("name", list(CASES))
def test_advantages(name: str) -> None:
    # in trl's deviation n / (n - 1) is a float32: 4/3 is off by 3e-8, its root by half of that
    settings = CASES[name]["settings"]
    divided = settings.get("normalize_advantages", not name.startswith("rloo"))
    rtol = 2e-8 if divided and settings.get("scale_rewards") != "none" else 1e-12
    theirs = f64(CASES[name]["advantages"])
    torch.testing.assert_close(our_advantages(name), theirs, rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("name", WHOLE)
def test_loss_and_gradient(name: str) -> None:
    logprobs = NEW.clone().requires_grad_()
    loss, metrics = our_loss(name, logprobs, slice(None))
    loss.backward()
    assert loss.item() == pytest.approx(CASES[name]["losses"][0], rel=1e-10)
    assert_agrees(logprobs.grad, f64(CASES[name]["gradient"]))
    if not name.startswith("grpo"):  # trl counts tokens there, where its loss, as ours, counts completions
        assert metrics["clip_fraction"].item() == pytest.approx(
            CASES[name]["clip_ratio/region_mean"], rel=1e-6
        )  # float32 there


@pytest.mark.parametrize("name", PARTS)
def test_micro_batches(name: str) -> None:
    """trl divides what it accumulates so that the whole batch comes out; ours are given the whole batch's total."""
    size = COMPLETIONS // CASES[name]["parts"]
    for part, theirs in enumerate(CASES[name]["losses"]):
        rows = slice(part * size, (part + 1) * size)
        logprobs = NEW[rows].clone().requires_grad_()
        loss = our_loss(name, logprobs, rows).loss
        loss.backward()
        assert loss.item() == pytest.approx(theirs, rel=1e-10)
        assert_agrees(logprobs.grad, f64(CASES[name]["gradient"])[rows])


@pytest.mark.parametrize("name", ["grpo, KL", "bnpo, KL", "gspo, KL"])
def test_the_kl_that_is_logged(name: str) -> None:
    apart = k3(zero_masked(NEW, MASK), zero_masked(REF, MASK))
    assert masked_mean(apart, MASK).item() == pytest.approx(CASES[name]["kl"], rel=1e-6)  # float32 there


def test_the_weight_of_a_whole_completion() -> None:
    """trl's weights, min(exp(sum of old - sampled), cap), are what each completion's gradient is multiplied by."""
    case = CASES["weight of a whole completion"]
    logprobs = OLD.clone().requires_grad_()  # ratio 1
    loss, metrics = sequence_policy_loss(
        logprobs, OLD, -torch.ones(COMPLETIONS, dtype=torch.float64), MASK, total=1, ratio="product",
        sampled_logprobs=SAMPLED, importance_cap=case["settings"]["vllm_importance_sampling_clip_max"],
    )  # fmt: skip
    loss.backward()
    weights = f64(case["importance"])
    assert_agrees(logprobs.grad, weights.unsqueeze(1) * MASK)
    assert_agrees(metrics["importance_mean"], weights.sum())


@pytest.mark.parametrize("case", GOLDEN["overlong"], ids=lambda case: f"{case['longest']}-{case['buffer']}")
def test_overlong_penalty(case: dict[str, Any]) -> None:
    ours = overlong_penalty(torch.tensor(case["lengths"]), longest=case["longest"], buffer=case["buffer"])
    torch.testing.assert_close(ours.double(), f64(case["penalty"]), rtol=1e-6, atol=0)  # float32
