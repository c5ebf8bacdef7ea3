"""The record of predictions beside runs: what is written of them, and that every case can be asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import estimate as benchmark
import pytest

from plaudit import config as configs
from plaudit.cli import RECIPES
from plaudit.loop import estimate
from plaudit.loop.prediction import Prediction
from plaudit.loop.rehearsal import Timeline

CONFIGS = Path(__file__).parents[2] / "configs"
REAL = Timeline(10.0, (15.0, 90.0), 91.0, 100.0, 2_000_000_000, 500_000_000)


def test_a_row_holds_both_and_how_far_they_are_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Prediction(8.0, 100.0, 20, 12.0, 1_400_000_000, 500_000_000)
    monkeypatch.setattr(benchmark, "write_data", lambda *_: dict.fromkeys(("prompts", "pairs"), "x"))
    monkeypatch.setattr(estimate, "predict", lambda _: found)
    monkeypatch.setattr(estimate.Asked, "rehearse", lambda *_: REAL)
    record = tmp_path / "estimate.json"
    words = ["--data", "-", "--out", str(record)]
    benchmark.main(["grpo", *words])
    benchmark.main(["ppo", *words])
    rows = json.loads(record.read_text())["rows"]
    assert [row["name"] for row in rows] == ["ppo", "grpo"]
    assert rows[0]["predicted"] | {"total": 120.0, "memory_gb": 1.4} == rows[0]["predicted"]
    assert rows[0]["real"] == {
        "setup": 10.0, "stepping": 80.0, "finish": 10.0, "total": 100.0, "memory_gb": 2.0, "disk_gb": 0.5,
    }  # fmt: skip
    assert rows[0]["off"] == {"total": 0.2, "memory_gb": -0.3}
    assert "| ppo | 120 | 100 | +20% | 1.40 | 2.00 | -30% misses |" in capsys.readouterr().out
    monkeypatch.setattr(estimate.Asked, "rehearse", lambda *_: replace(REAL, end=120.0))
    benchmark.main(["ppo", *words])
    assert [row["off"]["total"] for row in json.loads(record.read_text())["rows"]] == [0.0, 0.2]


@pytest.mark.parametrize("case", benchmark.CASES)
def test_every_case_is_a_config(case: str) -> None:
    recipe, settings = benchmark.CASES[case]
    named = {"prompts": "p", "demonstrations": "d", "pairs": "q"}
    tree: dict[str, Any] = configs.with_overrides(
        configs.read_yaml(CONFIGS / f"{recipe}.yaml"), [setting.format(**named) for setting in settings]
    )
    assert tree.pop("recipe") == recipe
    module = __import__(RECIPES[recipe], fromlist=["Config"])
    configs.parse(module.Config, tree, case)


def test_the_data_are_peoples(tmp_path: Path, real_data: Path) -> None:
    named = benchmark.write_data(real_data, tmp_path, 30)
    counts = {name: len(Path(path).read_text().splitlines()) for name, path in named.items()}
    assert counts["prompts"] == counts["demonstrations"] > 200
    assert counts["pairs"] == 30
