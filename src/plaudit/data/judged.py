"""Judgements of one prompt's completions, gathered for training: pairs with targets, and ratings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

from plaudit.data.sources import rows
from plaudit.data.tokenizer import Tokenizer, check_room
from plaudit.randomness import rng
from plaudit.types import (
    Demonstration,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Record,
    UserError,
    prompt_to_json,
)

KnownIds = dict[tuple[str, str], list[int]]
"""(prompt's key, completion's text) -> the ids that were sampled."""


class Pair(NamedTuple):
    """One comparison of the completions at places a and b.

    target: in 0 to 1, the share of a: 1 chosen, 0 rejected, 0.5 a tie or both bad. strength: 1 (slightly) to 4 (very
    much), None where it was not asked. rater: a pseudonym or None. shown_first: the place that stood first on the
    rater's screen, None where that is not known. ranking: which of the prompt's rankings it follows from, or None.
    both_bad: neither was called good, which as a comparison is a tie.
    """

    a: int
    b: int
    target: float
    strength: int | None = None
    rater: str | None = None
    shown_first: int | None = None
    ranking: int | None = None
    both_bad: bool = False


class Rated(NamedTuple):
    """One rating of the completion at a place.

    rating: the overall one in 0 to 1, or the mean of the criteria where no overall one was asked. scores: by
    criterion. rater: a pseudonym or None.
    """

    place: int
    rating: float
    scores: dict[str, float] = {}  # noqa: RUF012 (never written to)
    rater: str | None = None


class Ranked(NamedTuple):
    """One ranking: places, the best first."""

    places: tuple[int, ...]
    rater: str | None = None


@dataclass(slots=True)
class Judged:
    """One prompt's ids, its completions' ids and texts, and what was said of them.

    pairs: all comparisons, those that follow from a ranking included.
    """

    key: str
    prompt: list[int]
    completions: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    ratings: list[Rated] = field(default_factory=list)
    rankings: list[Ranked] = field(default_factory=list)


def prompt_key(prompt: Prompt) -> str:
    """A text that is equal for equal prompts."""
    return json.dumps(prompt_to_json(prompt), ensure_ascii=False, sort_keys=True)


def known_ids(paths: Sequence[str], fingerprint: str | None = None) -> KnownIds:
    """The ids of sampled completions, from files that `plaudit generate` wrote. UserError for any other file.

    fingerprint: the tokenizer's whose ids are wanted; a sample of another's is left out.
    """
    ids: KnownIds = {}
    for path in paths:
        for where, row in rows(path):
            if not {"prompt", "completion", "completion_ids"} <= row.keys():
                raise UserError("is no sample", where=where, fix="name a file that `plaudit generate` wrote")
            if fingerprint is not None and row.get("tokenizer", fingerprint) != fingerprint:
                continue
            key = json.dumps(row["prompt"], ensure_ascii=False, sort_keys=True)
            ids[key, row["completion"]] = row["completion_ids"]
    return ids


def group_by_prompt(
    records: Sequence[Record], tokenizer: Tokenizer, ids: KnownIds, *, context: int
) -> list[Judged]:
    """Records by prompt, in order of first appearance. A text's ids are the sampled ones where known; else it is
    encoded as a whole completion, ended. UserError for a completion without tokens or too long for the model."""
    groups: dict[str, Judged] = {}
    for record in records:
        key = prompt_key(record.prompt)
        if key not in groups:
            groups[key] = Judged(key, tokenizer.render(record.prompt))
        _add(groups[key], record, tokenizer, ids, context)
    return list(groups.values())


def _add(group: Judged, record: Record, tokenizer: Tokenizer, ids: KnownIds, context: int) -> None:
    def place(text: str) -> int:
        if text not in group.texts:
            tokens = ids.get((group.key, text)) or tokenizer.complete(text)
            check_room(len(group.prompt) + len(tokens), context, f"prompt {group.key[:60]}")
            group.texts.append(text)
            group.completions.append(tokens)
        return group.texts.index(text)

    if isinstance(record, Preference):
        a, b = (place(text) for text in record.completions)
        target = 1.0 if record.choice == 0 else 0.0 if record.choice == 1 else 0.5
        if a != b:
            first = None if record.presented is None else (a, b)[record.presented[0]]
            bad = record.choice == "both_bad"
            group.pairs.append(Pair(a, b, target, record.strength, record.rater, first, both_bad=bad))
    elif isinstance(record, Ranking):
        best_first = [place(record.completions[i]) for i in record.ranking]
        number = len(group.rankings)
        group.rankings.append(Ranked(tuple(best_first), record.rater))
        group.pairs.extend(
            Pair(a, b, 1.0, rater=record.rater, ranking=number)
            for a, b in combinations(best_first, 2)
            if a != b
        )
    elif isinstance(record, Rating):
        group.ratings.append(Rated(place(record.completion), record.overall, record.scores, record.rater))
    elif isinstance(record, Demonstration):
        place(record.completion)


def all_cancel(groups: Sequence[Judged], alike: Callable[[Pair], Hashable]) -> bool:
    """Whether every completion was preferred as often as another was preferred to it, so that what fits all of them
    best (Bradley and Terry's scores, or DPO's implied rewards) is that none is better. A tie prefers neither.

    alike: what judgements must have in common to cancel each other, such as their strength where it counts.
    """
    leads: Counter[Hashable] = Counter()
    for group in groups:
        for pair in group.pairs:
            for place, won in ((pair.a, 2 * pair.target - 1), (pair.b, 1 - 2 * pair.target)):
                leads[group.key, place, alike(pair)] += round(won)
    return not any(leads.values())


def is_held_out(key: str, share: float, seed: int) -> bool:
    """Which side a prompt is on, with all that was said of it: it depends on the seed and the prompt alone."""
    return bool(rng(seed, "heldout", key).random() < share)


def split_by_prompt(judged: Sequence[Judged], heldout: float, seed: int) -> tuple[list[Judged], list[Judged]]:
    """Training and held-out prompts; which side a prompt is on depends on the seed and the prompt alone."""
    held = [is_held_out(group.key, heldout, seed) for group in judged]
    return (
        [group for group, out in zip(judged, held, strict=True) if not out],
        [group for group, out in zip(judged, held, strict=True) if out],
    )
