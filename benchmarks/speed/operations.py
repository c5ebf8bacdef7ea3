"""How many operations a piece of work needs, and how long they take at the machine's measured ceilings (a roofline).

What is counted is what the work needs, not what somebody does: a prompt that several completions share counts once,
the output layer only at tokens that a loss or a draw reads, the reference's pass once. A multiply and an add are two
operations: 2 a parameter a token forward, 4 backward (2 for the gradient of what came in, 2 for the weight's own,
which a frozen weight has not). Attention: 4 a head's width, a head and a token looked at, forward; twice that backward.
Norms, rotary tables, softmax, adapters' own small products and the optimiser's arithmetic are left out; the bytes
that the optimiser moves, and that a token drawn reads of weights and cache, are in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Size:
    """What counting needs to know of a model."""

    depth: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    vocab: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Size:
        """From a model directory's config.json."""
        heads = int(config["num_attention_heads"])
        return cls(
            depth=int(config["num_hidden_layers"]),
            width=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or config["hidden_size"] // heads),
            mlp_width=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
        )

    @property
    def block(self) -> int:
        """Weights of one block's linear maps."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.width * self.mlp_width

    @property
    def head(self) -> int:
        """Weights of the output layer."""
        return self.width * self.vocab

    @property
    def weights(self) -> int:
        """Blocks and a tied embedding."""
        return self.depth * self.block + self.head


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and the completions that share it, in tokens."""

    prompt: int
    completions: Sequence[int]

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.completions)

    @property
    def looks(self) -> int:
        """Pairs of a token and one that it looks at, itself included."""
        shared = self.prompt * (self.prompt + 1) // 2
        return shared + sum(n * self.prompt + n * (n + 1) // 2 for n in self.completions)

    @property
    def read(self) -> int:
        """Tokens that are predicted: all of the completions."""
        return sum(self.completions)


@dataclass(frozen=True, slots=True)
class Phase:
    """Work between two points that wait for each other: operations, and bytes that must move meanwhile."""

    operations: float
    bytes: float = 0.0

    def seconds(self, gemm: float, copy: float) -> float:
        """At ceilings of 10^9 operations and 10^9 bytes a second, both going at once."""
        return max(self.operations / (gemm * 1e9), self.bytes / (copy * 1e9))


def ceiling(phases: Iterable[Phase], gemm: float, copy: float) -> float:
    """The least seconds that the machine could take for all phases, one after the other."""
    return sum(phase.seconds(gemm, copy) for phase in phases)


def forward(size: Size, rows: Iterable[Row], *, head: bool = True, blocks: int = 0) -> Phase:
    """One pass over the rows; head: with the output layer at the completions' tokens (False: a scalar head, free);
    blocks: through so many blocks (0: all)."""
    rows, depth = list(rows), blocks or size.depth
    done = 2 * depth * size.block * sum(row.tokens for row in rows)
    done += 4 * depth * size.heads * size.head_width * sum(row.looks for row in rows)
    return Phase(done + 2 * size.head * head * sum(row.read for row in rows))


def backward(size: Size, rows: Iterable[Row], *, head: bool = True, adapted: int | None = None) -> Phase:
    """The gradients of one pass. adapted: the top blocks that carry adapters on frozen weights, below which nothing
    goes; None: every weight is trained, the embedding as the output layer it is tied to."""
    rows = list(rows)
    depth, each = (size.depth, 4) if adapted is None else (adapted, 2)
    done = each * depth * size.block * sum(row.tokens for row in rows)
    done += 8 * depth * size.heads * size.head_width * sum(row.looks for row in rows)
    return Phase(done + each * size.head * head * sum(row.read for row in rows))


def adamw(size: Size, adapted: int | None = None) -> Phase:
    """The optimiser's traffic: weight, gradient and both moments read, weight and moments written, float32. Adapters'
    are too small to count."""
    return Phase(0.0, 0.0 if adapted is not None else 7 * 4 * size.weights)


def sampling(size: Size, rows: Sequence[Row], width: int) -> list[Phase]:
    """Every prompt once, then token after token for all completions, each step reading all weights and all caches.
    width: bytes a weight."""
    prompts = [Row(row.prompt, ()) for row in rows]
    first = forward(size, prompts)
    drawn = max((max(row.completions) for row in rows), default=0)
    phases = [Phase(first.operations + 2 * size.head * len(rows), width * size.weights)]
    entry = 2 * size.depth * size.kv_heads * size.head_width * width  # of the cache, a token
    for step in range(1, drawn):
        alive = [(row.prompt, sum(n > step for n in row.completions)) for row in rows]
        count = sum(n for _, n in alive)
        looks = sum((prompt + step) * n for prompt, n in alive)
        own = sum(prompt * (n > 0) + step * n for prompt, n in alive)  # a group's prompt is kept once
        done = count * 2 * (size.depth * size.block + size.head)
        done += 4 * size.depth * size.heads * size.head_width * looks
        phases.append(Phase(done, width * size.weights + entry * own))
    return phases
