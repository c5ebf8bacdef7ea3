"""Judged completions as experience: whose tokens they are, how likely they were, and what people gave them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.data.logged import Logged, read_logged
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import load_model
from plaudit.types import UserError

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_model("tiny", torch.float64).tokenizer


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(tmp_path: Path, tokenizer: Tokenizer, feedback: Rows, samples: Rows | None = None) -> list[Logged]:
    files = [] if samples is None else [write(tmp_path / "samples.jsonl", samples)]
    return read_logged([write(tmp_path / "feedback.jsonl", feedback)], files, tokenizer, context=256)


def rated(prompt: str, completion: str, **scores: float) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "scores": scores}


def compared(prompt: str, a: str, b: str, choice: int | str) -> dict[str, Any]:
    return {"prompt": prompt, "completions": [a, b], "choice": choice}


def test_ratings_are_averaged_and_go_before_comparisons(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = read(
        tmp_path,
        tokenizer,
        [
            rated("hello", " good", overall=0.25),
            compared("hello", " good", " bad", 1),
            rated("hello", " good", overall=1.0),
            rated("tell me", " work", overall=0.5, fluency=0.0),
            rated("tell me", " rain", style=0.2, fluency=0.6),
        ],
    )
    assert [[s.text for s in one.samples] for one in found] == [[" good", " bad"], [" work", " rain"]]
    assert found[0].scores == (0.625, 1.0)
    assert found[1].scores == pytest.approx((0.5, 0.4))


def test_a_share_of_comparisons_is_a_score(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """a wins twice and ties once, b wins once, ties once, loses twice, c loses twice."""
    found = read(
        tmp_path,
        tokenizer,
        [
            compared("hello", " a", " b", 0),
            compared("hello", " b", " a", "tie"),
            {"prompt": "hello", "completions": [" b", " c", " a"], "ranking": [2, 0, 1]},
        ],
    )
    assert [s.text for s in found[0].samples] == [" a", " b", " c"]
    # a: 1, 0.5 and, of the ranking, 1 and 1. b: 0, 0.5, 0 and 1. c: 0 and 0.
    assert found[0].scores == pytest.approx((3.5 / 4, 1.5 / 4, 0.0))
    assert [s.index for s in found[0].samples] == [0, 1, 2]


def sample_row(tokenizer: Tokenizer, prompt: str, completion: str, ids: list[int]) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "completion": completion,
        "completion_ids": ids,
        "logprobs": [-1.5 - i for i in range(len(ids))],
        "tokenizer": tokenizer.fingerprint,
        "policy_version": "runs/one",
    }


def test_where_both_were_called_bad_neither_won(tmp_path: Path, tokenizer: Tokenizer) -> None:
    said = [compared("hello", " good", " bad", choice) for choice in ("both_bad", "tie", 0, 0)]
    (found,) = read(tmp_path, tokenizer, said)
    assert found.scores == (2.5 / 4, 0.5 / 4)


def test_tokens_and_their_probabilities_are_those_of_the_samples(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Not those of the text encoded anew; the same text under another prompt is another completion."""
    good = tokenizer.encode(" good")
    apart = [i for letter in " good" for i in tokenizer.encode(letter)]
    assert apart != good
    found = read(
        tmp_path,
        tokenizer,
        [rated("hello", " good", overall=1.0), rated("bye", " good", overall=0.0)],
        [sample_row(tokenizer, "hello", " good", apart), sample_row(tokenizer, "other", " good", [9, 1])],
    )
    known, unknown = found[0].samples[0], found[1].samples[0]
    assert known.completion_ids == tuple(apart)
    assert known.logprobs == tuple(-1.5 - i for i in range(len(apart)))
    assert known.finish_reason == "length"
    assert known.policy_version == "runs/one"
    assert unknown.completion_ids == (*good, 1)
    assert unknown.finish_reason == "stop"
    assert all(math.isnan(x) for x in unknown.logprobs)
    assert len(unknown.logprobs) == len(unknown.completion_ids)
    assert known.prompt_ids == tuple(tokenizer.render("hello"))


def test_samples_of_another_tokenizer_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    feedback = [rated("hello", " good", overall=1.0), rated("hello", " bad", overall=0.0)]
    for other in ({"tokenizer": "another"}, {"tokenizer": None}):
        found = read(tmp_path, tokenizer, feedback, [sample_row(tokenizer, "hello", " good", [7, 8]) | other])
        assert found[0].samples[0].completion_ids == (*tokenizer.encode(" good"), 1)
        assert math.isnan(found[0].samples[0].logprobs[0])


def test_an_empty_completion_is_one_that_ended_at_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    feedback = [rated("hello", "", overall=0.0), rated("hello", " good", overall=1.0)]
    for samples in (None, [sample_row(tokenizer, "hello", "", [])]):
        silent = read(tmp_path, tokenizer, feedback, samples)[0].samples[0]
        assert (silent.completion_ids, silent.finish_reason) == ((1,), "stop")
        assert math.isnan(silent.logprobs[0])
    known = read(tmp_path, tokenizer, feedback, [sample_row(tokenizer, "hello", "", [1])])[0].samples[0]
    assert (known.completion_ids, known.logprobs) == ((1,), (-1.5,))


def test_demonstrations_and_prompts_that_nobody_judged_are_left_out(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    feedback: Rows = [
        {"prompt": "silent", "completion": " good"},
        {"prompt": "hello", "completion": " fine"},
        rated("hello", " bad", overall=0.0),
        rated("hello", " good", overall=1.0),
    ]
    found = read(tmp_path, tokenizer, feedback)
    assert [[s.text for s in one.samples] for one in found] == [[" bad", " good"]]


@pytest.mark.parametrize(
    ("feedback", "said"),
    [
        (
            [{"prompt": "a", "completion": " b"}],
            "holds no ratings and no comparisons; collect judgements first",
        ),
        ([rated("a", " b", overall=0.5), rated("a", " c", overall=0.5)], r"the same score \(0.5\)"),
        ([compared("a", " b", " c", "tie"), rated("d", " e", overall=0.5)], r"the same score \(0.5\)"),
        ([rated("a", " b", overall=1.5)], r"feedback.jsonl:1: .*1.5, not within 0 to 1"),
        ([rated("a", " b", overall=float("nan"))], r"feedback.jsonl:1: "),
        ([rated("a", " good" * 300, overall=1.0)], "the model takes 256"),
        ([], "feedback.jsonl"),
    ],
    ids=str,
)
def test_feedback_at_fault_is_named(tmp_path: Path, tokenizer: Tokenizer, feedback: Rows, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(tmp_path, tokenizer, feedback)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logprobs": [-1.0]}, "samples.jsonl:1: has 1 logprobs for 2 ids"),
        ({"logprobs": None}, "samples.jsonl:1: is no sample; name a file that `plaudit generate` wrote"),
        ({"completion_ids": "5 6"}, "samples.jsonl:1: is no sample"),
        ({"completion": None}, "samples.jsonl:1: is no sample"),
    ],
    ids=str,
)
def test_samples_at_fault_are_named(
    tmp_path: Path, tokenizer: Tokenizer, change: dict[str, Any], said: str
) -> None:
    feedback = [rated("hello", " good", overall=1.0), rated("hello", " bad", overall=0.0)]
    with pytest.raises(UserError, match=said):
        read(tmp_path, tokenizer, feedback, [sample_row(tokenizer, "hello", " good", [5, 6]) | change])
