"""Scoring as samples finish: a judge is asked while others are still drawn, and says what it would have said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_judge import judge, texts

from judge_server import Served, serving, status
from plaudit.models.load import load_model
from plaudit.reward.combine import Ensemble, Transformed, WeightedSum
from plaudit.reward.early import early, remote_judges
from plaudit.reward.judge import JudgeConfig, open_judge
from plaudit.reward.rules import RuleScorer
from plaudit.reward.scores import scored
from plaudit.tensors import Sample, Scorer
from plaudit.types import UserError

SAID = ("aa", "a", "aaa", "a", "aaaa b")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as here:
        yield here


def test_which_judges_a_scorer_is_made_of(served: Served, tmp_path: Path) -> None:
    one, other = judge(served, tmp_path), judge(served, tmp_path, protocol="pairwise")
    rule = RuleScorer(lambda samples: [0.0 for _ in samples], "rule")
    inner = Transformed(WeightedSum(((1.0, rule), (0.5, other))), ())
    assert remote_judges(Ensemble((one, inner, rule))) == [one, other]
    here = open_judge(JudgeConfig(model="tiny"), "j.yaml", load_model("tiny", torch.float64))
    assert remote_judges(here) == remote_judges(rule) == []
    assert remote_judges(None) == []


def waits_for(served: Served, count: int) -> None:
    until = time.monotonic() + 10
    while len(served.asked) < count:
        assert time.monotonic() < until, f"asked {len(served.asked)} of {count}"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("protocol", "questions"), [("rating", [1, 2, 3, 3, 4]), ("pairwise", [0, 2, 6, 6, 12])]
)
def test_each_sample_is_asked_about_before_the_next_is_drawn(
    served: Served, tmp_path: Path, protocol: str, questions: list[int]
) -> None:
    """Five completions of one prompt, of which two are equal: by the clock of the draws, and no question twice."""
    asking: Any = judge(served, tmp_path / "early", protocol=protocol, concurrency=3)
    samples: list[Sample] = []
    with early(asking) as hear:
        for sample, count in zip(texts(*SAID), questions, strict=True):
            samples.append(hear(sample))
            waits_for(served, count)
    sent = sorted(served.asked)
    found = scored(asking, samples)
    assert sorted(served.asked) == sent, "the whole batch finds every reply where it was kept"
    assert found == scored(judge(served, tmp_path / "late", protocol=protocol), texts(*SAID))
    assert len(served.asked) == 2 * len(sent)


def test_other_scorers_are_not_asked() -> None:
    def never(_: Any) -> list[float]:
        raise AssertionError

    rule: Scorer = RuleScorer(never, "rule")
    with early(rule) as hear:
        (sample,) = texts("a")
        assert hear(sample) is sample


def test_a_judge_that_refuses_is_told_and_asked_no_more(served: Served, tmp_path: Path) -> None:
    """One question is refused while another is asked again and again: it stops, and those behind it never begin."""
    served.faults = [status(401), *[status(500)] * 40]
    asking = judge(served, tmp_path, concurrency=2, retries=9)

    def ask() -> None:
        with early(asking) as hear:
            for sample in texts(*map(str, range(20))):
                hear(sample)

    with pytest.raises(UserError, match="the judge refuses: status 401"):
        ask()
    count = len(served.asked)
    assert count < 8
    time.sleep(0.2)
    assert len(served.asked) == count
    served.faults = []
    assert asking.score(texts("a b")) == [0.2], "it can be asked again later"
