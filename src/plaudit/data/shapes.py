"""One row of each shape, in and out: ours, TRL's, HH-RLHF's and PandaLM's, told apart by their keys. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from plaudit.types import Demonstration, Message, Preference, Prompt, Ranking, Rating, Record, UserError

Row = Mapping[str, Any]
_SHAPES = (
    "prompt + completion, prompt + completions + choice (or ranking), prompt + completion + scores (or label), "
    "chosen + rejected (and prompt), messages, instruction + response1 + response2 + annotator1"
)
_CORRECT = "correct the record or leave it out"
_ASSISTANT = "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"user": "Human", "assistant": "Assistant"}
_WORD = re.compile(r"[^\W\u2e80-\U0010ffff]")  # scripts that put spaces between words
_ANNOTATOR = re.compile(r"annotator(\d+)")
T = TypeVar("T")


def to_json(record: Record) -> dict[str, Any]:
    """The record in our own shape; what was not given is left out."""
    prompt: Any = record.prompt if isinstance(record.prompt, str) else _to_messages(record.prompt)
    row: dict[str, Any] = {"prompt": prompt}
    if isinstance(record, Demonstration):
        row["completion"] = record.completion
    elif isinstance(record, Rating):
        row |= {"completion": record.completion, "scores": dict(record.scores)}
    elif isinstance(record, Ranking):
        row |= {"completions": list(record.completions), "ranking": list(record.ranking)}
    else:
        row |= {"completions": list(record.completions), "choice": record.choice}
        if record.strength is not None:
            row["strength"] = record.strength
        if record.presented is not None:
            row["presented"] = list(record.presented)
    return row if record.rater is None else {**row, "rater": record.rater}


def from_json(obj: object) -> Record:
    """The record in a row of our own shape; keys that are not ours are ignored. UserError says what is wrong."""
    if not isinstance(obj, Mapping):
        raise UserError(f"is {type(obj).__name__}, not an object", fix='write {"prompt": ..., ...}')
    row = filled(obj)
    rater = _rater(row)
    if "completions" in row:
        if ("choice" in row) == ("ranking" in row):
            raise UserError("needs either choice or ranking beside completions", fix="give one of the two")
        texts = tuple(whole_text(text, "completions") for text in _list(row["completions"], "completions"))
        if "ranking" in row:
            order = tuple(_list(row["ranking"], "ranking"))
            return _build(Ranking, prompt=read_prompt(row), completions=texts, ranking=order, rater=rater)
        choice = row["choice"]
        if isinstance(choice, str):  # a table's column beside "tie" is all text
            choice = {"0": 0, "1": 1}.get(choice, choice)
        return _build(
            Preference,
            prompt=read_prompt(row),
            completions=texts,
            choice=choice,
            strength=row.get("strength"),
            presented=tuple(_list(row["presented"], "presented")) if "presented" in row else None,
            rater=rater,
        )
    _need(row, "prompt", "completion")
    completion = whole_text(row["completion"], "completion")
    if "scores" not in row:
        return _build(Demonstration, prompt=read_prompt(row), completion=completion, rater=rater)
    if not isinstance(row["scores"], dict):
        raise UserError(
            f"scores is {type(row['scores']).__name__}, not an object", fix='write {"overall": 0.8}'
        )
    scores = {whole_text(name, "scores"): score for name, score in filled(row["scores"]).items()}
    return _build(Rating, prompt=read_prompt(row), completion=completion, scores=scores, rater=rater)


def _from_trl(row: Row) -> list[Record]:
    if "chosen" in row or "rejected" in row:
        return [_from_trl_pair(row)]
    rater = _rater(row)
    if "messages" in row:
        prompt, completion = _answer(None, row["messages"], "messages")
        return [_build(Demonstration, prompt=prompt, completion=completion, rater=rater)]
    _need(row, "prompt", "completion")
    prompt, completion = _answer(read_prompt(row), row["completion"], "completion")
    if "label" not in row:
        return [_build(Demonstration, prompt=prompt, completion=completion, rater=rater)]
    if not isinstance(row["label"], bool):
        raise UserError(f"label is {_short(row['label'])}, not true or false", fix=_CORRECT)
    scores = {"overall": float(row["label"])}
    return [_build(Rating, prompt=prompt, completion=completion, scores=scores, rater=rater)]


def _from_trl_pair(row: Row) -> Preference:
    _need(row, "chosen", "rejected")
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" not in row and isinstance(chosen, str) and isinstance(rejected, str):
        prompt, better, worse = _shared_text(whole_text(chosen, "chosen"), whole_text(rejected, "rejected"))
        return _build(Preference, prompt=prompt, completions=(better, worse), choice=0, rater=_rater(row))
    given = read_prompt(row) if "prompt" in row else None
    prompt_of_chosen, better = _answer(given, chosen, "chosen")
    prompt_of_rejected, worse = _answer(given, rejected, "rejected")
    if prompt_of_chosen != prompt_of_rejected:
        raise UserError("chosen and rejected differ before their last message", fix=_CORRECT)
    completions = (better, worse)
    return _build(Preference, prompt=prompt_of_chosen, completions=completions, choice=0, rater=_rater(row))


def _answer(prompt: Prompt | None, value: Any, key: str) -> tuple[Prompt, str]:
    """The prompt and the last assistant turn; messages may hold the prompt, or go on from it."""
    if isinstance(value, str):
        if prompt is None:
            raise UserError(f"{key} is text, and no prompt is given", fix="add the key prompt")
        return prompt, whole_text(value, key)
    turns = _from_messages(value, key)
    if not turns or turns[-1].role != "assistant":
        raise UserError(f"{key} does not end in an assistant message", fix=_CORRECT)
    before, last = turns[:-1], turns[-1].content
    if isinstance(prompt, tuple) and before[: len(prompt)] != prompt:
        before = prompt + before
    if isinstance(prompt, str):
        if before and not any(turn.content.strip() == prompt.strip() for turn in before):
            raise UserError(f"{key} holds messages that do not go with the text of prompt", fix=_CORRECT)
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
    better, worse = _better_and_worse(record, "trl")
    return {"prompt": prompt, "chosen": turn(better), "rejected": turn(worse)}


def _from_hh(row: Row) -> list[Record]:
    _need(row, "chosen", "rejected")
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
    prompt = tuple(_build(Message, role=roles[name], content=text.removeprefix(" ")) for name, text in turns)
    after = fork + len(_ASSISTANT)
    completions = tuple(text[after:].removeprefix(" ") for text in (chosen, rejected))
    return [_build(Preference, prompt=prompt, completions=completions, choice=0, rater=_rater(row))]


def _to_hh(record: Record) -> dict[str, Any]:
    better, worse = _better_and_worse(record, "hh-rlhf")
    dialogue = ""
    for message in _turns(record.prompt):
        if message.role not in _HH_ROLES:
            raise UserError(f"holds a {message.role} message, which hh-rlhf cannot hold")
        dialogue += f"\n\n{_HH_ROLES[message.role]}: {message.content}"
    return {"chosen": f"{dialogue}{_ASSISTANT} {better}", "rejected": f"{dialogue}{_ASSISTANT} {worse}"}


def _from_pandalm(row: Row) -> list[Record]:
    _need(row, "instruction", "response1", "response2")
    prompt, extra = whole_text(row["instruction"], "instruction"), whole_text(row.get("input", ""), "input")
    if extra.strip():
        prompt = f"{prompt}\n\n{extra}"
    completions = (_answer_of_a_table(row, "response1"), _answer_of_a_table(row, "response2"))
    raters = sorted((key for key in row if _ANNOTATOR.fullmatch(key)), key=lambda key: int(key[9:]))
    if not raters:
        _need(row, "annotator1")
    records: list[Record] = []
    for rater in raters:
        label = row[rater]
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label <= 2:
            raise UserError(f"{rater} is {_short(label)}, not 0 (tie), 1 or 2", fix=_CORRECT)
        choice = "tie" if label == 0 else label - 1
        records.append(_build(Preference, prompt=prompt, completions=completions, choice=choice, rater=rater))
    return records


def _answer_of_a_table(row: Row, key: str) -> str:
    """The text; an answer such as "True" or "42" that a table program took for a value is put back as text."""
    value = row[key]
    return str(value) if isinstance(value, bool | int | float) else whole_text(value, key)


def _from_any(row: Row) -> list[Record]:
    """By the keys; a text pair without a prompt is HH-RLHF's when both texts begin with a turn."""
    keys = row.keys()
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
    raise UserError(f"has no known shape ({_keys(row)})", fix=f"known shapes: {_SHAPES}")


