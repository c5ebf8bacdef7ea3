"""Projects: what is asked, of which items, and who is given what next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit.config import parse
from plaudit.feedback import answering, drafts, overview
from plaudit.feedback.answering import Turn
from plaudit.feedback.giving import SOON, order_of
from plaudit.feedback.judgements import preferences
from plaudit.feedback.projects import Entry, Project, Projects
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Criterion, Task, agrees
from plaudit.types import UserError

PLAIN: dict[str, Any] = {"random_share": 0.0, "gold_every": 0}


@pytest.fixture
def projects(tmp_path: Path) -> Iterator[Projects]:
    with Store.open(tmp_path / "feedback.db") as store:
        yield Projects(store)


def pairs(count: int, **more: Any) -> list[Entry]:
    return [Entry(f"prompt {i}", (f"a {i}", f"b {i}"), **more) for i in range(count)]


def made(projects: Projects, count: int = 3, **task: Any) -> Project:
    project = projects.create("Pairs", Task(kind="comparison", **(PLAIN | task)))
    projects.add(project.id, pairs(count))
    return project


def answer(projects: Projects, project: Project, rater: str, turn: Turn, choice: Any = 0) -> int:
    return answering.judge(
        projects, project.id, rater, turn.item.id, {"choice": choice, "strength": None}, assignment=turn.assignment,
        event=f"{rater} {turn.item.id}",
    )  # fmt: skip


def taken(projects: Projects, project: Project, rater: str, now: float = 0.0) -> Turn:
    (turn,) = answering.upcoming(projects, projects.get(project.id), rater, now)
    return turn


def test_each_item_goes_to_as_many_raters_as_asked(projects: Projects) -> None:
    project, seen = made(projects, 4, overlap=2), list[tuple[str, str]]()
    for rater in ("ann", "bob", "cy"):
        while turns := answering.upcoming(projects, project, rater, 0.0):
            (turn,) = turns
            seen.append((turn.item.id, rater))
            answer(projects, project, rater, turn)
    assert Counter(item for item, _ in seen) == dict.fromkeys({item for item, _ in seen}, 2)
    assert len(seen) == len(set(seen)) == 8


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["take", "answer", "skip", "wait"])), max_size=60
    )
)
def test_whatever_raters_do_no_item_has_more_answers_than_asked(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, str]]
) -> None:
    """A lease that runs out gives the item to somebody else; who answered late is kept all the same, and so only
    answers in time are sent here."""
    with Store.open(tmp_path_factory.mktemp("moves") / "feedback.db") as store:
        projects, now = Projects(store), 0.0
        project = made(projects, 3, overlap=2, lease_minutes=1.0)
        held = dict[str, tuple[Turn, float]]()
        for rater, move in moves:
            if move == "wait":
                now += 61
            if not (turns := answering.upcoming(projects, project, rater, now)):
                continue
            (turn,) = turns
            if rater in held and now < held[rater][1]:
                assert turn.item.id == held[rater][0].item.id, "a page loaded again shows the same"
            held[rater] = (turn, now + 60)
            if move in ("answer", "skip"):
                payload = {"choice": 0, "strength": None} if move == "answer" else None
                answering.judge(projects, project.id, rater, turn.item.id, payload, assignment=turn.assignment,
                    event=f"{rater} {turn.item.id}",
                )  # fmt: skip
                del held[rater]
        given = Counter(event.item for event in store.current() if event.kind != "skip")
        assert all(count <= 2 for count in given.values())
        asked = Counter((event.item, event.rater) for event in store.current())
        assert all(count == 1 for count in asked.values())


def test_what_teaches_most_comes_first(projects: Projects) -> None:
    project = made(projects, 6)
    ids = [taken(projects, project, f"r{i}").item.id for i in range(6)]
    worth = dict(zip(ids, (0.1, 0.5, 0.3, 0.9, 0.0, -1.0), strict=True))
    projects.prioritise(project.id, worth)
    order = list[float]()
    for _ in ids:
        turn = taken(projects, project, "new", 10_000.0)
        order.append(worth[turn.item.id])
        answer(projects, project, "new", turn)
    assert order == [0.9, 0.5, 0.3, 0.1, 0.0, -1.0]


def test_what_comes_after_is_given_out_ahead_and_stays_next(projects: Projects) -> None:
    project = made(projects, 5, overlap=1, gold_every=3)
    projects.add(project.id, [Entry("gold", ("g", "b"), part="gold", answer={"choice": 0})])
    seen, ahead = list[str](), None
    while turns := answering.upcoming(projects, project, "ann", 0.0, 2):
        assert ahead in (None, turns[0].item.id)
        ahead = turns[1].item.id if len(turns) > 1 else None
        seen.append(str(turns[0].item.prompt))
        answer(projects, project, "ann", turns[0])
    assert len(set(seen)) == len(seen) == 6
    assert seen.index("gold") < 3, "once in three"
    assert [turn.item.prompt for turn in answering.upcoming(projects, project, "bob", 0.0, 2)] in (
        [],
        ["gold"],
    )


def test_the_random_slice_is_as_large_and_comes_as_often_as_asked(projects: Projects) -> None:
    """Of 400 items 30 % are 120, give or take what chance gives (a deviation of 9.2)."""
    project = projects.create("Pairs", Task(kind="comparison", random_share=0.3, gold_every=0, overlap=1))
    projects.add(project.id, pairs(400))
    with projects.store.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT item, queue FROM project_items").all()
    random = {item for item, queue in rows if queue == 1}
    assert 120 - 4 * 9.2 < len(random) < 120 + 4 * 9.2
    projects.prioritise(project.id, {item: 1.0 for item, queue in rows if queue == 0})
    given = list[bool]()
    for _ in range(100):
        turn = taken(projects, project, "ann")
        given.append(turn.item.id in random)
        answer(projects, project, "ann", turn)
    assert 30 - 4 * 4.6 < sum(given) < 30 + 4 * 4.6


def test_gold_items_come_as_often_as_asked_and_look_like_any(projects: Projects) -> None:
    project = made(projects, 20, gold_every=4)
    gold = [Entry(f"gold {i}", ("good", "bad"), part="gold", answer={"choice": 0}) for i in range(3)]
    assert projects.add(project.id, gold) == 3
    kinds = list[bool]()
    while turns := answering.upcoming(projects, project, "ann", 0.0):
        (turn,) = turns
        kinds.append(str(turn.item.prompt).startswith("gold"))
        assert turn.part == "open"
        assert taken(projects, project, "ann").item.id == turn.item.id
        answer(projects, project, "ann", turn)
    assert [i // 4 for i, is_gold in enumerate(kinds) if is_gold] == [0, 1, 2], "once in four"
    assert len(kinds) == 23


def test_an_item_comes_again_to_who_has_judged_it_and_teaches_once(projects: Projects) -> None:
    project = made(projects, 40, repeat_every=5, overlap=1)
    seen = list[Turn]()
    for _ in range(30):
        seen.append(taken(projects, project, "ann"))
        answer(projects, project, "ann", seen[-1])
    again = [i for i, turn in enumerate(seen) if "repeats" in turn.item.meta]
    assert [place // 5 for place in again] == [*range(again[0] // 5, 6)], "once in five"
    assert again[0] > SOON, "the first have too few before them"
    for place in again:
        first = next(i for i, turn in enumerate(seen) if turn.item.id == seen[place].item.meta["repeats"])
        assert place - first > SOON
        assert seen[first].item.completions == seen[place].item.completions
    assert len({turn.item.id for turn in seen}) == 30
    assert len(preferences(projects.store)) == 30 - len(again), "what was asked twice is learned from once"


def test_training_comes_first_is_explained_and_is_no_feedback(projects: Projects) -> None:
    project = made(projects, 1)
    lesson = Entry("lesson", ("good", "bad"), part="training", answer={"choice": 0}, why="The other is rude.")
    projects.add(project.id, [lesson])
    turn = taken(projects, project, "ann")
    assert (turn.part, turn.assignment, turn.item.prompt) == ("training", None, "lesson")
    found = answering.practise(projects, project.id, "ann", turn.item.id, {"choice": 1, "strength": 2})
    assert found == (False, {"choice": 0}, "The other is rude.")
    assert answering.practise(projects, project.id, "ann", turn.item.id, {"choice": 0})[0]
    assert taken(projects, project, "ann").part == "open"
    assert projects.store.log() == []
    with pytest.raises(UserError, match="is no training item"):
        answering.practise(
            projects, project.id, "ann", taken(projects, project, "ann").item.id, {"choice": 0}
        )


def test_who_skips_passes_the_item_on(projects: Projects) -> None:
    project = made(projects, 1, overlap=1)
    turn = taken(projects, project, "ann")
    answering.judge(
        projects,
        project.id,
        "ann",
        turn.item.id,
        None,
        assignment=turn.assignment,
        event="e",
        flags=["harmful"],
    )
    assert answering.upcoming(projects, project, "ann", 0.0) == []
    assert taken(projects, project, "bob").item.id == turn.item.id
    event = projects.store.event("e")
    assert event is not None
    assert event.payload == {"flags": ["harmful"]}


def test_a_gold_item_that_is_skipped_goes_to_nobody_else(projects: Projects) -> None:
    project = made(projects, 2, gold_every=1, overlap=1)
    projects.add(project.id, [Entry("gold", ("good", "bad"), part="gold", answer={"choice": 0})])
    turn = taken(projects, project, "ann")
    assert turn.item.prompt == "gold"
    answering.judge(projects, project.id, "ann", turn.item.id, None, assignment=turn.assignment, event="e")
    with projects.store.engine.connect() as connection:
        open_ = connection.exec_driver_sql(
            "SELECT COUNT(*) FROM assignments WHERE event IS NULL AND queue = 2"
        ).scalar()
    assert open_ == 0


def test_more_overlap_opens_what_is_missing_in_the_same_queue(projects: Projects) -> None:
    project = made(projects, 2, overlap=1)
    for rater in ("ann", "ann"):
        answer(projects, project, rater, taken(projects, project, rater))
    assert answering.upcoming(projects, projects.get(project.id), "bob", 0.0) == []
    projects.change(project.id, task=Task(kind="comparison", **PLAIN, overlap=2))
    turn = taken(projects, project, "bob")
    answer(projects, project, "bob", turn)
    answer(projects, project, "bob", taken(projects, project, "bob"))
    assert answering.upcoming(projects, projects.get(project.id), "cy", 0.0) == []


def test_a_project_that_has_what_it_wants_or_is_archived_gives_nothing_out(projects: Projects) -> None:
    project = made(projects, 5, overlap=1, most_judgements=2)
    for _ in range(2):
        answer(projects, project, "ann", taken(projects, project, "ann"))
    assert answering.upcoming(projects, projects.get(project.id), "ann", 0.0) == []
    projects.change(project.id, task=Task(kind="comparison", **PLAIN, overlap=1))
    assert taken(projects, project, "ann")
    assert projects.change(project.id, archived=True).archived
    assert answering.upcoming(projects, projects.get(project.id), "ann", 0.0) == []


def test_an_answer_and_what_comes_after_it_are_one_transaction(
    projects: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = made(projects, 3, overlap=1, most_judgements=2)
    turn, said = taken(projects, project, "ann"), {"choice": 0, "strength": None}

    def on(
        turn: Turn, event: str, payload: dict[str, Any] | None = said, **more: Any
    ) -> tuple[int, list[Turn]]:
        return answering.judge_on(
            projects, projects.get(project.id), "ann", turn.item.id, payload, now=0.0, count=1, event=event,
            assignment=turn.assignment, **more,
        )  # fmt: skip

    with monkeypatch.context() as broken:
        broken.setattr("plaudit.feedback.giving.claim", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            on(turn, "e1")
    assert projects.store.last_seq() == 0
    seq, (second,) = on(turn, "e1")
    assert (seq, second.item.id != turn.item.id) == (1, True)
    assert on(turn, "e2", supersedes="e1")[1][0].item == second.item, "a correction is no further judgement"
    assert on(second, "e3") == (3, []), "two judgements were wanted"


def test_a_copy_has_all_but_what_was_said(projects: Projects) -> None:
    project = made(projects, 3)
    projects.add(project.id, [Entry("gold", ("g", "b"), part="gold", answer={"choice": 0}, why="so")])
    projects.write_guideline(project.id, {"en": "Be fair.", "zh": "要公平。"})
    answer(projects, project, "ann", taken(projects, project, "ann"))
    copy = projects.duplicate(project.id, "Again")
    assert copy.task == project.task
    assert projects.guideline(copy.id) == (1, {"en": "Be fair.", "zh": "要公平。"})
    seen = set[str]()
    while turns := answering.upcoming(projects, copy, "ann", 0.0):
        (turn,) = turns
        seen.add(str(turn.item.prompt))
        answer(projects, copy, "ann", turn)
    assert seen == {"prompt 0", "prompt 1", "prompt 2"}


@pytest.mark.parametrize("part", ["gold", "training"])
def test_a_copy_asks_openly_what_is_answered_as_nobody_asks_any_more(projects: Projects, part: Any) -> None:
    project = projects.create("Films", Task(kind="category", labels=("bad", "good"), **PLAIN))
    right = [Entry(text, part=part, answer={"label": label}) for text, label in (("x", "bad"), ("y", "good"))]
    projects.add(project.id, right)
    projects.change(project.id, settings={"labels": ["awful", "good"]})
    counts = overview.counts(projects, projects.duplicate(project.id, "Again").id)
    assert (counts["open"], counts[part], counts["to_come"]) == (1, 1, 2)
    assert overview.counts(projects, project.id)[part] == 2, "as before"


def test_guidelines_have_versions_and_answers_name_theirs(projects: Projects) -> None:
    project = made(projects)
    assert projects.guideline(project.id) == (0, {})
    assert projects.write_guideline(project.id, {"en": "One."}) == 1
    assert projects.write_guideline(project.id, {"en": "One."}) == 1
    assert projects.write_guideline(project.id, {"en": "Two."}) == 2
    assert projects.guideline(project.id, 1) == (1, {"en": "One."})
    assert projects.get(project.id).guideline == 2
    turn = taken(projects, project, "ann")
    answering.judge(projects, project.id, "ann", turn.item.id, {"choice": "tie", "strength": None}, event="e",
        assignment=turn.assignment, guideline=2, comment="hard to tell",
    )  # fmt: skip
    event = projects.store.event("e")
    assert event is not None
    assert event.guideline_version == f"{project.id}/2"
    assert event.comment == "hard to tell"
    assert event.presented == turn.order


def test_sides_are_drawn_for_each_rater_and_stay(projects: Projects) -> None:
    project = made(projects, 200, overlap=1)
    turns = list[Turn]()
    for _ in range(200):
        turns.append(taken(projects, project, "ann"))
        answer(projects, project, "ann", turns[-1])
    swapped = sum(turn.order == (1, 0) for turn in turns)
    assert 100 - 4 * 7.1 < swapped < 100 + 4 * 7.1
    assert all(order_of(turn.item, "ann") == turn.order for turn in turns)
    assert any(order_of(turn.item, "bob") != turn.order for turn in turns)


def test_a_draft_is_kept_for_its_rater_alone_until_it_is_sent(projects: Projects) -> None:
    project = made(projects)
    turn = taken(projects, project, "ann")
    drafts.save(projects.store, "ann", turn.item.id, {"comment": "not sure y"})
    drafts.save(projects.store, "ann", turn.item.id, {"comment": "not sure yet"})
    assert drafts.of(projects.store, "ann") == {turn.item.id: {"comment": "not sure yet"}}
    assert drafts.of(projects.store, "bob") == {}
    answer(projects, project, "ann", turn)
    assert drafts.of(projects.store, "ann") == {}


def test_undo_takes_the_place_of_what_was_said(projects: Projects) -> None:
    project = made(projects, 1, overlap=1)
    turn = taken(projects, project, "ann")
    answer(projects, project, "ann", turn, 0)
    answering.judge(projects, project.id, "ann", turn.item.id, {"choice": 1, "strength": 3}, event="again",
        assignment=turn.assignment, supersedes=f"ann {turn.item.id}",
    )  # fmt: skip
    assert [event.payload["choice"] for event in projects.store.current()] == [1]


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [("comparison", 3, "has 3 completions, where a comparison takes 2"), ("rating", 0, "takes 1"),
     ("ranking", 1, "takes 2 to 9"), ("category", 2, "takes 0 to 1"), ("edit", 3, "takes 1 to 2")],
)  # fmt: skip
def test_items_that_the_task_does_not_take_are_refused_all_or_none(
    projects: Projects, kind: Any, count: int, said: str
) -> None:
    project = projects.create("p", Task(kind=kind, labels=("x", "y")))
    good = Entry("fine", ("a", "b")[: {"comparison": 2, "ranking": 2}.get(kind, 1)])
    with pytest.raises(UserError, match=f"item 2: .*{said}"):
        projects.add(project.id, [good, Entry("bad", tuple("abc"[:count]))])
    assert projects.store.items() == {}


@pytest.mark.parametrize(
    ("task", "payload", "said"),
    [
        (Task(kind="rating", criteria=(Criterion(name="a"), Criterion(name="b"))), {"scores": {"a": 0.5}},
         "scores are of a, not of a, b"),
        (Task(kind="rating"), {"scores": {"overall": 2}}, "not within 0 to 1"),
        (Task(kind="category", labels=("x", "y")), {"label": "z"}, "label is 'z', not one of x, y"),
        (Task(kind="edit"), {"completion": ""}, "is empty or not text"),
    ],
    ids=str,
)  # fmt: skip
def test_an_answer_that_does_not_say_what_is_asked_is_refused(
    projects: Projects, task: Task, payload: dict[str, Any], said: str
) -> None:
    project = projects.create("p", task)
    projects.add(project.id, [Entry("text", ("said",))])
    turn = taken(projects, project, "ann")
    with pytest.raises(UserError, match=said):
        answering.judge(
            projects, project.id, "ann", turn.item.id, payload, event="e", assignment=turn.assignment
        )
    with pytest.raises(UserError, match=r"flags are \['ugly'\], not some of harmful, private, broken"):
        answering.judge(
            projects,
            project.id,
            "ann",
            turn.item.id,
            None,
            event="e",
            flags=["ugly"],
            assignment=turn.assignment,
        )
    assert projects.store.log() == []


def test_an_item_of_another_project_is_refused(projects: Projects) -> None:
    one, other = made(projects, 1), made(projects, 1)
    turn = taken(projects, one, "ann")
    with pytest.raises(UserError, match="is none of the project's"):
        answer(projects, other, "ann", turn)
    assert taken(projects, other, "ann").item.id != turn.item.id, "the same text, and another item"


@pytest.mark.parametrize(
    ("settings_", "said"),
    [({"kind": "category", "labels": ["x"]}, "needs two labels"), ({"kind": "category", "labels": ["x", "x"]}, "same"),
     ({"kind": "rating", "criteria": [{"name": "a"}, {"name": "a"}]}, "two criteria have the same name"),
     ({"kind": "rating", "criteria": [{"name": "__proto__"}]}, "no criterion may be called __proto__"),
     ({"kind": "rating", "criteria": []}, "criteria"), ({"kind": "rating", "overlap": 0}, "overlap"),
     ({"kind": "poem"}, "kind")],
)  # fmt: skip
def test_a_task_without_meaning_is_refused(settings_: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(Task, settings_, "task")


@pytest.mark.parametrize(
    ("kind", "given_", "right", "same"),
    [("rating", {"scores": {"a": 0.5}}, {"scores": {"a": 0.75}}, True),
     ("rating", {"scores": {"a": 0.5}}, {"scores": {"a": 0.76}}, False),
     ("ranking", {"ranking": [2, 1, 0]}, {"ranking": [2, 0, 1]}, True),
     ("ranking", {"ranking": [1, 2, 0]}, {"ranking": [2, 0, 1]}, False),
     ("category", {"label": "x"}, {"label": "y"}, False), ("edit", {"completion": "a "}, {"completion": "a"}, True)],
)  # fmt: skip
def test_what_agrees_with_the_right_answer(kind: Any, given_: Any, right: Any, same: bool) -> None:
    assert agrees(Task(kind=kind, labels=("x", "y")), given_, right) is same
