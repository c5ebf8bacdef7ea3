"""Both languages have the same words, and no page or script asks for one that is not there."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import plaudit.studio
from plaudit.feedback.tasks import Task
from plaudit.studio import wire
from plaudit.studio.faults import translated
from plaudit.studio.text import markdown, visible

HERE = Path(plaudit.studio.__file__).parent
WORDS = {path.stem: json.loads(path.read_text("utf-8")) for path in (HERE / "languages").glob("*.json")}


def test_both_languages_have_the_same_words_with_the_same_gaps() -> None:
    assert set(WORDS) == {"en", "zh"}
    assert WORDS["en"].keys() == WORDS["zh"].keys()
    for key, text in WORDS["en"].items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", WORDS["zh"][key])), key
    assert all(
        re.search(r"[\u4e00-\u9fff]", text)
        for key, text in WORDS["zh"].items()
        if len(re.sub(r"\{\w+\}", "", text)) > 4 and key != "give_tenths"
    )


@pytest.mark.parametrize(
    "path", sorted([*HERE.glob("templates/*"), *HERE.glob("static/*.js")]), ids=lambda p: p.name
)
def test_all_words_that_are_asked_for_are_there(path: Path) -> None:
    text = path.read_text("utf-8")
    asked = set(re.findall(r"""\bt\(["'](\w+)["'][,)]""", text))
    assert not asked - WORDS["en"].keys()
    for prefix in re.findall(r"""\bt\(["'`](\w+_)["'`$]""", text):
        assert any(key.startswith(prefix) for key in WORDS["en"]), prefix


def test_markdown_shows_lists_tables_and_code() -> None:
    html = markdown("# A\n\n- one\n- *two*\n\n| a |\n|---|\n| 1 |\n\n```\nx < y\n```")
    for tag in ("<h1>", "<li>", "<em>", "<table>", "<pre>", "x &lt; y"):
        assert tag in html


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert visible("a\u202eb\x00c\r\nd\u200de") == "a\ufffdb\u2400c\nd\u200de"


ROOMS = [*HERE.glob("*.py"), *(HERE.parent / "access").glob("*.py")] + [
    HERE.parent / "feedback" / f"{name}.py"
    for name in (
        "assignments",
        "drafts",
        "events",
        "giving",
        "jobs",
        "privacy",
        "projects",
        "queries",
        "store",
        "tasks",
    )
]
ELSEWHERE = {"client.py", "hosts.py", "run.py"}
"""What these say is read in a terminal."""


def test_what_may_be_refused_is_said_in_chinese() -> None:
    said = {text for path in ROOMS if path.name not in ELSEWHERE for text in refusals(path)}
    assert len(said) > 100
    assert not {text for text in said if translated(text, "zh") == text} - {"webhook", "webhook x"}
    assert translated("item 7", "zh") == "条目 7"
    assert translated("is gold and has no answer", "zh") == "属于 gold，却没有答案"
    assert translated("item 7 was forgotten", "zh") == "条目 7 已被遗忘", "not item {}"
    long = "is " * 400
    assert translated(f"label is {long}, not one of a", "zh").startswith("label"), "and not for minutes"
    assert translated("score of item 7", "zh") == "条目 7 的 score"
    assert translated("nobody has ever said this", "zh") == "nobody has ever said this"
    assert translated("try again", "en") == "try again"


ODD: tuple[Any, ...] = (5, -1, 0.5, "x", [], {}, [5], None)
TASKS: list[dict[str, Any]] = [
    {"kind": "category", "labels": ["a"]},
    {"kind": "category", "labels": ["a", "a"]},
    {"kind": "rating", "criteria": [{"name": "a"}, {"name": "a"}]},
    *({"kind": "rating", name: value} for name in Task.model_fields for value in ODD),
]


def test_what_a_body_is_refused_for_is_said_in_chinese() -> None:
    """Whatever pydantic says of what our bodies hold."""
    bad = (None, "", "x" * 300_000, "\x00", -1, 0.5, 1e300, True, [], [""] * 20_000, {}, {"x": 1}, *TASKS)
    models = [
        found
        for found in vars(wire).values()
        if isinstance(found, type) and issubclass(found, BaseModel) and found is not BaseModel
    ]
    said = set()
    for model in models:
        for name, value in product(["nothing", *model.model_fields], bad):
            try:
                model.model_validate({name: value})
            except ValidationError as refused:
                said |= {str(error["msg"]) for error in refused.errors()}
    assert {
        "Field required",
        "Input should be greater than 0",
        "Value error, two labels are the same",
    } <= said
    left = {text: re.sub(r"'[^']*'", "", translated(text, "zh")) for text in said}
    assert not {text for text, words in left.items() if re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}", words)}


def refusals(path: Path) -> Iterator[str]:
    """What, where and fix of the faults that a module raises, with an x in each gap."""
    for call in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            continue
        if call.func.id in ("UserError", "Unavailable"):
            texts = call.args[:1] + [word.value for word in call.keywords]
        elif call.func.id == "HTTPException":
            texts = call.args[1:2]
        elif call.func.id == "Missing":
            kind = call.args[0]
            assert isinstance(kind, ast.Constant)
            assert isinstance(kind.value, str)
            yield from (f"there is no such {kind.value}", f"{kind.value} x")
            texts = [word.value for word in call.keywords]
        else:
            continue
        for text in texts:
            if isinstance(text, ast.Constant):
                yield str(text.value)
            elif isinstance(text, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "x" for part in text.values
                )