DECODERS: dict[str, Callable[[Row], list[Record]]] = {
    "auto": _from_any,
    "plaudit": lambda row: [from_json(row)],
    "trl": _from_trl,
    "hh-rlhf": _from_hh,
    "pandalm": _from_pandalm,
}
ENCODERS: dict[str, Callable[[Record], dict[str, Any]]] = {
    "plaudit": to_json,
    "trl": _to_trl,
    "hh-rlhf": _to_hh,
}


def checked(record: Record, encode: Callable[[Record], Row], format: str) -> Row:
    """The record's row, after reading it back: a text that the format would misread is a UserError."""
    row = encode(record)
    if [to_json(back) for back in _from_any(row)] != [to_json(_kept(record, format))]:
        raise UserError(f"holds text that {format} would read back differently")
    return row


def _kept(record: Record, format: str) -> Record:
    """What the format keeps of a record that it can hold."""
    if format == "plaudit":
        return record
    if isinstance(record, Rating):
        return Rating(record.prompt, record.completion, record.scores)
    if isinstance(record, Preference):
        prompt = _turns(record.prompt) if format == "hh-rlhf" else record.prompt
        return Preference(prompt, _better_and_worse(record, format), 0)
    if isinstance(record, Demonstration):
        return Demonstration(record.prompt, record.completion)
    return record


