"""A part of a run's data that is like the whole: small enough to rehearse on, drawn by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit import files
from plaudit.data.formats import read_prompts, read_records, write_records
from plaudit.data.judged import is_held_out, prompt_key
from plaudit.data.shapes import filled, read_prompt
from plaudit.data.sources import ending, read_text, rows
from plaudit.randomness import rng
from plaudit.recipes.kto import votes_of
from plaudit.types import Preference, Ranking, Record, UserError, prompt_to_json

FIELDS = {"evaluate": ("prompts",), "reward_model": ("data", "gold")}
"""The settings that name a recipe's data, where these are not `data` alone."""
BATCH = {"sft": "batch_size", "kto": "batch_size", "ilql": "batch_size", "bandit": "batch_size"}
"""The setting that says how much is learned from in a step, where that is not `prompts_per_step`."""
AT_ONCE = 16
"""Prompts that `evaluate` is rehearsed with as others are with a step's."""
CHARACTERS = 4
"""Of plain text, about as many as a token has."""

Item = Record | dict[str, Any] | str
"""A record, a row, or a piece of plain text."""


@dataclass(frozen=True, slots=True)
class Piece:
    """All that is there of one prompt, with the number of the file that each item is of.

    units: as how many it counts in a batch. text: characters that a model reads. held: whether it is held out.
    """

    items: tuple[tuple[int, Item], ...]
    units: int
    text: int
    held: bool

    @property
    def files(self) -> set[int]:
        return {number for number, _ in self.items}


@dataclass(frozen=True, slots=True)
class Texts:
    """The data of a run. places: each file's setting and name; batch: units a step."""

    places: tuple[tuple[str, str], ...]
    pieces: tuple[Piece, ...]
    batch: int

    @property
    def units(self) -> int:
        """What an epoch goes over."""
        return sum(piece.units for piece in self.pieces if not piece.held)

    @property
    def text(self) -> int:
        """All characters, held out or not."""
        return sum(piece.text for piece in self.pieces)

    def part(self, steps: int) -> Texts:
        """As much as makes so many steps, and the share of the held-out that belongs to it. The longest piece, which
        memory goes by, is among it, and something of every file."""
        training = [piece for piece in self.pieces if not piece.held]
        held = [piece for piece in self.pieces if piece.held]
        chosen = _filled(training, steps * self.batch, longest=True)
        share = sum(p.units for p in chosen) / max(1, self.units)
        chosen += _filled(held, round(share * len(held)) if share < 1 else len(held), each=True)
        return Texts(self.places, tuple(chosen), self.batch)

    def write(self, place: Path) -> dict[str, Any]:
        """Files in the directory; what the settings that name them become."""
        named: dict[str, Any] = {}
        for number, (setting, name) in enumerate(self.places):
            mine = [item for piece in self.pieces for of, item in piece.items if of == number]
            text = all(isinstance(item, str) for item in mine)
            path = place / str(number) / (Path(name).name.partition(".")[0] + (".txt" if text else ".jsonl"))
            path.parent.mkdir(parents=True)
            if text:
                files.write_text(path, "".join(map(str, mine)))
            elif all(isinstance(item, dict) for item in mine):
                files.write_rows(path, [item for item in mine if isinstance(item, dict)])
            else:
                write_records([item for item in mine if not isinstance(item, dict | str)], path)
            if setting == "prompts":
                named[setting] = str(path)
            else:
                named.setdefault(setting, []).append(str(path))
        return named


def _filled(
    pieces: Sequence[Piece], wanted: int, *, longest: bool = False, each: bool = False
) -> list[Piece]:
    """Pieces that make so many units (each: that are so many), in order, after those that must be there."""
    chosen: dict[int, Piece] = {}
    if longest and pieces:
        place = max(range(len(pieces)), key=lambda i: pieces[i].text)
        chosen[place] = pieces[place]
    for number in {number for piece in pieces for number in piece.files}:
        if not any(number in piece.files for piece in chosen.values()):
            place = next(i for i, piece in enumerate(pieces) if number in piece.files)
            chosen[place] = pieces[place]
    have = sum(1 if each else piece.units for piece in chosen.values())
    for place, piece in enumerate(pieces):
        if have >= wanted:
            break
        if place not in chosen:
            chosen[place] = piece
            have += 1 if each else piece.units
    return list(chosen.values())


