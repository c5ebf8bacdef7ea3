"""A studio that is killed under load, twenty times: every answer that it acknowledged is there, none twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import httpx2
import pytest

from plaudit.access.accounts import Accounts
from plaudit.access.keys import Keys
from plaudit.feedback.projects import Entry, Projects
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Task
from plaudit.randomness import rng
from programs import PROGRAM, free_port

KILLS, RATERS, ITEMS, OVERLAP = 20, 6, 400, 3


def start(store: Path, port: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", PROGRAM, "studio", "--store", str(store), "--port", str(port)]
    return subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


class Rater(threading.Thread):
    """Judges as a page does: asks again until it is answered, with the same id."""

    def __init__(self, url: str, key: str, project: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url, self.project, self.stop = url, project, stop
        self.headers = {"Authorization": f"Bearer {key}"}
        self.acknowledged: dict[str, int] = {}
        self.waiting: dict[str, Any] | None = None

    def run(self) -> None:
        with httpx2.Client(
            base_url=f"{self.url}/api/v1/projects/{self.project}/", headers=self.headers, timeout=5
        ) as http:
            while not self.stop.is_set():
                try:
                    if self.waiting is None:
                        turns = http.get("next?count=1").raise_for_status().json()["turns"]
                        if not turns:
                            time.sleep(0.1)
                            continue
                        self.waiting = {
                            "event": str(uuid.uuid4()), "item": turns[0]["item"], "assignment": turns[0]["assignment"],
                            "payload": {"choice": 0, "strength": 1},
                        }  # fmt: skip
                    answer = http.post("answers", json=self.waiting)
                    if answer.status_code == 200:
                        self.acknowledged[self.waiting["event"]] = answer.json()["seq"]
                        self.waiting = None
                except httpx2.HTTPError:
                    time.sleep(0.05)


@pytest.mark.proof
def test_no_acknowledged_answer_is_lost_or_counted_twice(tmp_path: Path, say: Any) -> None:
    path = tmp_path / "feedback.db"
    with Store.open(path) as store:
        projects = Projects(store)
        project = projects.create("Pairs", Task(kind="comparison", overlap=OVERLAP, gold_every=0)).id
        projects.add(project, [Entry(f"p{i}", (f"a{i}", f"b{i}")) for i in range(ITEMS)])
        keys = []
        for number in range(RATERS):
            Accounts(store.engine).create(f"rater {number}", "rater", "correct horse")
            keys.append(Keys(store.engine).create(f"rater {number}", ["judge"])[1])
    port, stop, random = free_port(), threading.Event(), rng(0, "studio kills")
    raters = [Rater(f"http://127.0.0.1:{port}", key, project, stop) for key in keys]
    server = start(path, port)
    for rater in raters:
        rater.start()
    try:
        for _ in range(KILLS):
            before = sum(len(rater.acknowledged) for rater in raters)
            deadline = time.monotonic() + 60
            while sum(len(rater.acknowledged) for rater in raters) == before and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(float(random.uniform(0.0, 0.4)))
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            server = start(path, port)
        deadline = time.monotonic() + 60
        while any(rater.waiting is not None for rater in raters) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        stop.set()
        for rater in raters:
            rater.join(20)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    acknowledged = {event: seq for rater in raters for event, seq in rater.acknowledged.items()}
    with Store.open(path) as store:
        log = store.log()
        given = {event.id: event.seq for event in log}
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        assert acknowledged.items() <= given.items(), "every acknowledged answer is there, under its number"
        per_item: dict[str, set[str]] = {}
        for event in log:
            judges = per_item.setdefault(str(event.item), set())
            assert event.rater not in judges, "nobody judges an item twice"
            judges.add(event.rater)
        assert max(map(len, per_item.values())) <= OVERLAP, (
            "what a rater held when the server died, they get again"
        )
    say(f"{KILLS} kills, {len(acknowledged)} answers acknowledged, {len(given)} in the log")
    assert len(acknowledged) > KILLS
