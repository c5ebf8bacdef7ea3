"""The container's files, by the linters that everybody uses for them. No engine runs here: nothing is built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]], capture_output=True, text=True, cwd=ROOT, check=False
    )


def lint(path: Path) -> Any:
    return json.loads(run("hadolint", "--format", "json", str(path)).stdout)


def test_hadolint_finds_nothing_and_would_find_something(tmp_path: Path) -> None:
    assert lint(ROOT / "Dockerfile") == []
    broken = tmp_path / "Dockerfile"
    broken.write_text("FROM python\nRUN cd /x && apt-get install curl\n")
    assert {one["code"] for one in lint(broken)} >= {"DL3006", "DL3003", "DL3008"}


def test_the_compose_file_fits_its_schema_and_another_would_not(tmp_path: Path) -> None:
    check = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    found = run(*check, str(ROOT / "compose.yaml"))
    assert found.returncode == 0, found.stdout
    broken = tmp_path / "compose.yaml"
    broken.write_text("services:\n  a:\n    imagine: postgres\n")
    assert run(*check, str(broken)).returncode == 1


def test_services_are_nobodys_root_and_write_nowhere_else() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    ours = {name: one for name, one in compose["services"].items() if name != "database"}
    assert set(ours) == {"studio", "worker", "serve"}
    for service in ours.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert docker.rindex("\nUSER 10001") > docker.rindex("\nFROM")


@pytest.mark.parametrize("name", ["studio", "worker", "serve"])
def test_commands_are_such_as_plaudit_has(name: str) -> None:
    """Each service's words, with a store in a place that cannot be: the command is known, and says so."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    words = [
        word.replace("${PLAUDIT_MODEL:-smollm2}", "tiny").replace("@database/", "@127.0.0.1:9/")
        for word in compose["services"][name]["command"]
    ]
    env = os.environ | {"PLAUDIT_DB_PASSWORD": "x"}
    done = subprocess.run(
        [str(BIN / "plaudit"), *words], capture_output=True, text=True, env=env, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "No such option" not in done.stderr
    assert "unknown" not in done.stderr
    assert "cannot be used" in done.stderr or "cannot be opened" in done.stderr
