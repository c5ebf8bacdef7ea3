"""The rules that are ready, and known answers."""

from __future__ import annotations

import functools
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from plaudit.models.load import load_model
from plaudit.reward.answers import read_answers, same, taken
from plaudit.reward.open import open_scorer
from plaudit.reward.rules import RuleScorer, length, regex_match, repetition, rule_scorer
from plaudit.tensors import Sample
from plaudit.training.stop import reason_to_stop
from plaudit.types import UserError
from tiny_models import as_samples


def texts(*said: str) -> list[Sample]:
    samples = as_samples([[1]] * len(said), [[2, 1]] * len(said))
    return [replace(sample, text=text) for sample, text in zip(samples, said, strict=True)]


def test_rules_by_hand() -> None:
    assert length(texts("", "abc", "你好")) == [0.0, 3.0, 2.0]
    assert length(texts("", "abc"), unit="tokens") == [2.0, 2.0]
    assert regex_match(texts("a 12", "no", ""), pattern=r"\d+") == [1.0, 0.0, 0.0]
    assert regex_match(texts("a 12", "12", "12 a"), pattern=r"\d+", whole=True) == [0.0, 1.0, 0.0]
    # "a b a b a b": trigrams aba, bab, aba, bab; two of four stood before.
    assert repetition(texts("a b a b a b", "one two three four", "a b", "")) == [0.5, 0.0, 0.0, 0.0]
    assert repetition(texts("好好好好"), n=2) == [pytest.approx(2 / 3)]


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("length", {"unit": "pages"}, "length in 'pages'"),
        ("regex_match", {"pattern": "("}, "failed .*error"),
        ("regex_match", {}, "failed .TypeError"),
        ("repetition", {"n": 0}, "n-grams of 0 words"),
    ],
)
def test_options_at_fault_are_named(spec: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=f"rules:{spec}: {said}"):
        rule_scorer(f"plaudit.reward.rules:{spec}", options=options).score(texts("a"))


@pytest.mark.parametrize(
    ("given", "wanted", "equal"),
    [
        ("18", "18", True), ("1,000.0", "1000", True), ("$ 5", "5", True), ("-3", "3", False), (" Yes. ", "yes", True),
        ("18.5", "18", False), (None, "18", False), ("", "", False), ("北京。", "北京", True), ("nan", "nan", True),
        ("1e3", "1000", True), ("infinity", "inf", False), ("1 000 000", "1000000", True),
        ("-1,234.5", "-1234.5", True), ("£1,000", "1000", True), ("3, 4", "3,  4", True), ("1,0000", "10000", False),
        ("0,125", "125", False), ("1,000 000", "1000000", False),
        ("3, 4", "34", False), ("1,5", "15", False), ("1 2", "12", False), ("1_2", "12", False),
        ("12,34,567", "1234567", False),
    ],
)  # fmt: skip
def test_answers_are_equal_as_numbers_or_as_words(given: str | None, wanted: str, equal: bool) -> None:
    assert same(given, wanted) is equal


BACK = "(a|aa)+$"
"""Tries all ways of cutting a row of a's into ones and twos."""


def test_an_expression_that_goes_back_for_ever_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    said = texts("a" * 33 + "b")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"regex_match: took longer than 0\.1 s; make it faster"):
        RuleScorer(functools.partial(regex_match, pattern=BACK), "regex_match", 0.1).score(said)
    monkeypatch.setattr("plaudit.reward.answers.SECONDS", 0.1)
    with pytest.raises(
        UserError, match=r"after '.*': took longer than 0\.1 s on one text; write an expression"
    ):
        taken(said[0].text, BACK)
    assert time.monotonic() - began < 2


def test_a_rule_that_cannot_be_cut_off_is_late_all_the_same() -> None:
    """One call of re keeps Python's lock, and with it the clock that would call time."""
    stubborn = RuleScorer(
        lambda samples: [float(bool(re.search(BACK, s.text))) for s in samples], "mine", 0.02
    )
    with pytest.raises(UserError, match="mine: took longer than"):
        stubborn.score(texts("a" * 28 + "b"))


def test_what_follows_the_last_mark_is_the_answer() -> None:
    assert taken("So 3 + 4.\n#### 7\nBut no: #### 8\nbye", "####") == "8"
    assert taken("no mark", "####") is None
    assert taken("all of it", None) == "all of it"


def test_known_answers_reward_by_the_prompt(tmp_path: Path) -> None:
    model = load_model("tiny", __import__("torch").float64)
    data = tmp_path / "answers.jsonl"
    data.write_text(
        '{"prompt": "3 + 4", "answer": "3 + 4 = 7\\n#### 7"}\n'
        '{"prompt": [{"role": "user", "content": "2 + 2"}], "answer": 4}\n'
    )
    (tmp_path / "a.yaml").write_text(f"kind: answers\ndata: {data}\nafter: '####'\n")
    scorer = open_scorer(str(tmp_path / "a.yaml"), model)
    from plaudit.data.formats import read_prompts

    prompts = [model.tokenizer.render(prompt) for prompt in read_prompts(data)]
    drawn = as_samples([prompts[0], prompts[1], prompts[1], prompts[0]], [[2]] * 4, model.tokenizer)
    said = ["so #### 7.0", "#### 4", "4", ""]
    drawn = [replace(sample, text=text) for sample, text in zip(drawn, said, strict=True)]
    assert scorer.score(drawn) == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(UserError, match="has no answer to a prompt that was sampled"):
        scorer.score(as_samples([[5]], [[2]]))
    alone = read_answers(str(data), "####", None, "a")
    assert alone.score([replace(texts("#### 7")[0], asked="3 + 4")]) == [1.0]


@pytest.mark.parametrize(
    ("text", "after", "said"),
    [
        ('{"prompt": "a"}\n', None, ":1: lacks an answer"),
        ('{"prompt": "a", "answer": true}\n', None, ":1: lacks an answer"),
        ('{"answer": 1}\n', None, ":1: lacks prompt"),
        ('{"prompt": "a", "answer": " ."}\n', None, ":1: the answer is empty"),
        ('{"prompt": "a", "answer": ""}\n', "####", ":1: the answer is empty"),
        ('{"prompt": "a", "answer": 1}\n{"prompt": "a", "answer": 2}\n', None, ":2: has another answer"),
        ("\n", None, "holds no answers"),
        ('{"prompt": "a", "answer": 1}\n', "(", "after is no regular expression"),
    ],
)
def test_answers_at_fault_are_named(tmp_path: Path, text: str, after: str | None, said: str) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text(text)
    with pytest.raises(UserError, match=said):
        read_answers(str(data), after, None, "a.yaml")


def test_one_score_for_all_is_a_reason_to_stop_once_patience_is_over() -> None:
    limits = {"max_kl": 1.0, "min_entropy": 0.0, "max_length_growth": 9.0, "patience": 3}
    row = {"reward": 0.5, "reward_std": 0.0, "kl": 0.0, "entropy": 1.0, "length": 5.0}
    assert reason_to_stop([row] * 2, **limits) is None  # type: ignore[arg-type]
    assert "every sample of 3 steps scored 0.5" in (reason_to_stop([row] * 3, **limits) or "")  # type: ignore[arg-type]
    for other in (
        row | {"reward_std": 0.1},
        row | {"reward": 0.4},
        {k: v for k, v in row.items() if k != "reward_std"},
    ):
        assert reason_to_stop([row, other, row], **limits) is None  # type: ignore[arg-type]
        assert reason_to_stop([other, row, row, row], **limits)  # type: ignore[arg-type]
