"""What a contextual bandit learns from: a text, the label that somebody chose for it, and what came of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from plaudit.data.judged import prompt_key
from plaudit.data.shapes import filled, read_prompt
from plaudit.data.sources import rows
from plaudit.data.tokenizer import Tokenizer, check_room
from plaudit.types import Prompt, UserError

Propensities = Literal["logged", "frequency"]


class Chosen(NamedTuple):
    """One row of a log. key is equal for equal texts; reward in 0 to 1; propensity: the chance with which the label was
    chosen, in (0, 1], None where it is not known; who: chose it, a policy's version or None."""

    key: str
    ids: list[int]
    label: str
    reward: float
    propensity: float | None
    who: str | None


def read_choices(
    paths: Sequence[str], tokenizer: Tokenizer, *, context: int, propensities: Propensities = "logged"
) -> list[Chosen]:
    """Rows of `prompt`, `completion` (the label), `scores` (a rating) or `reward`, and perhaps `propensity` and
    `policy_version`.

    propensities "frequency": where none was logged, a label's share of all that the same policy_version chose: right
    for one that did not look at the text. UserError names the row whose text, label, reward or propensity is none.
    """
    found = []
    for path in paths:
        for where, row in rows(path):
            row = filled(row)
            try:
                prompt = read_prompt(row)
                ids = text_ids(prompt, tokenizer, context)
            except UserError as error:
                raise UserError(error.what, where=where, fix=error.fix) from None
            label, who = row.get("completion"), row.get("policy_version")
            if not isinstance(label, str) or not label.strip():
                raise UserError(
                    "lacks a label as completion",
                    where=where,
                    fix='write {"prompt": ..., "completion": label}',
                )
            propensity = _number(row, "propensity", where) if "propensity" in row else None
            if propensity is not None and not 0 < propensity <= 1:
                raise UserError(
                    f"propensity is {propensity:g}, not above 0 and up to 1",
                    where=where,
                    fix="log the chance with which the label was chosen, or leave it out",
                )
            who = None if who is None else str(who)
            found.append(Chosen(prompt_key(prompt), ids, label.strip(), _reward(row, where), propensity, who))
    if propensities == "frequency":
        of_who, of_both = Counter(c.who for c in found), Counter((c.who, c.label) for c in found)
        found = [
            c if c.propensity is not None else c._replace(propensity=of_both[c.who, c.label] / of_who[c.who])
            for c in found
        ]
    return found


def text_ids(prompt: Prompt, tokenizer: Tokenizer, context: int) -> list[int]:
    """A text's ids. UserError where it is too long for the model, which reads one more token."""
    ids = tokenizer.render(prompt)
    check_room(len(ids), context - 1, "")
    return ids


def _reward(row: Mapping[str, Any], where: str) -> float:
    scores = row.get("scores")
    if "reward" in row:
        reward = _number(row, "reward", where)
    elif isinstance(scores, dict) and scores:
        each = {name: _number(scores, name, where) for name in scores}
        reward = each.get("overall", sum(each.values()) / len(each))
    else:
        raise UserError(
            "lacks a reward", where=where, fix='write "reward": 0 to 1, or "scores": {"overall": 0 to 1}'
        )
    if not 0 <= reward <= 1:
        raise UserError(f"reward is {reward:g}, not within 0 to 1", where=where, fix="scale it to 0 to 1")
    return reward


def _number(row: Mapping[str, Any], key: str, where: str) -> float:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{key} is {value!r}, not a number", where=where)
    return float(value)
