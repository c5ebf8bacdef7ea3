"""The study of over-optimisation: its estimator beside all choices, its judges, and the whole of it at its smallest."""

from __future__ import annotations

import json
import math
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import overoptimisation
import pytest

from plaudit.randomness import rng

study: Any = overoptimisation


@pytest.mark.parametrize("levels", [100, 3])
def test_the_best_of_n_is_the_mean_over_all_choices(levels: int) -> None:
    """With 3 levels for 8 samples most proxies are equal, and any of the equal ones may be taken."""
    draw = rng("best of n", levels)
    proxy, gold = draw.integers(levels, size=8).astype(float), draw.normal(size=8)
    for n in range(1, 9):
        proxies, golds = [], []
        for chosen in combinations(range(8), n):
            top = max(proxy[i] for i in chosen)
            proxies.append(top)
            golds.append(np.mean([gold[i] for i in chosen if proxy[i] == top]))
        assert study.best_of(n, proxy, gold) == pytest.approx((np.mean(proxies), np.mean(golds)), rel=1e-12)
    with pytest.raises(ValueError, match="9 of 8"):
        study.best_of(9, proxy, gold)


def test_the_best_of_all_and_equal_scores_are_what_they_must_be() -> None:
    gold = np.array([3.0, 1.0, 2.0])
    assert study.best_of(3, np.array([0.0, 9.0, 1.0]), gold) == pytest.approx((9.0, 1.0))
    for n in (1, 2, 3):
        assert study.best_of(n, np.zeros(3), gold) == pytest.approx((0.0, 2.0))


def test_the_kl_of_the_best_of_n_is_that_of_its_distribution() -> None:
    """Of scores that are uniform on 0 to 1 the best of n has density n x^(n - 1)."""
    x = (np.arange(1_000_000) + 0.5) / 1_000_000
    for n in (1, 2, 16):
        density = n * x ** (n - 1)
        assert study.best_of_kl(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-6)


def tiny() -> Any:
    return study.Study(
        seeds=(0, 1), labels=(30,), width=16, depth=1, gold_width=16, members=2, prompts=4, samples=8, steps=3
    )


@pytest.fixture
def found(tmp_path: Path) -> list[dict[str, Any]]:
    return [row for seed in (0, 1) for row in study.measured(tiny(), seed, tmp_path)]


@pytest.mark.proof
def test_the_study_runs_goes_on_and_is_drawn(
    found: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Best-of-n: the proxy rises with n, and gold of one sample is the same whichever proxy would have chosen.
    for row in found:
        for method in study.METHODS:
            points = row["best_of_n"][method]["points"]
            assert [p["n"] for p in points] == [1, 2, 4, 8]
            assert all(a["proxy"] < b["proxy"] for a, b in pairwise(points))
            assert points[0]["gold"] == pytest.approx(row["best_of_n"]["single"]["points"][0]["gold"])
        for points in row["ppo"].values():
            assert len(points) == 3
            assert points[0]["kl"] == pytest.approx(0.0, abs=1e-5)  # the policy begins as the reference
            assert all(math.isfinite(p["gold"]) for p in points)

    # What is there is read: nothing is trained or drawn again.
    with monkeypatch.context() as patch:
        for name in ("proxies", "best_of_n", "pushed"):
            patch.delattr(study, name)
        again = [row for seed in (0, 1) for row in study.measured(tiny(), seed, tmp_path)]
    assert again == found

    # A study that was stopped before its record goes on from its parts and finds the same.
    record = tmp_path / "seed-0" / "labels-30" / "found.json"
    record.unlink()
    with monkeypatch.context() as patch:
        for recipe in (study.reward_model, study.ppo):
            patch.delattr(recipe, "run")
        (row,) = study.measured(tiny(), 0, tmp_path)
    assert {k: v for k, v in row.items() if k != "cpu_seconds"} == {
        k: v for k, v in found[0].items() if k != "cpu_seconds"
    }

    # Tables and chart, where no Chromium is.
    monkeypatch.setenv("PATH", str(tmp_path))
    page, image = tmp_path / "chart.html", tmp_path / "chart.png"
    study.page.draw(found, page, image)
    assert "no Chromium" in capsys.readouterr().err
    assert not image.exists()
    assert "var(--" not in page.read_text(encoding="utf-8").split("const drawn = ")[1]
    best, ppo, paired = (table.splitlines() for table in study.page.tables(found))
    assert (len(best), len(ppo), len(paired)) == (2 + 4, 2 + 3, 2 + 3)


def test_raters_choose_by_gold_but_three_toss_coins(tmp_path: Path) -> None:
    world = study.make_world(tiny(), 0, tmp_path)
    every, careful, _ = study.judge(world, 3000)
    rows = [json.loads(line) for line in every.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 3000
    kept = [json.loads(line) for line in careful.read_text(encoding="utf-8").splitlines()]
    assert kept == [row for row in rows if row["rater"] not in {"rater 0", "rater 1", "rater 2"}]
    samples = world.sample(study.draw_prompts(1000, 0, "judged"), 2, "judged")
    worth = dict(zip(((s.asked, s.text) for s in samples), world.golden(samples), strict=True))
    right: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows:
        first, second = (worth[row["prompt"], text] for text in row["completions"])
        right[row["rater"] in {"rater 0", "rater 1", "rater 2"}].append(
            (row["choice"] == 0) == (first > second)
        )
    # Coins are right on half; 5 standard errors of about 900. The expected share of careful ones is that of
    # sigmoid(2 |gap|) over gaps of two independent samples, about 0.83 where gold is normal.
    assert abs(np.mean(right[True]) - 0.5) < 5 * 0.5 / 30
    assert 0.75 < np.mean(right[False]) < 0.9
    assert len({json.dumps(row["presented"]) for row in rows}) == 2
    # The first labels of a larger study are those of a smaller one.
    few, _, _ = study.judge(world, 30)
    assert [json.loads(line) for line in few.read_text(encoding="utf-8").splitlines()] == rows[:30]


def test_gold_has_its_unit_on_the_start_and_is_a_rule_of_configs(tmp_path: Path) -> None:
    world = study.make_world(tiny(), 0, tmp_path)
    samples = world.reference()
    worth = world.golden(samples)
    assert worth.mean() == pytest.approx(0, abs=1e-6)
    assert worth.std() == pytest.approx(1, abs=1e-6)
    scorer = study.open_scorer(world.gold, world.start)
    assert scorer.score(samples[:5]) == pytest.approx(worth[:5], abs=1e-5)
