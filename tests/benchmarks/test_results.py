"""What is written of a measurement, and the page that is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import speed.batches
from made_measurements import CEILINGS, Hand, made_row
from speed import charts, cli, environments, growth, harness, page, results, time_to_reward
from speed.cases import CASES, TARGETS, Case, chosen
from speed.protocol import Worker, WorkerDied

from plaudit.training import machine
from plaudit.types import UserError

NONE: page.Kind = ({}, {})


def test_a_row_says_what_was_measured() -> None:
    row = made_row()
    assert set(results.ROW) == set(row)
    assert (row["ours"], row["peer"], row["ratio"], row["repeats"]) == (2.0, 8.0, 4.0, 3)
    assert row["peak_rss_gb"] == {"ours": 1.0, "peer": 3.0}
    assert row["tokens_per_second"] == {"ours": 50.0, "peer": 12.5}
    # 100e9 operations at 200e9 a second are half a second.
    assert row["seconds_at_ceiling"] == 0.5
    assert row["roofline"] == {"ours": 0.25, "peer": 0.062}
    assert row["timings"] == {"ours": [1.0, 2.0, 3.0], "peer": [4.0, 8.0, 12.0]}


def test_sides_that_drew_different_counts_are_refused() -> None:
    case = Case("a", "rollout", "transformers", "bfloat16")
    turn = {"seconds": 1.0, "peak_rss_gb": 1.0, "new_tokens": 100}
    timings = harness.Timings([turn], [turn | {"new_tokens": 99}], {"ours": {}, "peer": {}})
    with pytest.raises(ValueError, match=r"\[99, 100\]"):
        harness.row_of(case, timings, speed.batches.Batch([], [], [], 0), [], CEILINGS)


def test_a_target_is_measured_against_the_peers_better_setting(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    results.write(path, "rollout", [made_row("slow peer"), made_row("fast peer", ratio=2.0)], {}, "a command")
    found = results.read(path)
    assert (found["row"], found["ratio"], found["peak_rss_gb"]) == (
        "fast peer",
        2.0,
        {"ours": 1.0, "peer": 3.0},
    )
    # Where both ran in one precision, the row is the one that a target in that precision is about.
    assert results.headline(found["rows"], "rollout, float32") is None
    found["rows"][0]["precision"] = {"ours": "float32", "peer": "float32"}
    equal = results.headline(found["rows"], "rollout, float32")
    assert equal is not None
    assert equal["name"] == "slow peer"
    # A row measured again takes its own place, and no other's.
    results.write(path, "rollout", [made_row("fast peer", ratio=8.0)], {}, "another")
    again = results.read(path)
    assert [(row["name"], row["ratio"]) for row in again["rows"]] == [("slow peer", 4.0), ("fast peer", 8.0)]
    assert again["row"] == "slow peer"
    broken = json.loads(path.read_text())
    del broken["rows"][0]["timings"]
    path.write_text(json.dumps(broken))
    with pytest.raises(UserError, match="a row has no timings"):
        results.read(path)


def test_a_row_that_does_not_work_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def measure(case: Case, *, repeats: int, **_: int) -> tuple[dict[str, Any], dict[str, Any]]:
        asked.append((case.name, repeats))
        if case.theirs == "float32":
            raise WorkerDied("no memory")
        return made_row(case.name, target=case.target), {}

    monkeypatch.setattr(harness, "measure", measure)
    monkeypatch.setattr(machine, "fast_bfloat16", lambda: True)

    def run(*words: str) -> list[str]:
        return cli.run("sft", cli.parser().parse_args(["sft", "--out", str(tmp_path), *words]))

    failed = run()
    assert [line.endswith("no memory") for line in failed] == [True] * 3
    assert [row["name"] for row in results.read(tmp_path / "sft.json")["rows"]] == [
        "full fine-tuning, trl in bfloat16",
        "LoRA on both sides, trl in bfloat16",
    ]
    assert {repeats for _, repeats in asked} == {5}
    asked.clear()
    assert run("--quick") == []
    assert asked == [("full fine-tuning, trl in bfloat16", 2)]
    assert results.read(tmp_path / "sft.quick.json")["ratio"] == 4.0
    asked.clear()
    assert run("--row", "LoRA on both sides, trl in bf", "--repeats", "1") == []
    assert asked == [("LoRA on both sides, trl in bfloat16", 1)]
    with pytest.raises(UserError, match="no row is left"):
        run("--peer", "vllm")
    assert "| full fine-tuning, trl in bfloat16 | 2.00 | 8.00 |" in capsys.readouterr().out


def test_where_bfloat16_is_not_native_peers_run_in_float32() -> None:
    every: dict[str, Any] = {"quick": False, "peer": None, "row": None, "native": False}
    for name in CASES:
        slow = chosen(name, **every)
        assert {case.theirs for case in slow} == {"float32"}
        assert {case.ours for case in slow} == {"auto"}
        lost = {case.target for case in CASES[name]} - {case.target for case in slow}
        assert lost <= {None, f"{name}, float32"}, "which the rows that are left measure as well"
        assert chosen(name, **every | {"native": True}) == CASES[name]
        for native in (True, False):
            (one,) = chosen(name, **every | {"quick": True, "native": native})
            assert one.theirs == ("bfloat16" if native else "float32")
            assert one.target == name
    (asked,) = chosen("sft", **every | {"row": "LoRA on both sides, trl in bfloat16"})
    assert asked.theirs == "bfloat16"


def test_every_row_can_be_measured_and_every_target_has_one() -> None:
    named = {case.target for cases in CASES.values() for case in cases if case.target}
    assert named == set(TARGETS)
    assert set(CASES) == set(page.NAMES)
    for name, cases in CASES.items():
        assert len({case.name for case in cases}) == len(cases), name
        assert any(case.quick for case in cases), name
        for case in cases:
            assert case.work == name
            assert (environments.REQUIREMENTS / f"{case.peer}.txt").exists()
            assert (harness.HERE / f"{harness.PEERS[case.peer]}.py").exists()


def test_the_page_is_what_the_results_give() -> None:
    kinds = page.read(), page.read(results.WITHOUT)
    assert page.PAGE.read_text(encoding="utf-8") == page.text(*kinds, page.pictures())


def test_the_page_holds_the_figures(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    about = {"cpu": "a CPU", "cores": 2, "memory_gb": 24.0, "flags": ["avx2"], "system": "Linux"}
    results.write(path, "rollout", [made_row()], about, "python -m benchmarks rollout")
    native = page.read(tmp_path)
    assert native[1] == {}
    text = page.text(native, NONE, ["speed"])
    assert "| `rollout` | a row | 3.5 | 6 | 4.00 | reached | 16.00 | 0.25 | 3 |" in text
    assert "| `sft` | | 1.8 | 3 | not measured yet | | | | |" in text
    assert "| a row | 2.00 | 8.00 | 4.00 | 50 / 12 | 1.0 / 3.0 | 0.25 / 0.06 |" in text
    assert "2 cores of a CPU (avx2), 24 GB" in text
    assert "(images/speed.png)" in text
    assert "(images/speed_growth.png)" not in text
    # What a machine without bfloat16 has measured stands by itself, with aims and pictures of its own.
    assert "Where bfloat16 is not native" not in text
    other = page.text(NONE, native, ["speed", "speed_float32"])
    aims, float32 = other.split("## Where bfloat16 is not native")
    assert "| `rollout` | | 3.5 | 6 | not measured yet | | | | |" in aims
    assert "| `rollout` | a row | 3.5 | 6 | 4.00 | reached | 16.00 | 0.25 | 3 |" in float32
    assert "(images/speed_float32.png)" in float32
    assert [results.place(native) == results.PLACE for native in (True, False)] == [True, False]


def test_a_side_has_arrived_at_the_goal_within_the_limit_and_no_sooner(tmp_path: Path) -> None:
    seen = iter(
        [(0.2, 0.0), (0.6, 0.3), (0.6, 0.1), (0.9, 0.0)]
    )  # too low, too far from the start, both right
    log: list[str] = []

    def start() -> Worker:
        return cast(Worker, Hand(log, "ours", [30.0] * 9, {"saved": str(tmp_path)}))

    found = time_to_reward.climb(start, lambda _: next(seen), 0.5, 0.2, 8)
    assert [look[0] for look in found["curve"]] == [2, 4, 6]
    assert found["minutes"] == 3.0
    assert log == ["ours"] * 6 + ["ours ends"]
    seen = iter([(0.2, 0.0)] * 4)
    assert time_to_reward.climb(start, lambda _: next(seen), 0.5, 0.2, 8)["minutes"] is None


def test_micro_batches_are_told_by_row_where_they_differ() -> None:
    assert page.micro_batches({"a": None, "b": None}) == ""
    assert page.micro_batches({"a": 1024, "b": 1024, "c": None}) == " Ours in micro-batches of 1,024 tokens."
    told = page.micro_batches({"a": 1024, "b": 4096, "c": 1024})
    assert told == " Ours in micro-batches of 1,024 tokens (a; c), of 4,096 tokens (b)."


def test_minutes_are_told_by_seed(tmp_path: Path) -> None:
    side = {
        "minutes": 3.0,
        "curve": [[6, 3.0, 0.6, 0.1]],
        "peak_rss_gb": 2.0,
        "micro_batch_tokens": 4096,
    }
    rows: list[dict[str, Any]] = [
        {"seed": s, "ours": side, "peer": side | {"minutes": 3.0 * r}, "ratio": r}
        for s, r in ((0, 4), (1, 5))
    ]
    path = tmp_path / "time_to_reward.json"
    for row in reversed(rows):
        time_to_reward.write(path, row, 0.1, CEILINGS)
    text = page.text(page.read(tmp_path), NONE, [])
    assert "| 1 | 3.0 (6) | 15.0 (6) | 5.00 | 0.100 / 0.100 |" in text
    assert "Median ratio: 4.50" in text
    assert "Ours in micro-batches of 4,096 tokens.\n" in text
    never = {"seed": 0, "ours": side, "peer": side | {"minutes": None}, "ratio": None}
    time_to_reward.write(path, never, 0.1, CEILINGS)
    assert [row["seed"] for row in page.read(tmp_path)[1]["time_to_reward"]["rows"]] == [0, 1]
    assert "not within 6 steps" in page.reward_text(page.read(tmp_path)[1]["time_to_reward"])
    time_to_reward.write(path, never, 0.2, CEILINGS)  # towards another goal
    assert len(page.read(tmp_path)[1]["time_to_reward"]["rows"]) == 1


def test_growth_is_told_with_its_fits(tmp_path: Path) -> None:
    fit = growth.line([100, 200], [1, 2])
    one = {"name": "longer", "unit": "tokens", "x": [100, 200], "seconds": [1.0, 2.0], "fit": fit}
    held = [1.0] * 10
    memory = {"work": "grpo", "rss_gb": held, "settled": 5, "fit": growth.line(range(5, 10), held[5:])}
    grown = {"series": [one], "memory": memory, "date": "2026-01-01", "command": "a command"}
    (tmp_path / "growth.json").write_text(json.dumps(grown))
    text = page.text(page.read(tmp_path), NONE, ["speed_growth"])
    assert "| longer | 100 to 200 tokens | 1.00 to 2.00 |" in text
    assert "1.000 GB after 5 steps, 1.000 GB at the end" in text
    assert "(images/speed_growth.png)" in text
    assert charts.growth_of(grown)["layout"]["xaxis2"]["title"]["text"] == "step"


def test_charts_show_what_was_measured() -> None:
    rows = {"rollout": made_row(), "sft": None}
    ratios, shares = charts.ratios(rows), charts.ceilings(rows)
    assert [trace["x"] for trace in ratios["data"]] == [[4.0], [3.5], [6]]
    assert [trace["x"] for trace in shares["data"]] == [[0.25], [0.062]]


def test_a_verdict_is_of_what_is_shown() -> None:
    assert [page.verdict(value, 2, 4) for value in (1.99, 2.0, 3.994, 3.996)] == [
        "missed",
        "reached",
        "reached",
        "moonshot",
    ]
    assert page.verdict(9.0, 2, None) == "reached"


def test_a_line_is_fitted_by_least_squares() -> None:
    # By hand: means 1 and 2, slope (1 x 1 + 1 x 2) / 2 = 1.5, intercept 0.5; left over 1/6 of 14/3 - ... = 1.5.
    fit = growth.line([0, 1, 2], [1, 1, 4])
    assert fit["slope"] == pytest.approx(1.5)
    assert fit["intercept"] == pytest.approx(0.5)
    assert fit["r2"] == pytest.approx(0.75)  # 1 - 1.5 / 6
