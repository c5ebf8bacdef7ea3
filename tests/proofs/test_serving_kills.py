"""A server that is killed while it answers and is judged: every opinion that it acknowledged is there, none twice, and
every answer that it gave can be judged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest

from plaudit.access.accounts import Accounts
from plaudit.access.keys import Keys
from plaudit.feedback.served import SERVED
from plaudit.feedback.store import Store
from plaudit.randomness import rng
from programs import PROGRAM, free_port

KILLS, PEOPLE = 8, 4


def start(store: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", PROGRAM, "serve", "tiny", f"store={store}", f"port={port}", "--threads", "1",
             "requests_per_minute=1e9", "tokens_per_minute=1e12"]  # fmt: skip
    with log.open("ab") as out:
        return subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)


class Person(threading.Thread):
    """Asks, and says until it is heard what they think of the answer; every third thing they say twice."""

    def __init__(self, url: str, key: str, number: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url, self.number, self.stop = url, number, stop
        self.headers = {"Authorization": f"Bearer {key}"}
        self.heard: dict[str, float] = {}
        self.unknown = list[str]()
        self.broken = list[int]()

    def run(self) -> None:
        asked = 0
        with httpx2.Client(
            base_url=f"{self.url}/v1/", headers=self.headers, timeout=20, trust_env=False
        ) as http:
            while not self.stop.is_set():
                asked += 1
                body = {
                    "model": "tiny", "max_tokens": 4, "user": f"person {self.number}",
                    "messages": [{"role": "user", "content": f"Question {asked} of {self.number}"}],
                }  # fmt: skip
                try:
                    answer = http.post("chat/completions", json=body)
                except httpx2.HTTPError:
                    time.sleep(0.05)
                    continue
                if answer.status_code != 200:
                    self.broken.append(answer.status_code)
                    continue
                self.judge(http, answer.json()["feedback"]["token"], asked)

    def judge(self, http: httpx2.Client, token: str, asked: int) -> None:
        stars = 1 + asked % 5
        times = 2 if asked % 3 == 0 else 1
        while times:
            try:
                said = http.post("feedback", json={"token": token, "stars": stars})
            except httpx2.HTTPError:
                if self.stop.is_set():
                    return
                time.sleep(0.05)
                continue
            if said.status_code == 200:
                self.heard[token] = (stars - 1) / 4
                times -= 1
            elif said.status_code < 500:
                self.unknown.append(said.text)
                return
            else:
                self.broken.append(said.status_code)
                return


@pytest.mark.proof
def test_no_acknowledged_opinion_is_lost_or_counted_twice(tmp_path: Path, say: Any) -> None:
    path, log = tmp_path / "feedback.db", tmp_path / "serve.txt"
    with Store.open(path) as store:
        Accounts(store.engine).create("shop", "admin", os.urandom(16).hex())
        key = Keys(store.engine).create("shop", ["answer"])[1]
    port, stop, random = free_port(), threading.Event(), rng(0, "serving kills")
    people = [Person(f"http://127.0.0.1:{port}", key, number, stop) for number in range(PEOPLE)]
    server = start(path, port, log)
    for person in people:
        person.start()

    def heard() -> int:
        return sum(len(person.heard) for person in people)

    try:
        for _ in range(KILLS):
            before, deadline = heard(), time.monotonic() + 120
            while heard() < before + 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert heard() > before, log.read_text()[-800:]
            time.sleep(float(random.uniform(0.0, 0.4)))
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            server = start(path, port, log)
        before, deadline = heard(), time.monotonic() + 120
        while heard() < before + PEOPLE and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        stop.set()
        for person in people:
            person.join(30)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    acknowledged = {token: score for person in people for token, score in person.heard.items()}
    assert not [told for person in people for told in person.unknown], "an answer that was given is known"
    assert not [status for person in people for status in person.broken]
    with Store.open(path) as store:
        events = store.current()
        items = store.items({str(event.item) for event in events})
        given = {items[str(event.item)].meta[SERVED]: event.payload["scores"]["overall"] for event in events}
        often = Counter(items[str(event.item)].meta[SERVED] for event in events)
        log_of_all = store.log()
    # A token is its response's id and a seal.
    assert {token.rsplit(".", 1)[0]: score for token, score in acknowledged.items()}.items() <= given.items()
    assert set(often.values()) == {1}
    assert len(log_of_all) == len(events), "what was said twice is in the log once"
    say(f"{KILLS} kills, {len(acknowledged)} opinions acknowledged, {len(events)} in the store")
    assert len(acknowledged) > 2 * KILLS
