"""Guards before and after the model: what they refuse is neither asked nor said, and is logged without its words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import openai
import pytest
import torch

from plaudit.feedback.served import Served
from plaudit.serving.guarding import Guard, open_guard
from plaudit.tensors import Sample
from plaudit.types import UserError
from servers import Host

pytest_plugins = ["serving_fixtures"]


def polite(samples: Sequence[Sample]) -> list[float]:
    """-1 for what holds a bad word, else 1."""
    return [-1.0 if "darn" in sample.text else 1.0 for sample in samples]


def quieter(text: str) -> str:
    return text.replace("HELLO", "hello")


def asked(client: openai.OpenAI, text: str, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="tiny", messages=messages, max_tokens=5, seed=1, **more)


def test_guards_are_opened_by_their_names() -> None:
    made = open_guard(f"{__name__}:polite", 0.0, f"{__name__}:quieter", torch.float32, torch.device("cpu"))
    assert made is not None
    turns = [{"role": "user", "content": "Say something."}]
    assert made.look(turns, "HELLO there").text == "hello there"
    assert not made.look(turns, "hello").refused
    assert made.look(turns, "darn").refused
    assert made.look("a text", "darn").score == -1.0
    assert open_guard(None, 0.0, None, torch.float32, torch.device("cpu")) is None
    for scorer, rewrite in (
        ("no.such:rule", None),
        (None, "no.such:function"),
        (None, f"{__name__}:nothing"),
    ):
        with pytest.raises(UserError):
            open_guard(scorer, 0.0, rewrite, torch.float32, torch.device("cpu"))


def test_what_is_refused_is_not_asked(
    client: openai.OpenAI, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.server.before = open_guard(f"{__name__}:polite", 0.0, None, torch.float32, torch.device("cpu"))
    with caplog.at_level(logging.INFO):
        found = asked(client, "darn it", n=2)
    assert [choice.finish_reason for choice in found.choices] == ["content_filter"] * 2
    assert {choice.message.content for choice in found.choices} == {host.server.refusal}
    kept = Served(host.store).get(found.id)
    assert kept.sampling["guard"] == {"before": {"refused": True, "score": -1.0}}
    assert found.model_extra == {"feedback": None}  # a refusal is not the model's to be judged
    assert '"guard": "before"' in caplog.text
    assert "darn" not in caplog.text
    assert asked(client, "thank you").choices[0].finish_reason != "content_filter"
    streamed = list(asked(client, "darn it", stream=True))
    assert streamed[0].choices[0].delta.content == host.server.refusal


def test_what_is_refused_is_not_said(client: openai.OpenAI, host: Host) -> None:
    plain = asked(client, "Hi", store=False).choices[0].message.content
    seen = list[str]()

    def score(_: Any, text: str) -> float:
        seen.append(text)
        return 0.0

    host.server.after = Guard(least=1.0, score=score)
    for stream in (False, True):
        found = asked(client, "Hi", stream=stream)
        if stream:
            said = "".join(c.delta.content or "" for chunk in found for c in chunk.choices)
        else:
            said = found.choices[0].message.content
            assert found.choices[0].finish_reason == "content_filter"
            kept = Served(host.store).get(found.id)
            assert kept.completions is not None
            assert (kept.completions[0].text, kept.completions[0].ids) == (host.server.refusal, None)
        assert said == host.server.refusal
    assert seen == [plain, plain]


def test_texts_are_written_anew(client: openai.OpenAI, host: Host) -> None:
    plain = asked(client, "hello", logprobs=True)
    host.server.before = Guard(0.0, rewrite=quieter)
    same = asked(client, "HELLO", logprobs=True)
    assert same.choices[0].message.content == plain.choices[0].message.content
    host.server.after = Guard(0.0, rewrite=lambda _: "changed")
    changed = asked(client, "hello", logprobs=True)
    assert changed.choices[0].message.content == "changed"
    assert changed.choices[0].logprobs.content == []


def test_a_guard_that_fails_lets_nothing_pass(client: openai.OpenAI, host: Host) -> None:
    def broken(_: Any, __: str) -> float:
        raise UserError("gave nothing", where="guard")

    host.server.after = Guard(0.0, score=broken)
    with pytest.raises(openai.InternalServerError, match="the guard failed") as error:
        asked(client, "Hi")
    assert error.value.status_code == 503
    host.server.after = Guard(0.0, rewrite=lambda _: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(openai.InternalServerError, match="the guard failed"):
        asked(client, "Hi")
