"""The part of benchmarks/rewards.py that reads what people chose, and cuts it to the length that the study is of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import raters_people

from plaudit.data.dialects import DECODERS
from plaudit.data.judged import prompt_key
from plaudit.data.sources import rows
from plaudit.data.tokenizer import Tokenizer
from plaudit.randomness import rng
from plaudit.types import Message, Preference, UserError

FOLDS = {"PandaLM": 5, "HH": 3}
PROMPT, ANSWER = 160, 160
"""Tokens that are kept; more than nine in ten answers are shorter."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One decided comparison. number: of the pair; prompt: as a text, what folds and the bootstrap go by; lengths: of
    the chosen and the rejected, uncut, in characters and in tokens."""

    number: int
    key: str
    record: Preference
    lengths: dict[str, tuple[int, int]]


def pandalm(folder: Path) -> list[tuple[str, Preference]]:
    """What at least two of three annotators chose, the chosen first; by its prompt."""
    every = [record for record in raters_people.pandalm(folder) if isinstance(record, Preference)]
    found = []
    for at in range(0, len(every), 3):
        said = [record.choice for record in every[at : at + 3]]
        for side in (0, 1):
            if said.count(side) >= 2:
                answers = every[at].completions
                chosen = Preference(every[at].prompt, (answers[side], answers[1 - side]), 0)
                found.append((prompt_key(chosen.prompt), chosen))
    return found


def hh(folder: Path) -> list[tuple[str, Preference]]:
    """Pairs of answers to one dialogue, the chosen first; by what the dialogue opens with."""
    found = []
    for _, row in rows(str(folder / "hh_harmless" / "pairs.jsonl.gz")):
        try:
            (record,) = DECODERS["hh-rlhf"](row)
        except UserError:
            continue
        assert isinstance(record, Preference)
        texts = [text.strip() for text in record.completions]
        if all(texts) and not any("\n\nHuman:" in text for text in texts):
            assert not isinstance(record.prompt, str)
            said = tuple(Message(turn.role, turn.content.strip()) for turn in record.prompt)
            found.append((said[0].content, Preference(said, (texts[0], texts[1]), 0)))
    return found


SETS = {"PandaLM": pandalm, "HH": hh}


def cut(record: Preference, tokenizer: Tokenizer) -> Preference:
    """The first ANSWER tokens of each answer; of the prompt the last turns that fit PROMPT tokens, at least one from
    the user, whose own end is left out where it alone is longer."""

    def begun(text: str, most: int) -> str:
        ids = tokenizer.encode(text)
        return text if len(ids) <= most else tokenizer.decode(ids[:most])

    turns = record.prompt
    assert not isinstance(turns, str)
    while len(turns) > 1 and len(tokenizer.render(turns)) > PROMPT:
        turns = turns[min(2, len(turns) - 1) :]
    over = len(tokenizer.render(turns)) - PROMPT
    if over > 0:
        last = turns[-1]
        kept = max(1, len(tokenizer.encode(last.content)) - over)
        turns = (*turns[:-1], Message(last.role, begun(last.content, kept)))
    a, b = (begun(text, ANSWER) for text in record.completions)
    return Preference(turns, (a, b), record.choice)


def choices(found: Iterable[tuple[str, Preference]], tokenizer: Tokenizer) -> list[Choice]:
    made = []
    for number, (key, record) in enumerate(found):
        characters, tokens = (
            tuple(map(measure, record.completions)) for measure in (len, lambda t: len(tokenizer.encode(t)))
        )
        lengths = {"characters": characters, "tokens": tokens}
        made.append(Choice(number, key, cut(record, tokenizer), lengths))  # type: ignore[arg-type]
    return made


def fold_of(name: str, seed: int, key: str) -> int:
    """In which fold a seed leaves a prompt out."""
    return int(rng("rewards study", name, seed, key).integers(FOLDS[name]))


def parts(name: str, every: Sequence[Choice], seed: int, fold: int) -> tuple[list[Choice], list[Choice]]:
    """Learned from, and left out."""
    out = [fold_of(name, seed, choice.key) == fold for choice in every]
    return (
        [choice for choice, left in zip(every, out, strict=True) if not left],
        [choice for choice, left in zip(every, out, strict=True) if left],
    )
