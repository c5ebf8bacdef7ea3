"""What policies would have earned on held-out rows of a log that another policy wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit.algorithms import off_policy
from plaudit.data.choices import Chosen
from plaudit.models.label_head import Classifier


def columns(rows: Sequence[Chosen], classifier: Classifier) -> tuple[Tensor, Tensor, Tensor]:
    """Labels' places [N], rewards [N] and propensities [N] (not a number where unknown)."""
    places = {label: place for place, label in enumerate(classifier.labels)}
    device = classifier.model.trunk.device
    labels = torch.tensor([places[c.label] for c in rows], device=device)
    rewards = torch.tensor([c.reward for c in rows], dtype=torch.float64, device=device)
    known = [math.nan if c.propensity is None else c.propensity for c in rows]
    return labels, rewards, torch.tensor(known, dtype=torch.float64, device=device)


@torch.no_grad()
def measure(
    classifier: Classifier, heldout: Sequence[Chosen], policies: Mapping[str, Callable[[Tensor], Tensor]]
) -> dict[str, Any]:
    """On held-out rows: how far Q is from the rewards, what the log earned, and what each policy would have
    earned, each estimate with its standard error; IPS, SNIPS and doubly robust where every row has its
    propensity. Nothing where fewer than two rows are held out."""
    rows = [c for c in heldout if c.label in classifier.labels]
    if len(rows) < 2:
        return {"heldout_rows": len(rows)}
    labels, rewards, propensities = columns(rows, classifier)
    values = classifier.values([c.ids for c in rows]).double()
    own = values.gather(1, labels[:, None])[:, 0]
    figures: dict[str, Any] = {
        "heldout_rows": len(rows),
        "heldout_error": float((own - rewards).abs().mean()),
        "logged_reward": estimate(
            off_policy.Estimate(float(rewards.mean()), float(rewards.std()) / len(rows) ** 0.5)
        ),
    }
    for kind, choose in policies.items():
        policy = choose(values)
        chances = policy.gather(1, labels[:, None])[:, 0]
        figures[kind] = {"direct": estimate(off_policy.direct(policy, values))}
        if not bool(propensities.isnan().any()):
            figures[kind] |= {
                "ips": estimate(off_policy.ips(chances, propensities, rewards)),
                "snips": estimate(off_policy.snips(chances, propensities, rewards)),
                "doubly_robust": estimate(
                    off_policy.doubly_robust(policy, values, labels, propensities, rewards)
                ),
                "effective_rows": off_policy.effective_sample_size(chances, propensities),
            }
    return figures


def estimate(found: off_policy.Estimate) -> list[float | None]:
    """[value, standard error]; none for what is not a number."""
    return [number if math.isfinite(number) else None for number in found]
