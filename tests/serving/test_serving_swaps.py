"""Models exchanged under load, and requests given up: nobody is lost, and nothing is left."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from plaudit.feedback.releases import Arm, Releases
from plaudit.feedback.served import Served
from plaudit.serving.guarding import Guard
from plaudit.serving.server import Settings
from servers import Host

pytest_plugins = ["serving_fixtures"]
ASKED: Any = [{"role": "user", "content": "How are you?"}]


def until(true: Any, seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize("host", [Settings(requests=1e9, tokens=1e12)], indirect=True)
def test_models_are_exchanged_without_a_request_lost(client: openai.OpenAI, host: Host) -> None:
    """Four people ask again and again while five releases come, and one goes back: all are answered, by a model that
    stood when they asked; streams go on with the model that began them."""
    releases, over = Releases(host.store), threading.Event()
    served = list[str]()

    def ask(who: int) -> int:
        count = 0
        while not over.is_set():
            if count % 2:
                chunks = list(
                    client.chat.completions.create(
                        model="tiny", messages=ASKED, max_tokens=20, stream=True, user=f"u{who}"
                    )
                )
                assert any(choice.finish_reason for chunk in chunks for choice in chunk.choices)
                served.append(str(chunks[0].system_fingerprint))
            else:
                found = client.chat.completions.create(
                    model="tiny", messages=ASKED, max_tokens=5, user=f"u{who}"
                )
                served.append(str(found.system_fingerprint))
            count += 1
        return count

    with ThreadPoolExecutor(4) as people:
        asking = [people.submit(ask, who) for who in range(4)]
        try:
            for number in range(2, 6):
                version = f"tiny-{number}"
                releases.publish("tiny", [Arm(version, "tiny")], by="test")
                until(lambda version=version: version in served[-8:])
            releases.roll_back("tiny", by="test")
            until(lambda: served[-8:].count("tiny-4") >= 4)
        finally:
            over.set()
        assert sum(one.result() for one in asking) == len(served)
    assert {"tiny-1", "tiny-2", "tiny-3", "tiny-4", "tiny-5"} <= set(served)
    # What is served no more ends when its last answer does.
    until(lambda: sum(thread.name == "plaudit-live" for thread in threading.enumerate()) <= 2)


def test_people_are_split_as_the_weights_say_and_stay(client: openai.OpenAI, host: Host) -> None:
    Releases(host.store).publish("tiny", [Arm("a", "tiny", 1.0), Arm("b", "tiny", 3.0)], by="test")
    until(lambda: len(host.server.fleet.names.get("tiny", ())) == 2)
    found: dict[str, set[str]] = {}
    for number in range(24):
        user = f"user {number % 12}"
        answer = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=1, user=user)
        found.setdefault(user, set()).add(str(answer.system_fingerprint))
        kept = Served(host.store).get(answer.id)
        assert kept.propensity == {"a": 0.25, "b": 0.75}[kept.version]
    assert all(len(versions) == 1 for versions in found.values())
    assert {version for versions in found.values() for version in versions} == {"a", "b"}


def test_a_stream_that_nobody_reads_on_ends_and_is_kept_as_far_as_it_came(
    client: openai.OpenAI, host: Host
) -> None:
    stream = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=400, stream=True)
    first = next(iter(stream))
    stream.close()
    engines = [running.backend.engine for running in host.server.fleet.names["tiny"]]  # type: ignore[attr-defined]
    until(lambda: all(engine.running == 0 for engine in engines))
    until(lambda: host.server.figures.cancelled._value.get() == 1)
    until(lambda: responses(host) == 1)
    kept = Served(host.store).get(first.id)
    assert kept.completions is not None
    assert kept.completions[0].finish == "cancelled"
    assert 0 < len(kept.completions[0].ids or ()) < 400


def test_who_goes_away_before_the_answer_is_not_answered(client: openai.OpenAI, host: Host) -> None:
    client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=1)  # it is loaded
    engines = [running.backend.engine for running in host.server.fleet.names["tiny"]]  # type: ignore[attr-defined]
    body = json.dumps({"model": "tiny", "messages": ASKED, "max_tokens": 4000}).encode()
    place = urlsplit(host.url)
    with socket.create_connection((place.hostname, place.port)) as line:
        line.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {host.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        until(lambda: any(engine.running for engine in engines))
    until(lambda: host.server.figures.cancelled._value.get() == 1)
    until(lambda: responses(host) == 2)
    with host.store.engine.connect() as connection:
        ids = connection.exec_driver_sql("SELECT id FROM responses ORDER BY created_at").scalars().all()
    kept = Served(host.store).get(ids[-1])
    assert kept.completions is not None
    assert kept.completions[0].finish == "cancelled"
    assert len(kept.completions[0].ids or ()) < 4000


def responses(host: Host) -> int:
    with host.store.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM responses").scalar_one())


def test_an_answer_in_one_that_nobody_waits_for_ends(client: openai.OpenAI, host: Host) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model="tiny", messages=ASKED, max_tokens=400, n=8
        )
    engines = [running.backend.engine for running in host.server.fleet.names["tiny"]]  # type: ignore[attr-defined]
    until(lambda: all(engine.running == 0 and engine.room > 256 for engine in engines))
    until(lambda: all(running.asked == 0 for running in host.server.fleet.names["tiny"]))


def test_a_model_stays_while_a_guard_looks_at_what_it_is_asked(client: openai.OpenAI, host: Host) -> None:
    looking, go = threading.Event(), threading.Event()

    def slow(text: str) -> str:
        looking.set()
        go.wait(30)
        return text

    host.server.before = Guard(0.0, rewrite=slow)
    with ThreadPoolExecutor(1) as one:
        asking = one.submit(
            client.chat.completions.create, model="tiny", messages=ASKED, max_tokens=3, store=False
        )
        assert looking.wait(30)
        Releases(host.store).publish("tiny", [Arm("tiny-2", "tiny")], by="test")
        until(lambda: host.server.fleet.names["tiny"][0].arm.version == "tiny-2")
        go.set()
        assert asking.result().system_fingerprint == "tiny-1"


def test_the_same_question_with_a_seed_is_not_drawn_again(client: openai.OpenAI, host: Host) -> None:
    given: Any = {"model": "tiny", "messages": ASKED, "max_tokens": 8}
    first = client.chat.completions.create(**given, seed=1)
    again = client.chat.completions.create(**given, seed=1)
    assert again.choices == first.choices
    assert again.usage == first.usage
    assert again.id != first.id
    assert host.server.figures.cached._value.get() == 1
    client.chat.completions.create(**given)
    client.chat.completions.create(**given, seed=2)
    client.chat.completions.create(**given, seed=1, user="somebody else")
    assert host.server.figures.cached._value.get() == 1
    greedy = [client.chat.completions.create(**given, temperature=0) for _ in range(2)]
    assert greedy[0].choices == greedy[1].choices
    assert host.server.figures.cached._value.get() == 2


@pytest.mark.parametrize("host", [Settings(seconds=0.05)], indirect=True)
def test_an_answer_that_takes_too_long_is_given_up(client: openai.OpenAI, host: Host) -> None:
    with pytest.raises(openai.InternalServerError, match="took more than") as error:
        client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=500)
    assert error.value.status_code == 504
    engines = [running.backend.engine for running in host.server.fleet.names["tiny"]]  # type: ignore[attr-defined]
    until(lambda: all(engine.running == 0 for engine in engines))


def test_broken_requests_are_refused_and_leave_nothing(client: openai.OpenAI, host: Host) -> None:
    headers = {"authorization": f"Bearer {host.key}", "content-type": "application/json"}
    for content in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": 3}',
        b"\xff\xfe",
        b'{"model": "tiny", "messages": "x"}',
    ):
        answer = httpx2.post(
            f"{host.url}/v1/chat/completions", content=content, headers=headers, trust_env=False
        )
        assert answer.status_code == 400, content
        assert answer.json()["error"]["message"]
    assert client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=1).choices


def test_no_word_of_anybodys_is_logged(client: openai.OpenAI, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="plaudit"):
        found = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "a very secret word"}],
            max_tokens=8,
            user="ann",
        )
    lines = [
        json.loads(record.message) for record in caplog.records if record.name == "plaudit.serving.server"
    ]
    assert [line["id"] for line in lines] == [found.id]
    said = found.choices[0].message.content
    assert said
    for secret in ("secret word", said, "ann"):
        assert secret not in caplog.text.replace("cannot", "")
