"""An item goes to exactly as many raters as asked, whatever raters take back and owners change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plaudit import config as configs
from plaudit.feedback import answering, giving, judgements, overview, quality
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
