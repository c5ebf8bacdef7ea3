"""What a served model said: kept with whoever asked, judged by them alone, counted once, and forgotten with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from plaudit.feedback.judgements import everything, preferences, ratings
from plaudit.feedback.served import Opinion, Response, Said, Served
from plaudit.feedback.store import Store
from plaudit.types import Demonstration, Message, Missing, Preference, Rating, UserError

PROMPT = (Message("user", "How are you?"),)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture
def served(store: Store) -> Served:
    return Served(store)


def response(served: Served, id: str = "r-1", *texts: str, user: str = "ann", **more: object) -> Response:
    said = tuple(Said(text, "stop", (-0.5, -0.25), (3, 2)) for text in texts or ("Fine.",))
    given: dict[str, object] = {"created_at": 100.0, "conversation": "c-1", "name": "helper", "version": "v1"}
    given |= {
        "propensity": 0.25,
        "prompt": PROMPT,
        "sampling": {"temperature": 1.0},
        "usage": {"seconds": 0.1},
    }
    return Response(id, requester=served.requester("shop", user), completions=said, **(given | more))  # type: ignore[arg-type]


def test_a_response_comes_back_as_it_was_kept(served: Served) -> None:
    one = response(served, masked={"email": 1}, regenerates="r-0")
    served.keep(one)
    assert served.get("r-1") == one
    with pytest.raises(Missing):
        served.get("r-2")


def test_requesters_are_pseudonyms_that_only_their_accounts_key_links(served: Served, store: Store) -> None:
    ann, same, ben = (served.requester("shop", user) for user in ("ann", "ann", "ben"))
    assert ann == same != ben
    assert served.requester("other", "ann") != ann
    assert served.requester("shop", None) == "shop"
    assert "ann" not in ann
    assert set(store.raters()) == {"shop", "other", ann, ben, served.requester("other", "ann")}


def test_feedback_is_counted_once_and_a_new_opinion_takes_the_olds_place(
    served: Served, store: Store
) -> None:
    token = served.keep(response(served))
    for _ in range(3):
        served.judge(token, Opinion(score=1.0, how="thumbs"))
    assert [event.payload["scores"] for event in store.current()] == [{"overall": 1.0}]
    for score in (0.0, 1.0, 0.0):
        served.judge(token, Opinion(score=score, how="thumbs"))
    (stands,) = store.current()
    assert stands.payload == {"scores": {"overall": 0.0}, "completion": 0, "how": "thumbs"}
    assert stands.policy_version == "v1"
    assert len(store.log()) == 4
    assert served.take_back(token) == 1
    assert store.current() == []
    for score in (1.0, 0.0, 1.0):  # and may be said again, the first one too
        served.judge(token, Opinion(score=score, how="thumbs"))
        assert [event.payload["scores"]["overall"] for event in store.current()] == [score]
        assert served.take_back(token) == 1


def test_words_stay_with_an_opinion_that_changes(served: Served, store: Store) -> None:
    token = served.keep(response(served))
    served.judge(token, Opinion(score=1.0, comment="nice"))
    served.judge(token, Opinion(score=1.0))
    served.judge(token, Opinion(score=0.5))
    assert [event.comment for event in store.current()] == ["nice"]
    served.judge(token, Opinion(score=0.5, comment="so so"))
    assert [event.comment for event in store.current()] == ["so so"]


def test_one_part_is_taken_back_without_the_others(served: Served, store: Store) -> None:
    token = served.keep(response(served))
    served.judge(token, Opinion(score=1.0, correction="Very well."))
    assert served.take_back(token, "score") == 1
    assert [event.kind for event in store.current()] == ["demonstration"]
    assert served.take_back(token, "score") == 0
    assert served.take_back(token) == 1


def test_a_token_is_good_for_its_response_and_for_nothing_else(served: Served) -> None:
    one, two = served.keep(response(served)), served.keep(response(served, "r-2", user="ben"))
    forged = "r-1." + two.rpartition(".")[2]
    for token in (forged, "r-1", "", one + "0", "r-3." + one.rpartition(".")[2]):
        with pytest.raises(Missing):
            served.judge(token, Opinion(score=1.0))
        with pytest.raises(Missing):
            served.notice(token, "copy", 1.0, 1.0)
    assert served.of_token(one).id == "r-1"


def test_the_best_of_several_is_preferred_to_each_of_the_others(served: Served, store: Store) -> None:
    token = served.keep(response(served, "r-1", "a", "b", "c"))
    served.judge(token, Opinion(chosen=1))
    assert {(one.record.completions, one.record.choice) for one in preferences(store)} == {
        (("a", "b"), 1),
        (("b", "c"), 0),
    }
    served.judge(token, Opinion(chosen=0))  # who changes their mind leaves nothing of the first vote
    assert {(one.record.completions, one.record.choice) for one in preferences(store)} == {
        (("a", "b"), 0),
        (("a", "c"), 0),
    }
    same = served.keep(response(served, "r-3", "x", "x", "y"))
    assert len(served.judge(same, Opinion(chosen=0))) == 1
    with pytest.raises(UserError, match="all say the same"):
        served.judge(served.keep(response(served, "r-4", "x", "x")), Opinion(chosen=0))
    for wrong in (3, -1):
        with pytest.raises(UserError, match="of 3 completions"):
            served.judge(token, Opinion(chosen=wrong))
    with pytest.raises(UserError, match="of 1 completions"):
        served.judge(served.keep(response(served, "r-2")), Opinion(chosen=0))


def test_two_answers_to_one_prompt_are_compared(served: Served, store: Store) -> None:
    old = served.keep(response(served, "r-1", "old"))
    new = served.keep(response(served, "r-2", "new", version="v2", regenerates="r-1"))
    served.judge(new, Opinion(over=old))
    (one,) = preferences(store)
    assert (one.record.completions, one.record.choice) == (("old", "new"), 1)
    served.judge(old, Opinion(over=new))
    (one,) = preferences(store)
    assert (one.record.completions, one.record.choice) == (("old", "new"), 0)
    assert served.take_back(new) == 1
    served.judge(new, Opinion(over=old))
    theirs = served.keep(response(served, "r-3", "old", user="ben"))
    elsewhere = served.keep(response(served, "r-4", prompt="another"))
    for token, what in ((new, "no other answer"), (theirs, "somebody else"), (elsewhere, "no other answer")):
        with pytest.raises(UserError, match=what):
            served.judge(new, Opinion(over=token))


def test_a_correction_is_a_demonstration_and_better_than_what_it_corrects(
    served: Served, store: Store
) -> None:
    token = served.keep(response(served))
    events = served.judge(token, Opinion(score=0.25, correction="Very well.", comment="too short"))
    assert [event.kind for event in events] == ["rating", "demonstration"]
    assert [event.comment for event in events] == ["too short", None]
    rater = events[0].rater
    assert [one.record for one in everything(store)] == [
        Rating(PROMPT, "Fine.", {"overall": 0.25}, rater),
        Demonstration(PROMPT, "Very well.", rater),
        Preference(PROMPT, ("Very well.", "Fine."), 0, rater=rater),
    ]


def test_words_alone_are_kept_and_judge_nothing(served: Served, store: Store) -> None:
    token = served.keep(response(served))
    (event,) = served.judge(token, Opinion(comment="hm"))
    assert (event.kind, event.comment) == ("skip", "hm")
    with pytest.raises(UserError, match="says nothing"):
        served.judge(token, Opinion())
    with pytest.raises(UserError, match="of 1 completions"):
        served.judge(token, Opinion(score=1.0, index=1))
    assert everything(store) == []


def test_a_whole_conversation_is_judged_by_itself(served: Served, store: Store) -> None:
    token = served.keep(response(served))
    served.judge(token, Opinion(score=1.0))
    served.judge(token, Opinion(score=0.0, scope="conversation"))
    assert [event.payload["scores"] for event in store.current()] == [{"overall": 1.0}, {"conversation": 0.0}]


def test_behaviour_is_noticed_and_judges_nothing(served: Served, store: Store) -> None:
    token = served.keep(response(served))
    for seconds in (3.0, 9.0, 5.0):
        served.notice(token, "dwell", seconds, 200.0)
    served.notice(token, "copy", 1.0, 200.0)
    assert served.signals() == {"r-1": {"dwell": 9.0, "copy": 1.0}}
    assert store.log() == []


def test_what_was_kept_long_enough_goes_and_what_was_judged_stands(served: Served, store: Store) -> None:
    judged = served.keep(response(served))
    served.keep(response(served, "r-2"))
    late = served.keep(response(served, "r-3", created_at=300.0))
    served.judge(judged, Opinion(score=1.0))
    assert served.purge(before=200.0) == 2
    assert served.purge(before=200.0) == 0
    assert served.get("r-2").prompt is None
    assert served.get("r-2").usage == {"seconds": 0.1}
    assert served.of_token(late).completions is not None
    assert len(ratings(store)) == 1
    with pytest.raises(Missing):
        served.judge(judged, Opinion(score=0.0))


def test_a_requester_who_is_forgotten_takes_everything_along(served: Served, store: Store) -> None:
    token, other = served.keep(response(served)), served.keep(response(served, "r-2", user="ben"))
    served.judge(token, Opinion(score=1.0, comment="a secret"))
    served.judge(other, Opinion(score=1.0))
    served.notice(token, "copy", 1.0, 200.0)
    ann = served.get("r-1").requester
    store.forget_rater(ann)
    assert served.get("r-1").prompt is None
    assert served.get("r-1").completions is None
    assert served.signals() == {}
    with pytest.raises(Missing):
        served.judge(token, Opinion(score=0.0))
    late = response(served, "r-3", user="cay")
    with pytest.raises(UserError, match="forgotten"):
        served.keep(replace(late, requester=ann))
    assert served.get("r-1").sampling == {}
    assert served.get("r-1").conversation == ""
    assert [event.rater for event in store.current()] == [served.get("r-2").requester]
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM responses").scalar() == 2
