"""Writers are killed at any moment: what was acknowledged is there, once, and nothing else is."""

from __future__ import annotations

import collections
import itertools
import random
import sqlite3
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
import sqlalchemy

from plaudit.feedback.events import Item, comparison_event
from plaudit.feedback.schema import HEAD
from plaudit.feedback.store import Store
from plaudit.types import UserError

WRITER = """
import sys
from plaudit.feedback.events import comparison_event, event_id
from plaudit.feedback.store import Store
path, rater, start = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Store.open(path) as store:
    for n in range(start, 100_000):
        event = comparison_event("i", rater, n % 2, id=event_id(rater, n), comment=f"word {n}")
        print(n, store.append(event), flush=True)
"""


def write(path: Path, rater: str, start: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), rater, str(start)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill(writer: subprocess.Popen[str]) -> list[tuple[int, int]]:
    """Kills it with SIGKILL; returns the acknowledged (n, seq) pairs, without a half-printed last line."""
    writer.kill()
    out, _ = writer.communicate()
    whole = out[: out.rfind("\n") + 1].splitlines()
    return [(int(n), int(seq)) for n, seq in (line.split() for line in whole)]


@pytest.mark.proof
def test_nothing_acknowledged_is_lost_or_doubled_when_writers_are_killed(tmp_path: Path) -> None:
    path, rounds = tmp_path / "feedback.db", 12
    wait = random.Random(0)
    with Store.open(path) as store:
        store.add_items([Item("p", ("a", "b"), id="i")])
    acknowledged: dict[str, dict[int, int]] = {"ann": {}, "bob": {}}
    for _ in range(rounds):
        writers = {rater: write(path, rater, len(seen)) for rater, seen in acknowledged.items()}
        time.sleep(1 + wait.random())
        for rater, writer in writers.items():
            for n, seq in kill(writer):
                assert acknowledged[rater].setdefault(n, seq) == seq
    assert min(len(seen) for seen in acknowledged.values()) > 10 * rounds  # they did write
    with Store.open(path) as store:
        log = store.log()
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        assert len({event.id for event in log}) == len(log)
        written = {(event.rater, event.comment, event.seq) for event in log}
        promised = {
            (rater, f"word {n}", seq) for rater, seen in acknowledged.items() for n, seq in seen.items()
        }
        assert promised <= written
        # what was written beyond the promises is at most the one event in flight of each writer at the end
        assert len(written - promised) <= 2
        with store.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def test_a_writer_that_stops_after_one_event_left_it_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with Store.open(path) as store:
        store.add_items([Item("p", ("a", "b"), id="i")])
    writer = write(path, "ann", 0)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "0 1\n"
    kill(writer)
    with Store.open(path) as store:
        assert store.log()[0].comment == "word 0"


def test_the_migrations_come_with_the_package() -> None:
    folder = resources.files("plaudit.feedback").joinpath("migrations")
    assert folder.joinpath("env.py").is_file()
    found = sorted(file.name for file in folder.joinpath("versions").iterdir() if file.name.startswith("v"))
    assert [name[:5] for name in found] == [f"v{number:04d}" for number in range(1, int(HEAD) + 1)]


def test_what_the_database_cannot_do_is_told_in_reading_writing_and_connecting(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with Store.open(path) as store:
        store.add_items([Item("p", ("a", "b"), id="i")])

        def read_only(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA query_only = ON")

        sqlalchemy.event.listen(store.engine, "connect", read_only)
        store.close()
        with pytest.raises(UserError, match="attempt to write a readonly database") as caught:
            store.append(comparison_event("i", "ann", 0))
        assert caught.value.where == str(path)
        assert caught.value.fix == "check the path and its permissions"
        sqlalchemy.event.remove(store.engine, "connect", read_only)
        with sqlite3.connect(path) as raw:
            raw.execute("ALTER TABLE events RENAME COLUMN payload TO gone")
        raw.close()
        with pytest.raises(UserError, match=r"no such column: events\.payload"):
            store.log()
        store.close()
        path.rename(tmp_path / "moved.db")
        path.mkdir()
        with pytest.raises(UserError, match="unable to open database file"):
            store.last_seq()
    with pytest.raises(UserError, match="unable to open database file"):
        Store.open(path)
    with pytest.raises(UserError, match=r"127.0.0.1:1/.*check the address") as refused:
        Store.open("postgresql+psycopg://ann:secret@127.0.0.1:1/plaudit")
    assert "secret" not in str(refused.value)


def test_a_server_without_space_is_told_of(tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError('could not extend file "base/1": No space left on device\nHINT: more')

    with Store.open(tmp_path / "f.db") as store:
        sqlalchemy.event.listen(store.engine, "do_execute", full)
        with pytest.raises(UserError, match="no space left on device") as caught:
            store.log()
    assert caught.value.fix == "free some space"


def test_without_space_nothing_is_lost_and_the_fault_is_named(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with Store.open(path) as store:
        store.add_items([Item("p", ("a", "b"), id="i")])

        def narrow(connection: sqlite3.Connection, _record: object) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages + 8}")

        sqlalchemy.event.listen(store.engine, "connect", narrow)
        store.close()
        said = (comparison_event("i", "ann", 0, id=str(n), comment="long " * 100) for n in itertools.count())
        with pytest.raises(UserError, match="no space left") as caught:
            collections.deque(map(store.append, said), maxlen=0)
        assert caught.value.where == str(path)
        assert caught.value.fix == "free some space"
        kept = store.last_seq()
        assert [event.id for event in store.log()] == [str(n) for n in range(kept)]

        sqlalchemy.event.remove(store.engine, "connect", narrow)
        store.close()
        assert store.append(comparison_event("i", "ann", 0, id=str(kept))) == kept + 1
