# mypy: disable-error-code="no-untyped-call"
"""Our preference losses beside trl 1.16.0's, on the tensors that goldens/record_trl_preference.py recorded from it.

Where trl does otherwise, the test says so:
- its sigmoid DPO knows no label smoothing; its `aot` loss of single pairs is that loss;
- its ORPO imitates the prompt, too, and averages over a micro-batch's tokens;
- its KTO takes the baseline of a micro-batch, which is a whole batch here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.preference_loss import (
    PAIRED,
    Pairs,
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
    smoothed,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "trl_preference.json").read_text())
EXACT = 1e-12


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_agrees(ours: Tensor | None, theirs: Tensor) -> None:
    assert ours is not None
    torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=EXACT)


def pairs_of(case: dict[str, Any], target: float = 1.0) -> Pairs:
    chosen, rejected = f64(case["chosen"]).requires_grad_(), f64(case["rejected"]).requires_grad_()
    return Pairs(
        chosen,
        rejected,
        torch.full_like(chosen, target),
        f64(case["ref_chosen"]),
        f64(case["ref_rejected"]),
        torch.tensor(case["chosen_tokens"]),
        torch.tensor(case["rejected_tokens"]),
    )


def assert_is_theirs(out: LossOutput, pairs: Pairs, case: dict[str, Any]) -> None:
    torch.autograd.backward(out.loss)
    assert out.loss.item() == pytest.approx(case["loss"], rel=EXACT)
    assert_agrees(pairs.first.grad, f64(case["grad_chosen"]))
    assert_agrees(pairs.second.grad, f64(case["grad_rejected"]))


def assert_metrics(out: LossOutput, case: dict[str, Any]) -> None:
    named = {"reward_chosen": "chosen", "reward_rejected": "rejected", "margin": "margins"}
    for ours, theirs in named.items():
        assert out.metrics[ours].item() == pytest.approx(case["metrics"][f"rewards/{theirs}"], rel=1e-9)
    assert out.metrics["decided"].item() == 1
    assert out.metrics["correct"].item() == pytest.approx(case["metrics"]["rewards/accuracies"], rel=1e-6)


@pytest.mark.parametrize("case", GOLDEN["sigmoid"], ids=["beta 0.1", "beta 0.3"])
def test_dpo(case: dict[str, Any]) -> None:
    pairs = pairs_of(case)
    out = dpo_loss(pairs, total=len(case["chosen"]), beta=case["beta"])
    assert_is_theirs(out, pairs, case)
    assert_metrics(out, case)


@pytest.mark.parametrize("case", GOLDEN["cdpo"])
def test_conservative_dpo(case: dict[str, Any]) -> None:
    pairs = pairs_of(case)
    pairs = pairs._replace(target=smoothed(pairs.target, case["label_smoothing"]))
    out = dpo_loss(pairs, total=1, beta=case["beta"])
    assert_is_theirs(out, pairs, case)
    assert_metrics(out, case)


@pytest.mark.parametrize("case", GOLDEN["robust"])
def test_robust_dpo(case: dict[str, Any]) -> None:
    pairs = pairs_of(case)
    out = robust_dpo_loss(pairs, total=len(case["chosen"]), beta=case["beta"], flip=case["label_smoothing"])
    assert_is_theirs(out, pairs, case)
    assert_metrics(out, case)


@pytest.mark.parametrize("case", GOLDEN["ipo"])
def test_ipo_averages_over_tokens(case: dict[str, Any]) -> None:
    """trl's logged rewards of IPO are of sums, its loss is of means; ours are of means, both."""
    pairs = pairs_of(case)
    assert_is_theirs(ipo_loss(pairs, total=len(case["chosen"]), beta=case["beta"]), pairs, case)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("name", "loss"), [("sigmoid", "dpo"), ("robust", "robust"), ("ipo", "ipo")])
def test_which_of_a_pair_comes_first_does_not_matter(name: str, loss: str, mirrored: bool) -> None:
    case = GOLDEN[name][0]
    p = pairs_of(case)
    settings: dict[str, float] = {"beta": case["beta"]}
    if loss == "robust":
        settings["flip"] = case["label_smoothing"]
    if mirrored:
        p = Pairs(p.second, p.first, 1 - p.target, p.ref_second, p.ref_first, p.second_tokens, p.first_tokens)
    out = PAIRED[loss](p, total=len(case["chosen"]), **settings)
    torch.autograd.backward(out.loss)
    assert out.loss.item() == pytest.approx(case["loss"], rel=EXACT)
    assert_agrees((p.second if mirrored else p.first).grad, f64(case["grad_chosen"]))


