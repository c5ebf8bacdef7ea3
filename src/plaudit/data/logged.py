"""Completions that people have judged, with their tokens as they were drawn: experience without a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plaudit.data.formats import read_records
from plaudit.data.judged import Judged, Pair, group_by_prompt, prompt_key
from plaudit.data.shapes import Row, filled, read_prompt
from plaudit.data.sources import rows
from plaudit.data.tokenizer import Tokenizer
from plaudit.tensors import Sample, SamplingParams
from plaudit.types import UserError


@dataclass(frozen=True, slots=True)
class Logged:
    """One prompt's judged completions: samples, and of each what people gave it, 0 (worst) to 1 (best).

    A sample's logprobs are nan where nothing says with which probability its tokens were drawn.
    """

    samples: tuple[Sample, ...]
    scores: tuple[float, ...]


def read_logged(
    feedback: Sequence[str], samples: Sequence[str], tokenizer: Tokenizer, *, context: int
) -> list[Logged]:
    """Every judged completion, by prompt, in order of first appearance.

    feedback: files of records; samples: files that `plaudit generate` wrote, where a judged text is found with the
    ids and log-probabilities that it was drawn with. A completion's score is the mean of its overall ratings; where
    it has none, the share of its comparisons that it won (a tie is half; where both were called bad, neither won).
    UserError where nothing is judged, or all scores are equal.
    """
    drawn = _drawn(samples, tokenizer)
    ids = {key: list(row["completion_ids"]) for key, row in drawn.items()}
    records = [record for path in feedback for record in read_records(path)]
    groups = group_by_prompt(records, tokenizer, ids, context=context)
    logged = [one for one in (_logged(group, drawn, tokenizer) for group in groups) if one.samples]
    where = ", ".join(feedback)
    scores = {round(score, 9) for one in logged for score in one.scores}
    if not scores:
        raise UserError("holds no ratings and no comparisons", where=where, fix="collect judgements first")
    if len(scores) == 1:
        raise UserError(
            f"gives every completion the same score ({scores.pop():g}), so there is nothing to learn",
            where=where,
            fix="judge more varied completions",
        )
    return logged


def _drawn(paths: Sequence[str], tokenizer: Tokenizer) -> dict[tuple[str, str], Row]:
    """Rows of samples by prompt and text; those of another tokenizer's are left out."""
    found: dict[tuple[str, str], Row] = {}
    for path in paths:
        for where, row in rows(path):
            row = filled(row)
            drawn = [row.get(name) for name in ("completion_ids", "logprobs")]
            if not {"prompt", "completion"} <= row.keys() or not all(isinstance(x, list) for x in drawn):
                raise UserError("is no sample", where=where, fix="name a file that `plaudit generate` wrote")
            if len(row["completion_ids"]) != len(row["logprobs"]):
                raise UserError(
                    f"has {len(row['logprobs'])} logprobs for {len(row['completion_ids'])} ids",
                    where=where,
                    fix="name the file as `plaudit generate` wrote it",
                )
            if row.get("tokenizer") == tokenizer.fingerprint:
                found[prompt_key(read_prompt(row)), row["completion"]] = row
    return found


def _won(pair: Pair, place: int) -> float:
    if pair.both_bad:
        return 0.0
    return pair.target if pair.a == place else 1 - pair.target


def _logged(group: Judged, drawn: dict[tuple[str, str], Row], tokenizer: Tokenizer) -> Logged:
    samples: list[Sample] = []
    scores: list[float] = []
    for place, text in enumerate(group.texts):
        ratings = [one.rating for one in group.ratings if one.place == place]
        won = [_won(pair, place) for pair in group.pairs if place in pair[:2]]
        if not (heard := ratings or won):
            continue
        completion = group.completions[place]
        row = drawn.get((group.key, text), {})
        logprobs = row.get("logprobs") or [float("nan")] * len(completion)
        samples.append(
            Sample(
                prompt=0,
                index=len(samples),
                prompt_ids=tuple(group.prompt),
                completion_ids=tuple(completion),
                text=text,
                logprobs=tuple(logprobs),
                finish_reason="stop" if completion[-1] in tokenizer.eos_ids else "length",
                policy_version=str(row.get("policy_version", "")),
                params=SamplingParams(max_new_tokens=len(completion)),
                tokenizer=tokenizer.fingerprint,
            )
        )
        scores.append(sum(heard) / len(heard))
    return Logged(tuple(samples), tuple(scores))
