"""What is kept of an answer: no personal data, in no form."""

from __future__ import annotations

from typing import Any

from plaudit.serving.backend import Ask, Piece, Token
from plaudit.serving.exchange import Exchange
from plaudit.serving.masking import Masker

TURNS: Any = [
    {"role": "developer", "content": [{"type": "text", "text": "I am jane@example.com"}]},
    {"role": "user", "content": "hi"},
]


def exchange(*pieces: Piece, n: int = 1) -> Exchange:
    ask = Ask(TURNS, n=n, stops=["\nJane Doe:"], tools=[{"name": "mail"}])
    made = Exchange("m", "v", 1.0, "caller", "who", "c", ask, chat=True, told=False)
    for piece in pieces:
        made.take(piece)
    return made


def tokens(count: int) -> tuple[Token, ...]:
    return tuple(Token(number, "x", None, -0.5) for number in range(count))


def test_what_was_said_is_kept_with_its_tokens() -> None:
    kept = exchange(Piece(0, "hello", tokens(2)), Piece(0, "!", tokens(1), finish="stop")).response(Masker())
    assert kept.completions is not None
    (said,) = kept.completions
    assert (said.text, said.finish, said.ids, said.logprobs) == ("hello!", "stop", (0, 1, 0), (-0.5,) * 3)
    assert isinstance(kept.prompt, tuple)
    assert [(turn.role, turn.content) for turn in kept.prompt] == [("system", "I am [email]"), ("user", "hi")]
    assert kept.masked == {"email": 1}
    assert "Jane" not in str(kept)


def test_tokens_of_what_is_masked_or_cut_are_not_kept() -> None:
    masked = exchange(Piece(0, "mail bob@example.com", tokens(3), finish="stop"))
    call = {"name": "mail", "arguments": '{"to": "bob@example.com"}'}
    called = exchange(Piece(0, "", tokens(3), (call,), finish="tool_calls"))
    cut = exchange(Piece(0, "hello", tokens(3), finish="stop", cut=True))
    for made in (masked, called, cut):
        kept = made.response(Masker())
        assert kept.completions is not None
        assert kept.completions[0].ids is None
        assert kept.completions[0].logprobs == (-0.5,) * 3
        assert "bob" not in str(kept)
    plain = exchange(Piece(0, "", tokens(3), ({"name": "mail", "arguments": "{}"},), finish="tool_calls"))
    kept = plain.response(Masker(), logprobs=False)
    assert kept.completions is not None
    assert (kept.completions[0].ids, kept.completions[0].logprobs) == (None, None)
    assert kept.completions[0].calls == ({"name": "mail", "arguments": "{}"},)


def test_what_nobody_waited_for_is_kept_as_that() -> None:
    kept = exchange(Piece(0, "hel", tokens(1)), n=2).response(Masker())
    assert kept.completions is not None
    assert [(one.text, one.finish) for one in kept.completions] == [("hel", "cancelled"), ("", "cancelled")]
