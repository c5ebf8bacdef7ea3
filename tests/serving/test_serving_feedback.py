"""Feedback over HTTP: by the token that came with an answer, once, and retractable."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest
from servers import Site

from plaudit.feedback.judgements import everything, preferences, ratings
from plaudit.feedback.served import Served

pytest_plugins = ["serving_fixtures"]
ASKED: Any = {"model": "tiny", "messages": [{"role": "user", "content": "How are you?"}], "max_tokens": 6}


def told(client: openai.OpenAI, **more: Any) -> str:
    """The token of an answer."""
    found = client.chat.completions.create(**ASKED | more)
    assert found.model_extra is not None
    return str(found.model_extra["feedback"]["token"])


def send(site: Site, path: str = "", **body: Any) -> httpx2.Response:
    return httpx2.post(f"{site.url}/v1/feedback{path}", json=body, trust_env=False)


def test_thumbs_and_stars_are_ratings(client: openai.OpenAI, site: Site) -> None:
    one, two = told(client), told(client)
    for _ in range(2):
        answer = send(site, token=one, thumbs="up")
        assert answer.status_code == 200
        assert len(answer.json()["events"]) == 1
    send(site, token=two, stars=2, text="too short")
    assert [dict(each.record.scores) for each in ratings(site.store)] == [{"overall": 1.0}, {"overall": 0.25}]
    assert [event.comment for event in site.store.current()] == [None, "too short"]
    assert send(site, "/retract", token=one).json() == {"judgements": 1}
    assert len(ratings(site.store)) == 1


def test_choices_corrections_and_comparisons(client: openai.OpenAI, site: Site) -> None:
    several = told(client, n=3)
    assert len(send(site, token=several, chosen=2).json()["events"]) == 2
    old, new = told(client), told(client)
    send(site, token=new, over=old)
    send(site, token=new, correction="Very well, thank you.")
    assert len(preferences(site.store)) == 2 + 1 + 1
    assert {type(each.record).__name__ for each in everything(site.store)} == {"Preference", "Demonstration"}


def test_a_stream_ends_with_the_token_that_feedback_wants(client: openai.OpenAI, site: Site) -> None:
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    extra = chunks[-1].model_extra
    assert extra is not None
    assert send(site, token=extra["feedback"]["token"], thumbs="down").status_code == 200
    assert len(Served(site.store).get(chunks[0].id).completions or ()) == 1


def test_what_somebody_did_is_noticed(client: openai.OpenAI, site: Site) -> None:
    token = told(client)
    for kind, value in (("dwell", 4.5), ("copy", 1), ("regenerate", 1), ("abandon", 1)):
        assert send(site, "/signals", token=token, kind=kind, value=value).status_code == 204
    (signals,) = Served(site.store).signals().values()
    assert signals == {"dwell": 4.5, "copy": 1.0, "regenerate": 1.0, "abandon": 1.0}
    assert site.store.current() == []


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
    client: openai.OpenAI, site: Site, body: dict[str, Any]
) -> None:
    token = told(client)
    content = __import__("json").dumps({"token": token} | body).encode()
    answer = httpx2.post(
        f"{site.url}/v1/feedback",
        content=content,
        headers={"content-type": "application/json"},
        trust_env=False,
    )
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert site.store.log() == []


def test_a_token_of_nothing_is_not_found(site: Site) -> None:
    for path, body in (("", {"thumbs": "up"}), ("/signals", {"kind": "copy"}), ("/retract", {})):
        assert send(site, path, token="chatcmpl-1.abc", **body).status_code == 404


def test_feedback_is_not_taken_faster_than_anybody_gives_it(client: openai.OpenAI, site: Site) -> None:
    token = told(client)
    found = [send(site, token=token, thumbs="up").status_code for _ in range(40)]
    assert set(found) == {200, 429}
    assert len(site.store.log()) == 1


def test_health_and_figures_say_no_word_of_anybodys(client: openai.OpenAI, site: Site) -> None:
    send(site, token=told(client, user="ann"), thumbs="up")
    assert httpx2.get(f"{site.url}/healthz", trust_env=False).json()["status"] == "ok"
    assert httpx2.get(f"{site.url}/readyz", trust_env=False).json()["status"] == "ready"
    text = httpx2.get(f"{site.url}/metrics", trust_env=False).text
    assert 'plaudit_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'plaudit_feedback_total{kind="rating"} 1.0' in text
    assert 'plaudit_tokens_total{kind="completion",version="tiny-1"}' in text
    for secret in ("How are you", "ann", site.key, "shop"):
        assert secret not in text
