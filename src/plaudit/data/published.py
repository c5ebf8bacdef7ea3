"""Rows as published sets and tools of annotation write them: HelpSteer2, UltraFeedback, OpenAI's preferences, Argilla,
Label Studio. No torch.

Scores are 0 to 1 with us; each shape says on what scale it has them. What a shape cannot say is lost, as
docs/records.md lists, or the record is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from plaudit.data.shapes import (
    CORRECT,
    Row,
    better_and_worse,
    built,
    listed,
    need,
    read_messages,
    read_rater,
    short,
    turns_of,
    whole_text,
    write_messages,
)
from plaudit.types import Message, Preference, Prompt, Ranking, Rating, Record, Role, UserError

DIGITS = 6
"""Of a score that is written on another scale."""


# HelpSteer2 (Wang et al. 2024): five attributes from 0 to 4, and preferences from -3 (the first) to 3 (the second) ----

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
TURN = "<extra_id_1>"
"""Before the name of who speaks, in prompts of several turns."""
SPEAKERS: dict[str, Role] = {"User": "user", "Assistant": "assistant"}


def _from_helpsteer(row: Row) -> list[Record]:
    need(row, "prompt")
    prompt, rater = _turns_of(whole_text(row["prompt"], "prompt")), read_rater(row)
    if "preference_strength" in row:
        need(row, "response_1", "response_2")
        texts = tuple(whole_text(row[key], key) for key in ("response_1", "response_2"))
        strength = _whole(row["preference_strength"], "preference_strength", -3, 3)
        choice = "tie" if strength == 0 else int(strength > 0)
        return [
            built(
                Preference,
                prompt=prompt,
                completions=texts,
                choice=choice,
                strength=abs(strength) or None,
                rater=rater,
            )
        ]
    need(row, "response")
    scores = {name: _whole(row[name], name, 0, 4) / 4 for name in ATTRIBUTES if name in row}
    return [
        built(
            Rating,
            prompt=prompt,
            completion=whole_text(row["response"], "response"),
            scores=scores,
            rater=rater,
        )
    ]


def _turns_of(text: str) -> Prompt:
    """The user's turn first, then each turn after its marker and the name of who speaks."""
    first, *rest = text.split(TURN)
    if not rest:
        return text
    turns = [Message("user", first.rstrip("\n"))]
    for turn in rest:
        name, _, said = turn.partition("\n")
        if name not in SPEAKERS:
            raise UserError(f"prompt names {short(name)} after {TURN}, not Assistant or User", fix=CORRECT)
        turns.append(Message(SPEAKERS[name], said.rstrip("\n")))
    return tuple(turns)


def _marked(prompt: Prompt) -> str:
    """The other way round. UserError for a turn of neither."""
    if isinstance(prompt, str):
        return prompt
    names = {role: name for name, role in SPEAKERS.items()}
    if prompt[0].role != "user" or any(turn.role not in names for turn in prompt):
        raise UserError("does not begin with the user, or holds another's turn, which helpsteer2 cannot hold")
    first, *rest = prompt
    return first.content + "".join(f"\n\n{TURN}{names[turn.role]}\n{turn.content}" for turn in rest)


def _to_helpsteer(record: Record) -> dict[str, Any]:
    kept = _helpsteer_keeps(record)
    prompt = _marked(kept.prompt)
    if isinstance(kept, Rating):
        found = {name: round(4 * score) for name, score in kept.scores.items()}
        return {"prompt": prompt, "response": kept.completion, **found}
    assert isinstance(kept, Preference)
    sign = {0: -1, 1: 1, "tie": 0}[kept.choice]
    first, second = kept.completions
    strength = sign * (kept.strength or 0)
    return {"prompt": prompt, "response_1": first, "response_2": second, "preference_strength": strength}


