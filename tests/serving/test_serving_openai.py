"""OpenAI's own client, a real one, before the server: what it sends is understood, what it reads is there."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
import torch

from plaudit.feedback.served import Served
from plaudit.models.load import load_model
from plaudit.rollout.local import LocalEngine
from plaudit.serving.server import Settings
from plaudit.tensors import SamplingParams
from servers import Host

pytest_plugins = ["serving_fixtures"]
ASKED: Any = [{"role": "user", "content": "How are you?"}]
FREE: Any = {"model": "tiny", "messages": ASKED, "max_completion_tokens": 8}


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "plaudit"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_an_answer_is_what_the_engine_draws(client: openai.OpenAI) -> None:
    """The served text at a seed is the local engine's, which other tests hold to transformers'."""
    found = client.chat.completions.create(**FREE, seed=7, logprobs=True, top_logprobs=2)
    model = load_model("tiny", torch.float32)
    ids = model.tokenizer.encode(
        model.tokenizer.inner.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    )
    (wanted,) = LocalEngine(model.trunk, model.tokenizer).sample(
        [ids], 1, SamplingParams(max_new_tokens=8), ("serve", 7), names=[()]
    )
    choice = found.choices[0]
    assert choice.message.content == wanted.text
    assert choice.finish_reason == wanted.finish_reason
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert [one.logprob for one in content] == pytest.approx(list(wanted.logprobs), abs=1e-5)
    assert all(len(one.top_logprobs) == 2 for one in content)
    assert all(one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob for one in content)
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (
        len(ids),
        len(wanted.completion_ids),
    )
    assert found.system_fingerprint == "tiny-1"


def test_a_stream_says_the_same_piece_by_piece(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**FREE, seed=3, n=2)
    texts, finishes, usage, roles = ["", ""], dict[int, str](), None, list[int]()
    for chunk in client.chat.completions.create(
        **FREE, seed=3, n=2, stream=True, stream_options={"include_usage": True}
    ):
        if chunk.usage is not None:
            usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.delta.role:
                roles.append(choice.index)
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert finishes == {choice.index: choice.finish_reason for choice in whole.choices}
    assert sorted(roles) == [0, 1]
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_the_clients_own_reader_of_streams_reads_it(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**FREE, seed=3) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.current_completion_snapshot
    assert final.choices[0].message.content == text
    assert final.choices[0].finish_reason in ("stop", "length")


def test_a_stop_string_ends_an_answer_before_itself(client: openai.OpenAI) -> None:
    text = (
        client.chat.completions.create(**FREE | {"max_completion_tokens": 30}, seed=5)
        .choices[0]
        .message.content
    )
    assert text is not None
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    for stream in (False, True):
        given: Any = FREE | {"max_completion_tokens": 30, "seed": 5, "stop": [stop, "never said"]}
        if stream:
            chunks = list(client.chat.completions.create(**given, stream=True))
            choices = [choice for chunk in chunks for choice in chunk.choices]
            said, finish = "".join(c.delta.content or "" for c in choices), choices[-1].finish_reason
        else:
            choice = client.chat.completions.create(**given).choices[0]
            said, finish = choice.message.content or "", choice.finish_reason
        assert said == text[: text.index(stop)]
        assert finish == "stop"


def test_text_is_gone_on_with(client: openai.OpenAI) -> None:
    given: Any = {"model": "tiny", "prompt": "Once upon", "max_tokens": 6, "seed": 1}
    whole = client.completions.create(**given, logprobs=2)
    choice = whole.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs or ()) <= 6
    streamed = "".join(
        chunk.choices[0].text for chunk in client.completions.create(**given, stream=True) if chunk.choices
    )
    assert streamed == choice.text
    assert len(client.completions.create(**given | {"prompt": "", "max_tokens": 1}).choices) == 1


def test_an_answer_can_be_bound_to_a_schema(client: openai.OpenAI) -> None:
    """A random model, whose answer is JSON of the schema as far as it goes; greedy, it closes what it opens."""
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["sure", "kind"],
        "additionalProperties": False,
    }
    for seed in range(3):
        found = client.chat.completions.create(
            **FREE | {"max_completion_tokens": 60},
            seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
        said = json.loads(found.choices[0].message.content or "")
        assert set(said) == {"sure", "kind"}
        assert found.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="schema"):
        client.chat.completions.create(
            **FREE,
            response_format={
                "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}},
            },
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "status", "what"),
    [
        ({"model": "other"}, 404, "no such model"),
        ({"messages": []}, 400, "messages"),
        ({"temperature": 3}, 400, "temperature"),
        ({"n": 0}, 400, "n"),
        ({"logit_bias": {"5": 1.0}}, 400, "logit_bias"),
        ({"extra_body": {"min_p": 0.1}}, 400, "min_p"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "long " * 3000}]}, 400, "tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         400, "content"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_said(
    client: openai.OpenAI, changed: dict[str, Any], status: int, what: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError, match=what) as error:
            client.chat.completions.create(**FREE | changed, stream=stream)
        assert error.value.status_code == status
        assert error.value.body is not None


def test_a_key_is_wanted_and_its_right_to_ask(host: Host) -> None:
    from plaudit.access.keys import Keys

    _, judges = Keys(host.store.engine).create("shop", ["judge"])
    for key, error in (("nonsense", openai.AuthenticationError), (judges, openai.PermissionDeniedError)):
        with (
            openai.OpenAI(base_url=f"{host.url}/v1", api_key=key, max_retries=0) as stranger,
            pytest.raises(error),
        ):
            stranger.chat.completions.create(**FREE)


@pytest.mark.parametrize("host", [Settings(requests=60.0)], indirect=True)
def test_who_asks_too_often_is_told_when_to_come_again(client: openai.OpenAI) -> None:
    """Ten at once, and one a second."""
    refused = list[int]()
    for _ in range(30):
        try:
            client.models.list()  # which is not counted
            client.chat.completions.create(**FREE | {"max_completion_tokens": 1})
        except openai.RateLimitError as error:
            refused.append(int(error.response.headers["retry-after"]))
    assert len(refused) > 1
    assert min(refused) >= 1


def test_answers_are_kept_with_what_learning_needs(client: openai.OpenAI, host: Host) -> None:
    asked: Any = [{"role": "user", "content": "Mail jane@example.com"}]
    found = client.chat.completions.create(**FREE | {"messages": asked}, n=2, user="ann", temperature=0.5)
    kept = Served(host.store).get(found.id)
    assert kept.prompt is not None
    assert isinstance(kept.prompt, tuple)
    assert kept.prompt[0].content == "Mail [email]"
    assert kept.masked == {"email": 1}
    assert kept.completions is not None
    assert [one.text for one in kept.completions] == [choice.message.content for choice in found.choices]
    for one in kept.completions:
        assert one.logprobs is not None
        assert one.ids is not None
        assert len(one.ids) == len(one.logprobs)
    assert (kept.version, kept.propensity, kept.name) == ("tiny-1", 1.0, "tiny")
    assert kept.sampling["temperature"] == 0.5
    assert kept.requester.startswith("user-")


def test_who_wants_nothing_kept_says_so(client: openai.OpenAI, host: Host) -> None:
    found = client.chat.completions.create(**FREE, store=False)
    assert found.model_extra == {"feedback": None}
    with host.store.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM responses").scalar() == 0


@pytest.mark.parametrize("host", [Settings(keep="consent"), Settings(keep="never")], indirect=True)
def test_what_is_kept_follows_the_owners_setting(client: openai.OpenAI, host: Host) -> None:
    kept = []
    for store in (None, True):
        given: Any = {} if store is None else {"store": store}
        found = client.chat.completions.create(**FREE, **given)
        assert found.model_extra is not None
        kept.append(found.model_extra["feedback"] is not None)
    assert kept == [False, host.server.settings.keep == "consent"]


@pytest.mark.parametrize("host", [Settings(tokens=120.0)], indirect=True)
def test_a_key_has_so_many_tokens_a_minute(client: openai.OpenAI) -> None:
    """Two a second, 120 at once: an answer of some 50 may be asked for three times, and then not for a while."""
    given: Any = FREE | {"max_completion_tokens": 20, "logit_bias": None}
    spent = 0
    with pytest.raises(openai.RateLimitError) as error:  # noqa: PT012
        for _ in range(20):
            usage = client.chat.completions.create(**given).usage
            assert usage is not None
            spent += usage.total_tokens
    assert 120 <= spent < 240
    assert int(error.value.response.headers["retry-after"]) >= 1


def test_what_is_null_is_as_if_it_were_not_sent(client: openai.OpenAI) -> None:
    names = (
        "n",
        "stream",
        "logprobs",
        "temperature",
        "top_p",
        "stop",
        "seed",
        "max_tokens",
        "stream_options",
    )
    assert client.chat.completions.create(**FREE | dict.fromkeys(names)).choices
