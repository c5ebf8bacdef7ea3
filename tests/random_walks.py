"""A world whose best answers are known: walks on a random directed graph of 21 nodes, written as text.

The task of Chen et al. 2021 (Decision Transformer, section 3) as language models are given it: a prompt names the
node to begin at, "f", and a completion the nodes that follow, "d k a". Whoever reaches the goal, node "a", by the
shortest path is optimal. What is logged are random walks, nearly all of them long; learning must put the shortest
paths together from pieces of many.

    world = make_world(seed)                        the graph, with the shortest path from each node
    write_demonstrations / write_ratings / write_prompts(world, path, ...)      JSONL for the recipes
    make_model(directory)                           a small Llama with a tokenizer of one word a node
    optimality(samples, world)                      1 the shortest path, 0 one that does not arrive in time

`optimality` alone, as "random_walks:optimality" in a recipe's reward, is about `make_world()`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file

from plaudit import files
from plaudit.randomness import rng
from plaudit.tensors import Sample

NODES = 21
LETTERS = "abcdefghijklmnopqrstu"
GOAL = 0
LONGEST = 10
"""Steps within which a walk must arrive."""
EDGES = 0.15
"""The chance of each edge, beside one that is sure, so that no walk ends before the goal."""
SPECIAL = ("<|pad|>", "<|end|>")
FIRST = len(SPECIAL)
"""The id of node a."""


@dataclass(frozen=True, slots=True)
class World:
    """successors: where the edges of each node lead; shortest: steps from each node to the goal, at least 1 and at most
    LONGEST where a walk may begin, None where none may: at the goal, and where it is too far."""

    successors: tuple[tuple[int, ...], ...]
    shortest: tuple[int | None, ...]

    @property
    def starts(self) -> list[int]:
        return [node for node in range(NODES) if self.shortest[node] is not None]


@lru_cache
def make_world(seed: int = 0) -> World:
    """The graph of a seed; it is drawn anew until the goal can be reached from three nodes in four."""
    draw = rng("random walks", seed)
    while True:
        edges = draw.random((NODES, NODES)) < EDGES
        for node in range(NODES):
            edges[node, node] = False
            if not edges[node].any():
                edges[node, (node + 1 + int(draw.integers(NODES - 1))) % NODES] = True
        successors = tuple(tuple(int(k) for k in edges[node].nonzero()[0]) for node in range(NODES))
        distance = {GOAL: 0}
        for steps in range(1, LONGEST + 1):
            for node in set(range(NODES)) - distance.keys():
                if any(distance.get(k) == steps - 1 for k in successors[node]):
                    distance[node] = steps
        if len(distance) - 1 >= 0.75 * (NODES - 1):
            return World(successors, tuple(distance.get(node) or None for node in range(NODES)))


def random_walk(world: World, start: int, *key: int | str) -> list[int]:
    """The nodes after the start: any edge as likely as another, until the goal or LONGEST steps."""
    draw, walk, here = rng("walk", *key), list[int](), start
    while here != GOAL and len(walk) < LONGEST:
        here = int(draw.choice(world.successors[here]))
        walk.append(here)
    return walk


def walk_optimality(world: World, start: int, walk: Sequence[int]) -> float:
    """(LONGEST + 1 - steps) / (LONGEST + 1 - shortest) of a walk that ends at the goal in LONGEST steps at most, along
    edges alone and without a word too many; else 0."""
    shortest, steps = world.shortest[start], [start, *walk]
    arrived = 0 < len(walk) <= LONGEST and walk[-1] == GOAL and GOAL not in walk[:-1]
    if shortest is None or not arrived:
        return 0.0
    if any(b not in world.successors[a] for a, b in pairwise(steps)):
        return 0.0
    return (LONGEST + 1 - len(walk)) / (LONGEST + 1 - shortest)


def optimality(samples: Sequence[Sample], world: World | None = None) -> list[float]:
    """The optimality of each sample of a model of `make_model`, 0 to 1."""
    world = world or make_world()
    found = []
    for sample in samples:
        nodes = [i - FIRST for i in sample.completion_ids if i != 1]  # the end is no node
        fit = all(0 <= node < NODES for node in nodes)
        found.append(walk_optimality(world, sample.prompt_ids[-1] - FIRST, nodes) if fit else 0.0)
    return found


def text_of(walk: Sequence[int]) -> str:
    return " ".join(LETTERS[node] for node in walk)


def _walks(world: World, count: int, seed: int) -> list[tuple[int, list[int]]]:
    starts = [int(s) for s in rng("starts", seed).choice(world.starts, count)]
    return [(start, random_walk(world, start, seed, i)) for i, start in enumerate(starts)]


def write_demonstrations(world: World, path: Path, count: int, seed: int = 0) -> float:
    """Random walks as demonstrations; returns their mean optimality."""
    walks = _walks(world, count, seed)
    rows = [{"prompt": LETTERS[start], "completion": text_of(walk)} for start, walk in walks]
    _write(path, rows)
    return sum(walk_optimality(world, start, walk) for start, walk in walks) / count


def write_ratings(world: World, path: Path, count: int, seed: int = 0) -> float:
    """The same walks, rated by their length: 1 - (steps - 1) / LONGEST where they arrive, else 0, so that whoever rates
    knows no shortest path. Returns their mean optimality."""
    walks = _walks(world, count, seed)
    _write(
        path,
        [
            {
                "prompt": LETTERS[start],
                "completion": text_of(walk),
                "scores": {"overall": 1 - (len(walk) - 1) / LONGEST if walk[-1] == GOAL else 0.0},
            }
            for start, walk in walks
        ],
    )
    return sum(walk_optimality(world, start, walk) for start, walk in walks) / count


def write_prompts(world: World, path: Path) -> None:
    """Every node that a walk may begin at, once."""
    _write(path, [{"prompt": LETTERS[start]} for start in world.starts])


def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def make_model(directory: Path, *, seed: int = 0, width: int = 64, depth: int = 3) -> Path:
    """A small random Llama whose words are the nodes; made once."""
    if (directory / "config.json").exists():
        return directory
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate((*SPECIAL, *LETTERS))}
    inner = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=SPECIAL[1], pad_token=SPECIAL[0], unk_token=SPECIAL[0]
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": width // 4,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "vocab_size": len(vocab),
        "dtype": "float32",
    }
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)

    tensors = {"model.embed_tokens.weight": normal(len(vocab), width), "model.norm.weight": torch.ones(width)}
    for block in range(depth):
        prefix = f"model.layers.{block}."
        for name in ("q", "k", "v", "o"):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = normal(width, width)
        for name, size in (
            ("gate", (2 * width, width)),
            ("up", (2 * width, width)),
            ("down", (width, 2 * width)),
        ):
            tensors[f"{prefix}mlp.{name}_proj.weight"] = normal(*size)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(width)
    with files.new_directory(directory) as place:
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(str(place))
        files.write_text(place / "config.json", json.dumps(config, indent=2) + "\n")
    return directory
