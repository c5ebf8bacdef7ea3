"""Scores of a file of completions: what `plaudit score` calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from plaudit import files
from plaudit.data.shapes import filled, read_prompt
from plaudit.data.sources import rows
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import load_model
from plaudit.reward.model import RewardModel, describe, load_reward_model
from plaudit.types import UserError

PART = 256
"""Completions that are packed at a time."""


def score(
    reward: Path,
    source: Path,
    out: Path,
    *,
    model: str | None = None,
    criteria: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Write each row of `source` with its "score" (higher is better; the reward model's unit) as JSONL, all at once.

    A row holds "prompt" and "completion"; its other keys are kept. criteria: write "criteria" beside it, each one's
    number by name, in log-odds. model: the reward model's base, where the
    directory that it was trained on has moved. Returns the counts and the mean score. UserError for a reward model,
    its base or a row that cannot be read, for a row too long for the model, and for a place that cannot be written.
    """
    scorer = open_reward_model(reward, model, dtype, device)
    found = list(rows(source))
    if not found:
        raise UserError("holds no rows", where=str(source), fix="check that it is the right file")
    pairs = [ids_of(row, where, scorer) for where, row in found]
    scores = score_in_parts(scorer, pairs)
    lines = [{**row, "score": number} for (_, row), number in zip(found, scores, strict=True)]
    if criteria:
        each = scorer.criteria_ids([prompt for prompt, _ in pairs], [completion for _, completion in pairs])
        lines = [{**line, "criteria": numbers} for line, numbers in zip(lines, each, strict=True)]
    files.write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return {"rows": len(lines), "mean": sum(scores) / len(scores)}


def open_reward_model(
    directory: Path, model: str | None, dtype: torch.dtype, device: torch.device | str
) -> RewardModel:
    """The reward model with its base: the one that it names, or `model`. UserError where either is missing."""
    base = model or str(describe(directory).get("base_model"))
    try:
        loaded = load_model(base, dtype, device)
    except UserError as error:
        if model is not None:
            raise
        fix = "name the base with --model, if it has moved"
        raise UserError(
            f"its base model {base} cannot be loaded ({error.what})", where=str(directory), fix=fix
        ) from None
    return load_reward_model(directory, loaded)


def score_in_parts(scorer: RewardModel, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """One score a (prompt, completion) of ids, with a bar for whoever watches at a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    starts = range(0, len(pairs), PART)
    scores: list[float] = []
    for start in track(starts, "score", console=console, transient=True, disable=not console.is_terminal):
        part = pairs[start : start + PART]
        scores += scorer.score_ids([prompt for prompt, _ in part], [completion for _, completion in part])
    return scores


def ids_of(row: Mapping[str, Any], where: str, scorer: RewardModel) -> tuple[list[int], list[int]]:
    """Prompt and completion of a row as the scorer's ids: see `completion_ids`. UserError names the row."""
    tokenizer, shape = scorer.model.tokenizer, scorer.model.trunk.shape
    try:
        prompt = tokenizer.render(read_prompt(filled(row)))
    except UserError as error:
        raise UserError(error.what, where=where, fix=error.fix) from None
    if not isinstance(row.get("completion"), str):
        raise UserError(
            "lacks a text as completion", where=where, fix='write {"prompt": ..., "completion": ...}'
        )
    completion = completion_ids(
        tokenizer,
        row["completion"],
        row.get("completion_ids"),
        row.get("tokenizer"),
        row.get("finish_reason"),
    )
    if not all(type(token) is int and 0 <= token < shape.vocab for token in completion):
        raise UserError("completion_ids are not this model's", where=where, fix="leave them out")
    if (length := len(prompt) + len(completion)) > shape.context:
        raise UserError(
            f"has {length} tokens, the model takes {shape.context}",
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
    return (finish_reason == "length" and tokenizer.encode(text)) or tokenizer.complete(text)
