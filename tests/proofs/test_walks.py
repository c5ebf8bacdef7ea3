"""Learning proof: on random walks every way of learning gets as near the known optimum as it can.

The log is random walks on a graph of 21 nodes. Behaviour cloning does as the walkers did, and no better: its best loss
is their entropy. From there PPO and GRPO find the shortest paths by walking; ILQL's Q heads, learned from the same
walks (rated by their length), put the paths together that nobody walked on purpose, without a step of their own.

Three graphs, each with its own first weights and draws; an interval is the mean's, at 95 percent by Student's t. What
is asked for is far below what is reached, since the figures differ a little from one processor to another.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from plaudit.models.load import load_model
from plaudit.models.q_heads import Steering, load_heads
from plaudit.recipes import grpo, ilql, ppo, sft
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import SamplingParams
from random_walks import (
    FIRST,
    LONGEST,
    World,
    make_model,
    make_world,
    optimality,
    write_demonstrations,
    write_prompts,
    write_ratings,
)
from runs import rows

pytestmark = [pytest.mark.proof, pytest.mark.xdist_group("walks")]

SEEDS = (0, 1, 2)
WALKS = 1000
BETA = 32.0
STUDENT = 4.303
"""Student's t for 95 percent and three values."""
COMMON: dict[str, Any] = {
    "adapter": {"rank": 0}, "precision": "float32", "threads": 1, "checkpoint_every": 1000,
}  # fmt: skip
LOGGED: dict[str, Any] = COMMON | {"heldout": 0.0, "batch_size": 100}
ONLINE: dict[str, Any] = COMMON | {
    "steps": 20, "samples_per_prompt": 12, "max_new_tokens": LONGEST + 2, "missing_eos_penalty": None,
    "learning_rate": 1e-3, "minibatches": 2, "kl": {"coef": 0.005}, "stop": {"max_kl": 5.0, "min_entropy": 0.0},
}  # fmt: skip
on_0, on_1, on_2 = (partial(optimality, world=make_world(seed)) for seed in SEEDS)


class Cloned(NamedTuple):
    """A graph's files: walks.jsonl, base, and sft, a run that cloned the walkers. walkers: their mean optimality;
    entropy: nats a token, of the walks that were logged; reached: the clone's optimality."""

    seed: int
    world: World
    directory: Path
    walkers: float
    entropy: float
    reached: float

    @property
    def model(self) -> Path:
        return self.directory / "sft" / "model"


def reached(world: World, model: Path, seed: int, heads: Path | None = None) -> float:
    """Mean optimality of 16 walks from every start, at temperature 1."""
    loaded = load_model(str(model), torch.float32)
    steer = None if heads is None else Steering(load_heads(heads, loaded), BETA)
    engine = LocalEngine(loaded.trunk, loaded.tokenizer, max_batch=400, steer=steer)
    starts = [[FIRST + node] for node in world.starts]
    walks = list(engine.sample(starts, 16, SamplingParams(LONGEST + 2), (seed, "walks")))
    scores = optimality(walks, world)
    return sum(scores) / len(scores)


def walkers_entropy(world: World, path: Path) -> float:
    """Nats a token of a file's walks for whoever knows the graph: at a node the log of its edges, at the end none."""
    nats, tokens = 0.0, 0
    for line in map(json.loads, path.read_text().splitlines()):
        nodes = [ord(word) - ord("a") for word in f"{line['prompt']} {line['completion']}".split()]
        nats += sum(math.log(len(world.successors[node])) for node in nodes[:-1])
        tokens += len(nodes)  # each node after the first, and the end
    return nats / tokens


@pytest.fixture(scope="module")
def cloned(tmp_path_factory: pytest.TempPathFactory) -> list[Cloned]:
    return [clone(seed, tmp_path_factory.mktemp("walks")) for seed in SEEDS]


def clone(seed: int, place: Path) -> Cloned:
    world, data = make_world(seed), place / "walks.jsonl"
    walkers = write_demonstrations(world, data, WALKS, seed)
    settings: dict[str, Any] = {"model": str(make_model(place / "base", seed=seed)), "data": [str(data)]}
    config = sft.Config(**LOGGED, **settings, epochs=10, learning_rate=3e-3, seed=seed)
    sft.run(config, place / "sft")
    write_prompts(world, place / "starts.jsonl")
    again = reached(world, place / "sft" / "model", seed)
    return Cloned(seed, world, place, walkers, walkers_entropy(world, data), again)


