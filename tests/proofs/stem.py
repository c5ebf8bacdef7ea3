"""A process that has the heavy libraries loaded and forks a pytest for each job that it is given.

    python tests/proofs/stem.py

Reads jobs from its standard input, a JSON object a line: {"room": a folder that shadows the package, "arguments":
pytest's, "seconds": how long it may take}; answers each with a line {"status": pytest's, null where time was up}. What
the tests print is in room/out. Importing torch and its company takes most of a short test's time, and happens once
here. The package itself is imported in the fork alone, from the room.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

HEAVY = (
    "torch", "torch.utils.tensorboard.writer", "numpy", "transformers", "transformers.models.llama.modeling_llama",
    "tokenizers", "safetensors.torch", "pydantic", "yaml", "typer", "rich.progress", "sqlalchemy.orm", "alembic",
    "cryptography.fernet", "krippendorff", "vaderSentiment.vaderSentiment", "plotly", "jinja2", "hypothesis", "pytest",
    "gymnasium", "peft", "httpx2",
)  # fmt: skip


def main() -> None:
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert not any(name.partition(".")[0] == "plaudit" for name in sys.modules)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps({"status": run(job)}), flush=True)


def run(job: dict[str, object]) -> int | None:
    """Pytest's exit status; None where it took longer than it may."""
    child = os.fork()
    if child == 0:
        become(Path(str(job["room"])), [str(argument) for argument in job["arguments"]])  # type: ignore[attr-defined]
    end = time.monotonic() + float(str(job["seconds"]))
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def become(room: Path, arguments: list[str]) -> None:
    """In the fork: the tests, then the end."""
    status = 70
    try:
        os.setpgid(0, 0)
        out = os.open(room / "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for own, other in ((nothing, 0), (out, 1), (out, 2)):
            os.dup2(own, other)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.path.insert(0, str(room))
        os.environ["PYTHONPATH"] = str(room)
        import pytest

        status = int(pytest.main(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
