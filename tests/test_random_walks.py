"""The world of the random walks: its shortest paths, its score, and that models and rules speak of the same nodes."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import pytest
import torch

from plaudit.models.load import load_model
from plaudit.reward.rules import rule_scorer
from random_walks import (
    FIRST,
    GOAL,
    LETTERS,
    LONGEST,
    make_model,
    make_world,
    random_walk,
    walk_optimality,
    write_demonstrations,
    write_prompts,
    write_ratings,
)
from tiny_models import as_samples


@pytest.mark.parametrize("seed", range(5))
def test_shortest_paths_are_those_of_a_search_from_every_node(seed: int) -> None:
    world = make_world(seed)
    assert len(world.starts) >= 15
    for start in range(1, len(LETTERS)):
        seen, queue = {start: 0}, deque([start])
        while queue:
            here = queue.popleft()
            for there in world.successors[here]:
                if there not in seen:
                    seen[there] = seen[here] + 1
                    queue.append(there)
        steps = seen.get(GOAL)
        assert world.shortest[start] == (steps if steps is not None and steps <= LONGEST else None)
    assert world.shortest[GOAL] is None
    assert all(node not in after for node, after in enumerate(world.successors))


def test_walks_keep_to_the_edges_and_stop_at_the_goal() -> None:
    world = make_world()
    for i in range(200):
        start = world.starts[i % len(world.starts)]
        walk = random_walk(world, start, "test", i)
        assert 1 <= len(walk) <= LONGEST
        assert GOAL not in walk[:-1]
        assert all(b in world.successors[a] for a, b in zip([start, *walk], walk, strict=False))
        assert random_walk(world, start, "test", i) == walk


def shortest_walk(start: int) -> list[int]:
    world, walk = make_world(), [start]
    while walk[-1] != GOAL:
        walk.append(
            min(world.successors[walk[-1]], key=lambda k: -1 if k == GOAL else world.shortest[k] or 99)
        )
    return walk[1:]


def test_the_score_is_1_for_the_shortest_path_and_0_for_none() -> None:
    world = make_world()
    for start in world.starts:
        best = shortest_walk(start)
        assert walk_optimality(world, start, best) == 1.0
        assert walk_optimality(world, start, best[:-1]) == 0.0  # not there
        assert walk_optimality(world, start, [*best, GOAL]) == 0.0  # a word too many
        wrong = next(n for n in range(1, 21) if n not in world.successors[start])
        assert walk_optimality(world, start, [wrong, *best]) == 0.0  # no such edge
    # One detour of two steps, there and back, where the graph has one: (11 - s - 2) / (11 - s)
    detours = [
        (a, b) for a in world.starts for b in world.successors[a] if b != GOAL and a in world.successors[b]
    ]
    a, b = detours[0]
    s = len(shortest_walk(a))
    assert walk_optimality(world, a, [b, a, *shortest_walk(a)]) == pytest.approx((9 - s) / (11 - s))


def test_files_models_and_the_rule_speak_of_the_same_nodes(tmp_path: Path) -> None:
    world = make_world()
    directory = make_model(tmp_path / "model")
    model = load_model(str(directory), torch.float32)
    assert model.tokenizer.encode(" ".join(LETTERS)) == [FIRST + node for node in range(21)]
    assert model.tokenizer.decode(model.tokenizer.complete("d k a")) == "d k a"
    mean = write_demonstrations(world, tmp_path / "walks.jsonl", 50)
    assert write_ratings(world, tmp_path / "rated.jsonl", 50) == mean
    write_prompts(world, tmp_path / "prompts.jsonl")
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == len(world.starts)
    rows = [json.loads(line) for line in (tmp_path / "rated.jsonl").read_text().splitlines()]
    walks = [json.loads(line) for line in (tmp_path / "walks.jsonl").read_text().splitlines()]
    assert [(r["prompt"], r["completion"]) for r in rows] == [(w["prompt"], w["completion"]) for w in walks]
    prompts = [model.tokenizer.render(r["prompt"]) for r in rows]
    samples = as_samples(prompts, [model.tokenizer.complete(r["completion"]) for r in rows])
    scores = rule_scorer("random_walks:optimality").score(samples)
    assert sum(scores) / 50 == pytest.approx(mean)
    for row, score in zip(rows, scores, strict=True):
        assert (row["scores"]["overall"] > 0) == (score > 0)
