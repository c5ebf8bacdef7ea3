"""The study of reward models at its smallest: what it reads, how it goes on, and what its intervals are of."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rewards
import rewards_people

from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import find_model
from plaudit.recipes import reward_model
from plaudit.types import Message, Preference


def made(_: Path) -> list[tuple[str, Preference]]:
    """A dozen prompts, two pairs each; the longer answer was chosen in three of four."""
    found = []
    for n in range(24):
        answers = ("a long answer, and then some", f"short {n}")
        chosen = answers if n % 4 else answers[::-1]
        found.append(
            (f"prompt {n // 2}", Preference((Message("user", f"say {n // 2}"),), (chosen[0], chosen[1]), 0))
        )
    return found


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The study with two folds of what was made; call it with the command's words, read the record's rows."""
    monkeypatch.setitem(rewards_people.SETS, "PandaLM", made)
    monkeypatch.setitem(rewards_people.FOLDS, "PandaLM", 2)

    def run(*words: str) -> list[dict[str, Any]]:
        record = tmp_path / "rewards.json"
        small = ["--sets", "PandaLM", "--seeds", "0", "--model", "tiny", "--threads", "1"]
        rewards.main(
            [*words, *small, "--data", "-", "--work", str(tmp_path / "runs"), "--record", str(record)]
        )
        rows: list[dict[str, Any]] = json.loads(record.read_text(encoding="utf-8"))
        return rows

    return run


def test_a_fold_is_measured_once_and_a_prompt_left_out_once(
    study: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = study("ours", "--arms", "quickstart")
    places = [(row["arm"], row["fold"]) for row in rows]
    assert sorted(places) == [
        (a, f) for a in ("length in characters", "length in tokens", "quickstart") for f in (0, 1)
    ]
    for arm in {arm for arm, _ in places}:
        said = [prompt for row in rows if row["arm"] == arm for prompt in row["prompts"]]
        assert sorted(number for number, _, _ in said) == list(range(0, 24, 2))
        assert all(pairs == 2 for _, pairs, _ in said)
    length = [row for row in rows if row["arm"] == "length in tokens"]
    assert sum(row["pairs"] * row["accuracy"] for row in length) == pytest.approx(18, abs=0.01)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished fold was trained again")

    monkeypatch.setattr(reward_model, "run", refused)
    capsys.readouterr()
    assert study("ours", "--arms", "quickstart") == rows
    shown = capsys.readouterr().out
    assert "| PandaLM | length in tokens | 1 | 2 | 24 | 0.750 |" in shown
    assert "PandaLM, quickstart: FAILS, it does not beat length in tokens" in shown


def test_the_peer_is_given_the_same_ids_and_folds(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.load(find_model("tiny"))
    asked: list[list[int]] = []

    def peer(command: list[str], **_: Any) -> SimpleNamespace:
        """Prefers the text of more ids, whoever asks."""
        plan = json.loads(Path(command[2]).read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in Path(plan["folds"]).read_text(encoding="utf-8").splitlines()]
        prompt = tokenizer.render((Message("user", "say 0"),))
        assert lines[1]["chosen_ids"] == prompt + tokenizer.complete("a long answer, and then some")
        assert lines[1]["rejected_ids"] == prompt + tokenizer.complete("short 1")
        for seed, fold in plan["todo"]:
            asked.append([seed, fold])
            out = [line for line in lines if line["folds"][str(seed)] == fold]
            scores = {line["number"]: [len(line["chosen_ids"]), len(line["rejected_ids"])] for line in out}
            found = {"seed": seed, "fold": fold, "scores": scores, "minutes": 1.0, "cpu_minutes": 1.0}
            with Path(plan["out"]).open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(rewards, "subprocess", SimpleNamespace(run=peer))
    rows = study("trl", "--python", sys.executable)
    assert asked == [[0, 0], [0, 1]]
    assert sum(row["pairs"] * row["accuracy"] for row in rows) == pytest.approx(18, abs=0.01)
    assert study("trl", "--python", sys.executable) == rows
    assert len(asked) == 2


def test_a_difference_is_of_pairs_and_its_interval_of_prompts() -> None:
    def fold(seed: int, *prompts: list[float]) -> dict[str, Any]:
        return {"seed": seed, "fold": 0, "prompts": list(prompts)}

    one = [fold(0, [0, 1, 1], [1, 3, 3]), fold(1, [0, 1, 1], [1, 3, 2])]
    other = [fold(0, [0, 1, 0], [1, 3, 3]), fold(1, [0, 1, 1], [1, 3, 2])]
    found = rewards.paired(one, other)
    assert found is not None
    # One pair of eight; both prompts drawn twice are the ends: of prompt 0 one of two pairs, of prompt 1 none of six.
    assert found == pytest.approx((1 / 8, 0, 1 / 2))
    assert rewards.paired(one[:1], other[1:]) is None


def test_texts_are_cut_to_whole_turns_and_short_ones_are_left_alone() -> None:
    tokenizer = Tokenizer.load(find_model("tiny"))
    turns = tuple(Message("user" if n % 2 == 0 else "assistant", f"turn {n} " * 10) for n in range(9))
    cut = rewards_people.cut(Preference(turns, ("x " * 1000, "short"), 0), tokenizer)
    assert cut.prompt == turns[-len(cut.prompt) :]
    assert len(cut.prompt) < 9
    assert len(tokenizer.render(cut.prompt)) <= rewards_people.PROMPT
    assert len(tokenizer.encode(cut.completions[0])) <= rewards_people.ANSWER
    assert cut.completions[1] == "short"


def test_people_chose_what_the_files_say(real_data: Path) -> None:
    pairs = [record.completions for _, record in rewards_people.pandalm(real_data)]
    assert len(pairs) == 894
    gaps = np.array([len(chosen) - len(rejected) for chosen, rejected in pairs])
    assert np.where(gaps == 0, 0.5, gaps > 0).mean() == pytest.approx(0.674, abs=5e-4)
    found = rewards_people.hh(real_data)
    assert (len(found), len({key for key, _ in found})) == (1796, 1712)
