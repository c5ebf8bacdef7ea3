"""Learning proof: on random walks, steered decoding puts shortest paths together that nobody walked on purpose.

The log is random walks on a graph of 21 nodes, rated by their length. Behaviour cloning does as the walkers did;
ILQL's Q heads, learned from the same walks, must steer a copy of it to most of the known optimum.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.models.load import load_model
from plaudit.models.q_heads import Steering, load_heads
from plaudit.recipes import ilql, sft
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import SamplingParams
from random_walks import FIRST, World, make_model, make_world, optimality, write_demonstrations, write_ratings

pytestmark = pytest.mark.proof

WALKS = 1000
BETA = 32.0
COMMON: dict[str, Any] = {
    "heldout": 0.0, "batch_size": 100, "adapter": {"rank": 0}, "precision": "float32", "threads": 1,
    "checkpoint_every": 1000,
}  # fmt: skip


def reached(world: World, model: Path, heads: Path | None, seed: int) -> float:
    """Mean optimality of 16 walks from every start, at temperature 1."""
    loaded = load_model(str(model), torch.float32)
    steer = None if heads is None else Steering(load_heads(heads, loaded), BETA)
    engine = LocalEngine(loaded.trunk, loaded.tokenizer, max_batch=400, steer=steer)
    starts = [[FIRST + node] for node in world.starts]
    walks = list(engine.sample(starts, 16, SamplingParams(12), (seed, "walks")))
    scores = optimality(walks, world)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_steered_walks_come_near_the_optimum(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(seed)
    logged = write_demonstrations(world, tmp_path / "walks.jsonl", WALKS, seed)
    assert write_ratings(world, tmp_path / "rated.jsonl", WALKS, seed) == logged
    base = make_model(tmp_path / "base", seed=seed)
    cloned: dict[str, Any] = {"model": str(base), "data": [str(tmp_path / "walks.jsonl")], "epochs": 10}
    sft.run(sft.Config(**COMMON, **cloned, learning_rate=3e-3, seed=seed), tmp_path / "sft")
    learned: dict[str, Any] = {
        "model": str(tmp_path / "sft" / "model"), "data": [str(tmp_path / "rated.jsonl")], "epochs": 30,
        "expectile": 0.9, "polyak": 0.05, "cql_coef": 0.03, "learning_rate": 2e-3,
    }  # fmt: skip
    ilql.run(ilql.Config(**COMMON, **learned, seed=seed), tmp_path / "ilql")
    cloning = reached(world, tmp_path / "sft" / "model", None, seed)
    steered = reached(world, tmp_path / "ilql" / "model", tmp_path / "ilql", seed)
    with capsys.disabled():
        print(
            f"\n  seed {seed}: walkers {logged:.2f}, cloned {cloning:.2f}, steered {steered:.2f} of 1", end=""
        )
    assert cloning < logged + 0.1
    assert steered > 0.75
    assert steered > cloning + 0.4
