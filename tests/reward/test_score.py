"""Scores of a file of completions."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from plaudit.models.branch import Branch, ScalarHead
from plaudit.models.load import load_model, make_adapter
from plaudit.randomness import torch_seed
from plaudit.reward.model import RewardModel
from plaudit.reward.score import completion_ids, score
from plaudit.types import UserError


@pytest.fixture
def reward(tmp_path: Path) -> RewardModel:
    """One that was not trained, saved in tmp_path / "reward"."""
    model = load_model("tiny", torch.float64)
    adapter = make_adapter(model.trunk, rank=2, alpha=4.0, blocks=1, seed=0)
    head = ScalarHead(model.trunk.shape.width, dtype=torch.float64).initialise(torch_seed(1))
    found = RewardModel(Branch(model.trunk, adapter, head), model)
    found.save(tmp_path / "reward", {})
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scored(tmp_path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    found = score(tmp_path / "reward", source, out, dtype=torch.float64)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert found["rows"] == len(rows)
    assert found["mean"] == pytest.approx(sum(line["score"] for line in lines) / len(lines))
    return lines


def test_each_row_gains_its_score_and_keeps_the_rest(reward: RewardModel, tmp_path: Path) -> None:
    rows = [{"prompt": "how are you", "completion": " fine", "note": i} for i in range(2)]
    rows.append({"prompt": [{"role": "user", "content": "hello"}], "completion": " good", "id": None})
    lines = scored(tmp_path, rows)
    assert [{key: line[key] for key in row} for line, row in zip(lines, rows, strict=True)] == rows
    tokenizer = reward.model.tokenizer
    wanted = reward.score_ids([tokenizer.render("how are you")], [[*tokenizer.encode(" fine"), 1]])[0]
    assert lines[0]["score"] == pytest.approx(wanted, abs=1e-12)
    assert lines[0]["score"] == pytest.approx(lines[1]["score"], abs=1e-12)


def test_scores_do_not_depend_on_the_rows_beside(
    reward: RewardModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reward.model.trunk.dtype == torch.float64
    rows = [{"prompt": f"tell me {'more ' * i}", "completion": " yes" * (9 - i)} for i in range(8)]
    first = [line["score"] for line in scored(tmp_path, rows)]
    monkeypatch.setattr("plaudit.reward.score.PART", 3)
    assert [line["score"] for line in scored(tmp_path, rows[::-1])][::-1] == pytest.approx(first, abs=1e-10)


def test_sampled_ids_are_used_where_the_tokenizer_is_ours(reward: RewardModel) -> None:
    tokenizer = reward.model.tokenizer
    ours = tokenizer.fingerprint
    assert completion_ids(tokenizer, " yes", [7, 8], ours, "stop") == [7, 8]
    assert completion_ids(tokenizer, " yes", [7, 8], "another", "stop") == tokenizer.complete(" yes")
    assert completion_ids(tokenizer, " yes", None, None, None) == tokenizer.complete(" yes")
    assert completion_ids(tokenizer, " yes", [7], "another", "length") == tokenizer.encode(" yes")
    assert completion_ids(tokenizer, "", [], ours, "length") == [1]  # never nothing


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"completion": "a"}, "in.jsonl:2: lacks prompt"),
        ({"prompt": "a"}, "in.jsonl:2: lacks a text as completion"),
        ({"prompt": "a", "completion": 3}, "in.jsonl:2: lacks a text as completion"),
        ({"prompt": "a", "completion": "b " * 300}, "tokens, the model takes 256; shorten"),
    ],
)
@pytest.mark.usefixtures("reward")
def test_a_row_at_fault_is_named_and_nothing_is_written(
    tmp_path: Path, row: dict[str, Any], fault: str
) -> None:
    with pytest.raises(UserError, match=fault):
        scored(tmp_path, [{"prompt": "a", "completion": "b"}, row])
    assert not (tmp_path / "out.jsonl").exists()


def test_half_a_character_is_named_before_a_rule_is_asked(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "a", "completion": "\ud800x"}])
    with pytest.raises(
        UserError, match=r"in\.jsonl:1: completion holds half a character \(.ud800\); write the whole"
    ):
        score("plaudit.reward.rules:length", source, tmp_path / "out.jsonl")


def test_other_keys_are_kept_whatever_they_hold(tmp_path: Path) -> None:
    """Half a character, a number that is none, and a table's dates, which JSON has no word for."""
    odd = '{"prompt": "a", "completion": "b", "id": "x\\ud800\u00e9", "n": NaN, "score": null}'
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(odd + "\n", encoding="utf-8")
    score("plaudit.reward.rules:length", source, out)
    row = json.loads(out.read_text(encoding="utf-8"))
    assert row["id"] == "x\ud800\u00e9"
    assert math.isnan(row["n"])
    assert row["score"] == 1
    table = tmp_path / "in.parquet"
    when = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    datasets.Dataset.from_list([{"prompt": "a", "completion": "b", "at": when}]).to_parquet(table)
    score("plaudit.reward.rules:length", table, out)
    assert json.loads(out.read_text(encoding="utf-8"))["at"] == "2026-01-02 03:04:00+00:00"


def test_ids_of_another_vocabulary_are_refused(reward: RewardModel, tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "tokenizer": reward.model.tokenizer.fingerprint}
    with pytest.raises(UserError, match="completion_ids are not this model's; leave them out"):
        scored(tmp_path, [row | {"completion_ids": [99999]}])


def test_a_base_that_has_moved_can_be_named(reward: RewardModel, tmp_path: Path) -> None:
    about = tmp_path / "reward" / "reward_model.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"base_model": "/gone/away"}))
    source = write(tmp_path / "in.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(
        UserError, match=r"base model /gone/away cannot be loaded .*; name the base with --model"
    ):
        score(tmp_path / "reward", source, tmp_path / "out.jsonl")
    base = str(reward.model.directory)
    score(tmp_path / "reward", source, tmp_path / "out.jsonl", model=base)
    with pytest.raises(UserError, match="holds no reward model"):
        score(tmp_path, source, tmp_path / "out.jsonl")


def test_the_best_of_each_prompt_are_written_in_their_order(tmp_path: Path) -> None:
    """By their length here; of equals the first, wherever a prompt's samples stand."""
    said = [("a", " x"), ("b", " xxx"), ("a", " xxx"), ("b", " x"), ("a", " yyy"), ("b", " xx")]
    rows = [{"prompt": prompt, "completion": text, "note": i} for i, (prompt, text) in enumerate(said)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    for best, wanted in ((1, [1, 2]), (2, [1, 2, 4, 5]), (9, [0, 1, 2, 3, 4, 5])):
        found = score("plaudit.reward.rules:length", source, out, best=best)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["note"] for line in lines] == wanted
        assert (found["rows"], found["kept"]) == (6, len(wanted))
        assert found["kept_mean"] == pytest.approx(sum(line["score"] for line in lines) / len(lines))
