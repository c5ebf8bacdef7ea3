"""What is drawn depends on the key alone, today and in the next version."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from plaudit.randomness import rng, torch_seed


def test_the_stream_does_not_change_across_versions() -> None:
    """The digest is `printf 'int:7\\x1fstr:rollout\\x1fint:3' | b2sum -l 128`; numpy's raw PCG64 does the rest."""
    seed = int.from_bytes(bytes.fromhex("46f67a563e6da1050d824b7e8483a27b"), "little")
    words = np.random.PCG64(seed).random_raw(3)
    uniforms = rng(7, "rollout", 3).random(3).tolist()
    assert uniforms == [int(word >> 11) / 2**53 for word in words]
    assert uniforms == [0.4609712541417287, 0.5989434834564669, 0.24901087219776152]
    assert rng(7, "rollout", 3).permutation(8).tolist() == [3, 2, 0, 6, 5, 7, 4, 1]
    assert torch_seed(7, "rollout", 3) == 8364640723577600283


def test_a_key_draws_the_same_in_another_process() -> None:
    code = "from plaudit.randomness import rng; print(rng('é', -1).integers(10**9))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(seen) == rng("é", -1).integers(10**9)


KEYS: list[tuple[Any, ...]] = [
    (),
    (0,),
    (1,),
    ("1",),
    (-1,),
    ("",),
    ("", ""),
    (1, 2),
    (2, 1),
    (12,),
    ("a", "b"),
    ("ab",),
    ("a\x1fstr:b",),  # a text that would forge the border between two parts
    ("a\x1f", "b"),
    ("a", "\x1fb"),
    ("a\x1f\x1fstr:b",),
    ("int:1",),
    ("\ud800",),
    (2**200,),
]


def test_different_keys_draw_differently() -> None:
    drawn = {key: tuple(rng(*key).integers(2**63, size=2)) for key in KEYS}
    assert len(set(drawn.values())) == len(KEYS)
    seeds = [torch_seed(*key) for key in KEYS]
    assert len(set(seeds)) == len(KEYS)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_keys_are_uncorrelated() -> None:
    draws = np.stack([rng(7, "sample", i).standard_normal(4000) for i in range(12)])
    for a, b in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / 4000**0.5  # five standard errors


def test_numpys_integers_are_the_same_numbers() -> None:
    assert rng(np.int64(3)).random() == rng(3).random()  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [1.0, None, b"a", (1,)])
def test_other_parts_are_refused(part: Any) -> None:
    with pytest.raises(TypeError):
        rng(part)
