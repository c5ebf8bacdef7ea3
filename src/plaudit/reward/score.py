"""Scores of a file of completions: what `plaudit score` calls."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from plaudit import files
from plaudit.data.shapes import filled, read_prompt, whole_text
from plaudit.data.sources import rows
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import Model
from plaudit.reward.model import RewardModel
from plaudit.reward.open import open_for_texts
from plaudit.reward.scores import Scores, deviation, scored
from plaudit.tensors import Sample, SamplingParams, Scorer
from plaudit.types import Prompt, UserError

PART = 256
"""Completions that a reward model packs at a time."""


def score(
    scorer: str | Path,
    source: Path,
    out: Path,
    *,
    model: str | None = None,
    criteria: bool = False,
    best: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Write each row of `source` with its "score" (higher is better; the scorer's unit) as JSONL, all at once; beside
    it "uncertainty", the deviation over an ensemble's members.

    scorer: as `reward` in a config. A row holds "prompt" and "completion"; its other keys are kept. criteria: write
    "criteria" beside it, each one's number by name, in log-odds (of one reward model's directory). best: write the so
    many best of each prompt alone, the first of equals. model: the reward
    models' base, where the directory that they were trained on has moved. Returns the counts, the scores' mean and
    deviation, the mean uncertainty, and a judge's counts. UserError for a scorer, its base or a row that cannot be
    read, for a row too long for the model, and for a place that cannot be written.
    """
    files.check_place(out, source, scorer)
    opened = open_for_texts(str(scorer), model, dtype=dtype, device=device)
    found = list(rows(source))
    if not found:
        raise UserError("holds no rows", where=str(source), fix="check that it is the right file")
    samples = samples_of(found, opened.base)
    said = scored_in_parts(opened.scorer, samples)
    lines = [{**row, "score": number} for (_, row), number in zip(found, said.scores, strict=True)]
    summary = {"rows": len(lines), "mean": math.fsum(said.scores) / len(lines), "std": deviation(said.scores)}
    if (doubt := said.uncertainty) is not None:
        lines = [line | {"uncertainty": number} for line, number in zip(lines, doubt, strict=True)]
        summary["uncertainty"] = math.fsum(doubt) / len(doubt)
    if criteria:
        if not isinstance(opened.scorer, RewardModel):
            raise UserError("has no criteria", where=str(scorer), fix="name one reward model's directory")
        ids = [s.prompt_ids for s in samples], [s.completion_ids for s in samples]
        each = opened.scorer.criteria_ids(*ids)
        lines = [line | {"criteria": numbers} for line, numbers in zip(lines, each, strict=True)]
    if best is not None:
        lines = best_of(lines, best)
        summary |= {"kept": len(lines), "kept_mean": math.fsum(line["score"] for line in lines) / len(lines)}
    files.write_rows(out, lines)
    return summary | dict(said.figures)


def best_of(lines: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The `count` best rows of each prompt by "score", in their order; of equals the first (best-of-n sampling)."""
    places: dict[str, list[int]] = {}
    for place, line in enumerate(lines):
        places.setdefault(json.dumps(line["prompt"], sort_keys=True), []).append(place)
    kept = [sorted(group, key=lambda i: -lines[i]["score"])[:count] for group in places.values()]
    return [lines[i] for i in sorted(i for group in kept for i in group)]


def scored_in_parts(scorer: Scorer, samples: Sequence[Sample]) -> Scores:
    """What the scorer says of the samples; a reward model's are packed part by part, with a bar for whoever watches at
    a terminal. Other scorers see all at once, since some look at the whole batch."""
    from rich.console import Console
    from rich.progress import track

    if not isinstance(scorer, RewardModel):
        return scored(scorer, samples)
    console = Console(stderr=True)
    starts = range(0, len(samples), PART)
    scores: list[float] = []
    for start in track(starts, "score", console=console, transient=True, disable=not console.is_terminal):
        scores += scored(scorer, samples[start : start + PART]).scores
    return Scores(scores)


def samples_of(found: Sequence[tuple[str, Mapping[str, Any]]], base: Model | None) -> list[Sample]:
    """Rows with their places as samples: as ids of the base (see `ids_of`), or, without a base, as texts, with ids
    where the row has them. UserError names the row."""
    numbers: dict[Prompt, int] = {}
    counts: dict[Prompt, int] = {}
    samples = []
    for where, row in found:
        if base is not None:
            prompt_ids, completion_ids = ids_in(row, where, base)
        else:
            prompt_ids, completion_ids = [], row.get("completion_ids") or []
        prompt, text = texts_of(row, where)
        numbers.setdefault(prompt, len(numbers))
        counts[prompt] = counts.get(prompt, -1) + 1
        samples.append(
            Sample(
                prompt=numbers[prompt],
                index=counts[prompt],
                prompt_ids=tuple(prompt_ids),
                completion_ids=tuple(completion_ids),
                text=text,
                logprobs=(),
                finish_reason="length" if row.get("finish_reason") == "length" else "stop",
                policy_version=str(row.get("policy_version", "")),
                params=SamplingParams(),
                tokenizer=str(row.get("tokenizer", "")) if base is None else base.tokenizer.fingerprint,
                asked=prompt,
            )
        )
    return samples


def texts_of(row: Mapping[str, Any], where: str) -> tuple[Prompt, str]:
    """Prompt and completion of a row. UserError names the row that lacks one."""
    if not isinstance(row.get("completion"), str):
        raise UserError(
            "lacks a text as completion", where=where, fix='write {"prompt": ..., "completion": ...}'
        )
    try:
        return read_prompt(filled(row)), whole_text(row["completion"], "completion")
    except UserError as error:
        raise UserError(error.what, where=where, fix=error.fix) from None


def ids_of(row: Mapping[str, Any], where: str, scorer: RewardModel) -> tuple[list[int], list[int]]:
    """Prompt and completion of a row as the scorer's ids: see `completion_ids`. UserError names the row."""
    return ids_in(row, where, scorer.model)


def ids_in(row: Mapping[str, Any], where: str, model: Model) -> tuple[list[int], list[int]]:
    """As `ids_of`, as a model's ids."""
    asked, text = texts_of(row, where)
    try:
        prompt = model.tokenizer.render(asked)
    except UserError as error:
        raise UserError(error.what, where=where, fix=error.fix) from None
    completion = completion_ids(
        model.tokenizer, text, row.get("completion_ids"), row.get("tokenizer"), row.get("finish_reason")
    )
    if not all(type(token) is int and 0 <= token < model.trunk.shape.vocab for token in completion):
        raise UserError("completion_ids are not this model's", where=where, fix="leave them out")
    if (length := len(prompt) + len(completion)) > model.trunk.shape.context:
        raise UserError(
            f"has {length} tokens, the model takes {model.trunk.shape.context}",
            where=where,
            fix="shorten it or leave it out",
        )
    return prompt, completion


def completion_ids(
    tokenizer: Tokenizer, text: str, sampled: object, fingerprint: object, finish_reason: object
) -> list[int]:
    """The ids that a completion was sampled as, where it was this tokenizer that made them; else the text's own,
    ended by the end-of-text token unless the completion was cut off (finish_reason "length")."""
    if fingerprint == tokenizer.fingerprint and isinstance(sampled, list) and sampled:
        return sampled
    return tokenizer.complete(text, ended=finish_reason != "length")
