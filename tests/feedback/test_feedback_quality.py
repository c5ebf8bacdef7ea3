"""The figures of a project, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tickets import ticket

from plaudit.feedback import answering, quality, schema
from plaudit.feedback.assignments import RANDOM
from plaudit.feedback.projects import Entry, Project, Projects
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Criterion, Task


@pytest.fixture
def projects(tmp_path: Path) -> Iterator[Projects]:
    with Store.open(tmp_path / "feedback.db") as store:
        yield Projects(store)


def asked(projects: Projects, task: Task, entries: list[Entry]) -> tuple[Project, dict[str, str]]:
    """The project, and its items' ids by their prompt."""
    project = projects.create("p", task)
    projects.add(project.id, entries)
    return project, {str(item.prompt): item.id for item in projects.store.items().values()}


def say(
    projects: Projects, project: Project, rater: str, item: str, payload: dict[str, Any] | None, **more: Any
) -> None:
    held = {"assignment": ticket(projects, project.id, rater, item)} | more
    answering.judge(projects, project.id, rater, item, payload, event=f"{rater} {item}", **held)


def test_who_agree_do_not_disagree_to_the_last_bit(projects: Projects) -> None:
    """The mean of three 0.1 is not 0.1 in floating point."""
    criterion = Criterion(name="overall")
    project, ids = asked(
        projects, Task(kind="rating", criteria=(criterion,)), [Entry("a", ("x",)), Entry("b", ("y",))]
    )
    for rater, score in (("ann", 0.1), ("bob", 0.1), ("cy", 0.1)):
        say(projects, project, rater, ids["a"], {"scores": {"overall": score}})
        say(
            projects, project, rater, ids["b"], {"scores": {"overall": 2 * score if rater == "cy" else score}}
        )
    (row,) = quality.of_project(projects, project.id)["disagreements"]
    assert row["item"] == ids["b"]
    assert row["spread"] == pytest.approx(0.1 * 2**0.5 / 3 / 0.5)


def test_comparisons(projects: Projects) -> None:
    pairs = [Entry(f"p{i}", ("short", "much longer")) for i in range(4)]
    pairs.append(Entry("gold", ("good", "bad one"), part="gold", answer={"choice": 0}))
    project, ids = asked(projects, Task(kind="comparison"), pairs)
    said = {"ann": (1, 1, 0, 1), "bob": (1, 0, 0, "tie"), "cy": (1, 0, 0, 0)}
    for rater, choices in said.items():
        for i, choice in enumerate(choices):
            more = {"seconds": 10.0 * (i + 1)} if rater == "ann" else {}
            say(projects, project, rater, ids[f"p{i}"], {"choice": choice, "strength": None} | more)
    say(projects, project, "ann", ids["gold"], {"choice": 1, "strength": None, "seconds": 20.0})
    say(projects, project, "bob", ids["gold"], {"choice": 0, "strength": None})
    say(projects, project, "cy", ids["gold"], None, flags=["broken"])
    found = quality.of_project(projects, project.id)
    assert (found["judgements"], found["skips"], found["items"]) == (14, 1, 5)
    assert found["flags"] == {"broken": 1}
    worst = [(row["item"], row["spread"]) for row in found["disagreements"]]
    assert worst == sorted(
        [(ids["p3"], 1.0), (ids["gold"], 1.0), (ids["p1"], 2 / 3)],
        key=lambda row: (-row[1], row[0]),
    )
    ann, bob = found["raters"]["ann"], found["raters"]["bob"]
    assert (ann["gold"]["n"], ann["gold"]["share"]) == (1, 0.0)
    assert (bob["gold"]["n"], bob["gold"]["share"]) == (1, 1.0)
    assert ann["seconds"] == 20.0
    assert bob["seconds"] is None
    assert (ann["longer"]["n"], ann["longer"]["share"]) == (5, pytest.approx(4 / 5))
    assert (bob["longer"]["n"], bob["longer"]["share"]) == (4, pytest.approx(1 / 4))
    pair = next(row for row in found["kappa"]["cohen"] if row["raters"] == ["bob", "cy"])
    assert pair["items"] == 4
    assert found["kappa"]["fleiss_items"] == 4
    assert set(found["agreement"]["comparisons"]["alpha"]) == {"nominal", "ordinal", "interval"}
    assert found["raters"]["bob"]["accuracy"] > found["raters"]["ann"]["accuracy"]


