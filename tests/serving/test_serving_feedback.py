"""Feedback over HTTP: by the token that came with an answer, once, and retractable."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from plaudit.feedback.judgements import everything, preferences, ratings
from plaudit.feedback.served import Served
from servers import Host

pytest_plugins = ["serving_fixtures"]
ASKED: Any = {"model": "tiny", "messages": [{"role": "user", "content": "How are you?"}], "max_tokens": 6}


def told(client: openai.OpenAI, **more: Any) -> str:
    """The token of an answer."""
    found = client.chat.completions.create(**ASKED | more)
    assert found.model_extra is not None
    return str(found.model_extra["feedback"]["token"])


def send(host: Host, path: str = "", **body: Any) -> httpx2.Response:
    return httpx2.post(f"{host.url}/v1/feedback{path}", json=body, trust_env=False)


def test_thumbs_and_stars_are_ratings(client: openai.OpenAI, host: Host) -> None:
    one, two = told(client), told(client)
    for _ in range(2):
        answer = send(host, token=one, thumbs="up")
        assert answer.status_code == 200
        assert len(answer.json()["events"]) == 1
    send(host, token=two, stars=2, text="too short")
    assert [dict(each.record.scores) for each in ratings(host.store)] == [{"overall": 1.0}, {"overall": 0.25}]
    assert [event.comment for event in host.store.current()] == [None, "too short"]
    assert send(host, "/retract", token=one, what="correction").json() == {"judgements": 0}
    assert send(host, "/retract", token=one).json() == {"judgements": 1}
    assert len(ratings(host.store)) == 1


def test_choices_corrections_and_comparisons(client: openai.OpenAI, host: Host) -> None:
    several = told(client, n=3)
    assert len(send(host, token=several, chosen=2).json()["events"]) == 2
    old, new = told(client), told(client)
    send(host, token=new, over=old)
    send(host, token=new, correction="Very well, thank you.")
    assert len(preferences(host.store)) == 2 + 1 + 1
    assert {type(each.record).__name__ for each in everything(host.store)} == {"Preference", "Demonstration"}


def test_a_stream_ends_with_the_token_that_feedback_wants(client: openai.OpenAI, host: Host) -> None:
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    assert all(chunk.choices for chunk in chunks)
    extra = chunks[-1].model_extra
    assert extra is not None
    assert send(host, token=extra["feedback"]["token"], thumbs="down").status_code == 200
    assert len(Served(host.store).get(chunks[0].id).completions or ()) == 1


def test_what_somebody_did_is_noticed(client: openai.OpenAI, host: Host) -> None:
    token = told(client)
    for kind, value in (("dwell", 4.5), ("copy", 1), ("regenerate", 1), ("abandon", 1)):
        assert send(host, "/signals", token=token, kind=kind, value=value).status_code == 204
    (signals,) = Served(host.store).signals().values()
    assert signals == {"dwell": 4.5, "copy": 1.0, "regenerate": 1.0, "abandon": 1.0}
    assert host.store.current() == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"thumbs": "sideways"},
        {"thumbs": "up", "stars": 5},
        {"stars": 0},
        {"thumbs": "up", "index": 1},
        {"chosen": 0},
        {"scope": "conversation", "correction": "x"},
        {"thumbs": "up", "more": 1},
        {"text": "\ud800"},
    ],
)
def test_what_is_no_feedback_is_refused_and_nothing_is_kept(
    client: openai.OpenAI, host: Host, body: dict[str, Any]
) -> None:
    token = told(client)
    content = json.dumps({"token": token} | body).encode()
    answer = httpx2.post(
        f"{host.url}/v1/feedback",
        content=content,
        headers={"content-type": "application/json"},
        trust_env=False,
    )
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert host.store.log() == []


def test_a_token_of_nothing_is_not_found(host: Host) -> None:
    for path, body in (
        ("", {"thumbs": "up"}),
        ("/signals", {"kind": "copy"}),
        ("/retract", {"what": "score"}),
    ):
        assert send(host, path, token="chatcmpl-1.abc", **body).status_code == 404


def test_feedback_is_not_taken_faster_than_anybody_gives_it(client: openai.OpenAI, host: Host) -> None:
    token = told(client)
    found = [send(host, token=token, thumbs="up").status_code for _ in range(40)]
    assert set(found) == {200, 429}
    assert len(host.store.log()) == 1


def test_health_and_figures_say_no_word_of_anybodys(client: openai.OpenAI, host: Host) -> None:
    send(host, token=told(client, user="ann"), thumbs="up")
    assert httpx2.get(f"{host.url}/healthz", trust_env=False).json()["status"] == "ok"
    assert httpx2.get(f"{host.url}/readyz", trust_env=False).json()["status"] == "ready"
    text = httpx2.get(f"{host.url}/metrics", trust_env=False).text
    assert 'plaudit_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'plaudit_feedback_total{kind="rating"} 1.0' in text
    assert 'plaudit_tokens_total{kind="completion",version="tiny-1"}' in text
    for secret in ("How are you", "ann", host.key, "shop"):
        assert secret not in text


def test_words_are_kept_without_personal_data(client: openai.OpenAI, host: Host) -> None:
    token = told(client)
    send(host, token=token, correction="Write to jane@example.com.", text="call +1 212-555-0123")
    (event,) = host.store.current()
    assert (event.payload["completion"], event.comment) == ("Write to [email].", "call [phone]")


def test_a_page_of_any_origin_may_send_feedback_and_ask_nothing(host: Host) -> None:
    wanted = {
        "origin": "https://shop.example", "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }  # fmt: skip
    allowed = httpx2.options(f"{host.url}/v1/feedback", headers=wanted, trust_env=False)
    assert allowed.headers["access-control-allow-origin"] == "*"
    refused = httpx2.options(f"{host.url}/v1/chat/completions", headers=wanted, trust_env=False)
    assert "access-control-allow-origin" not in refused.headers


def test_who_was_forgotten_is_answered_and_not_kept(client: openai.OpenAI, host: Host) -> None:
    found = client.chat.completions.create(**ASKED, user="ann")
    who = Served(host.store).get(found.id).requester
    host.store.forget_rater(who)
    host.server._people.clear()
    again = client.chat.completions.create(**ASKED, user="ann")
    assert again.choices
    assert again.model_extra == {"feedback": None}
    host.server._people[("shop", "ann")] = who  # as where it was remembered
    assert client.chat.completions.create(**ASKED, user="ann").model_extra == {"feedback": None}
