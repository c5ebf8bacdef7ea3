"""Proof that the tests can fail: every mutation below, applied to a copy of the package, must be caught.

They are listed in mutations/, a module a group of rooms. The tests named are run against the copy and must fail as
tests do (a copy that cannot be imported proves nothing). The work tree is never touched.
"""

from __future__ import annotations

import compileall
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from mutations import MUTATIONS
from mutations.kinds import Mutation

REPO = Path(__file__).parents[2]
HINTS = Path(__file__).parent / "hints.json"
"""By a mutation's name, the test that caught it last: it is asked first, and the others where it does not fail. With
PLAUDIT_HINTS=record what is found otherwise is written into the file."""
PACKAGE = REPO / "src" / "plaudit"
SECONDS = 300
UNKNOWN = 4
"""Pytest's status where no test has the name."""


def mutated(mutation: Mutation) -> str:
    """The file's text after the change. Fails where `old` does not stand exactly once."""
    text = (PACKAGE / mutation.file).read_text()
    count = text.count(mutation.old)
    if count != 1:
        pytest.fail(
            f"{mutation.file} has {mutation.old!r} {count} times, not once; mend the list", pytrace=False
        )
    return text.replace(mutation.old, mutation.new)


CHECK_ORIGIN = """
from pathlib import Path

def pytest_sessionstart(session):
    import plaudit
    here = Path(__file__).resolve().parent
    assert Path(plaudit.__file__).resolve().parent == here / "plaudit", plaudit.__file__
"""


class Result(NamedTuple):
    """status: pytest's exit status, None where it took too long; said: what it printed."""

    status: int | None
    said: str


class Stem:
    """tests/proofs/stem.py, one job at a time. rooms: an empty folder, for copies of the package."""

    def __init__(self, rooms: Path) -> None:
        own = {
            "PYTEST_ADDOPTS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "400",
        }
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")
        }
        self.process = subprocess.Popen(
            [sys.executable, str(REPO / "tests" / "proofs" / "stem.py")],
            cwd=REPO, env=environment | own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.rooms, self.numbers = rooms, count()
        self.whole = rooms / "whole"
        shutil.copytree(PACKAGE, self.whole, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(self.whole, quiet=1)

    def run(
        self, tests: Sequence[str], mutation: Mutation | None = None, *, seconds: float = SECONDS
    ) -> Result:
        """Copy the package into a room, change it, and run the tests against the copy (and the copy alone)."""
        room = self.rooms / str(next(self.numbers))
        shutil.copytree(self.whole, room / "plaudit")
        (room / "check_origin.py").write_text(CHECK_ORIGIN)
        if mutation:
            file = room / "plaudit" / mutation.file
            file.write_text(mutated(mutation))
            for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
                compiled.unlink()
        options = ["-x", "-p", "no:cacheprovider", "-p", "check_origin", "--tb=no"]
        options += ["--basetemp", str(room / "tmp")]
        if not any("::" in test for test in tests):
            options += ["-m", "not proof"]
        arguments = [*options, *(f"tests/{test}" for test in tests)]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(
            json.dumps({"room": str(room), "arguments": arguments, "seconds": seconds}) + "\n"
        )
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())["status"]
        said = (room / "out").read_text(errors="replace")
        shutil.rmtree(room, ignore_errors=True)
        return Result(status, said)

    def close(self) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()


NONSENSE = "NameError|UnboundLocalError|AttributeError|TypeError|SyntaxError|ImportError"
"""What a typing slip raises. A test that meets one of these has not judged the change."""


@pytest.fixture(scope="module")
def stem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stem]:
    made = Stem(tmp_path_factory.mktemp("mutations"))
    yield made
    made.close()


def names(mutation: Mutation) -> str:
    return f"{mutation.file}: {mutation.why}"


def test_every_mutation_still_has_its_place() -> None:
    """Quick, so that whoever changes a line learns at once that the list names it."""
    for mutation in MUTATIONS:
        assert mutated(mutation)
        for test in mutation.tests:
            assert (REPO / "tests" / test).is_file(), test
    assert len(set(map(names, MUTATIONS))) == len(MUTATIONS)


def test_no_room_hides_another() -> None:
    """A second tuple of the same name in a module would take the first one's mutations away, and nothing would fail."""
    for path in (REPO / "tests" / "proofs" / "mutations").glob("*.py"):
        rooms = re.findall(r"^([A-Z_]+) = ", path.read_text(), re.MULTILINE)
        assert len(set(rooms)) == len(rooms), path.name


def test_a_line_that_is_gone_is_told_apart_from_one_that_is_caught() -> None:
    gone = MUTATIONS[0]._replace(old="a line of last year")
    with pytest.raises(
        pytest.fail.Exception, match=r"masking.py has 'a line of last year' 0 times, not once"
    ):
        mutated(gone)


HINTED: dict[str, str] = json.loads(HINTS.read_text())
ROOMS = sorted({test.partition("/")[0] for mutation in MUTATIONS for test in mutation.tests})


@pytest.mark.proof
@pytest.mark.parametrize("room", ROOMS)
def test_what_judges_mutations_passes_on_a_copy_without_one(room: str, stem: Stem) -> None:
    """Those that are hints; where one is out of date, or there is none, whole files."""
    hints = sorted({hint for hint in HINTED.values() if re.split("/|::", hint)[0] == room})
    result = stem.run(hints, seconds=4 * SECONDS) if hints else None
    if result is None or result.status == UNKNOWN:
        files = {test for mutation in MUTATIONS for test in mutation.tests if test.partition("/")[0] == room}
        result = stem.run(sorted(files), seconds=8 * SECONDS)
    assert result.status == 0, result.said


@pytest.mark.proof
@pytest.mark.parametrize("mutation", MUTATIONS, ids=names)
def test_mutation_is_caught(mutation: Mutation, stem: Stem, say: Callable[[str], None]) -> None:
    begun, hint = time.monotonic(), HINTED.get(names(mutation))
    result = stem.run([hint], mutation) if hint else None
    if result is None or result.status != 1:
        result = stem.run(mutation.tests, mutation)
    assert result.status is not None, f"took longer than {SECONDS} s: {mutation.old!r} -> {mutation.new!r}"
    assert result.status != 0, f"not caught: {mutation.old!r} -> {mutation.new!r}"
    assert result.status == 1, f"it broke the run, which proves nothing:\n{result.said}"
    caught = re.search(r"^FAILED \S*?(\w+\.py::.+?)(?: - (.*))?$", result.said, re.MULTILINE)
    assert caught, f"no test is named:\n{result.said}"
    assert not re.match(NONSENSE, caught.group(2) or ""), (
        f"not a change that anyone could make: {caught.group(2)}"
    )
    file, _, test = caught.group(1).partition("::")
    judge = next(path for path in mutation.tests if path.endswith(file)) + "::" + test
    say(f"{names(mutation)}: caught by {judge}, {time.monotonic() - begun:.1f} s")
    if judge != hint:
        unmutated = stem.run([judge])
        assert unmutated.status == 0, unmutated.said
        if os.environ.get("PLAUDIT_HINTS") == "record":
            record(names(mutation), judge)


def record(name: str, judge: str) -> None:
    """Into the file of hints, out of which those of mutations that are gone are taken."""
    with open(HINTS, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        known = json.load(file) | {name: judge}
        file.seek(0)
        json.dump(
            {name: known[name] for name in sorted(map(names, MUTATIONS)) if name in known}, file, indent=0
        )
        file.write("\n")
        file.truncate()
