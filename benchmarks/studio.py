"""Two hundred raters at once against one studio: is every item given out exactly as asked, is nothing lost, how long
does an answer take?

python benchmarks/studio.py --store sqlite|URL [--raters 200] [--seconds 120] [--thinking 3.0]

Each rater has a key of their own, thinks for a time that is exponentially distributed, and sends; what comes after what
they have is in the acknowledgement, as the page has it. The server is `plaudit studio` as it starts by itself, in
processes of its own; this one is the raters. Figures go to benchmarks/results/studio.json, one row a database.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa

from plaudit import files
from plaudit.access.accounts import Accounts
from plaudit.access.keys import Keys
from plaudit.feedback import overview, schema
from plaudit.feedback.projects import Entry, Projects
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Task
from plaudit.randomness import rng
from plaudit.training import machine

sys.path.insert(0, str(Path(__file__).parent))
PLACE = Path(__file__).parent / "results" / "studio.json"
PROGRAM = "import sys; from plaudit.cli import main; sys.exit(main())"
OVERLAP, AHEAD = 3, 3
ARRIVAL = 15.0
"""Seconds within which all raters have come: two hundred do not open a page in one moment."""
LEAST_MS = 150.0
"""Aimed at: the 95th percentile of an answer on PostgreSQL."""


def prepare(address: str, raters: int, items: int) -> tuple[str, list[str]]:
    """A project with more items than can be judged, and a key each."""
    with Store.open(address) as store:
        projects = Projects(store)
        name = f"load {uuid.uuid4().hex[:6]}"
        project = projects.create(name, Task(kind="comparison", overlap=OVERLAP, gold_every=20)).id
        text = "A sentence of some length, such as a model might have written. " * 8
        entries = [Entry(f"{name}: prompt {i}", (f"{i} {text}", f"{text} {i}")) for i in range(items)]
        gold = [
            Entry(
                f"{name}: gold {i}", (text, f"bad {i}"), part="gold", answer={"choice": 0, "strength": None}
            )
            for i in range(20)
        ]
        projects.add(project, entries + gold)
        keys = []
        for number in range(raters):
            rater = f"{name} {number}"
            Accounts(store.engine).create(rater, "rater", "correct horse")
            keys.append(Keys(store.engine).create(rater, ["judge"])[1])
        return project, keys


async def one(
    http: httpx2.AsyncClient,
    key: str,
    project: str,
    number: int,
    until: float,
    thinking: float,
    said: dict[str, Any],
) -> None:
    """One rater's work."""
    random = rng(number, "load")
    headers = {"Authorization": f"Bearer {key}"}
    await asyncio.sleep(float(random.uniform(0, ARRIVAL)))
    began = time.monotonic()
    answer = await http.get(f"projects/{project}/next?count={AHEAD}", headers=headers)
    said["next"].append(time.monotonic() - began)
    turns: list[dict[str, Any]] = answer.raise_for_status().json()["turns"]
    while time.monotonic() < until:
        if not turns:
            said["empty"] += 1
            return
        await asyncio.sleep(float(random.exponential(thinking)))
        turn = turns.pop(0)
        body = {
            "event": str(uuid.uuid4()), "item": turn["item"], "assignment": turn["assignment"], "ahead": AHEAD,
            "have": [one["item"] for one in turns],
            "payload": {"choice": turn["completions"][0]["index"], "strength": 2, "seconds": 1.0},
        }  # fmt: skip
        began = time.monotonic()
        answer = await http.post(f"projects/{project}/answers", json=body, headers=headers)
        said["answer"].append(time.monotonic() - began)
        if answer.status_code == 200:
            written = answer.json()
            said["acknowledged"][body["event"]] = written["seq"]
            turns += written["next"]["turns"]
        else:
            said["refused"].append(answer.text[:200])


async def load(url: str, project: str, keys: list[str], seconds: float, thinking: float) -> dict[str, Any]:
    """All raters at once."""
    said: dict[str, Any] = {"next": [], "answer": [], "acknowledged": {}, "refused": [], "empty": 0}
    until, tls = time.monotonic() + seconds, ssl.create_default_context()

    async def rater(number: int, key: str) -> None:
        # A client each, as each has a browser: one for all looks at every connection with every request.
        async with httpx2.AsyncClient(base_url=f"{url}/api/v1/", verify=tls, timeout=60) as http:
            await one(http, key, project, number, until, thinking, said)

    await asyncio.gather(*(rater(number, key) for number, key in enumerate(keys)))
    return said


