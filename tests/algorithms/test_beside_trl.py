# mypy: disable-error-code="no-untyped-call"
"""Ours beside what trl 1.12.0 computed (tests/goldens/record_trl_ppo.py): rollout, losses and their gradients.

TRL lets the value count one position past the last token and puts the score there (`padding_mask_p1`): with that
mask in place of ours the two must agree.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.algorithms.advantages import gae, shaped_rewards
from plaudit.algorithms.kl import k1
from plaudit.algorithms.masking import whiten
from plaudit.algorithms.policy_loss import ppo_policy_loss
from plaudit.algorithms.reward_loss import bradley_terry
from plaudit.algorithms.value_loss import clipped_value_loss

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "goldens" / "trl_ppo.json").read_text())
PPO, CONFIG = GOLDEN["ppo"], GOLDEN["ppo"]["config"]


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_agrees(ours: Tensor | None, theirs: Any) -> None:
    """Far tighter than the 1e-6 asked for: both are float64."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def counted(name: str) -> Tensor:
    return ~torch.tensor(PPO["rollout"][name])


def test_the_record_is_of_the_peer_that_it_names() -> None:
    assert GOLDEN["peer"] == "trl 1.12.0"
    assert counted("padding_mask").sum(1).unique().numel() > 2  # lengths differ


def test_kl_and_rewards() -> None:
    mask = counted("padding_mask_p1")
    kl = k1(f64(PPO["rollout"]["logprobs"]), f64(PPO["rollout"]["ref_logprobs"]))
    assert_agrees(kl, f64(PPO["rollout"]["kl"]))
    rewards = shaped_rewards(f64(PPO["rollout"]["scores"]), kl, mask, coef=CONFIG["kl_coef"])
    assert_agrees(rewards, f64(PPO["whiten"][0]["values"]))


@pytest.mark.parametrize("record", PPO["whiten"], ids=["rewards, mean kept", "advantages, centred"])
def test_whitening(record: dict[str, Any]) -> None:
    """TRL divides by n - 1 where OpenAI's code, and ours, divides by n: a factor of sqrt(n / (n - 1))."""
    x, mask = f64(record["values"]), torch.tensor(record["mask"])
    count = int(mask.sum())
    kept = x[mask].mean().item() if not record["shift_mean"] else 0.0
    expected = kept + (f64(record["out"]) - kept) * math.sqrt(count / (count - 1))
    ours = whiten(x, mask, keep_mean=not record["shift_mean"])
    torch.testing.assert_close(
        ours[mask], expected[mask], rtol=1e-7, atol=1e-9
    )  # 1e-8 beside either variance


def test_advantages_and_returns() -> None:
    mask = counted("padding_mask_p1")
    rewards, values = f64(PPO["whiten"][0]["out"]), f64(PPO["rollout"]["values"])
    advantages, returns = gae(rewards, values, mask, gamma=CONFIG["gamma"], lam=CONFIG["lam"])
    assert_agrees(advantages, f64(PPO["whiten"][1]["values"]))
    assert_agrees(returns, f64(PPO["rollout"]["returns"]))


@pytest.mark.parametrize("step", PPO["steps"], ids=["first epoch", "last epoch"])
def test_policy_loss_and_its_gradient(step: dict[str, Any]) -> None:
    mask = torch.tensor(step["mask"])
    logprobs = f64(step["new_logprobs"]).requires_grad_()
    loss, metrics = ppo_policy_loss(
        logprobs,
        f64(step["mb_logprobs"]),
        f64(step["mb_advantage"]),
        mask,
        total=mask.sum(),
        clip=CONFIG["cliprange"],
    )
    loss.backward()
    assert loss.item() == pytest.approx(step["pg_loss"], rel=1e-10, abs=1e-15)
    assert metrics["clip_fraction"].item() == pytest.approx(step["pg_clipfrac"], rel=1e-6)  # float32 there
    assert metrics["ratio_max"].item() == pytest.approx(f64(step["ratio"])[mask].max().item(), rel=1e-12)
    assert_agrees(logprobs.grad, f64(step["grad_new_logprobs"]))


@pytest.mark.parametrize("step", PPO["steps"], ids=["first epoch", "last epoch"])
def test_value_loss_and_its_gradient(step: dict[str, Any]) -> None:
    mask = torch.tensor(step["mask_p1"])
    values = f64(step["vpred"]).requires_grad_()
    loss, metrics = clipped_value_loss(
        values,
        f64(step["mb_values"]),
        f64(step["mb_return"]),
        mask,
        total=mask.sum(),
        clip=CONFIG["cliprange_value"],
    )
    (CONFIG["vf_coef"] * loss).backward()
    assert loss.item() == pytest.approx(step["vf_loss"], rel=1e-10)
    assert metrics["clip_fraction"].item() == pytest.approx(step["vf_clipfrac"], rel=1e-6)
    assert_agrees(values.grad, f64(step["grad_vpred"]))


def test_the_last_epoch_is_clipped_somewhere() -> None:
    """Else the two tests above would compare no clipped branch."""
    assert 0 < PPO["steps"][-1]["pg_clipfrac"] < 1
    assert 0 < PPO["steps"][-1]["vf_clipfrac"] < 1


@pytest.mark.parametrize("case", GOLDEN["reward"], ids=["first", "second"])
def test_bradley_terry(case: dict[str, Any]) -> None:
    chosen, rejected = f64(case["chosen"]).requires_grad_(), f64(case["rejected"]).requires_grad_()
    loss, metrics = bradley_terry(chosen, rejected, torch.ones_like(chosen), total=len(chosen))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
    assert_agrees(chosen.grad, f64(case["grad_chosen"]))
    assert_agrees(rejected.grad, f64(case["grad_rejected"]))
    assert (metrics["correct"] / metrics["decided"]).item() == pytest.approx(case["accuracy"], rel=1e-6)
    assert metrics["margin"].item() == pytest.approx(case["margin"], rel=1e-12)
