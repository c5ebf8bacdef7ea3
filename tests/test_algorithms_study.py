"""The study of algorithms in benchmarks/: its bookkeeping by hand, and all of it once on the tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import algorithms_shown as shown
import picture
import pytest
from rich.console import Console

import algorithms
from plaudit import files
from plaudit.feedback.store import Store
from plaudit.loop import quickstart
from plaudit.loop.stages import Stage
from plaudit.models.load import Model
from plaudit.training import machine, rundir
from plaudit.types import UserError

study: Any = algorithms
TINY: dict[str, Any] = {
    "model": "tiny",
    "training_prompts": 10,
    "heldout_prompts": 4,
    "max_new_tokens": 8,
    "policy": {"steps": 2, "prompts_per_step": 4, "samples_per_prompt": 2, "epochs": 1, "kl_horizon": 500.0},
    "precision": "float32",
    "threads": 1,
}


def a_stage(directory: Path, **config: Any) -> Stage:
    """A first round of which nothing is there but its config."""
    nothing = cast(Any, None)
    settings = quickstart.Config(**config)
    return Stage(settings, directory, 1, cast(Model, None), cast(Store, None), {}, Console(), nothing)


# What all learn from, and how long -------------------------------------------------------------------------


def test_a_completions_rating_is_the_mean_of_all_that_was_said_of_it(tmp_path: Path) -> None:
    said = [
        {"prompt": "p", "completions": ["a", "b"], "choice": 0},
        {"prompt": "p", "completions": ["a", "b"], "choice": "tie"},
        {"prompt": "p", "completion": "a", "scores": {"overall": 0.75, "fluency": 0.0}},
        {"prompt": "q", "completions": ["a", "c"], "choice": "both_bad"},
        {"prompt": "q", "completion": "c", "scores": {"overall": 0.25}},
    ]
    stage = a_stage(tmp_path)
    files.write_text(stage.place / "feedback.jsonl", "".join(json.dumps(row) + "\n" for row in said))
    heard = study.write_feedback(stage, tmp_path)
    assert heard == {"judgements": 5, "comparisons": 3, "completions": 4, "median_rating": 0.5}
    means = [json.loads(line) for line in (tmp_path / "means.jsonl").read_text().splitlines()]
    # rewards: a of p 1, 0, 0.5; b of p -1, 0; a of q -1; c of q -1, -0.5; a rating is (reward + 1) / 2
    assert {(row["prompt"], row["completion"]): row["scores"]["overall"] for row in means} == {
        ("p", "a"): 0.75,
        ("p", "b"): 0.25,
        ("q", "a"): 0.0,
        ("q", "c"): 0.125,
    }
    choices = [
        json.loads(line)["choice"] for line in (tmp_path / "comparisons.jsonl").read_text().splitlines()
    ]
    assert choices == [0, "tie", "both_bad"]


def test_the_length_comes_nearest_to_the_budget() -> None:
    steps = {"seconds": 36.0, "seconds_a_step": 10.0, "steps": 3, "length": 3}  # 6 s are no step
    assert [study.length_for(seconds, steps) for seconds in (126, 120.5, 121.5, 5)] == [12, 11, 12, 1]
    epoch = {"seconds": 60.0, "seconds_a_step": 2.0, "steps": 25, "length": 1}  # 50 s an epoch, 10 s once
    assert [study.length_for(seconds, epoch) for seconds in (180, 84, 86, 30)] == [3, 1, 2, 1]
    alone = {"seconds": 2.0, "seconds_a_step": None, "steps": 1, "length": 1}
    assert study.length_for(5.9, alone) == 3


def test_all_train_the_same_adapter_and_the_online_ones_learn_from_as_many_completions(
    tmp_path: Path,
) -> None:
    stage = a_stage(tmp_path)
    found = {name: study.settings(name, stage, tmp_path, 7, 0.6) for name in study.ONLINE | study.OFFLINE}
    assert {(c.adapter.rank, c.adapter.alpha, c.adapter.blocks) for c in found.values()} == {(16, 32.0, 16)}
    gradients = [found[name] for name in ("ppo", "rloo", "grpo")]
    assert {c.prompts_per_step * c.samples_per_prompt for c in gradients} == {64}
    assert {c.learning_rate for c in gradients} == {stage.config.policy.learning_rate}
    assert {(c.kl.coef, c.kl.target, c.stop.max_kl) for c in gradients} == {(0.1, 0.15, 0.28)}
    assert [found["grpo"].kl.place, found["rloo"].kl.place] == ["loss", "reward"]  # its own, as shipped
    assert {found[name].max_new_tokens for name in study.ONLINE} == {24}
    assert {found[name].missing_eos_penalty for name in study.ONLINE} == {None}
    assert {found[name].steps for name in study.ONLINE} == {7}
    assert {found[name].epochs for name in study.OFFLINE} == {7}
    assert found["kto"].threshold == 0.6


def test_a_run_of_another_seed_is_refused(tmp_path: Path) -> None:
    rundir.start(tmp_path / "run", "quickstart", quickstart.Config(seed=1))
    with pytest.raises(UserError, match="no quickstart of seed 0"):
        study.first_round(study.place_of(tmp_path / "run", 0), 0, None, Console())


# What is shown ---------------------------------------------------------------------------------------------


def a_row(name: str, seed: int, wins: list[float], **more: Any) -> dict[str, Any]:
    rate = sum(wins) / len(wins)
    policy = {"judges": "panel", "win_rate": rate, "win_rate_unseen_words": rate, "relevance_before": 0.5,
              "relevance_after": 0.6, "kl_per_token": 0.1 + seed, "distinct2_ratio": 1.0,
              "perplexity_ratio": 0.9}  # fmt: skip
    row = {"name": name, "seed": seed, "budget": 180.0, "taken": "6 steps", "rate": 1e-3, "seconds": 120.0,
           "reward_seconds": 50.0, "policy": policy, "wins": wins}  # fmt: skip
    return row | more


def test_a_row_of_the_table_is_the_mean_over_seeds() -> None:
    rows = [
        a_row("ppo", 0, [1.0, 0.5, 1.0, 0.5]),
        a_row("ppo", 1, [0.0, 0.5, 0.0, 0.5], taken="7 steps", seconds=130.0),
        a_row("dpo, one epoch", 0, [1.0, 1.0, 1.0, 1.0], reward_seconds=0.0, taken="1 epoch"),
    ]
    ppo, dpo = shown.over_seeds(rows)
    assert ppo["interval"] == (0.5, 0.5)  # every prompt's mean over the seeds is a half
    assert [ppo["kl_per_token"], ppo["seconds"], ppo["seeds"]] == [pytest.approx(0.6), 125.0, [0.75, 0.25]]
    assert [shown.kind(ppo), shown.kind(dpo)] == ["reward", "log"]
    lines = shown.table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| PPO | 0.001 | 6 steps / 7 steps | 50 + 125 | 0.500 (0.50 to 0.50) |" in lines[3]
    assert "| DPO, one epoch | 0.001 | 1 epoch | 120 | 1.000 (1.00 to 1.00) |" in lines[4]
    assert lines[3].endswith("| 0.75, 0.25 |")


def test_the_chart_has_the_best_on_top_and_names_no_colour_that_is_not_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [a_row("kto", 0, [0.0, 0.5], reward_seconds=0.0), a_row("grpo", 0, [1.0, 0.5])]
    figure = shown.chart(rows)
    assert figure["layout"]["yaxis"]["ticktext"] == ["GRPO", "KTO"]
    bars = figure["data"][-1]
    assert (bars["x"], bars["y"]) == ([0.1, 0.1], [0, 1])
    monkeypatch.setattr(picture, "BROWSERS", ())
    shown.draw(rows, tmp_path / "chart.html", tmp_path / "chart.png")
    head, _, drawn = (tmp_path / "chart.html").read_text(encoding="utf-8").partition("const drawn")
    assert "straight from the judgements" in head
    assert "GRPO" in drawn
    assert not re.search(r"var\(--", drawn + head.partition("<script>")[0])


# All of it -------------------------------------------------------------------------------------------------


@pytest.mark.proof
def test_every_algorithm_runs_is_measured_and_is_read_when_asked_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(study, "TRIAL", 2)
    monkeypatch.setattr(study, "length_for", lambda *_: 2)  # how fast this machine is does not matter
    monkeypatch.setattr(picture, "BROWSERS", ())
    machine.prepare("float32", 1)
    rundir.start(tmp_path / "quick", "quickstart", quickstart.Config(**TINY))
    given = ["--quickstart", str(tmp_path / "quick"), "--runs", str(tmp_path / "runs"), "--budget", "9",
             "--record", str(tmp_path / "found.json"), "--figure", str(tmp_path / "found.html"), "0"]  # fmt: skip
    study.main(given)
    rows = json.loads((tmp_path / "found.json").read_text())
    names = [row["name"] for row in rows]
    offline = [name for one in study.OFFLINE for name in (f"{one}, one epoch", one)]
    assert names == ["best of 4", *study.ONLINE, *offline]
    assert all(len(row["wins"]) == 4 for row in rows)
    assert {row["feedback"]["judgements"] for row in rows} == {rows[0]["feedback"]["judgements"]}
    by = dict(zip(names, rows, strict=True))
    assert [by[name]["taken"] for name in ("ppo", "dpo, one epoch", "ilql")] == [
        "2 steps",
        "1 epoch",
        "2 epochs",
    ]
    assert by["ppo"]["reward_seconds"] > 0 == by["dpo"]["reward_seconds"]
    assert all(row["seconds"] > 0 for row in rows[1:])
    assert not (tmp_path / "quick" / "rounds" / "1" / "ppo").exists()  # as far as the reward, no further
    assert len(capsys.readouterr().out.splitlines()) == 3 + len(rows)

    monkeypatch.setattr(study, "train", lambda *_: pytest.fail("trained again"))
    (tmp_path / "found.html").unlink()
    study.main(given)
    assert json.loads((tmp_path / "found.json").read_text()) == rows
    assert (tmp_path / "found.html").exists()
