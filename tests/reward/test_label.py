"""AI feedback as records: what is asked, what is written, and a labelling that is killed half-way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from judge_server import Served, first, longest, serving
from plaudit.cli import main
from plaudit.data.formats import read_records
from plaudit.feedback.store import Store
from plaudit.feedback.transfer import import_file
from plaudit.recipes import reward_model
from plaudit.reward.label import label, read_items, swap_figures
from plaudit.reward.open import judge_of
from plaudit.types import Preference, Rating, UserError


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as here:
        yield here


def describe(place: Path, served: Served, **settings: Any) -> str:
    tree = {
        "kind": "judge",
        "model": "big",
        "base_url": served.url,
        "cache": str(place / "kept"),
        "concurrency": 2,
    }
    (place / "judge.yaml").write_text(json.dumps(tree | settings))
    return str(place / "judge.yaml")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


PAIRS: list[dict[str, Any]] = [
    {"prompt": "one", "completions": ["aa", "a"], "choice": 1, "rater": "anna"},
    {"prompt": "one", "completions": ["aa", "a"], "choice": 0, "rater": "ben"},
    {"prompt": [{"role": "user", "content": "two"}], "completions": ["b", "bb"]},
    {"prompt": "three", "completions": ["cc", "dd"]},
]


def test_preferences_with_the_judge_as_rater(served: Served, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", PAIRS), tmp_path / "out.jsonl"
    found = label(judge_of(describe(tmp_path, served, protocol="pairwise")), source, out)
    records = read_records(out)
    assert all(isinstance(record, Preference) for record in records)
    assert [(r.choice, r.rater) for r in records if isinstance(r, Preference)] == [
        (0, "judge:big"), (1, "judge:big"), ("tie", "judge:big"),
    ]  # fmt: skip
    assert [line["judge"]["places"] for line in lines(out)] == [[0, 1], [1, 0], ["tie", "tie"]]
    assert found == {
        "items": 3, "already": 0, "no_verdict": 0, "written": 3, "disagreed": 0, "ties": pytest.approx(1 / 3),
        "first_place": 0.5, "questions_asked": 6, "replies_kept": 0, "replies_refused": 0,
    }  # fmt: skip
    assert not any("anna" in question for question in served.asked), "what people said is not shown"


def test_ratings_with_a_name(served: Served, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": text} for text in ("one two", "", "one two")]
    source, out = write(tmp_path / "in.jsonl", [*rows, *PAIRS[:1]]), tmp_path / "out.jsonl"
    label(judge_of(describe(tmp_path, served, name="wise")), source, out)
    found = [record for record in read_records(out) if isinstance(record, Rating)]
    assert [(r.completion, r.scores, r.rater) for r in found] == [
        ("one two", {"overall": 0.2}, "judge:wise"), ("", {"overall": 0.0}, "judge:wise"),
        ("aa", {"overall": 0.1}, "judge:wise"), ("a", {"overall": 0.1}, "judge:wise"),
    ]  # fmt: skip


def test_single_answers_to_one_prompt_are_paired(tmp_path: Path) -> None:
    rows = [{"prompt": p, "completion": c, "index": 0} for p, c in ("pa", "pb", "qa", "pc", "pa")]
    items = list(read_items(write(tmp_path / "in.jsonl", rows), "pairwise"))
    assert [(item.prompt, item.texts) for item in items] == [
        ("p", ("a", "b")), ("p", ("a", "c")), ("p", ("b", "c")),
    ]  # fmt: skip


def test_what_the_swap_reveals_by_hand() -> None:
    """Four pairs: one won, one lost, one where the first place wins twice, one where a tie meets a win."""
    places: list[list[Any]] = [[0, 1], [1, 0], [0, 0], ["tie", 1]]
    rows = [{"choice": c, "judge": {"places": p}} for c, p in zip((0, 1, "tie", "tie"), places, strict=True)]
    assert swap_figures(rows) == {"disagreed": 0.5, "ties": 0.5, "first_place": 4 / 7}


def test_a_judge_of_places_is_found_out(served: Served, tmp_path: Path) -> None:
    served.brain = first
    source = write(tmp_path / "in.jsonl", PAIRS)
    found = label(judge_of(describe(tmp_path, served, protocol="pairwise")), source, tmp_path / "out.jsonl")
    assert (found["disagreed"], found["first_place"], found["ties"]) == (1.0, 1.0, 1.0)


SLOW = """
import sys, time
from plaudit.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_labelling_that_is_killed_keeps_what_was_answered(served: Served, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "completion": "word " * (n % 5)} for n in range(12)]
    source = write(tmp_path / "in.jsonl", rows)
    description = describe(tmp_path, served)
    label(judge_of(description), source, tmp_path / "whole.jsonl")
    once = sorted(served.asked)
    served.asked.clear()

    def brain(question: str, key: str) -> str:
        time.sleep(0.15)
        return longest(question, key)

    served.brain = brain
    description = describe(tmp_path, served, cache=str(tmp_path / "fresh"))
    out = tmp_path / "cut.jsonl"
    command = [sys.executable, "-c", SLOW, "judge", str(source), "--judge", description, "--out", str(out)]
    process = subprocess.Popen([*command, "--threads", "1"], env=os.environ | {"NO_PROXY": "127.0.0.1"})
    until = time.monotonic() + 60
    while (not out.exists() or out.read_bytes().count(b"\n") < 3) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = out.read_bytes()
    assert 3 <= done.count(b"\n") < 12
    out.write_bytes(done + b'{"prompt": "p')  # what a kill in the middle of a write leaves
    found = label(judge_of(description), source, out)
    assert 3 <= found["already"] < 12
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # Only what was on its way when the kill came may have been asked twice.
    assert len(served.asked) <= 12 + 2
    assert sorted(set(served.asked)) == once


