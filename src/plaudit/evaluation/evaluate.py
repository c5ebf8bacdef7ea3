"""Several models on the same prompts: what each says, and what a reward and the baseline think of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plaudit.algorithms.masking import masked_sum
from plaudit.data.collate import micro_batches, pack
from plaudit.data.tokenizer import Tokenizer
from plaudit.evaluation.metrics import bootstrap, distinct_2, outcomes
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.foreign import Foreign, foreign_logprobs
from plaudit.models.load import Model
from plaudit.reward.open import Opened
from plaudit.reward.score import completion_ids, scored_in_parts
from plaudit.reward.scores import Scores
from plaudit.rollout.foreign import ForeignEngine
from plaudit.rollout.generate import sample_row, watched
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Sample, SamplingParams
from plaudit.types import Prompt

Row = dict[str, Any]
"""One sample as JSON: see `look`."""

BUDGET = 4096
"""Columns a forward pass, padding counted."""


def look(
    model: Model | Foreign,
    name: str,
    prompts: Sequence[Prompt],
    baseline: Model | Foreign,
    scorer: Opened | None,
    params: SamplingParams,
    *,
    n: int,
    seed: int,
) -> list[Row]:
    """n samples of each prompt, in the prompts' order, each a row of samples.jsonl.

    A row is `rollout.generate.sample_row`'s with "model" (the name), "score" (None without a scorer), "uncertainty"
    (the deviation over an ensemble's members, where the scorer is one), and with three sums over the completion:
    "baseline_tokens" (a count), "baseline_logprob" and "logprob" (nats, at temperature 1; of the baseline, and of the
    model itself where the tokenizer is the baseline's, else None).
    All models read the same random numbers. UserError for a prompt that leaves no room.
    """
    engine: LocalEngine | ForeignEngine
    engine = ForeignEngine(model) if isinstance(model, Foreign) else LocalEngine(model.trunk, model.tokenizer)
    engine.load(None, name)
    ids = [model.tokenizer.render(prompt) for prompt in prompts]
    drawn = engine.sample(ids, n, params, (seed, "evaluate"))
    samples = sorted(watched(drawn, len(prompts) * n, name), key=lambda s: (s.prompt, s.index))
    rows = [{"model": name} | sample_row(s, prompts[s.prompt], seed) for s in samples]

    pairs = [as_ids(baseline, prompts[s.prompt], row) for s, row in zip(samples, rows, strict=True)]
    theirs = logprob_sums(baseline, pairs)
    ours: Sequence[float | None] = [None] * len(rows)
    if model.tokenizer.fingerprint == baseline.tokenizer.fingerprint:
        ours = (
            theirs
            if model is baseline
            else logprob_sums(model, [(s.prompt_ids, s.completion_ids) for s in samples])
        )
    said = None if scorer is None else score(scorer, samples, prompts, rows)
    doubt = None if said is None else said.uncertainty
    for i, row in enumerate(rows):
        row |= {"score": None if said is None else said.scores[i], "baseline_tokens": len(pairs[i][1])}
        row |= {"baseline_logprob": theirs[i], "logprob": ours[i]}
        if doubt is not None:
            row["uncertainty"] = doubt[i]
    return rows


def as_ids(model: Model | Foreign, prompt: Prompt, row: Row) -> tuple[list[int], list[int]]:
    """Prompt and completion of a row as a model's ids; a completion that its context does not hold is cut."""
    rendered = model.tokenizer.render(prompt)
    room = max(1, model.context - len(rendered))
    return rendered, row_ids(row, model.tokenizer)[:room]


def row_ids(row: Row, tokenizer: Tokenizer) -> list[int]:
    """A row's completion as a tokenizer's ids: those that were sampled, where they are its own."""
    return completion_ids(
        tokenizer, row["completion"], row["completion_ids"], row["tokenizer"], row["finish_reason"]
    )


def score(
    opened: Opened, samples: Sequence[Sample], prompts: Sequence[Prompt], rows: Sequence[Row]
) -> Scores:
    """One score a sample. A reward model reads its own tokenizer's ids, a rule the samples as they were drawn."""
    asked = [replace(sample, asked=prompts[sample.prompt]) for sample in samples]
    if opened.base is not None:
        for i, (sample, row) in enumerate(zip(asked, rows, strict=True)):
            prompt, completion = as_ids(opened.base, prompts[sample.prompt], row)
            asked[i] = replace(
                sample,
                prompt_ids=tuple(prompt),
                completion_ids=tuple(completion),
                tokenizer=opened.base.tokenizer.fingerprint,
            )
    return scored_in_parts(opened.scorer, asked)


@torch.no_grad()
def logprob_sums(model: Model | Foreign, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """The log-probability of each whole completion at temperature 1, nats."""
    if isinstance(model, Foreign):
        return [float(foreign_logprobs(model, *pair).double().sum()) for pair in pairs]
    packed = pack([prompt for prompt, _ in pairs], [ids for _, ids in pairs], device=model.trunk.device)
    sums = torch.zeros(len(pairs), dtype=torch.float64)
    for rows in micro_batches(packed, BUDGET):
        part, index = packed.take(rows)
        logprobs = token_logprobs(Branch(model.trunk), part).logprobs.double()
        sums[index.cpu()] = masked_sum(logprobs, part.mask, dim=1).cpu()
    return [float(x) for x in sums]


def figures(
    looks: Sequence[Sequence[Row]], tokenizer: Tokenizer, *, n: int, seed: int
) -> list[dict[str, Any]]:
    """What the rows say of each model, in the models' order; the first is the baseline.

    {"model", "reward", "reward_interval", "best_of_n", "win_rate", "win_rate_interval", "kl", "perplexity",
    "distinct_2", "distinct_2_tokens", "length", "eos_rate"}. Intervals are 95 % bootstraps over prompts. best_of_n:
    the mean of each prompt's best score; the baseline's is what training must beat. win_rate: over the
    baseline by the score, all n x n pairs of a prompt, ties half; None for the baseline itself. kl: mean
    log p_model - log p_baseline a token of the model's own samples, nats; None where tokenizers differ, or where
    the samples were not drawn at temperature 1 from the whole distribution. perplexity: of the samples under the
    baseline, by its tokens. distinct_2: over as many of the baseline's tokens as the shortest-spoken model has.
    length: mean, in the model's own tokens, the end-of-text token counted.
    """
    texts = [[row_ids(row, tokenizer) for row in rows] for rows in looks]
    tokens = min(sum(map(len, text)) for text in texts)
    found = []
    for number, (rows, text) in enumerate(zip(looks, texts, strict=True)):
        logprob = sum(row["baseline_logprob"] for row in rows)
        found.append(
            {
                "model": rows[0]["model"],
                **reward_figures(rows, looks[0] if number else None, n=n, seed=seed),
                "kl": kl(rows),
                "perplexity": math.exp(-logprob / sum(row["baseline_tokens"] for row in rows)),
                "distinct_2": distinct_2(text, tokens),
                "distinct_2_tokens": tokens,
                "length": float(np.mean([len(row["completion_ids"]) for row in rows])),
                "eos_rate": sum(row["finish_reason"] == "stop" for row in rows) / len(rows),
            }
        )
    return found


def reward_figures(
    rows: Sequence[Row], baseline: Sequence[Row] | None, *, n: int, seed: int
) -> dict[str, float | list[float] | None]:
    """Mean score, win rate and their intervals, and the best of n; None where there is no score or no baseline."""
    names = ("reward", "reward_interval", "best_of_n", "win_rate", "win_rate_interval")
    out: dict[str, float | list[float] | None] = dict.fromkeys(names)
    if rows[0]["score"] is None:
        return out
    mine = [[row["score"] for row in rows[at : at + n]] for at in range(0, len(rows), n)]
    means = [float(np.mean(scores)) for scores in mine]
    out |= {"reward": float(np.mean(means)), "reward_interval": list(bootstrap(means, seed=seed))}
    out["best_of_n"] = float(np.mean([max(scores) for scores in mine]))
    if baseline is not None:
        other = [[row["score"] for row in baseline[at : at + n]] for at in range(0, len(baseline), n)]
        wins = [
            float(np.mean(outcomes([x for x in a for _ in b], [y for _ in a for y in b])))
            for a, b in zip(mine, other, strict=True)
        ]
        out |= {"win_rate": float(np.mean(wins)), "win_rate_interval": list(bootstrap(wins, seed=seed))}
    return out


def kl(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean k1 a token against the baseline, nats; None where the samples do not estimate it (see `figures`)."""
    sampling = rows[0]["sampling"]
    whole = sampling["temperature"] == 1 and sampling["top_k"] == 0 and sampling["top_p"] == 1
    if not whole or rows[0]["logprob"] is None:
        return None
    gap = sum(row["logprob"] - row["baseline_logprob"] for row in rows)
    return float(gap / sum(len(row["completion_ids"]) for row in rows))


def read_looks(path: Path, names: Sequence[str], size: int) -> list[list[Row]]:
    """The models' rows that an earlier start of the run has written whole: `size` rows each, in the models' order."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    looks = [rows[at : at + size] for at in range(0, len(rows), size)]
    whole = len(rows) % size == 0 and all(
        look[0]["model"] == name for look, name in zip(looks, names, strict=False)
    )
    return looks if whole else []