def interval(found: Sequence[float]) -> tuple[float, float]:
    half = STUDENT * statistics.stdev(found) / math.sqrt(len(found))
    return statistics.mean(found) - half, statistics.mean(found) + half


def told(name: str, before: Sequence[float], after: Sequence[float], more: str) -> str:
    each = ", ".join(f"{one:.2f} -> {other:.2f}" for one, other in zip(before, after, strict=True))
    low, high = interval(after)
    return f"{name}: {each} of 1; mean {statistics.mean(after):.3f}, interval {low:.3f} to {high:.3f}; {more}"


def test_a_clone_walks_as_the_walkers_did(cloned: list[Cloned], say: Callable[[str], None]) -> None:
    """No better and no worse, and its loss is near the least there is."""
    blank = [reached(one.world, one.directory / "base", one.seed) for one in cloned]
    after = [one.reached for one in cloned]
    losses = [statistics.mean(row["loss"] for row in rows(one.directory / "sft")[-10:]) for one in cloned]
    known = ", ".join(
        f"{loss:.2f} (least {one.entropy:.2f})" for loss, one in zip(losses, cloned, strict=True)
    )
    walkers = ", ".join(f"{one.walkers:.2f}" for one in cloned)
    say(told("sft", blank, after, f"walkers {walkers}; nats a token {known}"))
    for one, begin, loss in zip(cloned, blank, losses, strict=True):
        assert begin < 0.05
        assert abs(one.reached - one.walkers) < 0.12
        assert one.entropy - 0.05 < loss < one.entropy + 0.15


@pytest.mark.parametrize("recipe", [ppo, grpo])
def test_from_the_clone_on_walking_finds_the_shortest_paths(
    cloned: list[Cloned], tmp_path: Path, say: Callable[[str], None], recipe: ModuleType
) -> None:
    name = recipe.__name__.rpartition(".")[2]
    own: dict[str, Any] = {"epochs": 4, "value_coef": 0.5} if recipe is ppo else {"epochs": 2}
    after, highest = [], []
    for one in cloned:
        config = recipe.Config(
            **ONLINE, **own, model=str(one.model), prompts=str(one.directory / "starts.jsonl"), seed=one.seed,
            reward=f"{__name__}:on_{one.seed}", prompts_per_step=len(one.world.starts),
        )  # fmt: skip
        run = tmp_path / str(one.seed)
        summary = recipe.run(config, run)
        logged = rows(run)
        assert summary["stopped"] is None
        assert statistics.mean(row["reward"] for row in logged[-3:]) > logged[0]["reward"] + 0.35
        assert all(-0.05 < row["kl"] < 1.5 for row in logged)
        after.append(reached(one.world, run / "model", one.seed))
        highest.append(max(row["kl"] for row in logged))
    before = [one.reached for one in cloned]
    say(told(name, before, after, f"kl at most {max(highest):.2f} nats a token"))
    assert min(after) > 0.85
    assert interval([end - begin for begin, end in zip(before, after, strict=True)])[0] > 0.2
    assert min(highest) > 0.2


def test_steered_walks_come_near_the_optimum(
    cloned: list[Cloned], tmp_path: Path, say: Callable[[str], None]
) -> None:
    """Who rates knows a walk's length and no shortest path."""
    after = []
    for one in cloned:
        data, run = one.directory / "rated.jsonl", tmp_path / str(one.seed)
        assert write_ratings(one.world, data, WALKS, one.seed) == one.walkers
        config = ilql.Config(
            **LOGGED, model=str(one.model), data=[str(data)], epochs=30, expectile=0.9, polyak=0.05, cql_coef=0.03,
            learning_rate=2e-3, seed=one.seed,
        )  # fmt: skip
        ilql.run(config, run)
        after.append(reached(one.world, run / "model", one.seed, heads=run))
    before = [one.reached for one in cloned]
    say(told("ilql", before, after, f"by Q alone, steered by beta {BETA:g}"))
    assert min(after) > 0.75
    assert all(end > begin + 0.4 for begin, end in zip(before, after, strict=True))
