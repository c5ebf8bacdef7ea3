"""Text as tokens come: nothing is shown that is taken back, and a stop string ends it exactly."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import find_model
from plaudit.serving.local import CALL, CALL_END, Calls, bytes_of
from plaudit.serving.words import Words

TEXTS = [
    "Hello there, how are you?",
    "你好，世界！很高兴见到你。",
    "naïve café ☕ 👩‍👩‍👧 done",
    "a  b\n\nc",
    "   x",
]


@functools.cache
def tiny() -> Tokenizer:
    return Tokenizer.load(find_model("tiny"))


@pytest.fixture
def tokenizer() -> Tokenizer:
    return tiny()


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_are_never_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    words, pieces = Words(tokenizer), list[str]()
    for token in tokenizer.encode(text):
        pieces.append(words.take(token))
        assert "\N{REPLACEMENT CHARACTER}" not in pieces[-1]
    pieces.append(words.end())
    assert "".join(pieces) == words.text == text
    assert sum(1 for piece in pieces if piece) > 1


@given(
    st.text(st.sampled_from("ab你 好"), max_size=20),
    st.lists(st.text("ab你 好", min_size=1, max_size=4), max_size=3),
)
def test_the_stop_string_that_is_whole_first_ends_the_text_before_itself(text: str, stops: list[str]) -> None:
    tokenizer = tiny()
    words, shown = Words(tokenizer, stops), ""
    for token in tokenizer.encode(text):
        shown += words.take(token)
        assert not any(stop in shown for stop in stops)
        if words.stopped:
            break
    shown += words.end()
    whole = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    cut = min(whole, default=(0, len(text)))[1]
    assert shown == words.text == text[:cut]
    assert words.stopped == any(stop in text for stop in stops)


def test_a_byte_that_never_becomes_a_character_is_shown_in_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("好")[:1]
    words = Words(tokenizer)
    assert words.take(ids[0]) == ""
    assert words.end() == "\N{REPLACEMENT CHARACTER}"


def test_bytes_of_tokens() -> None:
    assert bytes_of("<0xE4>") == b"\xe4"
    assert bytes_of("Ġhello") == b" hello"  # GPT-2's alphabet: a space is Ġ, a newline Ċ
    assert bytes_of("Ċ") == b"\n"
    assert bytes_of("▁hello") is None


CALLED = f'{CALL}\n{{"name": "find", "arguments": {{"q": "x"}}}}\n{CALL_END}'


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "said", "names"),
    [
        ("Just words.", "Just words.", []),
        (CALLED, "", ["find"]),
        ("Let me see. " + CALLED, "Let me see. ", ["find"]),
        (CALLED + "\n" + CALLED, "", ["find", "find"]),
        (f"{CALL}no JSON{CALL_END} after", f"{CALL}no JSON{CALL_END} after", []),
        ("a <tool_ b", "a <tool_ b", []),
        (CALLED[: -len(CALL_END)], "", ["find"]),  # ended before it was closed
    ],
)
def test_calls_are_read_however_the_text_comes(size: int, text: str, said: str, names: list[str]) -> None:
    calls, shown, found = Calls(), "", list[object]()
    for at in range(0, len(text), size):
        more, made = calls.read(text[at : at + size], over=False)
        shown += more
        found += made
    more, made = calls.read("", over=True)
    shown, found = shown + more, [*found, *made]
    assert shown == said
    assert [call["name"] for call in found] == names  # type: ignore[index]
    assert all(json.loads(call["arguments"]) == {"q": "x"} for call in found)  # type: ignore[index]
