"""Both languages have the same words, and no page or script asks for one that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import plaudit.studio
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
