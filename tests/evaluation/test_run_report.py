"""The report of one training run: what stands in it, that nothing in the run can break out of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from plaudit.evaluation.run_report import write_run_report

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def a_run(directory: Path, **changes: Any) -> Path:
    rows = [
        {"step": s, "reward": 0.1 * s, "gold": 0.1 * min(s, 12 - s), "reward_std": 1.0, "kl": 0.01 * s, "entropy": 2.0,
         "length": 20.0, "eos_rate": 1.0, "grad_norm": 1.0 / s}
        for s in range(1, 21)
    ]  # fmt: skip
    directory.mkdir()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row | changes) + "\n" for row in rows))
    (directory / "config.yaml").write_text(f"recipe: grpo\nmodel: '{ATTACK}'\nsteps: 20\nseed: 3\n")
    return directory


def figures(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(re.findall(r'id="figures">(.*?)</script>', page, re.S)[0])
    return found


def test_the_page_holds_the_diagnosis_and_every_curve_that_moves(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    page = write_run_report(run, {"steps": 20, "stopped": None}).read_text()
    assert "Reward hacking: after step" in page
    assert 'class="alarm"' in page
    assert 'In <data value="20.0">20</data> steps the reward went from' in page
    names = set(figures(page))
    assert {"curve-reward", "curve-gold", "curve-kl", "curve-grad_norm", "apart"} <= names
    assert "curve-length" not in names, "it never moves"
    assert '<th scope="col">Length</th>' in page, "but its figures stand in the table"
    reward = figures(page)["curve-reward"]["data"][0]
    assert reward["y"] == [0.1 * s for s in range(1, 21)]
    together = figures(page)["apart"]["data"]
    assert together[0]["y"][-1] == 0.1 * 20 - 0.1, "in standard deviations of the first step's scores"


def test_what_the_run_holds_stays_text(tmp_path: Path) -> None:
    page = write_run_report(a_run(tmp_path / "run"), {"steps": 20, "stopped": ATTACK}).read_text()
    assert "<script>alert(1)" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == 3
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page


def test_a_run_without_steps_or_gold_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    page = write_run_report(tmp_path / "empty", {"steps": 0, "stopped": None}).read_text()
    assert "The run took no step." in page
    page = write_run_report(a_run(tmp_path / "run", gold=None), {"steps": 20, "stopped": None}).read_text()
    assert "No gold scorer was set" in page
    assert "apart" not in figures(page)


def test_no_torch_is_needed() -> None:
    code = (
        "import sys, plaudit.evaluation.run_report; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def a_fit(directory: Path) -> Path:
    """Twelve steps of a fit whose held-out loss, measured every fourth, turns up."""
    rows: list[dict[str, float]] = [{"step": s, "loss": 3 - 0.2 * s, "grad_norm": 1.0} for s in range(1, 13)]
    for place, loss in ((3, 2.0), (7, 1.5), (11, 2.5)):
        rows[place] |= {"heldout_loss": loss, "heldout_loss/en": loss}
    directory.mkdir()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "config.yaml").write_text("recipe: sft\nmodel: tiny\nseed: 3\nkeep: last\n")
    return directory


def test_a_run_on_given_data_is_told_of_its_loss_and_not_of_samples(tmp_path: Path) -> None:
    summary = {"steps": 12, "stopped": None, "heldout_loss_before": 3.0, "heldout_loss": 2.5}
    page = write_run_report(a_fit(tmp_path / "run"), summary).read_text()
    assert (
        "Overfitting: the held-out loss rose from 1.5 at step 8 to 2.5 while the training loss fell on."
        in page
    )
    assert "Is it learned, or learned by heart?" in page
    assert "gold" not in page.split('id="figures"')[0].split("<script>")[0]
    assert "the loss went from" in page
    held = figures(page)["apart"]["data"][1]
    assert (held["x"], held["y"]) == ([0, 4, 8, 12], [3.0, 2.0, 1.5, 2.5])
    assert figures(page)["apart"]["layout"]["xaxis"]["range"] == [-0.5, 12.5]
    assert figures(page)["curve-heldout_loss"]["layout"]["xaxis"]["range"] == [3.5, 12.5], "as far as it goes"
    assert '<th scope="col">Held-out loss of en</th>' in page
