"""Labels for a file of texts: what `plaudit classify` calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from plaudit import files
from plaudit.algorithms.off_policy import policy_probabilities
from plaudit.data.choices import text_ids
from plaudit.data.shapes import filled, read_prompt
from plaudit.data.sources import rows
from plaudit.models.label_head import describe, load_classifier
from plaudit.models.load import load_model
from plaudit.randomness import rng
from plaudit.types import UserError

POLICIES = ("greedy", "epsilon_greedy", "softmax")


def classify(
    directory: Path,
    source: Path,
    out: Path,
    *,
    policy: str = "greedy",
    epsilon: float = 0.1,
    temperature: float = 0.1,
    seed: int = 0,
    model: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Write each row of `source` with the label chosen for its `prompt` as `completion`, the label's `propensity`, the
    `values` of all labels and the `policy_version` as JSONL, all at once: with a reward added, it can be learned from.

    What is drawn depends on the seed and the row's number alone. model: the classifier's base, where it has moved.
    Returns the counts. UserError for a classifier, a policy or a row that cannot be read, and for a place that cannot
    be written.
    """
    files.check_place(out, source)
    if policy not in POLICIES:
        raise UserError(f"unknown policy {policy!r}", where="--policy", fix=f"known: {', '.join(POLICIES)}")
    base = model or str(describe(directory).get("base_model"))
    classifier = load_classifier(directory, load_model(base, dtype, device))
    tokenizer, context = classifier.model.tokenizer, classifier.model.trunk.shape.context
    found, texts = list(rows(source)), []
    if not found:
        raise UserError("holds no rows", where=str(source), fix="check that it is the right file")
    for where, row in found:
        try:
            texts.append(text_ids(read_prompt(filled(row)), tokenizer, context))
        except UserError as error:
            raise UserError(error.what, where=where, fix=error.fix) from None
    values = classifier.values(texts).double().cpu()
    chances = policy_probabilities(policy, values, epsilon=epsilon, temperature=temperature)
    chosen = [draw_label(chances[i], seed, "classify", i) for i in range(len(texts))]
    files.write_rows(
        out,
        (
            {
                **row,
                "completion": classifier.labels[label],
                "propensity": float(chances[i, label]),
                "values": dict(zip(classifier.labels, values[i].tolist(), strict=True)),
                "policy_version": f"{directory} {policy}",
            }
            for i, ((_, row), label) in enumerate(zip(found, chosen, strict=True))
        ),
    )
    counts = {name: chosen.count(i) for i, name in enumerate(classifier.labels)}
    return {"rows": len(found), "labels": counts}


def draw_label(chances: torch.Tensor, *key: int | str) -> int:
    """One of the labels [K] with these chances, by the key's number and inversion of the cumulative sum."""
    cumulative = chances.double().cumsum(0)
    target = rng(*key).random() * float(cumulative[-1])
    place = int(torch.searchsorted(cumulative, torch.tensor(target, dtype=torch.float64), right=True))
    return min(place, int(torch.nonzero(chances > 0)[-1]))
