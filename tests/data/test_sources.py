"""Files and datasets, whole and broken: what is read, and what the one line of the error says."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from plaudit.data.formats import read_prompts, read_records, write_records
from plaudit.types import Demonstration, Message, Preference, Rating, Record, UserError

LINE = b'{"prompt": "p", "completion": "c"}\n'
RECORD = Demonstration("p", "c")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINE * 2),
        ("a.JSONL", LINE * 2),
        ("a.jsonl.gz", LINE * 2),
        ("a.jsonl", b"\xef\xbb\xbf\r\n" + LINE.replace(b"\n", b"\r\n") + b"  \n\n" + LINE.strip()),
        ("a.json", b"[" + LINE + b",\n" + LINE + b"]"),
        ("a.json", b"\xef\xbb\xbf \n[" + LINE + b"," + LINE + b"]"),
        ("a.json", LINE * 2),
        ("a.csv", b"prompt,completion\np,c\np,c\n"),
        ("a.csv", b'\xef\xbb\xbf"prompt", completion,note\r\np,c,\r\n\r\np,c,n'),
        ("a.csv.gz", b"prompt,completion\np,c\np,c\n"),
        ("a.csv", b"prompt,completion\rp,c\rp,c\r"),
    ],
)
def test_files_that_say_the_same(tmp_path: Path, name: str, data: bytes) -> None:
    assert read_records(write(tmp_path / name, data)) == [RECORD, RECORD]
    assert read_records(str(tmp_path / name)) == [RECORD, RECORD]


def test_no_character_but_the_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0bd\x1ce"
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({"prompt": text, "completion": text}, ensure_ascii=False).encode())
    assert read_records(path) == [Demonstration(text, text)]


def test_very_long_lines_and_cells(tmp_path: Path) -> None:
    record = Demonstration("x" * 3_000_000, "y" * 2_000_000)
    for name in ("a.jsonl", "a.csv"):
        write_records([record], tmp_path / name)
        assert read_records(tmp_path / name) == [record]


FAULTS = [
    (
        "a.jsonl",
        LINE + b"\n" + b'{"prompt": }\n',
        ":3: is not JSON (Expecting value, column 12); put one JSON object",
    ),
    ("a.jsonl", LINE + LINE + b"{'prompt': 1}\n", ":3: is not JSON"),
    ("a.jsonl", b"[" + LINE.strip() + b"]", ":1: is list, not an object"),
    ("a.jsonl", LINE + b'{"prompt": "\xff"}\n', ":2: is not UTF-8 text; save it as UTF-8"),
    ("a.jsonl", LINE.decode().encode("utf-16"), ":1: is not UTF-8 text"),
    ("a.jsonl", b"[" * 200_000, ":1: is JSON nested too deep"),
    ("a.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}", ":1: holds a number too long to read"),
    (
        "a.jsonl",
        LINE + b'{"prompt": "p", "completion": "c", "scores": {"a": 0.1, "a": 0.9}}',
        ":2: has the key 'a' twice in one object; leave one of the two out",
    ),
    ("a.jsonl", b'{"prompt": "p", "completion": "c", "prompt": "p"}', ":1: has the key 'prompt' twice"),
    ("a.json", b'[{"prompt": "p", "completion": "c", "x": [{"y": 1, "y": 2}]}]', ": has the key 'y' twice"),
    (
        "a.csv",
        b'prompt,completion,scores\np,c,"{""a"": 0.1, ""a"": 0.9}"\n',
        ": row 1: has the key 'a' twice in one object",
    ),
    (
        "a.csv",
        b'prompt,completion\n"[{""role"": ""user"", ""role"": ""system"", ""content"": ""p""}]",c\n',
        ": row 1: has the key 'role' twice in one object",
    ),
    (
        "a.jsonl",
        LINE + b'{"prompt": "p", "completion": "c", "rater": ""}',
        ":2: rater is empty, not a name; correct the record or leave it out",
    ),
    ("a.jsonl", b'{"prompt": "p", "chosen": "a", "rejected": "b", "rater": ""}', ":1: rater is empty"),
    (
        "a.jsonl",
        b'{"prompt": "p", "completion": "c", "scores": {"": 0.5}}',
        ":1: scores hold a criterion without a name",
    ),
    ("a.jsonl", b"", ": holds no records"),
    ("a.jsonl", b"\xef\xbb\xbf\r\n \n", ": holds no records"),
    ("a.json", b"", ": holds no records"),
    ("a.json", b"[]", ": holds no records"),
    ("a.json", b'[{"prompt": "p",\n "completion" "c"}]', ":2: is not JSON"),
    ("a.json", b"[" + LINE + b', {"prompt": "p"}]', ": row 2: has no known shape (its keys: prompt)"),
    ("a.json", b"[3]", ": row 1: is int, not an object"),
    ("a.csv", b"", ": holds no records"),
    ("a.csv", b"prompt,completion\n", ": holds no records"),
    ("a.csv", b"prompt,completion\np,c\np,c,d\n", ": row 2: has 3 cells where the header has 2; quote"),
    ("a.csv", b"prompt,prompt\np,c\n", ": has two columns named 'prompt'; rename one"),
    ("a.csv", b'prompt,completion\np,"c"d\n', ": row 1: is not CSV"),
    ("a.csv", b'prompt,completion\np,c\np,"c\n', ": row 2: is not CSV"),
    ("a.csv", b"prompt;completion\np;c\n", ": row 1: has no known shape (its keys: prompt;completion)"),
    (
        "a.csv",
        b"prompt,completion\n[{'role': 'user'}],c\n",
        ": row 1: prompt begins like messages but is not JSON",
    ),
    ("a.csv", b'prompt,completions,choice\np,"a, b",0\n', ": row 1: completions is str, not a list"),
    ("a.csv", b"prompt,completion,label\np,c,1\n", ": row 1: label is 1, not true or false"),
    ("a.csv.gz", gzip.compress(LINE, mtime=0)[:-9], ": is not gzip, or is cut short"),
    ("a.jsonl.gz", LINE, ": is not gzip"),
    ("a.jsonl.gz", gzip.compress(LINE, mtime=0)[:10] + b"\xff" * 40, ": is not gzip"),
    ("a.txt", LINE, ": is of no known kind (.txt); name it by what it holds: .jsonl"),
    ("a", LINE, ": is of no known kind (its name has no ending)"),
]


@pytest.mark.parametrize(("name", "data", "message"), FAULTS)
def test_each_fault_of_a_file_is_named_with_its_place(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert caught.value.fix


def test_what_is_not_there_or_not_readable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: there is no such file; check the path"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="there is no such file"):
        read_records("none.jsonl")
    for source in ("", "a b", "\0.jsonl", "../x/y", "x" * 5000 + ".jsonl", Path("owner/name")):
        with pytest.raises(UserError, match="there is no such file"):
            read_records(source)
    with pytest.raises(UserError, match=r"is a directory but no dataset .*; name a file in it"):
        read_records(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(UserError, match="single file without splits"):
        read_records(write(tmp_path / "a.jsonl", LINE), split="train")


# CSV cells.


def test_no_text_becomes_a_formula(tmp_path: Path) -> None:
    texts = [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\tx",
        "\rx",
        "\n=x",
        "＝1",
        "＋1",
        "－1",
        "＠x",
        "'=x",
        "''",
        "'",
        "[{",
        "'[ {",
        "it's",
        "1-1",
    ]
    records: list[Record] = [Rating(text, text, {"overall": 1.0}, text) for text in texts]
    path = tmp_path / "a.csv"
    write_records(records, path)
    with path.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert "'=1+1" in cells
    assert "it's" in cells
    assert read_records(path) == records


def test_cells_of_other_programs(tmp_path: Path) -> None:
    data = (
        "prompt,completion,label,completions,choice,chosen,rejected,rater\n"
        "- a list,007,True,,,,,\n"
        '"[{""role"": ""user"", ""content"": ""p""}]",null,False,,,,,\n'
        '"""p""",,,"[""a"", ""b""]",tie,,,7\n'
        "[not json,,,,,a,,\n"
    )
    assert read_records(write(tmp_path / "a.csv", data.encode())) == [
        Rating("- a list", "007", {"overall": 1.0}),
        Rating((Message("user", "p"),), "null", {"overall": 0.0}),
        Preference('"p"', ("a", "b"), "tie", rater="7"),
        Preference("[not json", ("a", ""), 0),
    ]


def test_a_blank_cell_and_null_are_no_rater(tmp_path: Path) -> None:
    assert read_records(write(tmp_path / "a.csv", b"prompt,completion,rater\np,c,\n")) == [RECORD]
    assert read_records(write(tmp_path / "a.jsonl", LINE.replace(b"}", b', "rater": null}'))) == [RECORD]


def test_blank_answers_of_pandalm_in_csv(tmp_path: Path) -> None:
    data = b"instruction,input,response1,response2,annotator1,annotator2\ni,,,b,2,\n"
    assert read_records(write(tmp_path / "a.csv", data)) == [
        Preference("i", ("", "b"), 1, rater="annotator1")
    ]


# Whatever the bytes, nothing but a UserError.

quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = ("a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.txt")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner)
    ),
    max_leaves=6,
)
KEYS = [
    "prompt",
    "completion",
    "completions",
    "choice",
    "ranking",
    "scores",
    "label",
    "chosen",
    "rejected",
    "rater",
]
KEYS += ["messages", "strength", "presented", "instruction", "input", "response1", "response2", "annotator1"]


def reads_or_says_why(path: Path) -> None:
    for read in (read_records, read_prompts):
        with contextlib.suppress(UserError):
            assert read(path)


@quick
@given(data=st.binary(max_size=200), name=st.sampled_from(NAMES), packed=st.booleans())
@example(data=b'"', name="a.csv", packed=False)
@example(data=b"\x00,\r\r\n\x00", name="a.csv", packed=False)
def test_any_bytes(tmp_path: Path, data: bytes, name: str, packed: bool) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    reads_or_says_why(path)


@quick
@given(rows=st.lists(st.dictionaries(st.sampled_from(KEYS), values, max_size=8) | values, max_size=3))
def test_any_json(tmp_path: Path, rows: list[Any]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    reads_or_says_why(path)


@quick
@given(table=st.lists(st.lists(st.text(max_size=6), min_size=3, max_size=3), max_size=3), data=st.data())
def test_any_csv(tmp_path: Path, table: list[list[str]], data: st.DataObject) -> None:
    path = tmp_path / "a.csv"
    header = data.draw(st.lists(st.sampled_from(KEYS), min_size=3, max_size=3, unique=True))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *table])
    reads_or_says_why(path)


# Datasets.

ROWS = [
    {"prompt": "p", "completion": None, "completions": ["a", "b"], "choice": "0", "scores": None},
    {"prompt": "p", "completion": None, "completions": ["a", "b"], "choice": "tie", "scores": None},
    {"prompt": "p", "completion": "c", "completions": None, "choice": None, "scores": {"x": 0.5, "y": None}},
    {"prompt": "p", "completion": "c", "completions": None, "choice": None, "scores": {"x": None, "y": 1.0}},
]
RECORDS = [
    Preference("p", ("a", "b"), 0),
    Preference("p", ("a", "b"), "tie"),
    Rating("p", "c", {"x": 0.5}),
    Rating("p", "c", {"y": 1.0}),
]


@pytest.fixture
def dataset() -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_list(ROWS)


def test_saved_datasets(tmp_path: Path, dataset: Any) -> None:
    import datasets

    dataset.save_to_disk(tmp_path / "one")
    assert read_records(tmp_path / "one") == RECORDS
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(tmp_path / "two")
    assert read_records(tmp_path / "two") == RECORDS
    assert read_records(str(tmp_path / "two"), split="test") == RECORDS[:1]
    with pytest.raises(UserError, match="two: has no split 'dev'; choose one of: train, test"):
        read_records(tmp_path / "two", split="dev")
    datasets.DatasetDict({"only": dataset}).save_to_disk(tmp_path / "only")
    assert read_records(tmp_path / "only") == RECORDS
    with pytest.raises(UserError, match="one: has no split 'dev'"):
        read_records(tmp_path / "one", split="dev")


def test_parquet(tmp_path: Path, dataset: Any) -> None:
    (tmp_path / "all" / "data").mkdir(parents=True)
    dataset.to_parquet(tmp_path / "all" / "data" / "train-00000-of-00001.parquet")
    dataset.select([1]).to_parquet(tmp_path / "all" / "data" / "test-00000-of-00001.parquet")
    assert read_records(tmp_path / "all") == RECORDS
    assert read_records(tmp_path / "all", split="test") == RECORDS[1:2]
    assert read_records(tmp_path / "all" / "data" / "train-00000-of-00001.parquet") == RECORDS
    write(tmp_path / "all" / "data" / "train-00000-of-00001.parquet", b"PAR1 no more")
    with pytest.raises(UserError, match=r"all: cannot be loaded .*; check that it is whole"):
        read_records(tmp_path / "all")


def test_a_fault_in_a_dataset_is_named_by_its_row(tmp_path: Path) -> None:
    import datasets

    bad = [
        {"messages": [{"role": "user", "content": "p"}, {"role": role, "content": "c"}]}
        for role in ("assistant", "x")
    ]
    datasets.Dataset.from_list(bad).save_to_disk(tmp_path / "bad")
    with pytest.raises(UserError, match=r"bad: row 2: role is 'x', not one of system"):
        read_records(tmp_path / "bad")
    (tmp_path / "bad" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match="bad: cannot be loaded"):
        read_records(tmp_path / "bad")


def test_a_hub_name_is_loaded_as_it_is(monkeypatch: pytest.MonkeyPatch, dataset: Any) -> None:
    import datasets

    calls: list[tuple[Any, ...]] = []

    def load(*names: Any, **options: Any) -> Any:
        calls.append((names, options))
        return datasets.DatasetDict({"train": dataset, "test": dataset.select([3])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_records("owner/some-name_1.0", split="test") == RECORDS[3:]
    assert calls == [(("owner/some-name_1.0",), {})]


def test_a_hub_name_without_a_network(tmp_path: Path) -> None:
    code = (
        "from plaudit.data.formats import read_records; from plaudit.types import UserError\n"
        "try: read_records('owner/name')\n"
        "except UserError as error: print(error)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.startswith(
        "owner/name: is no file here, and the hub did not give a dataset of this name ("
    )
    assert "check the name, the network" in done.stdout
    assert done.stdout.count("\n") == 1