def test_what_is_there_is_not_asked_for_again(served: Served, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", PAIRS), tmp_path / "out.jsonl"
    description = describe(tmp_path, served, protocol="pairwise")
    first_time = label(judge_of(description), source, out)
    before, asked = out.read_bytes(), len(served.asked)
    again = label(
        judge_of(describe(tmp_path, served, protocol="pairwise", cache=str(tmp_path / "other"))), source, out
    )
    assert again == first_time | {"already": 3, "questions_asked": 0}
    assert (out.read_bytes(), len(served.asked)) == (before, asked)


def test_items_without_a_verdict_are_left_out_and_counted(served: Served, tmp_path: Path) -> None:
    served.brain = lambda question, key: "Hm." if "three" in question else longest(question, key)
    source, out = write(tmp_path / "in.jsonl", PAIRS), tmp_path / "out.jsonl"
    found = label(judge_of(describe(tmp_path, served, protocol="pairwise", no_verdict="count")), source, out)
    assert (found["no_verdict"], found["written"], len(lines(out))) == (1, 2, 2)
    with pytest.raises(UserError, match="gave no verdict"):
        label(judge_of(describe(tmp_path, served, protocol="pairwise")), source, out)
    assert len(lines(out)) == 2, "what was answered stays"


def test_a_file_of_other_answers_is_not_added_to(served: Served, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", PAIRS), tmp_path / "out.jsonl"
    named = {"protocol": "pairwise", "name": "n"}
    label(judge_of(describe(tmp_path, served, **named)), source, out)
    with pytest.raises(
        UserError, match="holds answers of another judge, or to other items; choose another --out"
    ):
        label(judge_of(describe(tmp_path, served, **named, model="small")), source, out)
    with pytest.raises(UserError, match="is the input itself; choose another place"):
        label(judge_of(describe(tmp_path, served, protocol="pairwise")), source, source)
    assert source.read_text().count("\n") == 4


def test_before_the_first_answer_there_is_no_file(served: Served, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", PAIRS), tmp_path / "out.jsonl"
    silent = judge_of(describe(tmp_path, served, base_url="http://127.0.0.1:9/v1", retries=0))
    with pytest.raises(UserError, match="127"):
        label(silent, source, out)
    assert not out.exists()
    local = {"model": "tiny", "base_url": None, "cache": None}
    write(source, [{"prompt": "a cat " * 500, "completion": "b"}])
    with pytest.raises(UserError, match="tokens"):
        label(judge_of(describe(tmp_path, served, **local)), source, out)
    assert not out.exists()


def test_where_no_reply_holds_a_verdict_the_file_is_empty(served: Served, tmp_path: Path) -> None:
    served.brain = lambda *_: "Hm."
    source, out = write(tmp_path / "in.jsonl", PAIRS), tmp_path / "out.jsonl"
    label(judge_of(describe(tmp_path, served, no_verdict="count")), source, out)
    assert out.read_bytes() == b""


def test_what_it_cost_is_counted(served: Served, tmp_path: Path) -> None:
    """Two of three answers are known from before; the third has a verdict at the second asking."""
    rows = [{"prompt": "p", "completion": text} for text in ("one", "two words", "three more words")]
    description = describe(tmp_path, served, concurrency=1)
    label(judge_of(description), write(tmp_path / "in.jsonl", rows[:2]), tmp_path / "few.jsonl")
    said = iter(["Hm.", None])
    served.brain = lambda question, key: next(said) or longest(question, key)
    found = label(judge_of(description), write(tmp_path / "in.jsonl", rows), tmp_path / "all.jsonl")
    names = ("questions_asked", "replies_kept", "replies_refused", "no_verdict", "written")
    assert [found[name] for name in names] == [2, 2, 1, 0, 3]


@pytest.mark.parametrize(
    "content",
    [
        '{"precious": 1}',
        '{"prompt": "p", "completion": "mine"}',
        '[{"prompt": "p"}]',
        "a note to myself",
        '"prompt": ',
        "{\n}",
    ],
)
def test_a_file_of_others_stays_as_it_is(served: Served, tmp_path: Path, content: str) -> None:
    """The end of it, too, where no line break follows."""
    source, out = write(tmp_path / "in.jsonl", PAIRS), tmp_path / "out.jsonl"
    out.write_text(content)
    with pytest.raises(UserError, match="is there, and holds no answers of a judge; choose another --out"):
        label(judge_of(describe(tmp_path, served, protocol="pairwise")), source, out)
    assert out.read_text() == content


def test_whatever_a_kill_leaves_of_a_line_is_taken_up(served: Served, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completions": ["好的", "no"]}, {"prompt": "q", "completions": ["yes", "no"]}]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    asked = judge_of(describe(tmp_path, served, protocol="pairwise"))
    label(asked, source, out)
    whole = out.read_bytes()
    line = whole.index(b"\n")
    inside = whole.index("好".encode()) + 1
    for cut in (0, 1, 5, inside, line - 1, line, line + 1, line + 2, line + 40, len(whole) - 1):
        out.write_bytes(whole[:cut])
        label(asked, source, out)
        assert out.read_bytes() == whole, cut


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "in.jsonl: holds nothing to judge"),
        ([{"prompt": "a"}], "in.jsonl:1: "),
        ([{"prompt": "a", "completions": ["a"]}, {"completion": "b"}], "in.jsonl:2: lacks prompt"),
        (
            [{"prompt": "a", "completion": "\ud800x"}],
            r"in.jsonl:1: completion holds half a character \(.ud800",
        ),
        ([{"prompt": "a", "completions": ["b", "\ud800"]}], "in.jsonl:1: completions holds half a character"),
    ],
)
def test_an_input_at_fault_is_named(
    served: Served, tmp_path: Path, rows: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        label(
            judge_of(describe(tmp_path, served)), write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
        )
    assert not (tmp_path / "out.jsonl").exists()


def test_the_feedback_store_and_the_reward_model_take_them(served: Served, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "completions": ["yes " * (1 + n % 3), "no"]} for n in range(12)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    description = describe(tmp_path, served, protocol="pairwise")
    assert main(["judge", str(source), "--judge", description, "--out", str(out), "--threads", "1"]) == 0
    with Store.open(str(tmp_path / "f.db")) as store:
        assert import_file(store, str(out), "auto")
    config = reward_model.Config(model="tiny", data=[str(out)], precision="float64", threads=1)
    (tmp_path / "run").mkdir()
    reward_model.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "reward_model.json").exists()
    torch.set_num_threads(1)


def test_a_command_at_fault_says_so(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", PAIRS)
    (tmp_path / "sum.yaml").write_text("kind: sum\nterms: [{scorer: rules:fourths}]\n")
    for judge in ("rules:fourths", str(tmp_path / "sum.yaml")):
        assert main(["judge", str(source), "--judge", judge, "--out", str(tmp_path / "o.jsonl")]) == 2
        assert "describes no judge" in capsys.readouterr().err
    assert served.asked == []
