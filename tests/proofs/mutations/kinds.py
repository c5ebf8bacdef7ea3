"""What a mutation is, and two ways of writing several of one file."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """file: under src/plaudit; old -> new: the change; why: what a test must notice; tests: under tests/."""

    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]


def of_algorithms(file: str, tests: str, *changes: tuple[str, str, str]) -> tuple[Mutation, ...]:
    paths = tuple(f"algorithms/test_{name}.py" for name in tests.split())
    return tuple(Mutation(f"algorithms/{file}.py", old, new, why, paths) for old, new, why in changes)


def of_room(file: str, tests: str, *changes: tuple[str, str, str]) -> tuple[Mutation, ...]:
    paths = tuple(f"{test}.py" for test in tests.split())
    return tuple(Mutation(f"{file}.py", old, new, why, paths) for old, new, why in changes)
