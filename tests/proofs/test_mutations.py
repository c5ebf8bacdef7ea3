"""Proof that the tests can fail: every mutation below, applied to a copy of the package, must be caught.

They are listed in mutations/, a module a group of rooms. The tests named are run against the copy and must fail as
tests do (a copy that cannot be imported proves nothing). The work tree is never touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

import pytest
from mutations import MUTATIONS
from mutations.kinds import Mutation

REPO = Path(__file__).parents[2]
HINTS = Path(__file__).parent / "hints.json"
"""By a mutation's name, the test that caught it last: it is asked first, and the others where it does not fail. With
PLAUDIT_HINTS=record the file is written anew."""
PACKAGE = REPO / "src" / "plaudit"
AT_ONCE = 2
SECONDS = 300


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
    """tests/proofs/stem.py, one job at a time."""

    def __init__(self) -> None:
        own = {
            "PYTEST_ADDOPTS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "400",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(REPO / "tests" / "proofs" / "stem.py")],
            cwd=REPO, env=os.environ | own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, tests: Sequence[str], room: Path, mutation: Mutation | None = None) -> Result:
        """Copy the package into the room, change it, and run the tests against the copy (and the copy alone)."""
        shutil.copytree(PACKAGE, room / "plaudit", ignore=shutil.ignore_patterns("__pycache__"))
        (room / "check_origin.py").write_text(CHECK_ORIGIN)
        if mutation:
            (room / "plaudit" / mutation.file).write_text(mutated(mutation))
        options = ["-x", "-p", "no:cacheprovider", "-p", "check_origin", "-m", "not proof", "--tb=no"]
        options += ["--basetemp", str(room / "tmp")]
        arguments = [*options, *(f"tests/{test}" for test in tests)]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(
            json.dumps({"room": str(room), "arguments": arguments, "seconds": SECONDS}) + "\n"
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

Job = Mutation | str
"""A mutation, or a file of tests that the copy must pass unmutated."""
Outcome = Callable[[Job], Result]
CAUGHT: dict[str, str] = {}
"""By a mutation's name, the test that caught it in this session."""


@pytest.fixture(scope="module")
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """What became of a job. Those selected are run ahead, a few at a time; under xdist, one when asked for."""
    rooms = tmp_path_factory.mktemp("mutations")
    at_once = 1 if "PYTEST_XDIST_WORKER" in os.environ else AT_ONCE
    stems = Queue[Stem]()
    for _ in range(at_once):
        stems.put(Stem())

    hints: dict[str, str] = json.loads(HINTS.read_text())

    def one(number: int, job: Job) -> Result:
        stem, room = stems.get(), rooms / str(number)
        try:
            if isinstance(job, str):
                return stem.run((job,), room)
            if (hint := hints.get(names(job))) is not None:
                quick = stem.run((hint,), room, job)
                if quick.status == 1:
                    return quick
            return stem.run(job.tests, room, job)
        finally:
            stems.put(stem)

    calls = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = [call.params["job"] for call in calls if call and "job" in call.params]
    ahead = [] if "PYTEST_XDIST_WORKER" in os.environ else list(dict.fromkeys(chosen))
    pool = ThreadPoolExecutor(at_once)
    futures = {job: pool.submit(one, number, job) for number, job in enumerate(ahead)}
    yield lambda job: futures[job].result() if job in futures else one(len(ahead), job)
    pool.shutdown(cancel_futures=True)
    while not stems.empty():
        stems.get().close()
    if os.environ.get("PLAUDIT_HINTS") == "record":
        found = {name: hint for name, hint in (hints | CAUGHT).items() if name in set(map(names, MUTATIONS))}
        HINTS.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")


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


@pytest.mark.proof
@pytest.mark.parametrize("job", sorted({test for mutation in MUTATIONS for test in mutation.tests}))
def test_the_copy_passes_unmutated(job: str, outcome: Outcome) -> None:
    result = outcome(job)
    assert result.status == 0, result.said


@pytest.mark.proof
@pytest.mark.parametrize("job", MUTATIONS, ids=names)
def test_mutation_is_caught(job: Mutation, outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    mutation, result = job, outcome(job)
    assert result.status is not None, f"took longer than {SECONDS} s: {mutation.old!r} -> {mutation.new!r}"
    assert result.status != 0, f"not caught: {mutation.old!r} -> {mutation.new!r}"
    assert result.status == 1, f"it broke the run, which proves nothing:\n{result.said}"
    caught = re.search(r"^FAILED \S*?(\w+\.py::.+?)(?: - (.*))?$", result.said, re.MULTILINE)
    assert caught, f"no test is named:\n{result.said}"
    assert not re.match(NONSENSE, caught.group(2) or ""), (
        f"not a change that anyone could make: {caught.group(2)}"
    )
    file, _, test = caught.group(1).partition("::")
    CAUGHT[names(mutation)] = next(path for path in mutation.tests if path.endswith(file)) + "::" + test
    with capsys.disabled():
        print(f"\n  {names(mutation)}: caught by {caught.group(1)}", end="")