def _better_and_worse(record: Record, format: str) -> tuple[str, str]:
    if not isinstance(record, Preference):
        raise UserError(f"is a {type(record).__name__.lower()}, which {format} cannot hold")
    if record.choice not in (0, 1):
        raise UserError(
            f'is a preference without a better side ("{record.choice}"), which {format} cannot hold'
        )
    return record.completions[record.choice], record.completions[1 - record.choice]


def _turns(prompt: Prompt) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def _to_messages(turns: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _from_messages(value: Any, key: str) -> tuple[Message, ...]:
    turns = []
    for item in _list(value, key):
        if not isinstance(item, dict) or not filled(item).keys() >= {"role", "content"}:
            fix = 'write {"role": "user", "content": "..."}'
            raise UserError(f"{key} holds {_short(item)}, not a message with role and content", fix=fix)
        role, content = whole_text(item["role"], "role"), whole_text(item["content"], "content")
        turns.append(_build(Message, role=role, content=content))
    return tuple(turns)


def read_prompt(row: Row) -> Prompt:
    """The key "prompt", text or messages. UserError when it is missing, empty or neither."""
    _need(row, "prompt")
    value = row["prompt"]
    prompt = _from_messages(value, "prompt") if isinstance(value, list) else whole_text(value, "prompt")
    if not prompt:
        raise UserError("prompt is empty", fix=_CORRECT)
    return prompt


def filled(row: Row) -> dict[str, Any]:
    """Without null values: a table writes null where a row has no such key."""
    return {key: value for key, value in row.items() if value is not None}


def _need(row: Row, *keys: str) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        raise UserError(f"lacks {' and '.join(missing)} ({_keys(row)})", fix=f"known shapes: {_SHAPES}")


def _keys(row: Row) -> str:
    return f"its keys: {_short(', '.join(map(str, row)))}" if row else "it has no keys"


def whole_text(value: Any, key: str) -> str:
    """The value under the key. UserError where it is no text, or holds half a character, which no file could take."""
    if not isinstance(value, str):
        raise UserError(f"{key} is {type(value).__name__}, not text", fix=_CORRECT)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start].encode("unicode_escape").decode()
        raise UserError(f"{key} holds half a character ({half})", fix="write the whole character") from None
    return value


def _rater(row: Row) -> str | None:
    return whole_text(row["rater"], "rater") if "rater" in row else None


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{key} is {type(value).__name__}, not a list", fix=_CORRECT)
    return value


def _build(cls: Callable[..., T], **fields: Any) -> T:
    """The record, or a UserError with what the record's own checks say."""
    try:
        return cls(**fields)
    except ValueError as error:
        raise UserError(_short(error), fix=_CORRECT) from None


def _short(value: object) -> str:
    text = str(value) if isinstance(value, str | Exception) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
