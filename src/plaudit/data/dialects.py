"""Rows as others write them: TRL's, HH-RLHF's and PandaLM's, with those of `published`; how they are told apart, and
what each of them keeps of a record. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

from plaudit.data import published
from plaudit.data.shapes import (
    CORRECT,
    SHAPES,
    Row,
    better_and_worse,
    built,
    from_json,
    keys_of,
    need,
    read_messages,
    read_prompt,
    read_rater,
    short,
    to_json,
    turns_of,
    whole_text,
)
from plaudit.types import Demonstration, Message, Preference, Prompt, Ranking, Rating, Record, UserError

_ASSISTANT = "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"user": "Human", "assistant": "Assistant"}
_WORD = re.compile(r"[^\W\u2e80-\U0010ffff]")  # scripts that put spaces between words
_ANNOTATOR = re.compile(r"annotator(\d+)")


def _from_trl(row: Row) -> list[Record]:
    if "chosen" in row or "rejected" in row:
        return [_from_trl_pair(row)]
    rater = read_rater(row)
    if "messages" in row:
        prompt, completion = _answer(None, row["messages"], "messages")
        return [built(Demonstration, prompt=prompt, completion=completion, rater=rater)]
    need(row, "prompt", "completion")
    prompt, completion = _answer(read_prompt(row), row["completion"], "completion")
    if "label" not in row:
        return [built(Demonstration, prompt=prompt, completion=completion, rater=rater)]
    if not isinstance(row["label"], bool):
        raise UserError(f"label is {short(row['label'])}, not true or false", fix=CORRECT)
    scores = {"overall": float(row["label"])}
    return [built(Rating, prompt=prompt, completion=completion, scores=scores, rater=rater)]


def _from_trl_pair(row: Row) -> Preference:
    need(row, "chosen", "rejected")
    chosen, rejected, strength = row["chosen"], row["rejected"], _strength(row.get("margin"))
    if "prompt" not in row and isinstance(chosen, str) and isinstance(rejected, str):
        prompt, better, worse = _shared_text(whole_text(chosen, "chosen"), whole_text(rejected, "rejected"))
        return built(
            Preference,
            prompt=prompt,
            completions=(better, worse),
            choice=0,
            rater=read_rater(row),
            strength=strength,
        )
    given = read_prompt(row) if "prompt" in row else None
    prompt_of_chosen, better = _answer(given, chosen, "chosen")
    prompt_of_rejected, worse = _answer(given, rejected, "rejected")
    if prompt_of_chosen != prompt_of_rejected:
        raise UserError("chosen and rejected differ before their last message", fix=CORRECT)
    completions = (better, worse)
    return built(
        Preference,
        prompt=prompt_of_chosen,
        completions=completions,
        choice=0,
        strength=strength,
        rater=read_rater(row),
    )


def _strength(margin: object) -> int | None:
    """Of TRL's margin: quarters of 1, rounded to the nearest; None where it is missing, not above 0 or beyond 1."""
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin <= 1:
        return None
    return max(1, round(4 * margin))


def _answer(prompt: Prompt | None, value: Any, key: str) -> tuple[Prompt, str]:
    """The prompt and the last assistant turn; messages may hold the prompt, or go on from it."""
    if isinstance(value, str):
        if prompt is None:
            raise UserError(f"{key} is text, and no prompt is given", fix="add the key prompt")
        return prompt, whole_text(value, key)
    turns = read_messages(value, key)
    if not turns or turns[-1].role != "assistant":
        raise UserError(f"{key} does not end in an assistant message", fix=CORRECT)
    before, last = turns[:-1], turns[-1].content
    if isinstance(prompt, tuple) and before[: len(prompt)] != prompt:
        before = prompt + before
    if isinstance(prompt, str):
        if before and not any(turn.content.strip() == prompt.strip() for turn in before):
            raise UserError(f"{key} holds messages that do not go with the text of prompt", fix=CORRECT)
        return before or prompt, last
    if not before:
        raise UserError(f"{key} holds no message before the answer", fix="add the key prompt")
    return before, last