def check(address: str, project: str, said: dict[str, Any]) -> dict[str, int]:
    """What the store holds of it: over- or under-assigned items, lost or double answers."""
    with Store.open(address) as store:
        table = schema.project_items
        with store.engine.connect() as connection:
            query = sa.select(table.c.item, table.c.part).where(table.c.project == project)
            parts = {row.item: row.part for row in connection.execute(query)}
            slots = schema.assignments
            count = sa.select(slots.c.item, sa.func.count().label("slots")).where(slots.c.project == project)
            wanted = {row.item: row.slots for row in connection.execute(count.group_by(slots.c.item))}
        events = [event for event in store.log() if event.item in parts]
        held = {event.id: event.seq for event in events}
        given = Counter(event.item for event in events if event.assignment is not None)
        pairs = Counter((event.item, event.rater) for event in events)
        to_come = overview.counts(Projects(store), project)["to_come"]
    lost = [event for event, seq in said["acknowledged"].items() if held.get(event) != seq]
    over = sum(
        count > OVERLAP for item, count in given.items() if parts[item] == "open"
    )  # gold goes to everybody
    # Those that are given, or still to come.
    under = sum(wanted.get(item, 0) < OVERLAP for item, part in parts.items() if part == "open")
    return {
        "events": len(events), "over_assigned": over, "under_assigned": under,
        "double": sum(n > 1 for n in pairs.values()), "lost": len(lost),
        "unacknowledged": len(events) - len(said["acknowledged"]), "to_come": to_come,
    }  # fmt: skip


def figures(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    ranked = sorted(1000 * s for s in seconds)

    def at(q: float) -> float:
        return round(ranked[min(len(ranked) - 1, int(q * len(ranked)))], 1)

    mean = round(statistics.fmean(ranked), 1)
    return {"n": len(ranked), "mean": mean, "p50": at(0.5), "p95": at(0.95), "p99": at(0.99)}


def measure(address: str, raters: int, seconds: float, thinking: float) -> dict[str, Any]:
    """One row: a server started, loaded, stopped, and its store looked at."""
    items = int(raters * seconds / thinking / OVERLAP) + 200
    project, keys = prepare(address, raters, items)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = [sys.executable, "-c", PROGRAM, "studio", "--store", address, "--port", str(port)]
    server = subprocess.Popen(words, start_new_session=True, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                httpx2.get(f"{url}/log-in", timeout=1)
                break
            except httpx2.HTTPError:
                time.sleep(0.1)
        began = time.monotonic()
        said = asyncio.run(load(url, project, keys, seconds, thinking))
        took = time.monotonic() - began
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
    return {
        "database": "postgresql" if "://" in address else "sqlite",
        "raters": raters,
        "seconds": round(took, 1),
        "thinking": thinking,
        "answers_a_second": round(len(said["acknowledged"]) / took, 1),
        "answer_ms": figures(said["answer"]),
        "next_ms": figures(said["next"]),
        "refused": len(said["refused"]),
        **check(address, project, said),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cores": machine.available_cores(),
    }


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--store", default="sqlite", help='"sqlite", or a PostgreSQL URL')
    given.add_argument("--raters", type=int, default=200)
    given.add_argument("--seconds", type=float, default=120.0)
    given.add_argument("--thinking", type=float, default=3.0)
    words = given.parse_args()
    with tempfile.TemporaryDirectory(prefix="plaudit-load-") as place:
        address = str(Path(place) / "feedback.db") if words.store == "sqlite" else words.store
        row = measure(address, words.raters, words.seconds, words.thinking)
    rows = json.loads(PLACE.read_text())["rows"] if PLACE.exists() else []
    kept = [old for old in rows if old["database"] != row["database"]]
    files.write_json(
        PLACE, {"name": "studio", "command": "python benchmarks/studio.py", "rows": [*kept, row]}
    )
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
