"""A loop's first transition: what the published policy says, and which pairs of it are judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from plaudit import files
from plaudit.feedback.events import Item, prompt_from_json
from plaudit.feedback.projects import Entry, Projects
from plaudit.feedback.tasks import Task
from plaudit.loop.drawing import Row, draw, read_rows
from plaudit.loop.round import LOOP, SOURCE, Result, Round
from plaudit.randomness import rng
from plaudit.reward.model import load_reward_model
from plaudit.tensors import SamplingParams

Pair = tuple[int, int]
MORE = 1.1
"""Times as many are asked for as are waited for, since some are passed over."""


def sample(round: Round) -> Result:
    """Completions of the round's prompts from the published policy -> samples.jsonl; of their pairs those that are
    judged -> asked.jsonl, and into the studio where people judge."""
    config, standing = round.config, round.standing
    found: Result = {"champion": standing.champion, "version": standing.version, "samples": 0, "pairs": 0}
    found["seq"] = round.store.last_seq()
    if not {"studio", "panel", "judge"} & round.sources.keys():
        return found | {"ordered_by": None}
    prompts, n = round.asked, config.collect.completions
    round.say(f"sampling {n} completions of {len(prompts)} prompts from {standing.version}")
    rows = draw(
        round.model,
        prompts,
        n,
        SamplingParams(max_new_tokens=config.max_new_tokens),
        (config.seed, "sample", round.number),
        console=round.console,
        version=standing.version,
        adapter=round.parent,
    )
    files.write_rows(round.place / "samples.jsonl", rows)

    wanted = math.ceil(MORE * config.collect.enough / standing.overlap)
    pairs, taught = chosen(round, rows, wanted)
    asked = [
        {"first": first, "second": second, "chosen_by": "worth" if place < taught else "chance"}
        for place, (first, second) in enumerate(pairs)
    ]
    files.write_rows(round.place / "asked.jsonl", asked)
    if len(pairs) < wanted:
        round.say(f"{len(pairs)} pairs differ, where {wanted} were wanted: collect.prompts may be more")
    if "studio" in round.sources:
        task = Task(kind="comparison", overlap=standing.overlap, gold_every=0)
        project = round.opened("studio", task)
        entries = [
            Entry(item.prompt, item.completions, item.policy_version, item.meta)
            for item, _ in items_for(round, "studio")
        ]
        Projects(round.store).add(project.id, entries)
        Projects(round.store).reconcile(project.id)  # what was taken back is asked of others
    by = None if round.last_reward is None else str(round.number - 1)
    return found | {"samples": len(rows), "pairs": len(pairs), "ordered_by": by if taught else None}


def chosen(round: Round, rows: Sequence[Row], wanted: int) -> tuple[list[Pair], int]:
    """Pairs of rows, no row in two of them, those that teach most first, and how many these are; the others are drawn.

    What teaches most is what the last reward is least sure of: whose two scores are closest, equal texts left out.
    """
    collect, n = round.config.collect, round.config.collect.completions
    groups = [range(first, first + n) for first in range(0, len(rows), n)]
    chance = rng(round.config.seed, "loop pairs", round.number)
    if round.last_reward is None:
        scores = chance.random(len(rows))
    else:
        reward = load_reward_model(round.last_reward, round.model)
        ids = [row["prompt_ids"] for row in rows], [row["completion_ids"] for row in rows]
        scores = np.asarray(reward.score_ids(*ids), dtype=np.float64)

    pairs = list[Pair]()
    for group in groups:
        free = set(group)
        both = [(a, b) for a, b in combinations(group, 2) if rows[a]["completion"] != rows[b]["completion"]]
        for a, b in sorted(both, key=lambda pair: (abs(scores[pair[0]] - scores[pair[1]]), pair)):
            if {a, b} <= free:
                pairs.append((a, b))
                free -= {a, b}
    order = [pairs[i] for i in chance.permutation(len(pairs))]
    if round.last_reward is None:
        return order[:wanted], 0
    by_chance = order[: math.ceil(collect.random_share * wanted)]
    left = [pair for pair in order if pair not in set(by_chance)]
    worth = sorted(left, key=lambda pair: abs(scores[pair[0]] - scores[pair[1]]))[: wanted - len(by_chance)]
    return [*worth, *by_chance], len(worth)


def items_for(round: Round, source: str) -> list[tuple[Item, Pair]]:
    """The asked pairs as items for somebody who is asked by the loop itself."""
    rows = read_rows(round.place / "samples.jsonl")
    return [
        (
            Item(
                prompt_from_json(rows[one["first"]]["prompt"]),
                (rows[one["first"]]["completion"], rows[one["second"]]["completion"]),
                rows[one["first"]]["policy_version"],
                {
                    LOOP: round.name,
                    SOURCE: source,
                    "round": round.number,
                    "chosen_by": one["chosen_by"],
                },
            ),
            (one["first"], one["second"]),
        )
        for one in read_rows(round.place / "asked.jsonl")
    ]