def _shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The beginning that two texts share, up to the end of a word, and what follows it in each."""

    def within_word(text: str, n: int) -> bool:
        return 0 < n < len(text) and bool(_WORD.match(text[n - 1]) and _WORD.match(text[n]))

    cut = _shared_length(chosen, rejected)
    while within_word(chosen, cut) or within_word(rejected, cut):
        cut -= 1
    cut -= chosen[:cut].endswith(" ")
    if not chosen[:cut].strip():
        raise UserError(
            "chosen and rejected share no beginning that could be the prompt", fix="add the key prompt"
        )
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _shared_length(a: str, b: str) -> int:
    differences = (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differences, min(len(a), len(b)))


def _with_margin(record: Record) -> dict[str, Any]:
    row = _to_trl(record)
    if isinstance(record, Preference):
        if record.strength is None:
            raise UserError("is a preference without a strength, from which trl-margin makes its margin")
        row["margin"] = record.strength / 4
    return row


def _implicit(record: Record) -> dict[str, Any]:
    better, worse = better_and_worse(record, "trl-implicit")
    if isinstance(record.prompt, str):
        return {"chosen": record.prompt + better, "rejected": record.prompt + worse}
    before = to_json(record)["prompt"]
    answers = {"chosen": better, "rejected": worse}
    return {key: [*before, {"role": "assistant", "content": text}] for key, text in answers.items()}


def _to_trl(record: Record) -> dict[str, Any]:
    prompt = to_json(record)["prompt"]

    def turn(text: str) -> Any:
        return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]

    if isinstance(record, Demonstration):
        return {"prompt": prompt, "completion": turn(record.completion)}
    if isinstance(record, Rating):
        if record.scores not in ({"overall": 0}, {"overall": 1}):
            raise UserError("is a rating other than overall 0 or 1, which trl cannot hold")
        return {
            "prompt": prompt,
            "completion": turn(record.completion),
            "label": record.scores["overall"] == 1,
        }
    better, worse = better_and_worse(record, "trl")
    return {"prompt": prompt, "chosen": turn(better), "rejected": turn(worse)}


def _from_hh(row: Row) -> list[Record]:
    need(row, "chosen", "rejected")
    chosen, rejected = whole_text(row["chosen"], "chosen"), whole_text(row["rejected"], "rejected")
    fork = chosen[: _shared_length(chosen, rejected)].rfind(_ASSISTANT)
    if fork < 0 or not _TURN.match(chosen):
        raise UserError(
            "chosen and rejected share no dialogue before an assistant turn",
            fix=r'write "\n\nHuman: ...\n\nAssistant: ..." in both',
        )
    pieces = _TURN.split(chosen[:fork])[1:]
    roles = {name: role for role, name in _HH_ROLES.items()}
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    prompt = tuple(built(Message, role=roles[name], content=text.removeprefix(" ")) for name, text in turns)
    after = fork + len(_ASSISTANT)
    completions = tuple(text[after:].removeprefix(" ") for text in (chosen, rejected))
    return [built(Preference, prompt=prompt, completions=completions, choice=0, rater=read_rater(row))]


def _to_hh(record: Record) -> dict[str, Any]:
    better, worse = better_and_worse(record, "hh-rlhf")
    dialogue = ""
    for message in turns_of(record.prompt):
        if message.role not in _HH_ROLES:
            raise UserError(f"holds a {message.role} message, which hh-rlhf cannot hold")
        dialogue += f"\n\n{_HH_ROLES[message.role]}: {message.content}"
    return {"chosen": f"{dialogue}{_ASSISTANT} {better}", "rejected": f"{dialogue}{_ASSISTANT} {worse}"}


def _from_pandalm(row: Row) -> list[Record]:
    need(row, "instruction", "response1", "response2")
    prompt, extra = whole_text(row["instruction"], "instruction"), whole_text(row.get("input", ""), "input")
    if extra.strip():
        prompt = f"{prompt}\n\n{extra}"
    completions = (_answer_of_a_table(row, "response1"), _answer_of_a_table(row, "response2"))
    raters = sorted((key for key in row if _ANNOTATOR.fullmatch(key)), key=lambda key: int(key[9:]))
    if not raters:
        need(row, "annotator1")
    records: list[Record] = []
    for rater in raters:
        label = row[rater]
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label <= 2:
            raise UserError(f"{rater} is {short(label)}, not 0 (tie), 1 or 2", fix=CORRECT)
        choice = "tie" if label == 0 else label - 1
        records.append(built(Preference, prompt=prompt, completions=completions, choice=choice, rater=rater))
    return records


def _answer_of_a_table(row: Row, key: str) -> str:
    """The text; an answer such as "True" or "42" that a table program took for a value is put back as text."""
    value = row[key]
    return str(value) if isinstance(value, bool | int | float) else whole_text(value, key)


def _from_any(row: Row) -> list[Record]:
    """By the keys; a text pair without a prompt is HH-RLHF's when both texts begin with a turn."""
    keys = row.keys()
    for decode, wanted in published.TOLD_BY:
        if keys >= wanted:
            return decode(row)
    if keys & {"completions", "scores"}:
        return [from_json(row)]
    if keys & {"chosen", "rejected"}:
        texts = [row.get("chosen"), row.get("rejected")]
        turns = all(isinstance(text, str) and _TURN.match(text) for text in texts)
        return _from_hh(row) if turns and "prompt" not in row else _from_trl(row)
    if keys & {"response1", "response2"}:
        return _from_pandalm(row)
    if "messages" in keys or keys >= {"prompt", "completion"}:
        return _from_trl(row)
    raise UserError(f"has no known shape ({keys_of(row)})", fix=f"known shapes: {SHAPES}")


