"""Three steps of the dpo recipe beside three of trl 1.16.0's DPOTrainer, on the same weights and pairs.

Recorded by goldens/record_trl_dpo_steps.py. Ours have the prompt of a pair once, packed rows without padding, and the
reference's log-probabilities from one pass before the first step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.data.judged import Judged, Pair
from plaudit.models.branch import Branch
from plaudit.models.llama import Llama, Shape
from plaudit.models.load import trunk_names
from plaudit.recipes.dpo import Config, by_prompt, reference_sums, train_on
from plaudit.training.optim import adam, take_step

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "goldens" / "trl_dpo_steps.json").read_text()
)


def trunk() -> Llama:
    """The recorded model: its weights are drawn in the order of their names."""
    made = Llama(Shape.of({"model_type": "llama", **GOLDEN["shape"]}, "golden"))
    generator = torch.Generator().manual_seed(GOLDEN["seed"])
    with torch.no_grad():
        for name, parameter in sorted(trunk_names(made).items()):
            draw = torch.randn(parameter.shape, generator=generator) * GOLDEN["std"]
            parameter.copy_(draw + 1 if "norm" in name else draw)
    return made


@pytest.mark.parametrize("micro_batch_tokens", [4096, 1])
def test_three_steps_have_trls_losses(micro_batch_tokens: int) -> None:
    policy = Branch(trunk())
    groups = [
        Judged(str(i), p["prompt_ids"], [p["chosen_ids"], p["rejected_ids"]], ["a", "b"], [Pair(0, 1, 1.0)])
        for i, p in enumerate(GOLDEN["pairs"])
    ]
    config = Config(data=["pairs"], beta=GOLDEN["beta"], micro_batch_tokens=micro_batch_tokens)
    reference = by_prompt(groups, reference_sums(groups, policy, config))
    optimizer = adam(policy.parameters(), learning_rate=GOLDEN["learning_rate"])
    assert optimizer.param_groups[0]["eps"] == GOLDEN["eps"]
    losses = []
    for _ in GOLDEN["losses"]:
        losses.append(train_on(groups, policy, reference, config)["loss"])
        take_step(optimizer, policy.parameters(), learning_rate=GOLDEN["learning_rate"], max_grad_norm=1.0)
    assert losses == pytest.approx(GOLDEN["losses"], rel=0, abs=1e-4)
