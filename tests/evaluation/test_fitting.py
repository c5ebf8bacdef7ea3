"""The diagnosis of a run that learned from given data: learned, learned by heart, or not at all; of samples nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from plaudit.evaluation.diagnosis import Finding
from plaudit.evaluation.fitting import diagnose_fit
from plaudit.randomness import rng

STEPS = 60
SFT = {"keep", "dropout", "weight_decay", "epochs"}


def rows(
    loss: Callable[[float], float], held: Callable[[float], float] | None = None
) -> list[dict[str, float]]:
    """A noisy training loss, and a held-out loss every tenth step, by the share of the run that is over."""
    found: list[dict[str, float]] = []
    for step in range(1, STEPS + 1):
        noise = 0.05 * float(rng("fitting", step).normal())
        row = {"step": float(step), "loss": loss(step / STEPS) + noise, "grad_norm": 1.0}
        if held is not None and step % 10 == 0:
            row["heldout_loss"] = held(step / STEPS)
        found.append(row)
    return found


def said(found: list[Finding]) -> str:
    return "\n".join(f"{finding.level}: {finding.what} {finding.fix}" for finding in found)


def test_a_run_that_learns_is_fine() -> None:
    found = diagnose_fit(rows(lambda t: 3 - t, lambda t: 3 - t), {"heldout_loss_before": 3.0})
    assert {finding.level for finding in found} == {"fine"}
    assert "The held-out loss fell from 3 to 2." in said(found)
    assert "sample" not in said(found)


def test_overfitting_is_named_with_the_step_and_what_to_try() -> None:
    learned = rows(lambda t: 3 - 2 * t, lambda t: 2 + (t - 0.5) ** 2)
    found = diagnose_fit(learned, {"heldout_loss_before": 2.5, "kept_step": 60}, SFT)
    assert found[0].level == "warning"
    assert (
        "Overfitting: the held-out loss rose from 2 at step 30 to 2.25 while the training loss fell on"
        in found[0].what
    )
    assert found[0].fix == "Take fewer epochs; lower the learning rate; set keep: best; raise dropout."
    assert "keep" not in diagnose_fit(learned, {}, {"epochs"})[0].fix


def test_a_model_worse_than_before_it_learned_is_an_alarm() -> None:
    found = diagnose_fit(rows(lambda t: 3 - 2 * t, lambda t: 2 + t), {"heldout_loss_before": 2.0})
    assert found[0].level == "alarm"
    assert "from 2 before the first step to 3" in found[0].what


def test_the_best_model_kept_is_no_fault() -> None:
    summary = {"heldout_loss_before": 2.5, "kept_step": 30}
    found = diagnose_fit(rows(lambda t: 3 - 2 * t, lambda t: 2 + (t - 0.5) ** 2), summary, SFT)
    assert {finding.level for finding in found} == {"fine"}
    assert "the model that was kept is that of step 30" in said(found)


def test_a_held_out_loss_that_rises_with_the_training_loss_is_not_overfitting() -> None:
    text = said(diagnose_fit(rows(lambda t: 2 + t, lambda t: 2 + t), {}))
    assert "Overfitting" not in text
    assert "The held-out loss rose from" in text


def test_noise_is_not_learning() -> None:
    """The loss falls by less than its noise."""
    text = said(diagnose_fit(rows(lambda t: 0.7 - 0.06 * t, lambda _: 0.69), {"heldout_loss_before": 0.69}))
    assert "Nothing learned that could be seen: the training loss went from 0.6" in text
    assert "The held-out loss has not clearly fallen (from 0.69 to 0.69)" in text


@pytest.mark.parametrize("name", ["q_loss", "round_reward"])
def test_a_loss_towards_targets_that_move_need_not_fall(name: str) -> None:
    moving = [row | {name: 1.0} for row in rows(lambda t: 1 + t)]
    assert "training loss" not in said(diagnose_fit(moving, {"heldout_correlation": 0.5}))


@pytest.mark.parametrize(
    ("summary", "level", "what"),
    [
        ({"heldout_accuracy": 0.6, "length_only_accuracy": 0.7}, "alarm", "no better than its length: 60.0%"),
        ({"heldout_accuracy": 0.75, "length_only_accuracy": 0.7}, "fine", "75.0% of the held-out comparisons"),
        ({"heldout_accuracy": 0.5}, "warning", "a coin has half"),
        ({"heldout_reward_error": 0.5, "heldout_constant_error": 0.4}, "warning", "no more than the rewards' mean"),
        ({"heldout_reward_error": 0.3, "heldout_constant_error": 0.4}, "fine", "The values are off by 0.3"),
        ({"heldout_prompts": 0, "heldout_demonstrations": 0}, "warning", "Nothing was measured on held-out data"),
        ({"rating_correlation": 0.5}, None, "Nothing was measured on held-out data"),
        ({"heldout_error": 0.2, "heldout_rows": 9}, None, "Nothing was measured on held-out data"),
        ({"stopped": "the held-out loss has not fallen"}, "fine", "Training stopped early, as asked"),
    ],
    ids=str,
)  # fmt: skip
def test_figures_of_the_end_are_read(summary: dict[str, Any], level: str | None, what: str) -> None:
    found = [finding for finding in diagnose_fit(rows(lambda t: 3 - t), summary) if what in finding.what]
    assert [finding.level for finding in found] == ([level] if level else [])


def test_a_step_that_threw_the_run_is_named() -> None:
    thrown = rows(lambda t: 3 - t)
    thrown[20]["grad_norm"] = 50.0
    assert "The gradient's norm was 50 at step 21" in said(diagnose_fit(thrown, {}))
