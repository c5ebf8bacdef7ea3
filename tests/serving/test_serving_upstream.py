"""A server behind: asked in the requester's place, and what it says or fails at handed on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from plaudit.serving.backend import Ask, Broken, Overloaded, Piece
from plaudit.serving.upstream import UpstreamBackend, body_of
from plaudit.types import UserError
from servers import Host, alone

pytest_plugins = ["serving_fixtures"]
ASKED: Any = [{"role": "user", "content": "How are you?"}]


async def gathered(backend: UpstreamBackend, ask: Ask) -> list[Piece]:
    reply = await backend.answer(ask)
    return [piece async for piece in reply.pieces]


def pieces(backend: UpstreamBackend, ask: Ask) -> list[Piece]:
    async def scene() -> list[Piece]:
        try:
            return await gathered(backend, ask)
        finally:
            await backend.close(0)

    return alone(scene())


@pytest.mark.parametrize("chat", [True, False])
def test_a_server_of_ours_behind_says_what_it_says_itself(host: Host, chat: bool) -> None:
    """The tiny model behind HTTP, read as a stream, gives the texts, log-probabilities, finishes and usage that the
    same server gives in one to whoever asks it plainly."""
    prompt: Any = ASKED if chat else "Once upon"
    ask = Ask(prompt, n=2, most=6, seed=4, top=2)
    found = pieces(UpstreamBackend(f"{host.url}/v1", "tiny", "v", key=host.key), ask)
    said = [piece for piece in found if piece.usage is None]
    (usage,) = [piece.usage for piece in found if piece.usage is not None]
    body = body_of(ask, "tiny", logprobs=True) | {"stream": False}
    del body["stream_options"]
    path = "chat/completions" if chat else "completions"
    headers = {"authorization": f"Bearer {host.key}"}
    plain = httpx2.post(f"{host.url}/v1/{path}", json=body, headers=headers, trust_env=False).json()
    for choice in plain["choices"]:
        mine = [piece for piece in said if piece.index == choice["index"]]
        tokens = [token for piece in mine for token in piece.tokens]
        if chat:
            content = choice["logprobs"]["content"]
            wanted, told = [one["logprob"] for one in content], choice["message"]["content"]
            assert all(len(token.top) == 2 for token in tokens)
        else:
            wanted, told = choice["logprobs"]["token_logprobs"], choice["text"]
        assert "".join(piece.text for piece in mine) == told
        assert [token.logprob for token in tokens] == pytest.approx(wanted, abs=1e-6)
        assert [piece.finish for piece in mine if piece.finish] == [choice["finish_reason"]]
    counted = plain["usage"]
    assert usage == (counted["prompt_tokens"], counted["completion_tokens"])


def test_the_request_is_openais() -> None:
    ask = Ask(
        ASKED, n=2, most=5, temperature=0.5, top_p=0.9, top_k=7, stops=["x"], seed=3, top=2,
        schema={"type": "object"}, tools=[{"name": "f"}], calls="f", extra={"min_p": 0.1, "model": "mine"},
    )  # fmt: skip
    assert body_of(ask, "theirs", logprobs=False) == {
        "model": "theirs", "messages": ASKED, "n": 2, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7,
        "stop": ["x"], "seed": 3, "logprobs": True, "top_logprobs": 2, "stream": True, "min_p": 0.1,
        "stream_options": {"include_usage": True},
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    }  # fmt: skip
    handed = {
        "response_format": {"type": "json_schema"},
        "parallel_tool_calls": False,
        "metadata": {"a": "b"},
    }
    told = body_of(Ask(ASKED, schema={"type": "object"}, handed=handed), "theirs", logprobs=False)
    assert told | handed == told
    assert not {"temperature", "top_p", "max_tokens"} & set(told)  # that server's own, where nobody says
    plain = body_of(Ask("Once", most=5), "theirs", logprobs=True)
    assert plain["logprobs"] == 0
    assert "messages" not in plain


Behave = Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]


@pytest.fixture
def behind() -> Iterator[Callable[[Behave], str]]:
    """behind(behave): the address of a server that answers so."""
    servers = list[ThreadingHTTPServer]()

    def start(behave: Behave) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, headers, said = behave(body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def stream(*events: Any) -> bytes:
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def chunk(text: str = "", finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("status", "headers", "said", "error", "what"),
    [
        (429, {"Retry-After": "7"}, b"{}", Overloaded, "ask again in 7 s"),
        (429, {"Retry-After": "Wed"}, b"", Overloaded, "ask again in 1 s"),
        (401, {}, b'{"error": {"message": "sk-secret"}}', Broken, "refuses this server's key"),
        (400, {}, b'{"error": {"message": "too long"}}', UserError, "too long"),
        (404, {}, b'{"error": "no model"}', UserError, "no model"),
        (500, {}, b"boom", Broken, "boom"),
        (200, {}, stream("{not json"), Broken, "no JSON"),
        (200, {}, stream({"choices": [{"index": "x"}]}), Broken, "no answer"),
        (200, {}, stream({"error": {"message": "out of memory"}}), Broken, "out of memory"),
        (200, {}, stream(chunk("half of it")), Broken, "ended 0 of 1 answers"),
        (
            200,
            {},
            stream({"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}),
            Broken,
            "no answer",
        ),
        (429, {"Retry-After": "nan"}, b"", Overloaded, "ask again in 1 s"),
    ],
)
def test_faults_behind_are_handed_on_as_what_they_are(
    behind: Callable[[Behave], str],
    status: int,
    headers: dict[str, str],
    said: bytes,
    error: type[Exception],
    what: str,
) -> None:
    url = behind(lambda _: (status, headers, said))
    with pytest.raises(error, match=what) as found:
        pieces(UpstreamBackend(url, "m", "v"), Ask(ASKED))
    assert "sk-secret" not in str(found.value)


def test_a_server_that_is_not_there_is_said() -> None:
    with pytest.raises(Broken, match="cannot be reached") as error:
        pieces(UpstreamBackend("http://127.0.0.1:9/v1", "m", "v"), Ask(ASKED))
    assert error.value.status == 503
    for url in ("ftp://x/v1", "localhost", "http://"):
        with pytest.raises(UserError, match="no address"):
            UpstreamBackend(url, "m", "v")


def test_a_server_that_gives_no_logprobs_is_asked_without(behind: Callable[[Behave], str]) -> None:
    asked = list[bool]()

    def behave(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        asked.append("logprobs" in body)
        if asked[-1]:
            return 400, {}, b'{"error": {"message": "logprobs are not supported"}}'
        return 200, {}, stream(chunk("Fine."), chunk(finish="stop"), "[DONE]")

    backend = UpstreamBackend(behind(behave), "m", "v")

    async def scene() -> list[list[Piece]]:
        found = [await gathered(backend, Ask(ASKED)) for _ in range(2)]
        await backend.close(0)
        return found

    for found in alone(scene()):
        assert "".join(piece.text for piece in found) == "Fine."
        assert found[-1].finish == "stop"
    assert asked == [True, False, False]


def test_calls_of_tools_come_whole(behind: Callable[[Behave], str]) -> None:
    def part(**function: Any) -> dict[str, Any]:
        return chunk(tool_calls=[{"index": 0, "id": "call_1", "function": function}])

    said = stream(
        part(name="find", arguments=""),
        part(arguments='{"q"'),
        part(arguments=': "x"}'),
        chunk(finish="tool_calls"),
    )
    found = pieces(UpstreamBackend(behind(lambda _: (200, {}, said)), "m", "v"), Ask(ASKED))
    assert found[-1].calls == ({"name": "find", "arguments": '{"q": "x"}', "id": "call_1"},)
    assert found[-1].finish == "tool_calls"
