"""Records refuse what cannot be judged; errors fit on a line."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from plaudit.types import ROLES, Demonstration, Message, Preference, Ranking, Rating, UserError

TURNS = (Message("system", "Be brief."), Message("user", "Hello?"))
PAIR = ("Hi.", "Go away.")


def preference(**changes: Any) -> Preference:
    return dataclasses.replace(Preference("Hello?", PAIR, 0), **changes)


@pytest.mark.parametrize("prompt", ["Hello?", TURNS])
def test_prompts_are_text_or_messages(prompt: Any) -> None:
    assert Demonstration(prompt, "Hi.").prompt == prompt
    assert preference(prompt=prompt).prompt == prompt
    assert Ranking(prompt, ("a", "b"), (1, 0)).prompt == prompt
    assert Rating(prompt, "", {"overall": 1}).prompt == prompt


@pytest.mark.parametrize(
    "prompt", ["", (), None, 0, 7, [TURNS[0]], ("Hello?",), (TURNS[0], "Hello?"), {"a": 1}]
)
def test_other_prompts_are_refused_by_every_record(prompt: Any) -> None:
    for make in (
        lambda: Demonstration(prompt, "Hi."),
        lambda: preference(prompt=prompt),
        lambda: Ranking(prompt, ("a", "b"), (1, 0)),
        lambda: Rating(prompt, "a", {"overall": 1}),
    ):
        with pytest.raises(ValueError, match="prompt"):
            make()


@pytest.mark.parametrize("role", ROLES)
def test_every_role_speaks(role: Any) -> None:
    assert Message(role, "").role == role


@pytest.mark.parametrize(("role", "content"), [("User", "a"), (None, "a"), (["user"], "a"), ("user", None)])
def test_messages_need_a_known_role_and_text(role: Any, content: Any) -> None:
    with pytest.raises(ValueError, match=r"role|content"):
        Message(role, content)


@pytest.mark.parametrize("completion", ["", None, 3])
def test_demonstrations_need_an_answer(completion: Any) -> None:
    with pytest.raises(ValueError, match="completion"):
        Demonstration("Hello?", completion)


@pytest.mark.parametrize(
    "changes",
    [
        {"choice": 1},
        {"choice": "tie"},
        {"choice": "both_bad"},
        {"strength": 1},
        {"strength": 4},
        {"presented": (1, 0)},
        {"completions": ("", "")},
        {"rater": "r1"},
    ],
)
def test_preferences_accept(changes: Any) -> None:
    for name, value in changes.items():
        assert getattr(preference(**changes), name) == value


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"completions": ("a",)}, "completions"),
        ({"completions": ("a", "b", "c")}, "completions"),
        ({"completions": "ab"}, "completions"),  # two letters are not two texts
        ({"completions": ["a", "b"]}, "completions"),  # frozen all the way down
        ({"completions": ("a", None)}, "completions"),
        ({"completions": 5}, "completions"),
        ({"choice": 2}, "choice"),
        ({"choice": -1}, "choice"),
        ({"choice": True}, "choice"),
        ({"choice": 1.0}, "choice"),
        ({"choice": "1"}, "choice"),
        ({"choice": None}, "choice"),
        ({"choice": [0]}, "choice"),
        ({"strength": 0}, "strength"),
        ({"strength": 5}, "strength"),
        ({"strength": True}, "strength"),
        ({"strength": 2.0}, "strength"),
        ({"strength": "2"}, "strength"),
        ({"presented": (0, 0)}, "presented"),
        ({"presented": (0,)}, "presented"),
        ({"presented": (True, False)}, "presented"),
        ({"presented": 1}, "presented"),
        ({"rater": 3}, "rater"),
        ({"rater": ""}, "rater is empty"),
    ],
)
def test_preferences_refuse(changes: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        preference(**changes)


def test_rankings_name_each_completion_once() -> None:
    assert Ranking("p", ("a", "b", "c"), (2, 0, 1)).ranking == (2, 0, 1)
    wrong: list[Any] = [
        (),
        (0, 1),
        (0, 1, 1),
        (1, 2, 3),
        (0, 1, 2, 3),
        ("a", 0, 1),
        (0.0, 1.0, 2.0),
        [0, 1, 2],
        3,
    ]
    for ranking in wrong:
        with pytest.raises(ValueError, match="ranking"):
            Ranking("p", ("a", "b", "c"), ranking)
    with pytest.raises(ValueError, match="ranking"):
        Ranking("p", ("a", "b"), (False, True))
    lone: list[Any] = [("a",), (), "abc", ("a", 1)]
    for completions in lone:
        with pytest.raises(ValueError, match="completions"):
            Ranking("p", completions, tuple(range(len(completions))))


@pytest.mark.parametrize("scores", [{"overall": 0}, {"overall": 1}, {"overall": 0.5, "fluency": 1.0}])
def test_ratings_accept_zero_to_one(scores: Any) -> None:
    assert Rating("p", "c", scores).scores == scores


@pytest.mark.parametrize(
    "scores",
    [
        {},
        None,
        [0.5],
        {"overall": 1.0001},
        {"overall": -0.1},
        {"overall": float("nan")},
        {"overall": float("inf")},
        {"overall": 10**400},
        {"overall": True},
        {"overall": "1"},
        {"overall": 0.5, "fluency": None},
        {1: 0.5},
        {"": 0.5},
        {"overall": 0.5, "": 0.5},
    ],
)
def test_ratings_refuse(scores: Any) -> None:
    with pytest.raises(ValueError, match=r"scores?|criterion"):
        Rating("p", "c", scores)


@pytest.mark.parametrize("completion", [None, 3])
def test_ratings_need_text(completion: Any) -> None:
    with pytest.raises(ValueError, match="completion"):
        Rating("p", completion, {"overall": 1})


@pytest.mark.parametrize(
    "record",
    [
        Message("user", "a"),
        Demonstration("p", "c"),
        preference(),
        Ranking("p", ("a", "b"), (0, 1)),
        Rating("p", "c", {"a": 1}),
    ],
)
def test_records_are_frozen(record: Any) -> None:
    for field in dataclasses.fields(record):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field.name, getattr(record, field.name))


def test_a_user_error_is_one_line_of_what_where_and_how_to_mend_it() -> None:
    error = UserError("line one\n  and\ttwo", where="a.yaml:3", fix="write\nkey: value")
    assert str(error) == "a.yaml:3: line one and two; write key: value"
    assert (error.what, error.where, error.fix) == ("line one\n  and\ttwo", "a.yaml:3", "write\nkey: value")
    assert str(UserError("all wrong")) == "all wrong"
    assert str(UserError("all wrong", fix="start again")) == "all wrong; start again"
    for separator in "\r\x0b\x0c\x85\u2028\u2029":
        assert len(str(UserError(f"a{separator}b")).splitlines()) == 1