@pytest.mark.parametrize("case", GOLDEN["kto"], ids=["above 0", "weights", "below 0", "one class"])
def test_kto(case: dict[str, Any]) -> None:
    logprobs, desirable = f64(case["logprobs"]).requires_grad_(), torch.tensor(case["desirable"])
    count = len(desirable)
    baseline = kto_baseline(f64(case["kl_logprobs"]), f64(case["kl_ref_logprobs"]))
    assert baseline.item() == pytest.approx(case["metrics"]["kl"], rel=EXACT)
    out = kto_loss(
        logprobs,
        f64(case["ref_logprobs"]),
        desirable,
        baseline,
        total=count,
        beta=case["beta"],
        desirable_weight=case["desirable_weight"],
        undesirable_weight=case["undesirable_weight"],
    )
    torch.autograd.backward(out.loss)
    assert out.loss.item() == pytest.approx(case["loss"], rel=EXACT)
    assert_agrees(logprobs.grad, f64(case["grad"]))
    for ours, theirs in (("desirable", "chosen"), ("undesirable", "rejected")):
        if out.metrics[ours] > 0:
            reward = out.metrics[f"reward_{ours}"] / out.metrics[ours]
            assert reward.item() == pytest.approx(case["metrics"][f"rewards/{theirs}"], rel=1e-9)
            assert out.metrics[ours].item() == pytest.approx(desirable.eq(ours == "desirable").sum() / count)


def pairs_from_logits(case: dict[str, Any]) -> tuple[Pairs, Tensor]:
    """Sums and counts of the recorded batch, chosen above and rejected below, and the logits that they come from."""
    logits, labels = f64(case["logits"]).requires_grad_(), torch.tensor(case["labels"])[:, 1:]
    mask = labels != -100
    logprobs = torch.log_softmax(logits[:, :-1], -1)
    chosen = logprobs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    sums, tokens = (chosen * mask).sum(1), mask.sum(1)
    half = len(sums) // 2
    one = torch.ones(half, dtype=torch.float64)
    pairs = Pairs(sums[:half], sums[half:], one, first_tokens=tokens[:half], second_tokens=tokens[half:])
    return pairs, logits


@pytest.mark.parametrize("case", GOLDEN["simpo"], ids=["plain", "smoothed"])
def test_simpo(case: dict[str, Any]) -> None:
    pairs, logits = pairs_from_logits(case)
    settings = case["settings"]
    pairs = pairs._replace(target=smoothed(pairs.target, settings["label_smoothing"]))
    out = simpo_loss(pairs, total=len(pairs.target), beta=settings["beta"], gamma=settings["simpo_gamma"])
    torch.autograd.backward(out.loss)
    assert out.loss.item() == pytest.approx(case["loss"], rel=EXACT)
    assert_agrees(logits.grad, f64(case["grad_logits"]))
    assert_metrics(out, case)


@pytest.mark.parametrize("case", GOLDEN["orpo"][:2])
def test_orpo_of_one_pair_after_a_prompt_of_one_token(case: dict[str, Any]) -> None:
    """There trl's likelihood is of the completion alone."""
    pairs, logits = pairs_from_logits(case)
    out = orpo_loss(pairs, total=1, lam=case["settings"]["beta"])
    torch.autograd.backward(out.loss)
    assert out.loss.item() == pytest.approx(case["loss"], rel=EXACT)
    assert_agrees(logits.grad, f64(case["grad_logits"]))
    assert out.metrics["nll"].item() == pytest.approx(case["metrics"]["nll_loss"], rel=EXACT)
    assert out.metrics["margin"].item() == pytest.approx(case["metrics"]["log_odds_chosen"], rel=1e-9)


@pytest.mark.parametrize("case", GOLDEN["orpo"])
def test_the_odds_of_orpo_whatever_is_imitated(case: dict[str, Any]) -> None:
    pairs, _ = pairs_from_logits(case)
    out = orpo_loss(pairs, total=len(pairs.target), lam=case["settings"]["beta"])
    odds = case["loss"] - case["metrics"]["nll_loss"]
    assert (out.loss - out.metrics["nll"]).item() == pytest.approx(odds, rel=1e-11)


def test_trl_imitates_the_prompt_and_we_do_not() -> None:
    """The one deviation: with a prompt of three tokens and two pairs the likelihoods differ."""
    case = GOLDEN["orpo"][2]
    pairs, _ = pairs_from_logits(case)
    out = orpo_loss(pairs, total=2, lam=case["settings"]["beta"])
    assert abs(out.metrics["nll"].item() - case["metrics"]["nll_loss"]) > 0.01