def _helpsteer_keeps(record: Record) -> Record:
    """overall is called helpfulness; scores in quarters; a preference without a strength is the slightest."""
    prompt = record.prompt
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0].role == "user":
        prompt = prompt[0].content
    if isinstance(record, Rating):
        names = {"overall": "helpfulness"} if "helpfulness" not in record.scores else {}
        scores = {names.get(name, name): round(4 * score) / 4 for name, score in record.scores.items()}
        if unknown := sorted(set(scores) - set(ATTRIBUTES)):
            raise UserError(f"has scores of {', '.join(unknown)}, which helpsteer2 cannot hold")
        return Rating(
            prompt, record.completion, {name: scores[name] for name in ATTRIBUTES if name in scores}
        )
    if not isinstance(record, Preference) or record.choice == "both_bad":
        raise _refused(record, "helpsteer2")
    strength = None if record.choice == "tie" else min(3, record.strength or 1)
    return Preference(prompt, record.completions, record.choice, strength)


# UltraFeedback (Cui et al. 2023): completions of an instruction, aspects from 1 to 5, overall from 1 to 10 ---------


def _from_ultrafeedback(row: Row) -> list[Record]:
    need(row, "instruction", "completions")
    prompt, records = whole_text(row["instruction"], "instruction"), list[Record]()
    for number, one in enumerate(listed(row["completions"], "completions")):
        where = f"completions[{number}]"
        if not isinstance(one, dict) or "response" not in one:
            raise UserError(f"{where} is {short(one)}, not an object with a response", fix=CORRECT)
        scores = {}
        for name, said in (one.get("annotations") or {}).items():
            rating = said.get("Rating") if isinstance(said, dict) else None
            if rating not in (None, "N/A"):
                scores[name] = _scaled(rating, f"{where}.annotations.{name}", 1, 5)
        if one.get("overall_score") is not None:
            scores["overall"] = _scaled(one["overall_score"], f"{where}.overall_score", 1, 10)
        if scores:
            text = whole_text(one["response"], where)
            rater = read_rater(row)
            records.append(built(Rating, prompt=prompt, completion=text, scores=scores, rater=rater))
    if not records:
        raise UserError("no completion has a rating", fix=CORRECT)
    return records


def _to_ultrafeedback(record: Record) -> dict[str, Any]:
    kept = _ultrafeedback_keeps(record)
    assert isinstance(kept, Rating)
    aspects = {name: score for name, score in kept.scores.items() if name != "overall"}
    one: dict[str, Any] = {
        "model": "",
        "response": kept.completion,
        "annotations": {name: {"Rating": _number(1 + 4 * score)} for name, score in aspects.items()},
    }
    if "overall" in kept.scores:
        one["overall_score"] = float(_number(1 + 9 * kept.scores["overall"]))
    return {"source": "plaudit", "instruction": kept.prompt, "models": [""], "completions": [one]}


def _ultrafeedback_keeps(record: Record) -> Record:
    if not isinstance(record, Rating):
        raise _refused(record, "ultrafeedback")
    prompt = _text_prompt(record, "ultrafeedback")
    names = [
        *(name for name in record.scores if name != "overall"),
        *(["overall"] if "overall" in record.scores else []),
    ]
    return Rating(
        prompt, record.completion, {name: round(record.scores[name], DIGITS) + 0.0 for name in names}
    )


def _number(value: float) -> str:
    return f"{round(value, DIGITS + 1):g}" if value == round(value) else repr(round(value, DIGITS + 1))


# OpenAI's preferences: messages, and an assistant's message on each side --------------------------------------


def _from_openai(row: Row) -> list[Record]:
    need(row, "input", "preferred_output", "non_preferred_output")
    if not isinstance(row["input"], dict) or "messages" not in row["input"]:
        raise UserError(f"input is {short(row['input'])}, not an object with messages", fix=CORRECT)
    prompt = read_messages(row["input"]["messages"], "input.messages")
    texts = []
    for key in ("preferred_output", "non_preferred_output"):
        turns = read_messages(row[key], key)
        if len(turns) != 1 or turns[0].role != "assistant":
            raise UserError(f"{key} is not one message of the assistant", fix=CORRECT)
        texts.append(turns[0].content)
    return [built(Preference, prompt=prompt, completions=tuple(texts), choice=0, rater=read_rater(row))]


