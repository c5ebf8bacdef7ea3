"""What `pip install` brings: the wheel holds all that the code reads, and works from where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "plaudit"

pytestmark = pytest.mark.proof


def run(*words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", place, ROOT)
    (found,) = place.glob("*.whl")
    return found


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    ours = {
        f"plaudit/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == ours
    assert {
        "plaudit/py.typed",
        "plaudit/loop/openers.jsonl",
        "plaudit/feedback/migrations/env.py",
        "plaudit/feedback/migrations/versions/v0001_events.py",
    } <= ours
    assert any("/templates/" in name for name in ours)


def test_the_wheel_says_what_it_is_and_under_which_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        about = {
            name.partition(".dist-info/")[2]: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert about["licenses/LICENSE"] == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "plaudit = plaudit.cli:main" in about["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in about["METADATA"]
    assert "Requires-Python: <3.14,>=3.11" in about["METADATA"]


def test_the_installed_package_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """From a folder of its own: the command answers, the store makes its tables, the openers are read."""
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    code = """
import sys
from pathlib import Path
import plaudit
from plaudit.cli import main
from plaudit.feedback.store import Store
from plaudit.loop import quickstart
assert Path(plaudit.__file__).is_relative_to(sys.argv[1]), plaudit.__file__
here = Path(sys.argv[2])
assert main(["--version"]) == 0
with Store.open(here / "feedback.db") as store:
    assert store.last_seq() == 0
splits = quickstart.write_prompts(quickstart.Config(), here)
assert len(splits["train"]) == quickstart.Config().training_prompts
"""
    out = run("-c", code, tmp_path / "site", tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert out.strip() == wheel.name.split("-")[1]
