"""Randomness is keyed, not carried.

Every draw comes from a key such as (seed, "rollout", round, step, sample), so that what was drawn before, in
which order or in which process, changes nothing: a killed run that starts again draws the same numbers.
"""

from __future__ import annotations

import hashlib
import operator

import numpy as np


def rng(*key: int | str) -> np.random.Generator:
    """A generator that depends on the key alone (PCG64 seeded with the key's BLAKE2b digest)."""
    words = "\x1f".join(map(_word, key)).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(words, digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def torch_seed(*key: int | str) -> int:
    """A seed for `torch.Generator.manual_seed` that depends on the key alone."""
    return int(rng(*key, "torch").integers(0, 2**63 - 1))


def batches_of(count: int, size: int, epochs: int, *key: int | str) -> list[list[int]]:
    """Each step's members, of so many: an epoch takes each once, in an order of its own by (*key, epoch), and its last
    batch holds what is left."""
    orders = [rng(*key, epoch).permutation(count) for epoch in range(epochs)]
    return [[int(i) for i in order[at : at + size]] for order in orders for at in range(0, count, size)]


def _word(part: int | str) -> str:
    """Which part of a key this is, unmistakably: 1 is not "1", numpy's 1 is 1, and no text forges a border."""
    if isinstance(part, str):
        return "str:" + part.replace("\x1f", "\x1f\x1f")
    return f"int:{operator.index(part)}"
