"""Every shape in and out, round trips, what a format cannot hold, and the real data."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from plaudit.data.dialects import DECODERS
from plaudit.data.formats import from_json, read_prompts, read_records, write_records
from plaudit.types import (
    Demonstration,
    Message,
    Preference,
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


def read_rows(tmp_path: Path, *rows: Any, format: str = "auto") -> list[Record]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(path, format)


def say(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def test_no_torch_is_imported() -> None:
    code = "import plaudit.data.formats, sys; print([m for m in ('torch', 'datasets', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Shapes in: hand-written rows, and the records that they mean.

PANDALM = {"instruction": "Add.", "input": "1 + 1", "response1": "2", "response2": "3", "annotator1": 1}
SHAPES: list[tuple[dict[str, Any], Record]] = [
    ({"prompt": "p", "completion": "c"}, Demonstration("p", "c")),
    ({"prompt": MESSAGES, "completion": "c"}, Demonstration(DIALOGUE, "c")),
    ({"prompt": "p", "completion": "c", "rater": "r"}, Demonstration("p", "c", "r")),
    ({"prompt": "p", "completions": ["a", "b"], "choice": 1}, Preference("p", ("a", "b"), 1)),
    (
        {
            "prompt": "p",
            "completions": ["a", ""],
            "choice": "both_bad",
            "strength": 4,
            "presented": [1, 0],
            "rater": "r",
        },
        Preference("p", ("a", ""), "both_bad", 4, (1, 0), "r"),
    ),
    (
        {"prompt": "p", "completions": ["a", "b"], "choice": "0", "strength": None},
        Preference("p", ("a", "b"), 0),
    ),
    (
        {"prompt": "p", "completions": ["a", "b", "c"], "ranking": [2, 0, 1], "rater": "r"},
        Ranking("p", ("a", "b", "c"), (2, 0, 1), "r"),
    ),
    (
        {"prompt": "p", "completion": "c", "scores": {"overall": 0.8, "style": 1, "no": None}, "rater": "r"},
        Rating("p", "c", {"overall": 0.8, "style": 1.0}, "r"),
    ),
    # TRL
    ({"prompt": "p", "chosen": "a", "rejected": "b"}, Preference("p", ("a", "b"), 0)),
    (
        {"prompt": "p", "chosen": "a", "rejected": "b", "rater": "r"},
        Preference("p", ("a", "b"), 0, rater="r"),
    ),
    ({"chosen": "p a", "rejected": "p b", "rater": "r"}, Preference("p", (" a", " b"), 0, rater="r")),
    ({"messages": [*MESSAGES, say("c")], "rater": "r"}, Demonstration(DIALOGUE, "c", "r")),
    (
        {"prompt": "p", "completion": "c", "label": True, "rater": "r"},
        Rating("p", "c", {"overall": 1.0}, "r"),
    ),
    (
        {"prompt": MESSAGES, "chosen": [say("a")], "rejected": [say("b")]},
        Preference(DIALOGUE, ("a", "b"), 0),
    ),
    (
        {"chosen": [*MESSAGES, say("a")], "rejected": [*MESSAGES, say("b")]},
        Preference(DIALOGUE, ("a", "b"), 0),
    ),
    (
        {"prompt": MESSAGES, "chosen": [*MESSAGES, say("a")], "rejected": [*MESSAGES, say("b")]},
        Preference(DIALOGUE, ("a", "b"), 0),
    ),
    (
        {"prompt": MESSAGES[:1], "chosen": [*MESSAGES[1:], say("a")], "rejected": [*MESSAGES[1:], say("b")]},
        Preference(DIALOGUE, ("a", "b"), 0),
    ),
    # UltraFeedback binarised, whose messages are the chosen dialogue once more
    (
        {
            "prompt": "Hi",
            "chosen": [say("Hi", "user"), say("a")],
            "rejected": [say("Hi", "user"), say("b")],
            "messages": [say("Hi", "user"), say("a")],
        },
        Preference((Message("user", "Hi"),), ("a", "b"), 0),
    ),
    (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        Preference("The sky is", (" blue.", " black."), 0),
    ),
    (
        {"chosen": "The sky is", "rejected": "The skyline ends"},
        Preference("The", (" sky is", " skyline ends"), 0),
    ),
    ({"chosen": "天空是蓝色", "rejected": "天空是黑色"}, Preference("天空是", ("蓝色", "黑色"), 0)),
    ({"prompt": MESSAGES, "completion": [say("c")]}, Demonstration(DIALOGUE, "c")),
    ({"messages": [*MESSAGES, say("c")]}, Demonstration(DIALOGUE, "c")),
    ({"prompt": "p", "completion": "c", "label": True}, Rating("p", "c", {"overall": 1.0})),
    ({"prompt": MESSAGES, "completion": [say("c")], "label": False}, Rating(DIALOGUE, "c", {"overall": 0.0})),
    (
        {"prompt": "p", "chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"},
        Preference("p", ("\n\nAssistant: a", "\n\nAssistant: b"), 0),
    ),
    # HH-RLHF
    (
        {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b", "rater": "r"},
        Preference((Message("user", "p"),), ("a", "b"), 0, rater="r"),
    ),
    (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: a",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: b\n\nc",
        },
        Preference(DIALOGUE, ("a", "b\n\nc"), 0),
    ),
    (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: ",
            "rejected": "\n\nHuman: Hi\n\nAssistant: No\n\nAssistant: b",
        },
        Preference((Message("user", "Hi"),), ("", "No\n\nAssistant: b"), 0),
    ),
    (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: No\n\nAssistant: b",
            "rejected": "\n\nHuman: Hi\n\nAssistant: a",
        },
        Preference((Message("user", "Hi"),), ("No\n\nAssistant: b", "a"), 0),
    ),
    # PandaLM, also where a table program took an answer for a value
    (PANDALM | {"response2": True}, Preference("Add.\n\n1 + 1", ("2", "True"), 0, rater="annotator1")),
    (PANDALM, Preference("Add.\n\n1 + 1", ("2", "3"), 0, rater="annotator1")),
    (PANDALM | {"input": " \n"}, Preference("Add.", ("2", "3"), 0, rater="annotator1")),
]


@pytest.mark.parametrize(("row", "record"), SHAPES)
def test_each_shape_means_its_record(tmp_path: Path, row: dict[str, Any], record: Record) -> None:
    assert read_rows(tmp_path, row) == [record]


def test_every_example_of_the_document_is_a_record() -> None:
    text = (Path(__file__).parents[2] / "docs" / "records.md").read_text(encoding="utf-8")
    lines = [line for block in text.split("```json\n")[1:] for line in block.partition("```")[0].splitlines()]
    assert len(lines) == 13
    for line in lines:
        assert DECODERS["auto"](json.loads(line))


def test_a_row_of_pandalm_is_one_preference_for_each_annotator(tmp_path: Path) -> None:
    row = PANDALM | {"annotator1": 0, "annotator2": 1, "annotator3": 2, "annotator10": None}
    records = read_rows(tmp_path, row, format="pandalm")
    assert [(r.rater, r.choice) for r in records if isinstance(r, Preference)] == [
        ("annotator1", "tie"),
        ("annotator2", 0),
        ("annotator3", 1),
    ]


FAULTS: list[tuple[Any, str]] = [
    ({}, "has no known shape (it has no keys); known shapes: prompt + completion,"),
    ({"prompt": "p", "answer": "a"}, "has no known shape (its keys: prompt, answer); known shapes"),
    ({"prompt": "p", "chosen": "a"}, "lacks rejected (its keys: prompt, chosen)"),
    ({"completion": "a", "scores": {"overall": 1}}, "lacks prompt"),
    ([1], "is list, not an object"),
    ({"prompt": 3, "completion": "c"}, "prompt is int, not text"),
    ({"prompt": "", "completion": "c"}, "prompt is empty"),
    ({"prompt": [], "completion": "c"}, "prompt is empty"),
    ({"prompt": "p", "completion": ""}, "completion is empty"),
    ({"prompt": "p\ud83d", "completion": "c"}, r"prompt holds half a character (\ud83d)"),
    ({"prompt": ["p"], "completion": "c"}, "prompt holds p, not a message with role and content"),
    ({"prompt": [say("p", "human")], "completion": "c"}, "role is 'human', not one of system, user"),
    ({"prompt": "p", "completions": ["a", "b"], "choice": 2}, "choice is 2, not 0, 1,"),
    ({"prompt": "p", "completions": ["a", "b"], "choice": 1.0}, "choice is 1.0, not 0, 1,"),
    ({"prompt": "p", "completions": ["a", "b"], "choice": True}, "choice is True, not 0, 1,"),
    ({"prompt": "p", "completions": ["a"], "choice": 0}, "completions must be two texts"),
    ({"prompt": "p", "completions": "ab", "choice": 0}, "completions is str, not a list"),
    ({"prompt": "p", "completions": ["a", 1], "choice": 0}, "completions is int, not text"),
    ({"prompt": "p", "completions": ["a", "b"]}, "needs either choice or ranking"),
    ({"prompt": "p", "completions": ["a", "b"], "choice": 0, "strength": 5}, "strength is 5, not 1 to 4"),
    ({"prompt": "p", "completions": ["a", "b"], "choice": 0, "presented": [0]}, "presented is (0,)"),
    ({"prompt": "p", "completions": ["a", "b"], "choice": 0, "rater": 7}, "rater is int, not text"),
    (
        {"prompt": "p", "completions": ["a", "b", "c"], "ranking": [0, 2]},
        "does not name each of 3 completions",
    ),
    ({"prompt": "p", "completions": ["a", "b"], "ranking": [0, "1"]}, "does not name each of 2 completions"),
    ({"prompt": "p", "completion": "c", "scores": {"overall": 1.5}}, "score of 'overall' is 1.5, not within"),
    ({"prompt": "p", "completion": "c", "scores": {"overall": float("nan")}}, "is nan, not within 0 to 1"),
    ({"prompt": "p", "completion": "c", "scores": 1}, "scores is int, not an object"),
    ({"prompt": "p", "completion": "c", "label": 1}, "label is 1, not true or false"),
    ({"chosen": "a", "rejected": "b"}, "share no beginning"),
    (
        {"chosen": [say("a")], "rejected": [say("b")]},
        "chosen holds no message before the answer; add the key",
    ),
    ({"prompt": "p", "chosen": [], "rejected": []}, "chosen does not end in an assistant message"),
    (
        {"chosen": [*MESSAGES, say("a")], "rejected": [MESSAGES[0], say("b")]},
        "differ before their last message",
    ),
    (
        {"prompt": "x", "chosen": [MESSAGES[0], say("a")], "rejected": "b"},
        "do not go with the text of prompt",
    ),
    ({"messages": MESSAGES}, "messages does not end in an assistant message"),
    ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "share no dialogue before an assistant turn"),
    ({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "prompt is empty"),
    (PANDALM | {"annotator2": 3}, "annotator2 is 3, not 0 (tie), 1 or 2"),
    (PANDALM | {"annotator1": True}, "annotator1 is True, not 0 (tie), 1 or 2"),
    (PANDALM | {"annotator1": None}, "lacks annotator1"),
]


@pytest.mark.parametrize(("row", "message"), FAULTS)
def test_each_fault_is_named_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path, {"prompt": "p", "completion": "c"}, row)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'rows.jsonl'}:2: ")
    assert message in line
    assert caught.value.fix
    assert "\n" not in line
    assert len(line) < 700


def test_a_huge_value_does_not_flood_the_message(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path, {"prompt": "p", "completions": ["a", "b"], "choice": "x" * 10**6})
    assert len(str(caught.value)) < 500


def test_an_asked_format_reads_that_shape_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks chosen and rejected"):
        read_rows(tmp_path, {"prompt": "p", "completion": "c"}, format="hh-rlhf")
    with pytest.raises(UserError, match=r"unknown format 'hhrlhf'; did you mean 'hh-rlhf'\?"):
        read_rows(tmp_path, {"prompt": "p", "completion": "c"}, format="hhrlhf")
    with pytest.raises(UserError, match=r"known: plaudit, trl, .*, hh-rlhf, .*, label-studio$"):
        write_records([], tmp_path / "x.jsonl", "zzzzz")


def test_from_json_takes_our_shape_only() -> None:
    assert from_json({"prompt": "p", "completion": "c", "extra": 1}) == Demonstration("p", "c")
    with pytest.raises(UserError, match=r"^lacks completion \(its keys: prompt, chosen, rejected\)"):
        from_json({"prompt": "p", "chosen": "a", "rejected": "b"})
    with pytest.raises(UserError, match="is str, not an object"):
        from_json("p")


# Prompts.


def test_prompts_are_chosen_by_other_keys(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a", "split": "train"}\n{"prompt": "b", "split": "test"}\n'
        '{"prompt": [{"role": "user", "content": "c"}], "split": "train", "completion": 3}\n'
    )
    assert read_prompts(path) == ["a", "b", (Message("user", "c"),)]
    assert read_prompts(path, {"split": "train"}) == ["a", (Message("user", "c"),)]
    with pytest.raises(UserError, match="holds no prompts with split = 'dev'"):
        read_prompts(path, {"split": "dev"})
    path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:2: lacks prompt \(its keys: text\)"):
        read_prompts(path)


def test_prompts_of_plain_text_are_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\r\n\r\n two\u2028half \n\nthree".encode())
    assert read_prompts(path) == ["one", " two\u2028half ", "three"]
    with pytest.raises(UserError, match="plain text, which has no keys"):
        read_prompts(path, {"split": "train"})
    path.write_text("\n\n")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(path)


# Data that people outside the project made.


def test_hh_harmless_is_read_and_written_back(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "hh_harmless" / "pairs.jsonl.gz"
    pairs = [record for record in read_records(source) if isinstance(record, Preference)]
    assert len(pairs) == 1800
    assert all(isinstance(pair.prompt, tuple) and pair.prompt[-1].role == "user" for pair in pairs)
    assert all(pair.choice == 0 and pair.completions[0] != pair.completions[1] for pair in pairs)
    assert write_records(pairs, tmp_path / "back.jsonl.gz", "hh-rlhf") == 0
    backs, originals = (gzip.decompress(path.read_bytes()) for path in (tmp_path / "back.jsonl.gz", source))
    assert list(map(json.loads, backs.splitlines())) == list(map(json.loads, originals.splitlines()))
    for name in ("back.csv", "ours.csv"):
        write_records(pairs, tmp_path / name, "hh-rlhf" if name == "back.csv" else "plaudit")
        assert read_records(tmp_path / name) == pairs


def test_pandalm_is_three_preferences_a_row(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "pandalm_3raters" / "testset-v1.json"
    records = [record for record in read_records(source) if isinstance(record, Preference)]
    assert len(records) == 2997
    assert Counter(record.rater for record in records) == {f"annotator{n}": 999 for n in (1, 2, 3)}
    assert Counter(record.choice for record in records) == {"tie": 326, 0: 1255, 1: 1416}
    assert len({record.prompt for record in records}) == 170
    assert write_records(records, tmp_path / "p.jsonl", "trl", skip_unrepresentable=True) == 326
    assert len(read_records(tmp_path / "p.jsonl")) == 2997 - 326
    write_records(records, tmp_path / "p.csv")
    assert read_records(tmp_path / "p.csv") == records
