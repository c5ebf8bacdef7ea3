"""The queue of jobs: each done once, and none lost with its worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from plaudit.feedback.jobs import Jobs
from plaudit.feedback.store import Store
from plaudit.types import UserError


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    with Store.open(tmp_path / "feedback.db") as store:
        yield Jobs(store.engine)


def test_jobs_are_done_in_order_by_one_worker_each(jobs: Jobs) -> None:
    ids = [jobs.put("sample", {"n": n}, by="Olga").id for n in range(3)]
    claimed = [jobs.claim(f"w{i}", 0.0, 60) for i in range(4)]
    assert [job and job.id for job in claimed] == [*ids, None]
    assert jobs.beat(ids[0], "w0", 1.0, 60, 0.5, "half way")
    assert jobs.get(ids[0]).progress == 0.5
    assert jobs.finish(ids[0], "w0", {"items": 7})
    done = jobs.get(ids[0])
    assert (done.state, done.result, done.progress) == ("done", {"items": 7}, 1.0)
    assert not jobs.beat(ids[1], "w0", 1.0, 60, 0.5, ""), "another's"
    assert jobs.fail(ids[1], "w1", "no such model")
    assert (jobs.get(ids[1]).state, jobs.get(ids[1]).message) == ("failed", "no such model")
    assert [job.id for job in jobs.newest()] == ids[::-1]


def test_a_worker_that_dies_loses_its_job_and_what_it_says_later_does_not_count(jobs: Jobs) -> None:
    id = jobs.put("sample", {}, by="Olga").id
    assert jobs.claim("w0", 0.0, 60)
    assert jobs.claim("w1", 59.0, 60) is None
    assert jobs.beat(id, "w0", 59.0, 60, 0.1, "")
    assert jobs.claim("w1", 118.0, 60) is None
    taken = jobs.claim("w1", 119.0, 60)
    assert taken is not None
    assert (taken.id, taken.attempts) == (id, 2)
    assert not jobs.finish(id, "w0", "late")
    assert jobs.get(id).state == "running"
    assert jobs.claim("w2", 200.0, 60)
    assert jobs.claim("w3", 300.0, 60) is None
    assert (jobs.get(id).state, jobs.get(id).message) == ("failed", "its worker died 3 times")


def test_a_cancelled_job_is_told_to_its_worker(jobs: Jobs) -> None:
    one, other = (jobs.put("sample", {}, by="Olga").id for _ in range(2))
    assert jobs.claim("w0", 0.0, 60)
    assert jobs.cancel(one).state == "cancelled"
    assert jobs.cancel(other).state == "cancelled"
    assert not jobs.beat(one, "w0", 1.0, 60, 0.2, "")
    assert jobs.claim("w1", 0.0, 60) is None
    with pytest.raises(UserError, match="there is no such job"):
        jobs.cancel(99)