def _to_openai(record: Record) -> dict[str, Any]:
    better, worse = better_and_worse(record, "openai")
    turns = turns_of(record.prompt)
    if any(turn.role == "tool" for turn in turns):
        raise UserError("holds a tool message, which openai takes with a call of ours only")
    return {
        "input": {"messages": write_messages(turns), "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": better}],
        "non_preferred_output": [{"role": "assistant", "content": worse}],
    }


def _openai_keeps(record: Record) -> Record:
    return Preference(turns_of(record.prompt), better_and_worse(record, "openai"), 0)


# Argilla 2: fields, and responses by question; ours are called prompt, response1, ..., preference or a criterion -


def _from_argilla(row: Row) -> list[Record]:
    need(row, "fields", "responses")
    fields, responses = row["fields"], row["responses"]
    if not isinstance(fields, dict) or not isinstance(responses, dict):
        raise UserError("fields or responses are no object", fix=CORRECT)
    prompt = next((fields[name] for name in ("prompt", "instruction", "input") if fields.get(name)), None)
    if prompt is None:
        raise UserError("has no field called prompt, instruction or input", fix="rename the field")
    prompt = read_messages(prompt, "prompt") if isinstance(prompt, list) else whole_text(prompt, "prompt")
    names = sorted(
        (name for name in fields if name.startswith("response") and fields[name] is not None), key=_natural
    )
    if not names:
        raise UserError("has no field whose name begins with response", fix="rename the fields")
    texts = tuple(whole_text(fields[name], name) for name in names)
    said: dict[str, dict[str, Any]] = {}
    for question, answers in responses.items():
        for answer in listed(answers, question):
            if not isinstance(answer, dict) or "value" not in answer:
                raise UserError(f"{question} holds {short(answer)}, not an object with a value", fix=CORRECT)
            if answer.get("status") not in ("discarded", "draft"):
                said.setdefault(str(answer.get("user_id") or ""), {})[question] = answer["value"]
    scale = _argilla_scale(row.get("metadata"))
    return [
        record
        for rater, own in said.items()
        for record in _argilla_said(prompt, texts, names, own, scale, rater or None)
    ]


def _argilla_scale(metadata: Any) -> tuple[float, float]:
    """Of ratings: what `scale` in the metadata says, as ours does; else 1 to 5, as Argilla's own template has it."""
    scale = metadata.get("scale") if isinstance(metadata, dict) else None
    if scale is None:
        return 1.0, 5.0
    if not (isinstance(scale, list) and len(scale) == 2 and all(type(end) in (int, float) for end in scale)):
        raise UserError(f"metadata.scale is {short(scale)}, not [least, most]", fix=CORRECT)
    return float(scale[0]), float(scale[1])


def _argilla_said(
    prompt: Prompt,
    texts: tuple[str, ...],
    names: list[str],
    said: dict[str, Any],
    scale: tuple[float, float],
    rater: str | None,
) -> list[Record]:
    found, scores = list[Record](), dict[str, float]()
    for question, value in said.items():
        if (order := _ranked(value, names)) is not None:
            best = [names.index(name) for name, rank in order if rank == order[0][1]]
            if len(texts) == 2:
                choice: Any = best[0] if len(best) == 1 else "tie"
                found.append(built(Preference, prompt=prompt, completions=texts, choice=choice, rater=rater))
                continue
            if len({rank for _, rank in order}) < len(order):
                raise UserError(f"{question} gives two answers one rank", fix="leave it out, or rank them")
            places = tuple(names.index(name) for name, _ in order)
            found.append(built(Ranking, prompt=prompt, completions=texts, ranking=places, rater=rater))
        elif isinstance(value, str) and len(texts) == 2 and value in (*names, "tie", "both_bad"):
            choice = names.index(value) if value in names else value
            found.append(built(Preference, prompt=prompt, completions=texts, choice=choice, rater=rater))
        elif isinstance(value, int | float) and not isinstance(value, bool) and len(texts) == 1:
            scores[question] = _scaled(value, question, *scale)
    if scores:
        found.append(built(Rating, prompt=prompt, completion=texts[0], scores=scores, rater=rater))
    return found


