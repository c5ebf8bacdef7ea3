"""One row of our own shape, in and out, and what all shapes have in common. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from plaudit.types import Demonstration, Message, Preference, Prompt, Ranking, Rating, Record, UserError

Row = Mapping[str, Any]
SHAPES = (
    "prompt + completion, prompt + completions + choice (or ranking), prompt + completion + scores (or label), "
    "chosen + rejected (and prompt), messages; of others as docs/records.md lists"
)
CORRECT = "correct the record or leave it out"
T = TypeVar("T")


def to_json(record: Record) -> dict[str, Any]:
    """The record in our own shape; what was not given is left out."""
    prompt: Any = record.prompt if isinstance(record.prompt, str) else write_messages(record.prompt)
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
    rater = read_rater(row)
    if "completions" in row:
        if ("choice" in row) == ("ranking" in row):
            raise UserError("needs either choice or ranking beside completions", fix="give one of the two")
        texts = tuple(whole_text(text, "completions") for text in listed(row["completions"], "completions"))
        if "ranking" in row:
            order = tuple(listed(row["ranking"], "ranking"))
            return built(Ranking, prompt=read_prompt(row), completions=texts, ranking=order, rater=rater)
        choice = row["choice"]
        if isinstance(choice, str):  # a table's column beside "tie" is all text
            choice = {"0": 0, "1": 1}.get(choice, choice)
        return built(
            Preference,
            prompt=read_prompt(row),
            completions=texts,
            choice=choice,
            strength=row.get("strength"),
            presented=tuple(listed(row["presented"], "presented")) if "presented" in row else None,
            rater=rater,
        )
    need(row, "prompt", "completion")
    completion = whole_text(row["completion"], "completion")
    if "scores" not in row:
        return built(Demonstration, prompt=read_prompt(row), completion=completion, rater=rater)
    if not isinstance(row["scores"], dict):
        raise UserError(
            f"scores is {type(row['scores']).__name__}, not an object", fix='write {"overall": 0.8}'
        )
    scores = {whole_text(name, "scores"): score for name, score in filled(row["scores"]).items()}
    return built(Rating, prompt=read_prompt(row), completion=completion, scores=scores, rater=rater)


def better_and_worse(record: Record, format: str) -> tuple[str, str]:
    if not isinstance(record, Preference):
        raise UserError(f"is a {type(record).__name__.lower()}, which {format} cannot hold")
    if record.choice not in (0, 1):
        raise UserError(
            f'is a preference without a better side ("{record.choice}"), which {format} cannot hold'
        )
    return record.completions[record.choice], record.completions[1 - record.choice]


def turns_of(prompt: Prompt) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def write_messages(turns: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def read_messages(value: Any, key: str) -> tuple[Message, ...]:
    turns = []
    for item in listed(value, key):
        if not isinstance(item, dict) or not filled(item).keys() >= {"role", "content"}:
            fix = 'write {"role": "user", "content": "..."}'
            raise UserError(f"{key} holds {short(item)}, not a message with role and content", fix=fix)
        role, content = whole_text(item["role"], "role"), whole_text(item["content"], "content")
        turns.append(built(Message, role=role, content=content))
    return tuple(turns)


def read_prompt(row: Row) -> Prompt:
    """The key "prompt", text or messages. UserError when it is missing, empty or neither."""
    need(row, "prompt")
    value = row["prompt"]
    prompt = read_messages(value, "prompt") if isinstance(value, list) else whole_text(value, "prompt")
    if not prompt:
        raise UserError("prompt is empty", fix=CORRECT)
    return prompt


def filled(row: Row) -> dict[str, Any]:
    """Without null values: a table writes null where a row has no such key."""
    return {key: value for key, value in row.items() if value is not None}


def need(row: Row, *keys: str) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        raise UserError(f"lacks {' and '.join(missing)} ({keys_of(row)})", fix=f"known shapes: {SHAPES}")


def keys_of(row: Row) -> str:
    return f"its keys: {short(', '.join(map(str, row)))}" if row else "it has no keys"


def whole_text(value: Any, key: str) -> str:
    """The value under the key. UserError where it is no text, or holds half a character, which no file could take."""
    if not isinstance(value, str):
        raise UserError(f"{key} is {type(value).__name__}, not text", fix=CORRECT)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start].encode("unicode_escape").decode()
        raise UserError(f"{key} holds half a character ({half})", fix="write the whole character") from None
    return value


def read_rater(row: Row) -> str | None:
    return whole_text(row["rater"], "rater") if "rater" in row else None


def listed(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{key} is {type(value).__name__}, not a list", fix=CORRECT)
    return value


def built(cls: Callable[..., T], **fields: Any) -> T:
    """The record, or a UserError with what the record's own checks say."""
    try:
        return cls(**fields)
    except ValueError as error:
        raise UserError(short(error), fix=CORRECT) from None


def short(value: object) -> str:
    text = str(value) if isinstance(value, str | Exception) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
