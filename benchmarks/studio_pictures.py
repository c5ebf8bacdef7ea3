"""The pictures of docs/studio.md: the studio's own pages over a made-up project, in Debian's Chromium.

python benchmarks/studio_pictures.py [--chromium /usr/bin/chromium]
"""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn

from plaudit import config as configs
from plaudit.access.accounts import Accounts
from plaudit.feedback import answering, vectors
from plaudit.feedback.projects import Entry, Projects
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Task
from plaudit.randomness import rng
from plaudit.studio.app import make_app

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WORD = "correct horse"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--no-first-run",
]
ASKED = "My tomato plants have yellow leaves at the bottom. What should I do?"
ANSWERS = (
    "Lower leaves that turn yellow are most often **short of nitrogen**, or have stood too wet.\n\n"
    "1. Let the top 3 cm of the soil dry before you water again.\n"
    "2. Feed once a week with a tomato fertiliser.\n"
    "3. Take off leaves that are yellow all over.\n\n"
    "If brown rings appear on them, it is early blight: take those leaves off and keep the others dry.",
    "Tomatoes are a popular vegetable and there are many kinds of them. Yellow is a colour that leaves can have. You "
    "could water the plants more, or you could water them less. It is best to ask somebody who knows about plants.",
)


GUIDELINE = {
    "en": "Prefer the answer that a gardener could act on today.\n\nA wrong remedy is worse than none.",
    "zh": "请选择园丁今天就能照做的回答。\n\n错误的办法不如没有办法。",
}


def project(projects: Projects, kind: str, entries: list[Entry], name: str, **more: Any) -> str:
    task = configs.parse(Task, {"kind": kind, "random_share": 0.0, "gold_every": 0} | more, "task")
    made = projects.create(name, task).id
    projects.add(made, entries)
    return made


def judged(store: Store, projects: Projects) -> str:
    """A project that four people have judged, with vectors that say something about what they like."""
    random = rng(0, "pictures")
    entries = [
        Entry(f"Question {i}", (f"Answer A to {i}.", f"A longer answer B to {i}.")) for i in range(150)
    ]
    made = project(projects, "comparison", entries, "Garden answers", overlap=2)
    direction = random.normal(size=12)
    found: dict[tuple[str, int], Any] = {}
    wants: dict[str, Any] = {}
    for item in store.items().values():
        if item.meta.get("project") == made:
            states = random.normal(size=(2, 12))
            found |= {(item.id, place): states[place] for place in range(2)}
            wants[item.id] = states @ direction
    vectors.put(store.engine, "smollm2", found)
    for rater, noise in (("Quiet otter", 0.5), ("Blue heron", 0.8), ("Early fox", 1.5), ("Old badger", 4.0)):
        Accounts(store.engine).create(rater, "rater", WORD)
        for number in range(75):
            if not (turns := answering.upcoming(projects, projects.get(made), rater, time.time())):
                break
            turn = turns[0]
            gap = float(wants[turn.item.id][0] - wants[turn.item.id][1] + noise * random.normal())
            said = {
                "choice": 0 if gap > 0 else 1,
                "strength": min(4, 1 + int(abs(gap))),
                "seconds": 8.0 + number % 5,
            }
            answering.judge(
                projects,
                made,
                rater,
                turn.item.id,
                said,
                event=f"{rater}-{number}",
                assignment=turn.assignment,
            )
    return made


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--chromium", default="/usr/bin/chromium")
    words = given.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        store = Store.open(Path(place) / "feedback.db")
        projects = Projects(store)
        pair = project(projects, "comparison", [Entry(ASKED, ANSWERS)], "Garden answers", overlap=4)
        projects.write_guideline(pair, GUIDELINE)
        rubric = [
            {
                "name": "helpful",
                "label": "Helpful",
                "help": "Could one act on it?",
                "low": "no",
                "high": "at once",
            },
            {
                "name": "true",
                "label": "True",
                "help": "Is what it says right?",
                "low": "wrong",
                "high": "right",
            },
        ]
        rating = project(
            projects, "rating", [Entry(ASKED, ANSWERS[:1])], "Garden answers", criteria=rubric, overlap=2
        )
        whole = judged(store, projects)
        runs = Path(place) / "runs" / "ppo"
        runs.mkdir(parents=True)
        Accounts(store.engine).create("Olga", "owner", WORD)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        config = uvicorn.Config(
            make_app(store, runs.parent), host="127.0.0.1", port=port, log_level="warning"
        )
        server = uvicorn.Server(config)
        threading.Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.02)
        browser = driver.chromium.launch(executable_path=words.chromium, args=FLAGS)

        def shot(name: str, path: str, ready: str, act: str | None = None, **context: Any) -> None:
            settings = {"viewport": {"width": 1180, "height": 760}, "locale": "en-GB"} | context
            made = browser.new_context(base_url=f"http://127.0.0.1:{port}", **settings)
            page = made.new_page()
            page.goto("/log-in")
            page.fill("#name", "Olga")
            page.fill("#password", WORD)
            page.press("#password", "Enter")
            page.wait_for_url("**/projects")
            page.goto(path)
            page.wait_for_selector(ready)
            for key in json.loads(act or "[]"):
                page.keyboard.press(key)
            page.wait_for_timeout(400)
            page.screenshot(path=str(IMAGES / f"studio_{name}.png"))
            made.close()

        shot("judge", f"/projects/{pair}/judge", ".scale", '["2"]')
        shot("rating", f"/projects/{rating}/judge", ".rubric", '["8"]', color_scheme="dark")
        shot(
            "phone",
            f"/projects/{pair}/judge",
            ".scale",
            viewport={"width": 390, "height": 844},
            locale="zh-CN",
        )
        shot("quality", f"/projects/{whole}#quality", "#agreement table")
        shot("value", f"/projects/{whole}#value", "#curve svg")
        browser.close()
        server.should_exit = True
        print(f"written: {IMAGES}/studio_*.png")


if __name__ == "__main__":
    main()
