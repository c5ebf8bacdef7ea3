"""Demonstrations and plain text as ids, ready to be imitated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plaudit.data.formats import read_records
from plaudit.data.judged import is_held_out, prompt_key
from plaudit.data.sources import ending, read_text
from plaudit.data.tokenizer import Tokenizer, check_room
from plaudit.types import Demonstration, UserError


@dataclass(frozen=True, slots=True)
class Shown:
    """One demonstration as ids; key is equal for equal prompts. The completion ends with the end-of-text token."""

    key: str
    prompt: list[int]
    completion: list[int]


def read_demonstrations(
    paths: Sequence[str], tokenizer: Tokenizer, context: int, window: int = 512
) -> list[Shown]:
    """All files' demonstrations as ids; a .txt is plain text, of which every token is learned. UserError for another
    kind of record, or one too long for the model."""
    shown = []
    for path in paths:
        if ending(Path(path))[0] == ".txt":
            shown += plain_text(path, tokenizer, min(window, context - 1))
            continue
        for number, record in enumerate(read_records(path), 1):
            where = f"{path}: record {number}"
            if not isinstance(record, Demonstration):
                raise UserError(
                    f"is a {type(record).__name__.lower()}, not a demonstration",
                    where=where,
                    fix='write {"prompt": ..., "completion": ...}, or train a reward model on it',
                )
            prompt, completion = tokenizer.render(record.prompt), tokenizer.complete(record.completion)
            check_room(len(prompt) + len(completion), context, where)
            shown.append(Shown(prompt_key(record.prompt), prompt, completion))
    return shown


def plain_text(path: str, tokenizer: Tokenizer, window: int) -> list[Shown]:
    """A text in pieces of `window` tokens, each after the token before it (the first after an end of text), so that
    every token is predicted exactly once. UserError where there is none."""
    text = read_text(Path(path).expanduser())
    if not text.strip():
        raise UserError("holds no text", where=path, fix="check that it is the right file")
    ids = tokenizer.complete(text)
    stream, name = [ids[-1], *ids], Path(path).name
    return [
        Shown(f"{name} {at}", stream[at : at + 1], stream[at + 1 : at + 1 + window])
        for at in range(0, len(ids), window)
    ]


def split(shown: Sequence[Shown], heldout: float, seed: int) -> tuple[list[Shown], list[Shown]]:
    """Training and held-out demonstrations. Which side a prompt is on, with all its demonstrations, depends on the
    seed and the prompt alone."""
    held = {s.key for s in shown if is_held_out(s.key, heldout, seed)}
    return [s for s in shown if s.key not in held], [s for s in shown if s.key in held]
