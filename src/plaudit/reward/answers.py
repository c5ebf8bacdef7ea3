"""A reward of 1 for the answer that a prompt is known to have, else 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import regex

from plaudit.data.judged import prompt_key
from plaudit.data.shapes import filled, read_prompt
from plaudit.data.sources import rows
from plaudit.data.tokenizer import Tokenizer
from plaudit.tensors import Sample
from plaudit.types import UserError

SECONDS = 10.0
"""The most that `after` may take on one text."""
_GROUPED = regex.compile(r"[-+]?[1-9]\d{0,2}([, ])\d{3}(\1\d{3})*(\.\d+)?")
"""A number whose thousands are set apart."""


@dataclass(frozen=True, slots=True)
class Answers:
    """A Scorer. known: a prompt's key -> its answer; by_ids: the same by the prompt's ids, with a tokenizer.

    after: a regular expression; what follows its last match is the answer, and where there is none there is no
    answer. None: the whole completion is.
    """

    known: Mapping[str, str]
    by_ids: Mapping[tuple[int, ...], str]
    after: str | None
    name: str

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """UserError for a sample whose prompt has no known answer."""
        return [float(same(taken(s.text, self.after), self._answer(s))) for s in samples]

    def _answer(self, sample: Sample) -> str:
        found = self.by_ids.get(sample.prompt_ids)
        if found is None and sample.asked is not None:
            found = self.known.get(prompt_key(sample.asked))
        if found is None:
            raise UserError(
                "has no answer to a prompt that was sampled", where=self.name, fix="give the file all prompts"
            )
        return found


def read_answers(data: str, after: str | None, tokenizer: Tokenizer | None, name: str) -> Answers:
    """Of a file whose rows hold "prompt" and "answer". UserError for any other, and for two answers to one prompt."""
    known: dict[str, str] = {}
    by_ids: dict[tuple[int, ...], str] = {}
    try:
        regex.compile(after or "")
    except regex.error as error:
        raise UserError(f"after is no regular expression ({error})", where=name) from None
    for where, row in rows(Path(data)):
        try:
            prompt = read_prompt(filled(row))
        except UserError as error:
            raise UserError(error.what, where=where, fix=error.fix) from None
        answer = row.get("answer")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise UserError("lacks an answer", where=where, fix='write {"prompt": ..., "answer": ...}')
        text = taken(str(answer), after) or str(answer)  # the answer alone, or at the end of its derivation
        if not same(text, text):
            raise UserError("the answer is empty", where=where, fix="write it, or leave the row out")
        if not same(known.setdefault(prompt_key(prompt), text), text):
            raise UserError("has another answer to a prompt seen before", where=where, fix="leave one out")
        if tokenizer is not None:
            by_ids[tuple(tokenizer.render(prompt))] = text
    if not known:
        raise UserError("holds no answers", where=data, fix="check that it is the right file")
    return Answers(known, by_ids, after, name)


def taken(text: str, after: str | None) -> str | None:
    """What follows the last match of `after`, to the end of its line; the whole text without `after`. UserError where
    the search takes longer than `SECONDS`."""
    if after is None:
        return text
    try:
        ends = [match.end() for match in regex.finditer(after, text, timeout=SECONDS)]
    except TimeoutError:
        raise UserError(
            f"took longer than {SECONDS:g} s on one text",
            where=f"after {after!r}",
            fix="write an expression that does not go over the same text again and again",
        ) from None
    return text[ends[-1] :].strip().partition("\n")[0] if ends else None


def same(given: str | None, wanted: str) -> bool:
    """Whether two answers are equal: as numbers where both are (1,000 = 1000.0), else as words, whatever their case
    and spaces; a full stop at the end does not count. No answer, and an empty one, equals nothing. "3, 4" and "1,5" are
    words: a comma or a space is taken out of a number only where it sets thousands apart."""
    if given is None:
        return False
    a, b = (" ".join(text.casefold().split()).rstrip(".。") for text in (given, wanted))
    x, y = _number(a), _number(b)
    return bool(a) and (a == b if x is None or y is None else x == y)


def _number(text: str) -> Decimal | None:
    text = text.lstrip("$£€¥ ")
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    if "_" in text:  # which Python, and nobody else, reads as 1_000
        return None
    try:
        found = Decimal(text)
    except InvalidOperation:
        return None
    return found if found.is_finite() else None
