"""`plaudit serve` and `plaudit release` as a user types them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from plaudit.cli import main

ENTRY = [sys.executable, "-c", "import sys; from plaudit.cli import main; sys.exit(main())"]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        sys.exit(main([*words]))
    return int(done.value.code or 0)


def free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Started:
    """A server in a process of its own, that is asked over HTTP."""

    def __init__(self, directory: Path, *words: str) -> None:
        self.port = free()
        self.log = directory / f"log-{self.port}.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*ENTRY, "serve", *words, f"port={self.port}"], cwd=directory, stdout=log, stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            )  # fmt: skip
        ends = time.monotonic() + 120
        while not self._ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self.port}/readyz"
            return httpx2.get(url, trust_env=False, timeout=5.0).status_code == 200
        except httpx2.HTTPError:
            return False

    def key(self) -> str:
        found = re.search(r"plaudit_\S+", self.log.read_text())
        assert found is not None, self.log.read_text()
        return found[0]

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0)

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(client: openai.OpenAI, name: str) -> Any:
    messages: Any = [{"role": "user", "content": "Hello"}]
    return client.chat.completions.create(model=name, messages=messages, max_tokens=3)


def test_a_model_is_served_published_over_and_taken_back(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One server answers, another in front of it passes on; a release follows within seconds, and goes back; Ctrl-C
    ends both."""
    behind = Started(place, "tiny", "store=a.db", "most_tokens=5")
    key = behind.key()
    with behind.client(key) as client:
        first = asked(client, "tiny").system_fingerprint
        assert re.fullmatch(r"tiny-[0-9a-f]{8}", str(first))
        assert run("release", "publish", "tiny", "tiny", "--note", "again", "--store", "a.db") == 0
        assert json.loads(capsys.readouterr().out)["arms"][0]["version"] == first  # it is the same model
        assert run("release", "publish", "poet", "tiny", "tiny", "--store", "a.db") == 2
        assert "two models have the same version" in capsys.readouterr().err
        assert run("release", "publish", "poet", "tiny", "--store", "a.db") == 0
        ends = time.monotonic() + 60
        while "poet" not in {model.id for model in client.models.list()}:
            assert time.monotonic() < ends
            time.sleep(0.2)
        assert asked(client, "poet").choices
        assert run("release", "back", "poet", "--store", "a.db") == 2
        assert "nothing was published before" in capsys.readouterr().err
        assert run("release", "list", "--store", "a.db") == 0
        assert {one["name"] for one in json.loads(capsys.readouterr().out)} == {"tiny", "poet"}

        os.environ["BEHIND_KEY"] = key
        try:
            upstream = f"upstream=http://127.0.0.1:{behind.port}/v1"
            front = Started(place, "tiny", upstream, "upstream_key_env=BEHIND_KEY", "store=b.db", "open=true")
        finally:
            del os.environ["BEHIND_KEY"]
        with front.client("none") as passing:
            found = asked(passing, "tiny")
            assert found.model_extra["feedback"]["token"]
            assert found.usage.completion_tokens <= 5
    assert front.end() == 130
    assert behind.end() == 130
    assert "Hello" not in behind.log.read_text() + front.log.read_text()
    assert key not in front.log.read_text()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["no/such/model"], "there is no such model"),
        (["tiny", "ports=8400"], "ports"),
        (["tiny", "open=true", "host=0.0.0.0"], "open is for this machine alone"),
        (["tiny", "upstream=http://x/v1", "engine=vllm"], "neither an adapter nor an engine"),
        (["tiny", "upstream=http://x/v1", "upstream_key_env=NO_SUCH_KEY"], "NO_SUCH_KEY: is not set"),
        (["tiny", "adapter=nowhere"], "is no directory"),
        (["tiny", "regions=[XX]"], "no region is called 'XX'"),
        (["tiny", "guard_after=no.such:rule"], "no.such:rule"),
        (["store=empty.db"], "nothing is published"),
        (["tiny", "engine=vllm"], "vLLM is not installed"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    assert run("serve", *words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert what in said[-1]
    assert "Traceback" not in "\n".join(said)
    assert not (place / "feedback.db").exists() or run("release", "list") == 0


def test_a_port_that_is_taken_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.exists()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run("serve", "tiny", f"port={taken.getsockname()[1]}") == 2
    assert "cannot be listened on" in capsys.readouterr().err