def _ranked(value: Any, names: list[str]) -> list[tuple[str, float]] | None:
    """Names with their ranks, the best first, of a list of all names, or of {"value", "rank"} of all; None for what
    ranks something else (a question of spans, of several labels)."""
    if not isinstance(value, list):
        return None
    if all(isinstance(one, str) for one in value):
        order = [(str(name), float(rank)) for rank, name in enumerate(value)]
    elif all(isinstance(one, dict) and {"value", "rank"} <= one.keys() for one in value):
        order = sorted(((str(one["value"]), float(one["rank"])) for one in value), key=lambda pair: pair[1])
    else:
        return None
    return order if sorted(name for name, _ in order) == sorted(names) else None


def _to_argilla(record: Record) -> dict[str, Any]:
    kept = _argilla_keeps(record)

    def answer(value: Any) -> list[dict[str, Any]]:
        return [{"value": value} | ({"user_id": kept.rater} if kept.rater else {})]

    prompt: Any = kept.prompt if isinstance(kept.prompt, str) else write_messages(kept.prompt)
    if isinstance(kept, Rating):
        texts: tuple[str, ...] = (kept.completion,)
        responses = {name: answer(round(10 * score)) for name, score in kept.scores.items()}
        metadata: dict[str, Any] = {"scale": [0, 10]}
    else:
        assert isinstance(kept, Preference | Ranking)
        texts, metadata = kept.completions, {}
        if isinstance(kept, Ranking):
            responses = {"preference": answer([f"response{place + 1}" for place in kept.ranking])}
        else:
            value = f"response{kept.choice + 1}" if isinstance(kept.choice, int) else kept.choice
            responses = {"preference": answer(value)}
    fields = {"prompt": prompt} | {f"response{number}": text for number, text in enumerate(texts, 1)}
    return {"fields": fields, "responses": responses, "metadata": metadata, "status": "completed"}


def _argilla_keeps(record: Record) -> Record:
    """Its ratings are whole numbers from 0 to 10; a ranking of two is a preference."""
    if isinstance(record, Rating):
        scores = {name: round(10 * score) / 10 for name, score in record.scores.items()}
        return Rating(record.prompt, record.completion, scores, record.rater)
    if isinstance(record, Ranking):
        if len(record.completions) == 2:
            first, second = record.completions
            return Preference(
                record.prompt, (first, second), 0 if record.ranking[0] == 0 else 1, rater=record.rater
            )
        return record
    if isinstance(record, Preference):
        return Preference(record.prompt, record.completions, record.choice, rater=record.rater)
    raise _refused(record, "argilla")


# Label Studio: a task's data, and a pairwise result of each annotation ----------------------------------------

SIDES = ("left", "right")


def _from_label_studio(row: Row) -> list[Record]:
    need(row, "data", "annotations")
    data, found = row["data"], list[Record]()
    if not isinstance(data, dict):
        raise UserError("data is no object", fix=CORRECT)
    prompt = next((data[name] for name in ("prompt", "question", "instruction") if data.get(name)), None)
    if prompt is None:
        raise UserError("its data has no prompt, question or instruction", fix="rename the key")
    for annotation in listed(row["annotations"], "annotations"):
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or []:
            if result.get("type") != "pairwise":
                continue
            names = [name.strip() for name in str(result.get("to_name", "")).split(",")]
            if not all(
                name in data for name in names
            ):  # what is compared may be called otherwise than its data
                names = sorted(
                    (key for key in data if key[-1:] in "12" and data[key] != prompt), key=_natural
                )
            selected = (result.get("value") or {}).get("selected")
            if len(names) != 2 or selected not in SIDES:
                raise UserError(
                    f"a pairwise result selects {selected!r} of {', '.join(names) or 'nothing'}", fix=CORRECT
                )
            texts = tuple(whole_text(data[name], name) for name in names)
            found.append(
                built(
                    Preference, prompt=whole_text(prompt, "prompt"), completions=texts, choice=SIDES.index(selected),
                    rater=_annotator(annotation.get("completed_by")),
                )
            )  # fmt: skip
    return found


