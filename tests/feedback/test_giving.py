"""An item goes to exactly as many raters as asked, whatever raters take back and owners change."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from plaudit import config as configs
from plaudit.feedback import answering, giving, judgements, overview, quality, schema
from plaudit.feedback.events import Item, event_id
from plaudit.feedback.projects import Entry, Projects
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Task
from plaudit.types import Demonstration, Preference, Rating, UserError


@pytest.fixture
def projects(tmp_path: Path) -> Iterator[Projects]:
    with Store.open(tmp_path / "feedback.db") as store:
        yield Projects(store)


def made(projects: Projects, count: int = 1, **more: Any) -> str:
    task = configs.parse(Task, {"kind": "comparison", "gold_every": 0, "random_share": 0.0} | more, "task")
    project = projects.create("p", task).id
    projects.add(project, [Entry(f"p{i}", (f"a{i}", f"b{i}")) for i in range(count)])
    return project


CHOICE = {"choice": 0, "strength": None}


def say(projects: Projects, project: str, rater: str, payload: Any, event: str, **more: Any) -> Any:
    """An answer to what comes next; the turn."""
    (turn,) = answering.upcoming(projects, projects.get(project), rater, 0.0)
    answering.judge(
        projects, project, rater, turn.item.id, payload, event=event, assignment=turn.assignment, **more
    )
    return turn


def to_come(projects: Projects, project: str) -> int:
    return overview.counts(projects, project)["to_come"]


def test_a_skip_that_becomes_an_answer_asks_nobody_else(projects: Projects) -> None:
    project = made(projects, overlap=2)
    turn = say(projects, project, "ann", None, "1")
    assert to_come(projects, project) == 2, "somebody else is asked instead"
    answering.judge(
        projects, project, "ann", turn.item.id, CHOICE, event="2", assignment=turn.assignment, supersedes="1"
    )
    assert to_come(projects, project) == 1


def test_an_answer_that_becomes_a_skip_asks_somebody_else(projects: Projects) -> None:
    project = made(projects, overlap=1)
    turn = say(projects, project, "ann", CHOICE, "1")
    assert to_come(projects, project) == 0
    answering.judge(
        projects, project, "ann", turn.item.id, None, event="2", assignment=turn.assignment, supersedes="1"
    )
    assert to_come(projects, project) == 1
    say(projects, project, "bob", CHOICE, "3")
    assert to_come(projects, project) == 0


def test_slots_follow_the_overlap_up_and_down(projects: Projects) -> None:
    project = made(projects, 3, overlap=2)
    say(projects, project, "ann", CHOICE, "1")
    (held,) = answering.upcoming(projects, projects.get(project), "bob", 0.0)
    task = projects.get(project).task
    projects.change(project, task=task.model_copy(update={"overlap": 4}))
    assert to_come(projects, project) == 11
    projects.change(project, task=task.model_copy(update={"overlap": 1}))
    # One is answered; of the others one each, and what bob holds stays his.
    assert to_come(projects, project) == 2 + (held.item.prompt == "p0")
    assert answering.upcoming(projects, projects.get(project), "bob", 0.0)[0].item == held.item


def test_what_raters_hold_stays_theirs_when_fewer_are_wanted(projects: Projects) -> None:
    project = made(projects, overlap=3)
    held = [
        answering.upcoming(projects, projects.get(project), rater, 0.0)[0].assignment
        for rater in ("ann", "bob")
    ]
    projects.change(project, task=projects.get(project).task.model_copy(update={"overlap": 1}))
    assert to_come(projects, project) == 2
    item = answering.upcoming(projects, projects.get(project), "bob", 0.0)[0].item.id
    for rater, ticket in zip(("ann", "bob"), held, strict=True):
        answering.judge(projects, project, rater, item, CHOICE, event=rater, assignment=ticket)
    assert answering.upcoming(projects, projects.get(project), "cem", 0.0) == []


def fewer(projects: Projects, project: str, overlap: int = 1) -> None:
    projects.change(project, task=projects.get(project).task.model_copy(update={"overlap": overlap}))


def hand_in(projects: Projects, project: str, rater: str, turn: answering.Turn, payload: Any) -> None:
    answering.judge(projects, project, rater, turn.item.id, payload, event=rater, assignment=turn.assignment)


def test_who_skips_what_is_wanted_no_more_is_followed_by_nobody(projects: Projects) -> None:
    project = made(projects, overlap=2)
    (held,) = answering.upcoming(projects, projects.get(project), "ann", 0.0)
    say(projects, project, "bob", CHOICE, "1")
    fewer(projects, project)
    hand_in(projects, project, "ann", held, None)
    assert to_come(projects, project) == 0
    assert answering.upcoming(projects, projects.get(project), "cem", 0.0) == []
    with schema.reading(projects.store.engine) as connection:
        assert all(connection.scalars(sa.select(schema.assignments.c.event)))


@pytest.mark.parametrize("answered", [False, True])
def test_what_is_wanted_no_more_is_its_holder_s_alone_when_their_time_has_run_out(
    projects: Projects, answered: bool
) -> None:
    project, late = made(projects, overlap=2), 1e6
    (held,) = answering.upcoming(projects, projects.get(project), "ann", 0.0)
    say(projects, project, "bob", CHOICE, "1")
    fewer(projects, project)
    assert answering.upcoming(projects, projects.get(project), "cem", late) == []
    assert overview.counts(projects, project, late)["to_come"] == 0
    if answered:
        hand_in(projects, project, "ann", held, CHOICE)
    fewer(projects, project, 3)
    assert to_come(projects, project) == (1 if answered else 2), "more are wanted again"
    assert len(answering.upcoming(projects, projects.get(project), "cem", late)) == 1


def test_of_what_is_wanted_no_more_the_first_to_run_out_is_given_up(projects: Projects) -> None:
    project = made(projects, overlap=3)
    say(projects, project, "ann", CHOICE, "1")
    now = 60.0 * projects.get(project).task.lease_minutes
    (early,) = answering.upcoming(projects, projects.get(project), "bob", 0.0)
    (later,) = answering.upcoming(projects, projects.get(project), "cem", now - 1)
    fewer(projects, project, 2)
    assert answering.upcoming(projects, projects.get(project), "dee", now + 1) == []
    hand_in(projects, project, "cem", later, CHOICE)
    assert early.item == later.item
    assert overview.counts(projects, project, now + 1)["to_come"] == 0


@pytest.mark.parametrize("skips", [False, True])
def test_a_late_answer_counts_whatever_its_item_s_next_holder_does(projects: Projects, skips: bool) -> None:
    project, late = made(projects, overlap=1), 1e6
    (first,) = answering.upcoming(projects, projects.get(project), "ann", 0.0)
    (then,) = answering.upcoming(projects, projects.get(project), "bob", late)
    hand_in(projects, project, "ann", first, CHOICE)
    if skips:
        hand_in(projects, project, "bob", then, None)
    assert answering.upcoming(projects, projects.get(project), "cem", 2 * late) == []
    assert overview.counts(projects, project, 2 * late)["to_come"] == 0


def test_a_late_answer_that_is_taken_back_asks_somebody_else(projects: Projects) -> None:
    project, late = made(projects, overlap=1), 1e6
    (first,) = answering.upcoming(projects, projects.get(project), "ann", 0.0)
    answering.upcoming(projects, projects.get(project), "bob", late)
    hand_in(projects, project, "ann", first, CHOICE)
    answering.judge(
        projects,
        project,
        "ann",
        first.item.id,
        None,
        event="2",
        assignment=first.assignment,
        supersedes="ann",
    )
    assert len(answering.upcoming(projects, projects.get(project), "cem", 2 * late)) == 1


def test_who_decides_on_what_they_hold_is_given_the_next(projects: Projects) -> None:
    project = made(projects, 2, overlap=1)
    (held,) = answering.upcoming(projects, projects.get(project), "olga", 0.0)
    answering.decide(projects, project, "olga", held.item.id, CHOICE, event="d")
    (then,) = answering.upcoming(projects, projects.get(project), "olga", 0.0)
    assert then.item != held.item
    given = [turn.item for turn in answering.upcoming(projects, projects.get(project), "ann", 1e6, 2)]
    assert held.item in given, "others judge it all the same"


def test_who_has_decided_on_an_item_judges_it_no_more_and_what_was_sent_before_is_known(
    projects: Projects,
) -> None:
    project = made(projects, 2, overlap=1)
    turns = answering.upcoming(projects, projects.get(project), "olga", 0.0, 2)

    def send(turn: answering.Turn) -> int:
        return answering.judge(
            projects, project, "olga", turn.item.id, CHOICE, event=turn.item.id, assignment=turn.assignment,
            reviews=True,
        )  # fmt: skip

    assert send(turns[0]) == 1
    for turn in turns:
        answering.decide(projects, project, "olga", turn.item.id, CHOICE, event=f"d{turn.item.id}")
    assert send(turns[0]) == 1
    with pytest.raises(UserError, match="you have decided on it"):
        send(turns[1])
    assert [bool(event.payload.get("adjudicates")) for event in projects.store.current()] == [True, True]


def test_who_holds_an_item_that_comes_in_judged_by_them_counts_once(projects: Projects) -> None:
    project = made(projects, overlap=2)
    (held,) = answering.upcoming(projects, projects.get(project), "ann", 0.0)
    projects.take_in(project, [Preference("p0", ("a0", "b0"), 1, rater="ann")])
    assert len(projects.store.items()) == 1
    with pytest.raises(UserError, match="already answered by event"):
        hand_in(projects, project, "ann", held, CHOICE)
    assert answering.upcoming(projects, projects.get(project), "ann", 0.0) == []
    assert len(projects.store.current()) == 1
    (imported,) = projects.store.current()
    answering.judge(
        projects, project, "ann", held.item.id, CHOICE, event="2", assignment=held.assignment, supersedes=imported.id
    )  # fmt: skip
    assert [event.id for event in projects.store.current()] == ["2"]


def test_a_page_that_is_loaded_again_does_not_tell_gold_by_its_place(projects: Projects) -> None:
    project = made(projects, 9, overlap=1, gold_every=2)
    projects.add(project, [Entry(f"g{i}", ("a", "b"), part="gold", answer=CHOICE) for i in range(9)])
    for number in range(6):
        turns = answering.upcoming(projects, projects.get(project), "ann", 0.0, 3)
        assert len({str(turn.item.prompt)[0] for turn in turns}) == 2, "gold among others"
        again = answering.upcoming(projects, projects.get(project), "ann", 0.0, 3)
        assert [turn.item for turn in again] == [turn.item for turn in turns]
        answering.judge(
            projects, project, "ann", turns[0].item.id, CHOICE, event=str(number), assignment=turns[0].assignment
        )  # fmt: skip


def test_an_item_s_id_tells_nothing_of_what_it_holds_and_of_what_it_repeats(projects: Projects) -> None:
    """Whoever guesses the model, or an item that they have judged, cannot work out whether it is so."""
    project = made(projects, 14, overlap=1, repeat_every=2)
    entry = Entry("secret", ("a", "b"), "model")
    assert [projects.add(project, [entry]) for _ in range(2)] == [1, 0], "the same again"
    assert projects.take_in(project, [Preference("p0", ("a0", "b0"), 0)])["items"] == 0
    for number in range(15):
        say(projects, project, "ann", CHOICE, str(number))
    items = projects.store.items()
    for item in items.values():
        assert item.id != Item(item.prompt, item.completions, item.policy_version, item.meta, item.author).id
    twins = [item for item in items.values() if "repeats" in item.meta]
    assert twins
    for twin in twins:
        first = twin.meta["repeats"]
        assert twin.id != event_id("repeat", first, "ann").replace("-", "")
        assert twin.id != hmac.new(b"", first.encode(), "sha256").hexdigest()[:32]
    assert "salt" not in repr(projects.get(project))


def test_a_project_of_before_its_items_had_a_salt_keeps_their_ids(projects: Projects) -> None:
    project = made(projects, 0)
    with schema.writing(projects.store.engine) as connection:
        connection.execute(schema.projects.update().values(salt=None))
    projects.add(project, [Entry("p", ("a", "b"))])
    assert list(projects.store.items()) == [Item("p", ("a", "b"), meta={"project": project}).id]


def test_what_is_asked_again_is_worth_what_it_was(projects: Projects) -> None:
    project = made(projects, 3, overlap=1)
    worth = {item.id: float(item.prompt == "p1") for item in projects.store.items().values()}
    projects.prioritise(project, worth)
    turn = say(projects, project, "ann", CHOICE, "1")
    assert turn.item.prompt == "p1"
    task = projects.get(project).task
    projects.change(project, task=task.model_copy(update={"overlap": 2}))
    assert say(projects, project, "bob", CHOICE, "2").item.prompt == "p1"


def test_an_answer_sent_again_is_known_though_its_rater_was_retracted(projects: Projects) -> None:
    project = made(projects, 2, overlap=1)
    (turn,) = answering.upcoming(projects, projects.get(project), "ann", 0.0)

    def send(event: str = "1") -> tuple[int, list[answering.Turn]]:
        return answering.judge_on(
            projects, projects.get(project), "ann", turn.item.id, CHOICE, now=0.0, count=1, event=event,
            assignment=turn.assignment,
        )  # fmt: skip

    seq, _ = send()
    projects.store.retract_rater("ann")
    assert send() == (seq, [])
    with pytest.raises(UserError, match="retracted"):
        send("2")


@pytest.mark.parametrize(("enough", "closed"), [(0.5, 10), (0.95, 0)])
def test_where_raters_agree_enough_nobody_else_is_asked(
    projects: Projects, enough: float, closed: int
) -> None:
    """Ten of twelve alike: alpha is 0.63."""
    project = made(projects, 12, overlap=3, enough_alpha=enough)
    for rater in ("ann", "bob"):
        number = 0
        while turns := answering.upcoming(projects, projects.get(project), rater, 0.0):
            (turn,) = turns
            place = int(str(turn.item.prompt)[1:])
            choice = place % 2 if rater == "ann" or place > 1 else 1 - place % 2
            said = {"choice": choice, "strength": None}
            answering.judge(
                projects,
                project,
                rater,
                turn.item.id,
                said,
                event=f"{rater}{number}",
                assignment=turn.assignment,
            )
            number += 1
    assert to_come(projects, project) == 12
    assert quality.settle(projects, project) == closed
    assert to_come(projects, project) == 12 - closed


def test_records_of_another_kind_are_not_taken_in(projects: Projects) -> None:
    project = made(projects, 0)
    with pytest.raises(UserError, match="record 2: is a rating, where the project asks for a comparison"):
        projects.take_in(project, [Preference("p", ("a", "b"), 0), Rating("p", "a", {"overall": 1.0})])
    assert overview.counts(projects, project)["judgements"] == 0


def test_demonstrations_are_labels_where_categories_are_asked(projects: Projects) -> None:
    task = configs.parse(Task, {"kind": "category", "labels": ["good", "bad"], "overlap": 2}, "task")
    project = projects.create("p", task).id
    records = [Demonstration("fine", "good", "ann"), Demonstration("awful", "bad", "ann")]
    with pytest.raises(UserError, match="record 2"):
        projects.take_in(project, [records[0], Demonstration("so so", "middling", "ann")])
    assert projects.take_in(project, records)["events"] == 2
    assert projects.take_in(project, records)["events"] == 0, "again"
    said = {event.item: event for event in projects.store.current()}
    assert sorted(event.payload["label"] for event in said.values()) == ["bad", "good"]
    assert {event.kind for event in said.values()} == {"category"}
    assert to_come(projects, project) == 2
    assert [one.record for one in judgements.everything(projects.store)] == records


def test_what_comes_in_counts_and_more_overlap_asks_for_the_rest(projects: Projects) -> None:
    project = made(projects, 0, overlap=2)
    projects.take_in(project, [Preference("p", ("a", "b"), 0, rater=name) for name in ("x", "y", "z")])
    assert to_come(projects, project) == 0
    task = projects.get(project).task
    projects.change(project, task=task.model_copy(update={"overlap": 5}))
    assert to_come(projects, project) == 2
    assert [turn.item.prompt for turn in answering.upcoming(projects, projects.get(project), "ann", 0.0)] == [
        "p"
    ]


def test_what_is_retracted_is_asked_again(projects: Projects) -> None:
    project = made(projects, overlap=1)
    say(projects, project, "ann", CHOICE, "1")
    projects.store.retract_rater("ann")
    projects.reopen("ann")
    assert to_come(projects, project) == 1
    projects.store.restore_rater("ann")
    projects.reopen("ann")
    assert to_come(projects, project) == 0


def test_a_reviewer_s_word_is_nobody_s_slot_and_stands_once(projects: Projects) -> None:
    project = made(projects, overlap=2)
    item = say(projects, project, "ann", CHOICE, "1").item.id
    answering.decide(projects, project, "olga", item, {"choice": 1, "strength": None}, event="d1")
    answering.decide(projects, project, "olga", item, {"choice": "tie", "strength": None}, event="d2")
    assert (
        answering.decide(projects, project, "olga", item, {"choice": "tie", "strength": None}, event="d2")
        == 3
    ), "sent again"
    task = projects.get(project).task
    projects.change(project, task=task.model_copy(update={"overlap": 3}))
    assert to_come(projects, project) == 2
    decided = [event for event in projects.store.current() if event.rater == "olga"]
    assert [(event.payload["choice"], event.presented) for event in decided] == [("tie", (0, 1))]


def test_only_who_was_given_an_item_answers_it_and_once(projects: Projects) -> None:
    project = made(projects, overlap=2)
    (turn,) = answering.upcoming(projects, projects.get(project), "ann", 0.0)
    for ticket in (
        None,
        "nonsense",
        "gAAAAA",
        answering.upcoming(projects, projects.get(project), "bob", 0.0)[0].assignment,
    ):
        with pytest.raises(UserError, match="was not given to this rater"):
            answering.judge(projects, project, "ann", turn.item.id, CHOICE, event="1", assignment=ticket)
    answering.judge(projects, project, "ann", turn.item.id, CHOICE, event="1", assignment=turn.assignment)
    with pytest.raises(UserError, match="already answered"):
        answering.judge(projects, project, "ann", turn.item.id, CHOICE, event="2", assignment=turn.assignment)
    given = {"flags": 5, "adjudicates": True}
    answering.judge(
        projects,
        project,
        "ann",
        turn.item.id,
        CHOICE | given,
        event="3",
        assignment=turn.assignment,
        supersedes="1",
    )
    (event,) = projects.store.current()
    assert not given.keys() & event.payload.keys(), "what is not a rater's to say"


def test_nobody_can_count_when_gold_comes() -> None:
    places = [[p for p in range(100) if giving.due(10, "gold", "x", rater, p)] for rater in ("ann", "bob")]
    for mine in places:
        assert [place // 10 for place in mine] == list(range(10)), "once in ten"
        assert len({place % 10 for place in mine}) > 4
    assert places[0] != places[1]
    assert not any(giving.due(0, "gold", "x", "ann", place) for place in range(20))


@pytest.mark.parametrize("ahead", [1, 3])
def test_gold_comes_at_the_places_that_were_drawn(projects: Projects, ahead: int) -> None:
    """Each answer's acknowledgement brings what comes next: the k-th is gold where `due` says so, and nowhere else."""
    project = made(projects, 9, overlap=1, gold_every=3)
    projects.add(project, [Entry(f"g{i}", ("a", "b"), part="gold", answer=CHOICE) for i in range(9)])
    turns = answering.upcoming(projects, projects.get(project), "ann", 0.0, ahead)
    came = [turn.item.prompt for turn in turns]
    for number in range(9 - ahead):
        turn, *turns = turns
        _, more = answering.judge_on(
            projects, projects.get(project), "ann", turn.item.id, CHOICE, now=0.0, count=ahead, event=str(number),
            assignment=turn.assignment, have=[one.item.id for one in turns],
        )  # fmt: skip
        came += [turn.item.prompt for turn in more]
        turns += more
    wanted = [giving.due(3, "gold", project, "ann", place) for place in range(9)]
    assert [str(prompt).startswith("g") for prompt in came] == wanted
    assert wanted.count(True) == 3


def test_gold_that_nobody_can_get_right_is_refused(projects: Projects) -> None:
    task = configs.parse(Task, {"kind": "rating", "criteria": [{"name": "warmth"}]}, "task")
    project = projects.create("p", task).id
    wrong = Entry("p", ("a",), part="gold", answer={"scores": {"warmht": 1.0}})
    with pytest.raises(UserError, match="scores are of warmht, not of warmth"):
        projects.add(project, [wrong])
    with pytest.raises(UserError, match="its meta holds models, repeats"):
        projects.add(project, [Entry("p", ("a",), meta={"repeats": "x", "models": 3})])
