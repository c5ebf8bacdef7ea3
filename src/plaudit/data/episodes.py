"""Logged feedback as episodes: a completion as it was judged, and one reward at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from plaudit.data.formats import read_records
from plaudit.data.judged import KnownIds, prompt_key
from plaudit.data.tokenizer import Tokenizer, check_room
from plaudit.types import Demonstration, Preference, Ranking, Rating, Record, UserError


class Episode(NamedTuple):
    """One judgement of one completion, as ids; key is equal for equal prompts. reward: for the whole completion."""

    key: str
    prompt: list[int]
    completion: list[int]
    reward: float


def read_episodes(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    ids: KnownIds,
    *,
    context: int,
    centre: float,
    scale: float,
    demonstration: float | None,
) -> list[Episode]:
    """Every judgement of the files as episodes; an answer judged twice comes twice, and a comparison gives two.

    Rewards as in `rewards_of`. A text's ids are the sampled ones where known (`judged.known_ids`); else it is encoded
    as a whole completion, ended. UserError for a demonstration where no reward is given for one, and for a completion
    that is too long for the model.
    """
    episodes = []
    for path in paths:
        for number, record in enumerate(read_records(path), 1):
            where = f"{path}: record {number}"
            if isinstance(record, Demonstration) and demonstration is None:
                raise UserError(
                    "is a demonstration, which says no reward",
                    where=where,
                    fix="set demonstration_reward, or leave it out",
                )
            key, prompt = prompt_key(record.prompt), tokenizer.render(record.prompt)
            for text, reward in rewards_of(record, centre, scale, demonstration or 0.0):
                tokens = ids.get((key, text)) or tokenizer.complete(text)
                check_room(len(prompt) + len(tokens), context, where)
                episodes.append(Episode(key, prompt, tokens, reward))
    return episodes


def rewards_of(
    record: Record, centre: float, scale: float, demonstration: float
) -> Iterator[tuple[str, float]]:
    """Each completion that a record speaks of, with its reward.

    A rating: scale * (score - centre), of the overall score or, where there is none, the mean of the criteria's. A
    comparison: 1 for the chosen, -1 for the rejected, 0 for both of a tie, -1 for both where both are bad. A ranking
    of K different completions: evenly from 1 for the best to -1 for the worst; one that was ranked twice counts at its
    better place. A completion beside nothing but itself was compared with nothing, and is left out.
    """
    if isinstance(record, Rating):
        yield record.completion, scale * (record.overall - centre)
    elif isinstance(record, Preference):
        of_both = {"tie": (0.0, 0.0), "both_bad": (-1.0, -1.0), 0: (1.0, -1.0), 1: (-1.0, 1.0)}
        if record.completions[0] != record.completions[1]:
            yield from zip(record.completions, of_both[record.choice], strict=True)
    elif isinstance(record, Ranking):
        best_first = list(dict.fromkeys(record.completions[which] for which in record.ranking))
        if len(best_first) > 1:
            for place, text in enumerate(best_first):
                yield text, 1.0 - 2.0 * place / (len(best_first) - 1)
    else:
        yield record.completion, demonstration
