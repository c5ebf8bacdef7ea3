"""Each peer's own virtual environment, built from PyPI on first use from the list in requirements/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from plaudit import files
from plaudit.models.load import cache_directory
from plaudit.types import UserError

REQUIREMENTS = Path(__file__).parent / "requirements"


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment: the one that PLAUDIT_PEER_NAME names (a virtual environment's directory,
    taken as it is), or peers/NAME below Plaudit's cache, built where it is missing or its list has changed. UserError
    where it cannot be built."""
    variable = f"PLAUDIT_PEER_{peer.upper().replace('-', '_')}"
    if given := os.environ.get(variable):
        python = Path(given).expanduser() / "bin" / "python"
        if not python.exists():
            raise UserError(
                "holds no bin/python", where=f"{variable}={given}", fix="name a virtual environment"
            )
        return python
    place = cache_directory() / "peers" / peer
    wanted = (REQUIREMENTS / f"{peer}.txt").read_text(encoding="utf-8")
    stamp = place / "built.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        build(place, wanted)
        files.write_text(stamp, wanted)  # last: what a kill left half built is built anew
    return place / "bin" / "python"


def build(place: Path, wanted: str) -> None:
    """A fresh environment with these requirements, torch first and alone, so that nothing else chooses its build."""
    print(f"building {place} (some minutes, once)", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    first, rest, unwanted = parsed(wanted)
    python = place / "bin" / "python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    steps = [[sys.executable, "-m", "venv", str(place)], [*pip, "install", *first], [*pip, "install", *rest]]
    steps += [[*pip, "uninstall", "--yes", *unwanted]] if unwanted else []
    for step in steps:
        done = subprocess.run(step, check=False, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            errors = [line for line in said if not line.startswith("WARNING")]
            raise UserError(
                f"cannot be built: {' '.join((errors or ['no reason was given'])[-2:])[:300]}",
                where=str(place),
                fix="check the network and the free space",
            )


def parsed(wanted: str) -> tuple[list[str], list[str], list[str]]:
    """(torch, the others, what is taken out again) of a list of requirements."""
    lines = [line.strip() for line in wanted.splitlines() if line.strip()]
    names = [line for line in lines if not line.startswith("#")]
    unwanted = [name for line in lines if line.startswith("# remove:") for name in line.split()[2:]]
    return (
        [name for name in names if name.startswith("torch==")],
        [name for name in names if not name.startswith("torch==")],
        unwanted,
    )
