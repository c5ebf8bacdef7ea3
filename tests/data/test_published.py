"""Shapes of published sets and of tools of annotation: rows as those publish them, and what comes back of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data.dialects import DECODERS, ENCODERS, encoded
from plaudit.data.formats import read_records, to_json, write_records
from plaudit.types import Demonstration, Message, Preference, Ranking, Rating, Record, UserError

ULTRAFEEDBACK = {
    "source": "sharegpt", "instruction": "Name a colour.", "models": ["a", "b", "c"], "correct_answers": ["None"],
    "completions": [
        {"model": "a", "principle": "helpfulness", "response": "Blue.", "overall_score": 10.0, "critique": "Good.",
         "annotations": {"helpfulness": {"Rating": "5", "Rationale": "x", "Type": ["1"]},
                         "honesty": {"Rating": "N/A", "Rationale": "x"}}},
        {"model": "b", "response": "Four.", "overall_score": 1.0, "annotations": {"helpfulness": {"Rating": "1"}}},
        {"model": "c", "response": "?", "annotations": {}},
    ],
}  # fmt: skip
HELPSTEER = {
    "prompt": "p",
    "response": "c",
    "helpfulness": 3,
    "correctness": 4,
    "coherence": 4,
    "complexity": 1,
    "verbosity": 0,
}
HELPSTEER_PAIR = {
    "split": "train", "prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": -2,
    "preference_statement": "first is better", "preference_elaboration": "...",
}  # fmt: skip
OPENAI = {
    "input": {"messages": [{"role": "user", "content": "Hi"}], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [{"role": "assistant", "content": "Hello!"}],
    "non_preferred_output": [{"role": "assistant", "content": "What?"}],
}
ARGILLA = {
    "id": "x", "status": "completed", "metadata": {}, "vectors": {},
    "suggestions": {"preference": {"value": "response2"}},
    "fields": {"instruction": "p", "response1": "a", "response2": "b"},
    "responses": {"preference": [{"value": ["response2", "response1"], "user_id": "u1"},
                                 {"value": ["response1", "response2"], "user_id": "u2"},
                                 {"value": ["response1", "response2"], "user_id": "u3", "status": "discarded"}]},
}  # fmt: skip
OLD_ARGILLA_RANKS = [
    {"value": "response3", "rank": 1},
    {"value": "response1", "rank": 3},
    {"value": "response2", "rank": 2},
]
LABEL_STUDIO = {
    "id": 7, "project": 1, "data": {"prompt": "p", "answer1": "a", "answer2": "b"}, "predictions": [],
    "annotations": [
        {"id": 1, "completed_by": 3, "was_cancelled": False, "lead_time": 4.2,
         "result": [{"id": "r", "type": "pairwise", "from_name": "comparison", "to_name": "answer1,answer2",
                     "value": {"selected": "right"}}]},
        {"id": 2, "completed_by": {"id": 4, "email": "someone@example.org"}, "was_cancelled": False,
         "result": [{"type": "pairwise", "to_name": "txt-1,txt-2", "value": {"selected": "left"}}]},
        {"id": 3, "completed_by": 5, "was_cancelled": True,
         "result": [{"type": "pairwise", "to_name": "answer1,answer2", "value": {"selected": "left"}}]},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("format", "row", "records"),
    [
        ("ultrafeedback", ULTRAFEEDBACK, [
            Rating("Name a colour.", "Blue.", {"helpfulness": 1.0, "overall": 1.0}),
            Rating("Name a colour.", "Four.", {"helpfulness": 0.0, "overall": 0.0}),
        ]),
        ("helpsteer2", HELPSTEER, [
            Rating("p", "c", {"helpfulness": 0.75, "correctness": 1.0, "coherence": 1.0, "complexity": 0.25,
                              "verbosity": 0.0}),
        ]),
        ("helpsteer2", HELPSTEER_PAIR, [Preference("p", ("a", "b"), 0, 2)]),
        ("helpsteer2", HELPSTEER_PAIR | {"preference_strength": 3}, [Preference("p", ("a", "b"), 1, 3)]),
        ("helpsteer2", HELPSTEER_PAIR | {"preference_strength": 0}, [Preference("p", ("a", "b"), "tie")]),
        ("openai", OPENAI, [Preference((Message("user", "Hi"),), ("Hello!", "What?"), 0)]),
        ("argilla", ARGILLA, [Preference("p", ("a", "b"), 1, rater="u1"), Preference("p", ("a", "b"), 0, rater="u2")]),
        ("argilla", {"fields": {"prompt": "p", "response1": "a", "response2": "b", "response3": "c"},
                     "responses": {"ranking": [{"value": OLD_ARGILLA_RANKS, "user_id": "u"}]}},
         [Ranking("p", ("a", "b", "c"), (2, 1, 0), "u")]),
        ("argilla", {"fields": {"prompt": "p", "response": "c"}, "responses": {"quality": [{"value": 4}]}},
         [Rating("p", "c", {"quality": 0.75})]),
        ("argilla", {"fields": {"prompt": "p", "response": "c"}, "responses": {"quality": [{"value": 7}]},
                     "metadata": {"scale": [0, 10]}}, [Rating("p", "c", {"quality": 0.7})]),
        ("argilla", {"fields": {"prompt": "p", "response1": "a", "response2": "b"},
                     "responses": {"preference": [{"value": [{"value": "response2", "rank": 1},
                                                             {"value": "response1", "rank": 1}]}],
                                   "labels": [{"value": ["kind", "short"]}],
                                   "span": [{"value": [{"start": 0, "end": 1, "label": "x"}]}]}},
         [Preference("p", ("a", "b"), "tie")]),
        ("helpsteer2", HELPSTEER | {"prompt": "Hi\n\n<extra_id_1>Assistant\nHello\n\n<extra_id_1>User\nWhy?"},
         [Rating((Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?")), "c",
                 {"helpfulness": 0.75, "correctness": 1.0, "coherence": 1.0, "complexity": 0.25, "verbosity": 0.0})]),
        ("label-studio", LABEL_STUDIO,
         [Preference("p", ("a", "b"), 1, rater="3"), Preference("p", ("a", "b"), 0, rater="4")]),
        ("trl", {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.75}, [Preference("p", ("a", "b"), 0, 3)]),
        ("trl", {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.0}, [Preference("p", ("a", "b"), 0)]),
    ],
)  # fmt: skip
def test_a_published_row_is_read_and_told_by_its_keys(
    format: str, row: dict[str, Any], records: list[Record]
) -> None:
    assert DECODERS[format](row) == records
    assert DECODERS["auto"](row) == records


DIALOGUE = (Message("user", "Hi"), Message("assistant", "x"), Message("user", "y"))
KINDS: dict[str, list[Record]] = {
    "trl-margin": [Preference("p", ("a", "b"), 1, 3)],
    "trl-implicit": [Preference("The sky is", (" blue.", " green."), 0),
                     Preference((Message("user", "Hi"),), ("a", "b"), 1)],
    "helpsteer2": [Preference(DIALOGUE, ("a", "b"), 0, 1),
                   Preference("p", ("a", "b"), 1, 4), Preference("p", ("a", "b"), "tie"),
                   Rating("p", "c", {"overall": 0.8})],
    "ultrafeedback": [Rating("p", "c", {"overall": 0.35, "honesty": 1 / 3})],
    "openai": [Preference("p", ("a", "b"), 1, 2)],
    "argilla": [Preference("p", ("a", "b"), "tie", rater="ana"), Ranking("p", ("a", "b", "c"), (1, 2, 0), "ana"),
                Rating("p", "c", {"overall": 0.8, "style": 0.3}, "ana")],
    "label-studio": [Preference("p", ("a", "b"), 1, rater="ana")],
}  # fmt: skip
BACK: dict[str, list[Record]] = {
    "trl-margin": [Preference("p", ("b", "a"), 0, 3)],
    "trl-implicit": [Preference("The sky is", (" blue.", " green."), 0),
                     Preference((Message("user", "Hi"),), ("b", "a"), 0)],
    "helpsteer2": [Preference(DIALOGUE, ("a", "b"), 0, 1),
                   Preference("p", ("a", "b"), 1, 3), Preference("p", ("a", "b"), "tie"),
                   Rating("p", "c", {"helpfulness": 0.75})],
    "ultrafeedback": [Rating("p", "c", {"honesty": 0.333333, "overall": 0.35})],
    "openai": [Preference((Message("user", "p"),), ("b", "a"), 0)],
    "argilla": KINDS["argilla"],
    "label-studio": KINDS["label-studio"],
}  # fmt: skip


@pytest.mark.parametrize("format", sorted(KINDS))
@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_what_is_written_comes_back(tmp_path: Path, format: str, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    assert write_records(KINDS[format], path, format) == 0
    assert read_records(path) == BACK[format]
    assert (
        read_records(path, {"trl-margin": "trl", "trl-implicit": "trl"}.get(format, format)) == BACK[format]
    )


def test_a_table_of_published_rows_holds_what_a_table_can(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write_records(KINDS["helpsteer2"][1:3], path, "helpsteer2")
    assert path.read_text().splitlines()[0] == "prompt,response_1,response_2,preference_strength"


def test_a_ranking_is_all_its_pairs_where_a_format_holds_pairs() -> None:
    rows = encoded(Ranking("p", ("a", "b", "c"), (2, 0, 1)), "trl")
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("c", "a"), ("c", "b"), ("a", "b")]


@pytest.mark.parametrize(
    ("format", "row", "why"),
    [
        ("helpsteer2", HELPSTEER | {"helpfulness": 5}, "helpfulness is 5, not a whole number from 0 to 4"),
        ("helpsteer2", HELPSTEER_PAIR | {"preference_strength": -4}, "not a whole number from -3 to 3"),
        ("helpsteer2", HELPSTEER_PAIR | {"preference_strength": True}, "not a whole number"),
        ("ultrafeedback", ULTRAFEEDBACK | {"completions": [{"model": "a"}]}, "not an object with a response"),
        ("ultrafeedback", ULTRAFEEDBACK | {"completions": []}, "no completion has a rating"),
        ("ultrafeedback", ULTRAFEEDBACK | {"completions": [{"response": "x", "overall_score": "nan"}]},
         "not a number from 1"),
        ("openai", OPENAI | {"preferred_output": []}, "is not one message of the assistant"),
        ("openai", OPENAI | {"input": "Hi"}, "not an object with messages"),
        ("argilla", ARGILLA | {"fields": {"text": "x"}}, "has no field called prompt"),
        ("argilla", {"fields": {"prompt": "p", "response": "c"}, "responses": {"quality": [{"value": 7}]}},
         "quality is 7, not a number from 1 to 5"),
        ("helpsteer2", HELPSTEER | {"prompt": "Hi\n\n<extra_id_1>Robot\nx"}, "names Robot"),
        ("argilla", ARGILLA | {"responses": {"preference": ["x"]}}, "not an object with a value"),
        ("label-studio", LABEL_STUDIO | {"data": {"x": "y"}}, "has no prompt"),
        ("label-studio", LABEL_STUDIO | {"annotations": [{"result": [{"type": "pairwise", "to_name": "answer1,answer2",
         "value": {}}]}]}, "selects None"),
    ],
)  # fmt: skip
def test_a_broken_row_says_what_is_wrong(format: str, row: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError) as caught:
        DECODERS[format](row)
    assert why in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("format", "record", "why"),
    [
        ("helpsteer2", Rating("p", "c", {"style": 1.0}), "has scores of style"),
        ("helpsteer2", Preference("p", ("a", "b"), "both_bad"), "without a better side"),
        ("ultrafeedback", Preference("p", ("a", "b"), 0), "which ultrafeedback cannot hold"),
        ("openai", Rating("p", "c", {"overall": 1.0}), "is a rating, which openai cannot hold"),
        ("argilla", Demonstration("p", "c"), "is a demonstration, which argilla cannot hold"),
        ("label-studio", Preference("p", ("a", "b"), "tie"), "without a better side"),
        (
            "label-studio",
            Preference((Message("system", "s"), Message("user", "u")), ("a", "b"), 0),
            "is a dialogue",
        ),
        ("trl-margin", Preference("p", ("a", "b"), 0), "without a strength"),
    ],
)
def test_what_cannot_be_held_is_refused(format: str, record: Record, why: str) -> None:
    with pytest.raises(UserError, match=why):
        encoded(record, format)


text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(prompt=text, texts=st.tuples(text, text), choice=st.sampled_from([0, 1]), scores=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_or_is_refused(
    prompt: str, texts: tuple[str, str], choice: Any, scores: float
) -> None:
    for record in (Preference(prompt, texts, choice, 2), Rating(prompt, texts[0], {"overall": scores})):
        for format in ENCODERS:
            try:
                rows = encoded(record, format)
            except UserError:
                continue
            (back,) = DECODERS["auto"](json.loads(json.dumps(rows[0])))
            kept = to_json(back)
            assert kept.get("completion", texts[0]) == texts[0]
            if isinstance(record, Rating):
                assert isinstance(back, Rating)
                assert back.overall == pytest.approx(scores, abs=0.125 + 1e-9)