def _annotator(who: Any) -> str | None:
    """An id; or, of an exported user, the id in it (an e-mail address is nobody's pseudonym)."""
    who = who.get("id") if isinstance(who, dict) else who
    return None if who is None else str(who)


def _to_label_studio(record: Record) -> dict[str, Any]:
    kept = _label_studio_keeps(record)
    assert isinstance(kept, Preference)
    first, second = kept.completions
    result = {
        "from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise",
        "value": {"selected": SIDES[int(kept.choice)]},
    }  # fmt: skip
    by = {} if kept.rater is None else {"completed_by": kept.rater}
    data = {"prompt": kept.prompt, "answer1": first, "answer2": second}
    return {"data": data, "annotations": [{"result": [result], **by}]}


def _label_studio_keeps(record: Record) -> Record:
    if not isinstance(record, Preference) or record.choice not in (0, 1):
        raise _refused(record, "label-studio")
    prompt = _text_prompt(record, "label-studio")
    return Preference(prompt, record.completions, record.choice, rater=record.rater)


# Common -------------------------------------------------------------------------------------------------------


def _whole(value: object, key: str, least: int, most: int) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != value // 1
        or not least <= value <= most
    ):
        raise UserError(f"{key} is {short(value)}, not a whole number from {least} to {most}", fix=CORRECT)
    return int(value)


def _scaled(value: object, key: str, least: float, most: float) -> float:
    """0 to 1, rounded so that what was written comes back as it was."""
    try:
        number = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise UserError(f"{key} is {short(value)}, not a number from {least:g} to {most:g}", fix=CORRECT)
    return round((number - least) / (most - least), DIGITS) + 0.0


def _text_prompt(record: Record, format: str) -> str:
    """A prompt of one turn, as text."""
    prompt = record.prompt
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    raise UserError(f"is a dialogue, which {format} cannot hold")


def _refused(record: Record, format: str) -> UserError:
    what = type(record).__name__.lower()
    if isinstance(record, Preference):
        what = f'preference without a better side ("{record.choice}")'
    return UserError(f"is a {what}, which {format} cannot hold")


def _natural(name: str) -> tuple[int, str]:
    """response2 before response10."""
    digits = "".join(c for c in name if c.isdigit())
    return int(digits or 0), name


TOLD_BY: tuple[tuple[Callable[[Row], list[Record]], frozenset[str]], ...] = (
    (_from_openai, frozenset({"preferred_output", "non_preferred_output"})),
    (_from_helpsteer, frozenset({"response_1", "response_2", "preference_strength"})),
    (_from_helpsteer, frozenset({"prompt", "response", "helpfulness"})),
    (_from_ultrafeedback, frozenset({"instruction", "completions"})),
    (_from_argilla, frozenset({"fields", "responses"})),
    (_from_label_studio, frozenset({"data", "annotations"})),
)
"""Keys that only rows of this shape have."""
DECODERS: dict[str, Callable[[Row], list[Record]]] = {
    "helpsteer2": _from_helpsteer,
    "ultrafeedback": _from_ultrafeedback,
    "openai": _from_openai,
    "argilla": _from_argilla,
    "label-studio": _from_label_studio,
}
ENCODERS: dict[str, Callable[[Record], dict[str, Any]]] = {
    "helpsteer2": _to_helpsteer,
    "ultrafeedback": _to_ultrafeedback,
    "openai": _to_openai,
    "argilla": _to_argilla,
    "label-studio": _to_label_studio,
}
KEPT: dict[str, Callable[[Record], Record]] = {
    "helpsteer2": _helpsteer_keeps,
    "ultrafeedback": _ultrafeedback_keeps,
    "openai": _openai_keeps,
    "argilla": _argilla_keeps,
    "label-studio": _label_studio_keeps,
}