def read_texts(recipe: str, config: Any) -> Texts:
    """A config's data, in a keyed order. UserError where a file is at fault."""
    places, found = list[tuple[str, str]](), dict[str, list[tuple[int, Item]]]()
    for setting in FIELDS.get(recipe, ("data",)):
        named = getattr(config, setting)
        for name in [named] if isinstance(named, str) else named:
            for key, item in _items(recipe, name, config):
                found.setdefault(key, []).append((len(places), item))
            places.append((setting, name))
    keys = list(found)
    share = getattr(config, "heldout", 0.0)
    pieces = []
    for i in rng(config.seed, "rehearsal").permutation(len(keys)):
        key, items = keys[int(i)], found[keys[int(i)]]
        each = [item for _, item in items]
        pieces.append(
            Piece(
                tuple(items),
                units_of(recipe, each, config),
                text_of(recipe, key, each),
                is_held_out(key, share, config.seed),
            )
        )
    batch = AT_ONCE if recipe == "evaluate" else getattr(config, BATCH.get(recipe, "prompts_per_step"))
    return Texts(tuple(places), tuple(pieces), batch)


def _items(recipe: str, name: str, config: Any) -> Iterator[tuple[str, Item]]:
    """What a file holds, each with its prompt's key."""
    if recipe == "evaluate":
        for number, prompt in enumerate(read_prompts(name)):
            yield str(number), {"prompt": prompt_to_json(prompt)}
    elif recipe == "bandit":
        for where, row in rows(name):
            try:
                yield prompt_key(read_prompt(filled(row))), dict(row)
            except UserError as error:
                raise UserError(error.what, where=where, fix=error.fix) from None
    elif recipe == "sft" and ending(Path(name))[0] == ".txt":
        text, size = read_text(Path(name).expanduser()), CHARACTERS * config.window
        for at in range(0, len(text), size):
            yield f"{name} {at}", text[at : at + size]
    else:
        for record in read_records(name):
            yield prompt_key(record.prompt), record


def completions_of(item: Item) -> list[str]:
    """The completions that an item speaks of."""
    if isinstance(item, dict | str):
        return []
    return list(item.completions) if isinstance(item, Preference | Ranking) else [item.completion]


def units_of(recipe: str, items: Sequence[Item], config: Any) -> int:
    """As how many a prompt's items count in a batch, as the recipe counts."""
    records = [item for item in items if not isinstance(item, dict | str)]
    if recipe in ("sft", "bandit"):
        return len(items)
    if recipe == "ilql":
        return sum(len(completions_of(item)) for item in items)
    if recipe == "kto":
        return sum(vote != 0 for vote in votes_of(records, config.threshold).values())
    if recipe == "dpo":
        return int(any(_compares(record, config.ties == "half") for record in records))
    return 1


def _compares(record: Record, ties: bool) -> bool:
    """Whether a pair follows from the record."""
    if isinstance(record, Ranking):
        return len(set(record.completions)) > 1
    if isinstance(record, Preference):
        return record.completions[0] != record.completions[1] and (ties or isinstance(record.choice, int))
    return False


def text_of(recipe: str, key: str, items: Sequence[Item]) -> int:
    """How much of a prompt's items a model reads, in characters; of `evaluate`, which reads what it says itself, 1.

    Where prompts are gathered, a completion is read once, whoever judged it; elsewhere as often as it stands there.
    """
    if recipe == "evaluate":
        return 1
    if recipe == "ilql":
        return sum(len(key) + len(text) for item in items for text in completions_of(item))
    if recipe == "sft":
        return sum(
            len(item) if isinstance(item, str) else len(key) + len(completions_of(item)[0]) for item in items
        )
    if recipe == "bandit":
        return len(key) * len(items)
    return len(key) + sum(map(len, {text for item in items for text in completions_of(item)}))


def labels_of(texts: Texts) -> list[str]:
    """All labels that a bandit's log has."""
    rows = [item for piece in texts.pieces for _, item in piece.items if isinstance(item, dict)]
    return sorted({str(row["completion"]).strip() for row in rows if row.get("completion")})