def test_ratings_and_what_is_furthest_apart(projects: Projects) -> None:
    task = Task(kind="rating", criteria=(Criterion(name="a"), Criterion(name="b")))
    project, ids = asked(projects, task, [Entry(f"p{i}", ("text",)) for i in range(3)])
    for i, scores in enumerate(
        [((0.0, 0.5), (1.0, 0.5)), ((0.5, 0.5), (0.5, 0.5)), ((0.4, 0.5), (0.4, 0.7))]
    ):
        for rater, (a, b) in zip(("ann", "bob"), scores, strict=True):
            say(projects, project, rater, ids[f"p{i}"], {"scores": {"a": a, "b": b}})
    found = quality.of_project(projects, project.id)
    assert [(row["item"], row["spread"]) for row in found["disagreements"]] == [
        (ids["p0"], pytest.approx(1.0)), (ids["p2"], pytest.approx(0.2)),
    ]  # fmt: skip
    assert found["agreement"]["ratings"]["a"]["judgements"] == 6
    assert found["kappa"]["fleiss"] is None


def test_rankings_count_pairs_that_stand_the_other_way_round(projects: Projects) -> None:
    project, ids = asked(projects, Task(kind="ranking"), [Entry("p", ("x", "y", "z"))])
    say(projects, project, "ann", ids["p"], {"ranking": [0, 1, 2]})
    say(projects, project, "bob", ids["p"], {"ranking": [1, 2, 0]})
    (row,) = quality.of_project(projects, project.id)["disagreements"]
    assert row["spread"] == pytest.approx(2 / 3)


def test_labels_have_a_nominal_alpha(projects: Projects) -> None:
    task = Task(kind="category", labels=("spam", "fine"))
    project, ids = asked(projects, task, [Entry(f"p{i}") for i in range(4)])
    for rater, labels in {"ann": "ssff", "bob": "ssfs"}.items():
        for i, letter in enumerate(labels):
            label = "spam" if letter == "s" else "fine"
            say(projects, project, rater, ids[f"p{i}"], {"label": label})
    found = quality.of_project(projects, project.id)
    categories = found["agreement"]["categories"]
    assert categories["labels"] == {"fine": 3, "spam": 5}
    # Coincidences: 4 spam-spam, 2 fine-fine, 1 each way between: alpha = 1 - 7 * 2 / (2 * 5 * 3).
    assert categories["alpha"]["nominal"]["value"] == pytest.approx(1 - 7 * 2 / 30)
    assert [row["item"] for row in found["disagreements"]] == [ids["p3"]]


def test_the_random_slice_has_an_alpha_of_its_own(projects: Projects) -> None:
    task = Task(kind="category", labels=("spam", "fine"), random_share=0.5)
    project, ids = asked(projects, task, [Entry(f"p{i}") for i in range(20)])
    table = schema.project_items
    with projects.store.engine.connect() as connection:
        drawn = set(connection.scalars(sa.select(table.c.item).where(table.c.queue == RANDOM)))
    assert 4 < len(drawn) < 16
    for number, item in enumerate(ids.values()):
        say(projects, project, "ann", item, {"label": task.labels[number % 2]})
        # Of one mind on the slice alone.
        say(projects, project, "bob", item, {"label": task.labels[(number + (item not in drawn)) % 2]})
    found = quality.of_project(projects, project.id)
    assert found["slice"] == {"items": len(drawn), "alpha": pytest.approx(1.0)}
    assert found["agreement"]["categories"]["alpha"]["nominal"]["value"] < 0.6


def test_a_rater_s_consistency_is_read_from_what_comes_again(projects: Projects) -> None:
    task = Task(kind="comparison", random_share=0.0, gold_every=0, repeat_every=4, overlap=1)
    project, _ = asked(projects, task, [Entry(f"p{i}", ("a", "b")) for i in range(30)])
    again = 0
    while turns := answering.upcoming(projects, project, "ann", 0.0):
        (turn,) = turns
        again += (repeated := "repeats" in turn.item.meta)
        said = {"choice": 1 if repeated and again == 2 else 0, "strength": None}
        say(projects, project, "ann", turn.item.id, said, assignment=turn.assignment)
    assert again >= 3, "once in four, where enough came before"
    ann = quality.of_project(projects, project.id)["raters"]["ann"]
    assert (ann["repeats"]["n"], ann["repeats"]["share"]) == (again, (again - 1) / again)
    assert ann["judgements"] == 30 + again
