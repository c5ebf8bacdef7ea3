"""Text to ids and back: the chat template, how a completion ends, and the fingerprint that says whose ids they are."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import find_model
from plaudit.types import Message, UserError

DIALOGUE = (Message("system", "be kind"), Message("user", "Hi"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(find_model("tiny"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(find_model("tiny"), tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_dialogue_is_rendered_by_the_template_and_ends_where_the_answer_begins(
    tokenizer: Tokenizer,
) -> None:
    ids = tokenizer.render(DIALOGUE)
    assert tokenizer.inner.decode(ids) == "<|system|>be kind<|end|><|user|>Hi<|end|><|assistant|>"
    system, user, assistant, end = (
        tokenizer.inner.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("system", "user", "assistant", "end")
    )
    assert ids[0] == system
    assert ids[-1] == assistant
    assert ids.count(end) == 2
    assert ids.count(user) == 1


def test_a_dialogue_is_rendered_as_transformers_does(tokenizer: Tokenizer) -> None:
    messages = [{"role": m.role, "content": m.content} for m in DIALOGUE]
    theirs = tokenizer.inner.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tokenizer.render(DIALOGUE) == theirs


def test_plain_text_stands_as_it_is(tokenizer: Tokenizer) -> None:
    assert tokenizer.render("good morning") == tokenizer.encode("good morning")
    assert tokenizer.decode(tokenizer.render("good morning")) == "good morning"


def test_a_tokenizer_that_begins_texts_with_a_token_does_so_in_plain_prompts_alone(copy: Path) -> None:
    """Where a tokenizer adds a first token, a template writes it itself: it never stands there twice."""
    whole = json.loads((copy / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "<|user|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    edit(
        copy / "tokenizer.json",
        post_processor={
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|user|>": {"id": "<|user|>", "ids": [3], "tokens": ["<|user|>"]}},
        },
    )
    assert whole["added_tokens"][3]["content"] == "<|user|>"
    with_first = Tokenizer.load(copy)
    plain = Tokenizer.load(find_model("tiny"))
    assert with_first.render("Hi") == [3, *plain.render("Hi")]
    assert with_first.render(DIALOGUE) == plain.render(DIALOGUE)
    assert with_first.encode("Hi") == plain.encode("Hi")
    assert with_first.complete("Hi") == plain.complete("Hi")
    assert with_first.fingerprint != plain.fingerprint


def test_a_completion_ends_with_the_end_of_text_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_ids == (1,)
    assert tokenizer.complete("great fun") == [*tokenizer.encode("great fun"), 1]
    assert tokenizer.complete("") == [1]
    assert tokenizer.decode(tokenizer.complete("great fun")) == "great fun"


@given(st.text(max_size=30))
@settings(max_examples=100)
def test_text_comes_back(text: str) -> None:
    """The tiny tokenizer works on bytes, so that no text is lost; names of special tokens are not text."""
    tokenizer = Tokenizer.load(find_model("tiny"))
    if not re.search(r"<\|(pad|end|system|user|assistant|tool)\|>", text):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_all_ends_that_the_generation_config_lists_count(copy: Path) -> None:
    edit(copy / "generation_config.json", eos_token_id=[1, 5])
    assert Tokenizer.load(copy).eos_ids == (1, 5)
    edit(copy / "generation_config.json", eos_token_id=None)
    assert Tokenizer.load(copy).eos_ids == (1,)
    (copy / "generation_config.json").unlink()
    assert Tokenizer.load(copy).eos_ids == (1,)


def test_the_fingerprint_is_the_same_wherever_the_tokenizer_stands(copy: Path, tokenizer: Tokenizer) -> None:
    tokenizer.render(DIALOGUE)  # nothing that is asked of a tokenizer changes it
    assert Tokenizer.load(copy).fingerprint == tokenizer.fingerprint
    tokenizer.save(copy.parent / "saved")
    assert Tokenizer.load(copy.parent / "saved").fingerprint == tokenizer.fingerprint


def another_template(copy: Path) -> None:
    path = copy / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|end|>", ""))


def another_merge(copy: Path) -> None:
    inner = json.loads((copy / "tokenizer.json").read_text())["model"]
    edit(copy / "tokenizer.json", model=inner | {"merges": inner["merges"][:-1]})


def another_vocabulary(copy: Path) -> None:
    inner = json.loads((copy / "tokenizer.json").read_text())["model"]
    a, b = list(inner["vocab"])[-2:]
    vocab = inner["vocab"] | {a: inner["vocab"][b], b: inner["vocab"][a]}
    edit(copy / "tokenizer.json", model=inner | {"vocab": vocab})


def another_normaliser(copy: Path) -> None:
    edit(copy / "tokenizer.json", normalizer={"type": "Lowercase"})


@pytest.mark.parametrize("change", [another_template, another_merge, another_vocabulary, another_normaliser])
def test_the_fingerprint_tells_tokenizers_apart(copy: Path, tokenizer: Tokenizer, change: Any) -> None:
    change(copy)
    assert Tokenizer.load(copy).fingerprint != tokenizer.fingerprint


def test_what_holds_no_tokenizer_is_refused(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(UserError, match="no usable tokenizer"):
        Tokenizer.load(tmp_path / "empty")
    edit(copy / "tokenizer_config.json", eos_token=None)
    (copy / "generation_config.json").unlink()
    with pytest.raises(UserError, match="no end-of-text token"):
        Tokenizer.load(copy)


@pytest.mark.parametrize("text", ["[", "[1]"])
def test_a_broken_generation_config_is_refused(copy: Path, text: str) -> None:
    (copy / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match="generation_config"):
        Tokenizer.load(copy)


def test_a_model_without_a_chat_template_takes_plain_text_alone(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    plain = Tokenizer.load(copy)
    assert not plain.has_chat_template
    assert plain.render("Hi") == plain.encode("Hi")
    with pytest.raises(UserError, match="no chat template"):
        plain.render(DIALOGUE)


def test_a_template_that_refuses_a_dialogue_says_so_to_the_user(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ raise_exception('no system role, please') }}")
    with pytest.raises(UserError, match="no system role, please"):
        Tokenizer.load(copy).render(DIALOGUE)


TURNS = (*DIALOGUE, Message("assistant", " good"), Message("user", "and you"))


def test_what_stands_between_two_turns_by_hand(tokenizer: Tokenizer, copy: Path) -> None:
    assert tokenizer.inner.decode(tokenizer.between(TURNS)) == "<|end|><|user|>and you<|end|><|assistant|>"
    (copy / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]\n{{ m.content | trim }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    lines = Tokenizer.load(copy)
    assert lines.inner.decode(lines.between(TURNS)) == "<|end|>\n[user]\nand you<|end|>\n[assistant]\n", (
        "words that the template trims are those of the policy's turn"
    )


words = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
@settings(max_examples=60)
def test_turns_and_what_stands_between_them_are_the_whole_dialogue(
    tokenizer: Tokenizer, said: list[tuple[str, str]]
) -> None:
    """Whatever words are said, even those of the template's marks: prompt, turn, between, turn, between... is what
    the template writes of it all."""
    messages: tuple[Message, ...] = DIALOGUE
    text = tokenizer.inner.decode(tokenizer.render(messages))
    for mine, yours in said:
        messages = (*messages, Message("assistant", mine), Message("user", yours))
        text += mine + tokenizer.inner.decode(tokenizer.between(messages))
    assert text == tokenizer.inner.decode(tokenizer.render(messages))


def test_a_template_that_wants_roles_to_alternate_is_given_the_whole_dialogue(copy: Path) -> None:
    path = copy / "chat_template.jinja"
    path.write_text(
        "{% for m in messages[1:] %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + path.read_text()
    )
    strict = Tokenizer.load(copy)
    assert strict.inner.decode(strict.between(TURNS)) == "<|end|><|user|>and you<|end|><|assistant|>"


def test_a_marker_that_is_said_is_no_marker(tokenizer: Tokenizer) -> None:
    messages = (Message("user", "PLAUDIT"), Message("assistant", "PLAUDIT-"), Message("user", "PLAUDIT--"))
    assert tokenizer.decode(tokenizer.between(messages)) == "PLAUDIT--"


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}{{ m.content | upper }}{{ m.content }}{% endfor %}", "hello"]
)
def test_a_template_that_hides_or_doubles_an_answer_is_refused(copy: Path, template: str) -> None:
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="does not write an assistant's words once"):
        Tokenizer.load(copy).between(TURNS)


def test_a_prompt_without_tokens_is_refused(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{% if false %}x{% endif %}")
    with pytest.raises(UserError, match="no tokens"):
        Tokenizer.load(copy).render(DIALOGUE)