DECODERS: dict[str, Callable[[Row], list[Record]]] = {
    "auto": _from_any,
    "plaudit": lambda row: [from_json(row)],
    "trl": _from_trl,
    "hh-rlhf": _from_hh,
    "pandalm": _from_pandalm,
    **published.DECODERS,
}
ENCODERS: dict[str, Callable[[Record], dict[str, Any]]] = {
    "plaudit": to_json,
    "trl": _to_trl,
    "trl-margin": _with_margin,
    "trl-implicit": _implicit,
    "hh-rlhf": _to_hh,
    **published.ENCODERS,
}
KEEPS_RANKINGS = frozenset({"plaudit", "argilla"})
"""Formats that hold a ranking; in the others it is all of its pairs, a row each."""


def encoded(record: Record, format: str) -> list[Row]:
    """The record's rows, after reading them back: a text that the format would misread is a UserError."""
    records = _pairs(record) if isinstance(record, Ranking) and format not in KEEPS_RANKINGS else [record]
    return [_checked(one, format) for one in records]


def _pairs(record: Ranking) -> list[Record]:
    """Of each two completions the one that was ranked before the other."""
    texts = [record.completions[place] for place in record.ranking]
    return [Preference(record.prompt, pair, 0, rater=record.rater) for pair in combinations(texts, 2)]


def _checked(record: Record, format: str) -> Row:
    row = ENCODERS[format](record)
    if [to_json(back) for back in _from_any(row)] != [to_json(_kept(record, format))]:
        raise UserError(f"holds text that {format} would read back differently")
    return row


def _kept(record: Record, format: str) -> Record:
    """What the format keeps of a record that it can hold."""
    if format == "plaudit":
        return record
    if format in published.KEPT:
        return published.KEPT[format](record)
    if isinstance(record, Rating):
        return Rating(record.prompt, record.completion, record.scores)
    if isinstance(record, Preference):
        prompt = turns_of(record.prompt) if format == "hh-rlhf" else record.prompt
        strength = record.strength if format == "trl-margin" else None
        return Preference(prompt, better_and_worse(record, format), 0, strength)
    if isinstance(record, Demonstration):
        return Demonstration(record.prompt, record.completion)
    return record
