"""Judgements of real people, taken in as projects: agreement equals what is worked out apart."""

from __future__ import annotations

import ast
import csv
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plaudit import config as configs
from plaudit.data.formats import read_records
from plaudit.feedback import overview, quality
from plaudit.feedback.projects import Projects
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Task
from plaudit.types import Rating


@pytest.fixture
def projects(tmp_path: Path) -> Iterator[Projects]:
    with Store.open(tmp_path / "feedback.db") as store:
        yield Projects(store)


def task(kind: str, **more: Any) -> Task:
    return configs.parse(Task, {"kind": kind, **more}, "task")


def interval_alpha(units: Sequence[Sequence[float]]) -> float:
    """Krippendorff's definition, from squared differences: 1 - observed / expected, each pair of a unit weighted by one
    less than how many judged it."""
    kept = [np.asarray(unit, float) for unit in units if len(unit) > 1]
    every = np.concatenate(kept)
    n = len(every)
    observed = sum(2 * len(u) * ((u**2).sum() - len(u) * u.mean() ** 2) / (len(u) - 1) for u in kept) / n
    expected = 2 * n * ((every**2).sum() - n * every.mean() ** 2) / (n * (n - 1))
    return float(1 - observed / expected)


def test_pandalm_s_three_raters(projects: Projects, real_data: Path) -> None:
    project = projects.create("PandaLM", task("comparison", overlap=3)).id
    records = read_records(real_data / "pandalm_3raters" / "testset-v1.json")
    taken = projects.take_in(project, records)
    assert (taken["events"], taken["left_out"]) == (2997, 0)
    assert projects.take_in(project, records)["events"] == 0
    counts = overview.counts(projects, project)
    assert (counts["judgements"], counts["raters"]) == (2997, 3)
    assert (counts["open"], counts["to_come"]) == (900, 0)
    found = quality.of_project(projects, project)
    # The data's README says 0.864.
    assert found["agreement"]["comparisons"]["alpha"]["nominal"]["value"] == pytest.approx(0.864, abs=5e-4)
    assert set(found["raters"]) == {"annotator1", "annotator2", "annotator3"}
    assert all(0.9 < own["accuracy"] <= 1 for own in found["raters"].values())
    assert found["kappa"]["fleiss"] == pytest.approx(0.86, abs=0.02)


def scores_of(path: Path, most: int) -> list[list[int]]:
    """-4 to 4, of the first so many texts; a score's place in its list is no rater."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()[:most]
    return [ast.literal_eval(line.split("\t")[3]) for line in lines]


@pytest.mark.parametrize(("name", "whole"), [("tweets", 0.783), ("amazonReviewSnippets", 0.820)])
def test_sentiment_scores(projects: Projects, real_data: Path, name: str, whole: float) -> None:
    path = real_data / "vader_raters" / f"{name}_anonDataRatings.txt"
    every = scores_of(path, 10_000)
    assert interval_alpha(every) == pytest.approx(whole, abs=5e-4), "as published for the whole"
    some = [unit[:20] for unit in every[:150]]
    project = projects.create(name, task("rating", overlap=1)).id
    records = [
        Rating(f"text {i}", f"{name} {i}", {"overall": (score + 5) / 10}, f"r{place}")
        for i, unit in enumerate(some)
        for place, score in enumerate(unit)
    ]
    assert projects.take_in(project, records)["events"] == len(records)
    alpha = quality.of_project(projects, project)["agreement"]["ratings"]["overall"]["alpha"]["interval"][
        "value"
    ]
    assert alpha == pytest.approx(interval_alpha(some), abs=1e-9)


def test_direct_assessment_of_translations(projects: Projects, real_data: Path) -> None:
    rows = list(_translations(real_data / "mlqe_pe_da" / "en-zh-dev.tar.gz"))[:150]
    project = projects.create("MLQE-PE", task("rating", overlap=3, gold_every=0)).id
    records = [
        Rating(original, translation, {"overall": score / 100}, f"position {place}")
        for original, translation, scores in rows
        for place, score in enumerate(scores, 1)
    ]
    assert projects.take_in(project, records)["events"] == len(records)
    found = quality.of_project(projects, project)
    alpha = found["agreement"]["ratings"]["overall"]["alpha"]["interval"]["value"]
    assert alpha == pytest.approx(interval_alpha([scores for _, _, scores in rows]), abs=1e-9)
    assert found["disagreements"], "translators do not agree"


def _translations(path: Path) -> Iterator[tuple[str, str, list[float]]]:
    with tarfile.open(path) as archive:
        name = next(n for n in archive.getnames() if n.endswith(".tsv") and "dev" in n)
        file = archive.extractfile(name)
        assert file is not None
        text = io.StringIO(file.read().decode())
    for row in csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE):
        yield row["original"], row["translation"], [float(x) for x in ast.literal_eval(row["scores"])]
