"""A studio that listens, and Debian's Chromium to look at it."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from argon2 import PasswordHasher

from plaudit import config as configs
from plaudit.access import secrets
from plaudit.access.accounts import Accounts
from plaudit.access.roles import Role
from plaudit.feedback.projects import Entry, Projects
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Task
from plaudit.studio.app import make_app

WORD = "correct horse"
CHROMIUM = (
    os.environ.get("PLAUDIT_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


@dataclass
class Site:
    """A studio at `url` over `store`."""

    url: str
    store: Store
    runs: Path

    @property
    def projects(self) -> Projects:
        return Projects(self.store)

    def account(self, name: str, role: Role = "rater") -> str:
        Accounts(self.store.engine).create(name, role, WORD)
        return name

    def invitation(self, role: Role = "rater", project: str | None = None) -> str:
        token = Accounts(self.store.engine).invite(role, time.time(), project=project)
        return f"{self.url}/welcome/{token}"

    def project(self, kind: str, entries: list[Entry], **task: Any) -> str:
        settings = {"kind": kind, "random_share": 0.0, "gold_every": 0, "overlap": 1} | task
        made = self.projects.create("Birds", configs.parse(Task, settings, "task"))
        self.projects.add(made.id, entries)
        return made.id


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(secrets, "_hasher", lambda: cheap)
    store = Store.open(tmp_path / "feedback.db")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(make_app(store, tmp_path / "runs"), host="127.0.0.1", port=port, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield Site(f"http://127.0.0.1:{port}", store, tmp_path / "runs")
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt install chromium; or PLAUDIT_TEST_CHROMIUM)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (make setup)")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page_of(browser: Any, site: Site) -> Iterator[Callable[..., Any]]:
    """page_of(name): a page of somebody who has logged in; page_of(None): of nobody. More settings are a context's. A
    page that logs an error or opens a dialog fails the test; with sure, it may ask whether one is, and one is."""
    contexts, faults = list[Any](), list[str]()

    def answer(dialog: Any, *, sure: bool) -> None:
        if sure and dialog.type == "confirm":
            dialog.accept()
        else:
            faults.append(f"dialog: {dialog.message}")
            dialog.dismiss()

    def made(name: str | None = None, *, sure: bool = False, **settings: Any) -> Any:
        context = browser.new_context(base_url=site.url, locale="en-GB", **settings)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", functools.partial(answer, sure=sure))
        if name is not None:
            page.goto("/log-in")
            page.fill("#name", name)
            page.fill("#password", WORD)
            page.press("#password", "Enter")
            page.wait_for_url("**/projects")
        return page

    yield made
    for context in contexts:
        context.close()
    assert faults == []
