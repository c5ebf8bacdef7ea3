"""What is written reads back: every record in every format that can hold it, and what a format cannot hold."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit.data.formats import from_json, read_records, to_json, write_records
from plaudit.types import (
    ROLES,
    Demonstration,
    Message,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Record,
    UserError,
)

DIALOGUE = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
MESSAGES = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
]


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


plain = st.text(max_size=12) | st.sampled_from(
    [
        "=1+1",
        "'=1",
        "''",
        "-x",
        "@a",
        "\tb",
        "\rc",
        "+",
        '"q"',
        "[{",
        "'[ {",
        "[1]",
        "123",
        "null",
        "true",
        "\x00",
        "a\r\nb",
        "\u2028",
        "\n\nHuman: x",
        "\n\nAssistant:",
        " x ",
        "\ufeff",
        "\x85",
        'a,"b"',
        "🙂",
        "{}",
        "0",
        "'",
    ]
)
some = plain.filter(bool)
prompts: st.SearchStrategy[Prompt] = some | st.lists(
    st.builds(Message, st.sampled_from(ROLES), plain), min_size=1, max_size=4
).map(tuple)
dialogues = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant"]), plain), min_size=1, max_size=4
).map(tuple)
raters = st.none() | some
demonstrations = st.builds(Demonstration, prompts, some, raters)
ratings = st.builds(
    Rating, prompts, plain, st.dictionaries(some, st.floats(0, 1), min_size=1, max_size=3), raters
)
rankings = st.lists(plain, min_size=2, max_size=4).flatmap(
    lambda texts: st.builds(
        Ranking, prompts, st.just(tuple(texts)), st.permutations(range(len(texts))).map(tuple), raters
    )
)
preferences = st.builds(
    Preference,
    prompts | dialogues,
    st.tuples(plain, plain),
    st.sampled_from([0, 1, "tie", "both_bad"]),
    st.none() | st.integers(1, 4),
    st.sampled_from([None, (0, 1), (1, 0)]),
    raters,
)
records = demonstrations | ratings | rankings | preferences
many = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ENDINGS = (".jsonl", ".jsonl.gz", ".csv")


@many
@given(record=records)
def test_json_round_trip(record: Record) -> None:
    assert from_json(json.loads(json.dumps(to_json(record)))) == record


@many
@given(written=st.lists(records, min_size=1, max_size=4), ending=st.sampled_from(ENDINGS))
def test_files_of_ours_hold_every_record(tmp_path: Path, written: list[Record], ending: str) -> None:
    path = tmp_path / f"records{ending}"
    assert write_records(written, path) == 0
    assert read_records(path) == written
    assert read_records(path, "plaudit") == written


def in_trl(record: Record) -> list[Record]:
    """What TRL holds of a record, by the document."""
    if isinstance(record, Preference) and record.choice in (0, 1):
        a, b = record.completions if record.choice == 0 else reversed(record.completions)
        return [Preference(record.prompt, (a, b), 0)]
    if isinstance(record, Ranking):
        texts = [record.completions[i] for i in record.ranking]
        return [Preference(record.prompt, (a, b), 0) for i, a in enumerate(texts) for b in texts[i + 1 :]]
    if isinstance(record, Rating) and record.scores in ({"overall": 0.0}, {"overall": 1.0}):
        return [Rating(record.prompt, record.completion, record.scores)]
    return [Demonstration(record.prompt, record.completion)] if isinstance(record, Demonstration) else []


labelled = st.builds(Rating, prompts, plain, st.sampled_from([{"overall": 0.0}, {"overall": 1.0}]), raters)


@many
@given(written=st.lists(records | labelled, min_size=1, max_size=4), ending=st.sampled_from(ENDINGS))
def test_trl_holds_sides_demonstrations_and_labels(
    tmp_path: Path, written: list[Record], ending: str
) -> None:
    path = tmp_path / f"records{ending}"
    expected = [kept for record in written for kept in in_trl(record)]
    refused = sum(not in_trl(record) for record in written)
    assert write_records(written, path, "trl", skip_unrepresentable=True) == refused
    if expected:
        assert read_records(path) == expected
        assert read_records(path, "trl") == expected


@many
@given(
    prompt=dialogues,
    texts=st.tuples(plain, plain),
    choice=st.sampled_from([0, 1]),
    ending=st.sampled_from(ENDINGS),
)
def test_hh_holds_dialogues_or_says_why_not(
    tmp_path: Path, prompt: tuple[Message, ...], texts: tuple[str, str], choice: Any, ending: str
) -> None:
    path = tmp_path / f"records{ending}"
    record = Preference(prompt, texts, choice)
    if write_records([record], path, "hh-rlhf", skip_unrepresentable=True):
        said = [*(message.content for message in prompt), *texts]
        assert any(mark in text for text in said for mark in ("\n\nHuman:", "\n\nAssistant:"))
    else:
        assert read_records(path) == [Preference(prompt, (texts[choice], texts[1 - choice]), 0)]
        assert read_records(path, "hh-rlhf") == read_records(path)


def test_hh_keeps_a_text_prompt_as_one_user_message(tmp_path: Path) -> None:
    write_records([Preference("p", ("a", "b"), 1)], tmp_path / "x.jsonl", "hh-rlhf")
    row = json.loads((tmp_path / "x.jsonl").read_text())
    assert row == {"chosen": "\n\nHuman: p\n\nAssistant: b", "rejected": "\n\nHuman: p\n\nAssistant: a"}
    assert read_records(tmp_path / "x.jsonl") == [Preference((Message("user", "p"),), ("b", "a"), 0)]


def test_trl_rows_are_what_trl_documents(tmp_path: Path) -> None:
    write_records(
        [
            Preference("p", ("a", "b"), 1),
            Preference(DIALOGUE, ("a", "b"), 0),
            Demonstration(DIALOGUE, "c"),
            Rating("p", "c", {"overall": 1.0}),
        ],
        tmp_path / "x.jsonl",
        "trl",
    )
    assert [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()] == [
        {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": MESSAGES, "chosen": [say("a")], "rejected": [say("b")]},
        {"prompt": MESSAGES, "completion": [say("c")]},
        {"prompt": "p", "completion": "c", "label": True},
    ]


@pytest.mark.parametrize(
    ("record", "format", "why"),
    [
        (Preference("p", ("a", "b"), "tie"), "trl", 'is a preference without a better side ("tie")'),
        (Preference("p", ("a", "b"), "both_bad"), "hh-rlhf", 'without a better side ("both_bad")'),
        (Ranking((Message("system", "s"),), ("a", "b"), (0, 1)), "hh-rlhf", "holds a system message"),
        (Demonstration("p", "c"), "hh-rlhf", "is a demonstration, which hh-rlhf cannot hold"),
        (Rating("p", "c", {"overall": 0.5}), "trl", "is a rating other than overall 0 or 1"),
        (Rating("p", "c", {"style": 1.0}), "trl", "is a rating other than overall 0 or 1"),
        (Preference((Message("system", "s"),), ("a", "b"), 0), "hh-rlhf", "holds a system message"),
        (Preference("p\n\nAssistant: x", ("a", "b"), 0), "hh-rlhf", "would read back differently"),
        (Demonstration("p\udc00", "c"), "plaudit", r"prompt holds half a character (\udc00)"),
    ],
)
def test_what_a_format_cannot_hold_is_named_or_counted(
    tmp_path: Path, record: Record, format: str, why: str
) -> None:
    path = tmp_path / "x.jsonl"
    good = Preference("p", ("a", "b"), 0)
    with pytest.raises(UserError) as caught:
        write_records([good, record], path, format)
    assert str(caught.value).startswith(f"{path}: record 2: ")
    assert why in str(caught.value)
    assert caught.value.fix
    assert not path.exists()
    assert write_records([record, good, record], path, format, skip_unrepresentable=True) == 2
    assert len(read_records(path)) == 1


def test_writing_replaces_at_once_and_packs_alike(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.jsonl.gz"
    write_records([Demonstration("p", "c")], path)
    first = path.read_bytes()
    write_records([Demonstration("p", "c")], path)
    assert path.read_bytes() == first
    assert gzip.decompress(first) == b'{"prompt": "p", "completion": "c"}\n'
    assert [entry.name for entry in path.parent.iterdir()] == ["x.jsonl.gz"]
    with pytest.raises(UserError, match=r"has no known ending; end it in .jsonl, .jsonl.gz, .json or .csv"):
        write_records([], tmp_path / "x.txt")
    with pytest.raises(UserError, match="cannot be written"):
        write_records([], path / "below-a-file.jsonl")
