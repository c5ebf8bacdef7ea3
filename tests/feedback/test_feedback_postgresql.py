"""The same store on PostgreSQL, where PLAUDIT_TEST_POSTGRES names a server (postgresql+psycopg://...)."""

from __future__ import annotations

import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from plaudit import config as configs
from plaudit.feedback import answering, drafts, giving, overview, quality, schema, value, vectors
from plaudit.feedback.events import Item, comparison_event, rating_event, skip_event
from plaudit.feedback.jobs import Jobs
from plaudit.feedback.projects import Entry, Projects
from plaudit.feedback.releases import Arm, Releases
from plaudit.feedback.served import Opinion, Response, Said, Served
from plaudit.feedback.store import Store
from plaudit.feedback.tasks import Task
from plaudit.feedback.transfer import stats
from plaudit.types import UserError

SERVER = os.environ.get("PLAUDIT_TEST_POSTGRES") or None
pytestmark = pytest.mark.skipif(SERVER is None, reason="PLAUDIT_TEST_POSTGRES names no PostgreSQL server")
IDS = [f"i{n}" for n in range(10)]


@pytest.fixture
def address() -> Iterator[str]:
    assert SERVER is not None
    name = f"plaudit_{uuid.uuid4().hex}"
    engine = sa.create_engine(SERVER)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    yield f"{SERVER}{'&' if '?' in SERVER else '?'}options=-csearch_path%3D{name}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
    engine.dispose()


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    with Store.open(address) as opened:
        opened.add_items(Item("p", ("a", "b"), id=id) for id in IDS)
        yield opened


def test_the_whole_life_of_a_judgement(store: Store, address: str) -> None:
    first = comparison_event("i0", "ann", 0, id="a", presented=(1, 0), comment="mine")
    assert store.append(first) == store.append(first) == 1
    with pytest.raises(UserError, match="something else"):
        store.append(comparison_event("i0", "ann", 1, id="a"))
    store.correct("a", comparison_event("i0", "ann", 1, id="b"))
    store.append(rating_event("i1", "bob", {"overall": 0.5}, id="c"))
    store.retract("c")
    store.set_identity("ann", {"name": "Ann"})
    with Store.open(address) as again:
        assert [event.id for event in again.current()] == ["b"]
        assert [event.id for event in again.current(3)] == ["b", "c"]
        assert again.current(1)[0].comment == "mine"
        assert again.identity("ann") == {"name": "Ann"}
    store.name_snapshot("m", 3)
    store.retract_rater("bob")
    store.forget_rater("ann")
    assert [event.id for event in store.current(3)] == ["c"]
    assert store.models_trained_on("ann") == ["m"]
    assert stats(store)["raters"]["ann"]["state"] == "forgotten"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET kind = 'skip'",
        "UPDATE events SET payload = NULL, comment = NULL, presented = NULL, item = NULL WHERE rater = 'ann'",
        "DELETE FROM events",
        "TRUNCATE events CASCADE",
        "INSERT INTO events (seq, id, kind, rater, created_at) VALUES (9, 'z', 'skip', 'ann', '')",
        "UPDATE items SET prompt = '1'",
        "UPDATE raters SET forgotten = NULL WHERE id = 'ann'",
    ],
)
def test_the_database_itself_refuses(store: Store, statement: str) -> None:
    store.append(skip_event("i0", "ann"))
    store.forget_rater("ann")
    with pytest.raises(DBAPIError), store.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def test_writers_at_once_leave_no_gap_and_share_no_slot(store: Store) -> None:
    store.assign(IDS, overlap=2)
    gate = threading.Barrier(4)

    def work(rater: str) -> list[int]:
        gate.wait()
        held = []
        while (assignment := store.claim(rater, 0, 60)) is not None:
            held.append(assignment.id)
            store.append(comparison_event(assignment.item, rater, 0, assignment=assignment.id))
        return held

    with ThreadPoolExecutor(4) as pool:
        slots = [slot for held in pool.map(work, ["a", "b", "c", "d"]) for slot in held]
    assert sorted(slots) == list(range(1, 21))
    assert [event.seq for event in store.log()] == list(range(1, 21))
    assert len({(event.item, event.rater) for event in store.current()}) == 20


def test_a_server_that_goes_away_is_told_of_and_found_again(store: Store) -> None:
    with store.engine.connect() as lost, store.engine.begin() as other:
        number = lost.scalar(sa.select(sa.func.pg_backend_pid()))
        other.execute(sa.select(sa.func.pg_terminate_backend(number)))
        with pytest.raises(UserError, match=r"cannot be used .*check the address and that the server runs"):
            lost.execute(sa.text("SELECT 1"))
    assert store.last_seq() == 0


@pytest.mark.parametrize("random_share", [0.0, 1.0])
def test_the_next_item_is_found_without_a_look_at_all_others(store: Store, random_share: float) -> None:
    projects = Projects(store)
    project = projects.create("Pairs", Task(kind="comparison", overlap=3, random_share=random_share)).id
    projects.add(project, [Entry(f"p{i}", (f"a{i}", f"b{i}")) for i in range(1000)])
    with store.engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
    plans = list[str]()

    @sa.event.listens_for(store.engine, "before_cursor_execute")
    def explain(_connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("UPDATE assignments") and "LIMIT" in statement:
            cursor.execute("EXPLAIN " + statement, parameters)
            plans.append("\n".join(row[0] for row in cursor.fetchall()))

    assert answering.upcoming(projects, projects.get(project), "ann", 0.0)
    (plan,) = plans
    assert "Index Scan using assignments_queue" in plan, plan
    assert "Sort" not in plan, plan
    assert "Seq Scan on items" not in plan, plan


def test_a_project_s_whole_life(store: Store) -> None:
    projects = Projects(store)
    task = configs.parse(
        Task,
        {"kind": "comparison", "overlap": 2, "gold_every": 3, "random_share": 0.5, "enough_alpha": 0.5},
        "task",
    )
    project = projects.create("Pairs", task).id
    gold = Entry("gold", ("a", "b"), part="gold", answer={"choice": 0})
    assert projects.add(project, [*(Entry(f"p{i}", (f"a{i}", f"b{i}")) for i in range(12)), gold]) == 13
    assert projects.write_guideline(project, {"en": "Be fair."}) == 1

    def work(rater: str) -> int:
        number = 0
        while turns := answering.upcoming(projects, projects.get(project), rater, 0.0, 2):
            turn = turns[0]
            drafts.save(projects.store, rater, turn.item.id, {"comment": "half"}, 0.0)
            said = {"choice": number % 2 if rater == "ann" else 0, "strength": None}
            answering.judge(
                projects,
                project,
                rater,
                turn.item.id,
                said,
                event=f"{rater}{number}",
                assignment=turn.assignment,
                guideline=1,
            )
            assert drafts.of(projects.store, rater) == {}
            number += 1
        return number

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(work, ("ann", "bob", "cem")))
    assert sum(done) >= 24, "every item twice, and some gold"
    per_item = {item: 0 for item, found in store.items().items() if str(found.prompt).startswith("p")}
    for event in store.current():
        if event.item in per_item:
            per_item[str(event.item)] += 1
    mine = [count for item, count in per_item.items() if store.items()[item].meta.get("project") == project]
    assert mine == [2] * 12, "exactly as many raters as asked"
    first = next(event for event in store.current() if event.rater == "bob")
    answering.decide(projects, project, "olga", str(first.item), {"choice": 1, "strength": 2}, event="d")
    projects.change(project, task=task.model_copy(update={"overlap": 3}))
    assert overview.counts(projects, project)["to_come"] == 12
    assert quality.settle(projects, project) >= 0
    assert quality.of_project(projects, project)["judgements"] > 24
    engine = store.engine
    vectors.put(engine, "m", {place: [1.0, 2.0] for place, _, _ in vectors.missing(engine, project, "m")})
    projects.prioritise(project, worth := value.worth(projects, project))
    assert worth
    assert overview.own(projects, project, "bob", "2000")["done"] > 0
    jobs = Jobs(engine)
    job = jobs.put("sample", {"n": 1}, by="olga")
    claimed = jobs.claim("worker", 0.0, 10.0)
    assert claimed is not None
    assert claimed.id == job.id
    assert jobs.finish(job.id, "worker", {"done": 1})
    store.forget_rater("ann")
    projects.reopen("ann")
    assert overview.counts(projects, project)["raters"] == 3, "bob, cem and olga"


def test_two_pages_of_each_rater_at_once_while_the_owner_asks_for_more(store: Store) -> None:
    """Claims wait for nobody but the same rater's: no item goes to anybody twice, and each to exactly as many as asked,
    with gold and repeated items made meanwhile, slots opened, and the order changed."""
    projects = Projects(store)
    task = Task(kind="comparison", overlap=2, gold_every=4, repeat_every=5, random_share=0.3)
    project = projects.create("Pairs", task).id
    gold = [Entry(f"g{i}", ("a", "b"), part="gold", answer={"choice": 0, "strength": None}) for i in range(8)]
    projects.add(project, [*(Entry(f"p{i}", (f"a{i}", f"b{i}")) for i in range(40)), *gold])

    def work(rater: str) -> None:
        turns = answering.upcoming(projects, projects.get(project), rater, 0.0, 2)
        while turns:
            turn = turns.pop(0)
            try:
                _, more = answering.judge_on(
                    projects, projects.get(project), rater, turn.item.id, {"choice": 0, "strength": None}, now=0.0,
                    count=2, have=[one.item.id for one in turns], event=str(uuid.uuid4()), assignment=turn.assignment,
                )  # fmt: skip
                turns += more
            except UserError as error:
                if not error.what.startswith("already answered"):  # on the other page
                    raise
            turns = turns or answering.upcoming(projects, projects.get(project), rater, 0.0, 2)

    def own() -> None:
        for number in range(6):
            order = {item: giving.number("order", item, number) for item in store.items()}
            projects.prioritise(project, order)
        projects.change(project, task=task.model_copy(update={"overlap": 3}))

    with ThreadPoolExecutor(7) as pool:
        futures = [pool.submit(own), *(pool.submit(work, rater) for rater in ("ann", "bob", "cem") * 2)]
        for future in futures:
            future.result()
    for rater in ("ann", "bob", "cem"):  # what was opened after they had gone
        work(rater)
    items = store.items()
    given = [(event.item, event.rater) for event in store.current()]
    assert len(given) == len(set(given)), "nobody judged an item twice"
    counts = Counter(item for item, _ in given)
    mine = [item for item in items.values() if item.meta.get("project") == project]
    open_ = [item.id for item in mine if str(item.prompt).startswith("p") and "repeats" not in item.meta]
    assert [counts[item] for item in open_] == [3] * 40
    assert len(mine) > 48, "some were asked again"


def test_many_first_pages_of_one_rater_at_once_are_given_the_same(store: Store) -> None:
    """And whichever of them answers, its ticket is good: all are sealed with one key."""
    projects = Projects(store)
    for number in range(6):
        project = projects.create(f"{number}", Task(kind="comparison", overlap=3, gold_every=0)).id
        projects.add(project, [Entry(f"{number} {i}", (f"a{i}", f"b{i}")) for i in range(6)])
        together, rater = threading.Barrier(6), f"ann {number // 2}"
        store.set_identity(rater, {})  # who has an account, at first without a key

        def load(
            _: int, project: str = project, rater: str = rater, together: threading.Barrier = together
        ) -> dict[str, str | None]:
            together.wait()
            turns = answering.upcoming(projects, projects.get(project), rater, 0.0, 3)
            return {turn.item.id: turn.assignment for turn in turns}

        with ThreadPoolExecutor(6) as pool:
            pages = list(pool.map(load, range(6)))
        assert all(page.keys() == pages[0].keys() for page in pages)
        assert len(pages[0]) == 3
        item, said = min(pages[0]), {"choice": 0, "strength": None}
        for page in pages:
            answering.judge(
                projects, project, rater, item, said, event=f"{number}", assignment=page[item]
            )  # the same each time


@pytest.mark.parametrize("gold_every", [0, 1])
def test_first_pages_of_many_raters_at_once(store: Store, gold_every: int) -> None:
    """Nobody is given what another was just given; of the one gold item each has a slot of their own."""
    projects = Projects(store)
    raters = [f"rater {number}" for number in range(6)]
    for rater in raters:
        store.set_identity(rater, {})
    for number in range(6):
        task = Task(kind="comparison", overlap=1, gold_every=gold_every, random_share=0.0)
        project = projects.create(f"{number}", task).id
        gold = Entry("gold", ("a", "b"), part="gold", answer={"choice": 0, "strength": None})
        projects.add(project, [*(Entry(f"{number} {i}", (f"a{i}", f"b{i}")) for i in range(6)), gold])
        together = threading.Barrier(6)

        def load(rater: str, project: str = project, together: threading.Barrier = together) -> str:
            together.wait()
            (turn,) = answering.upcoming(projects, projects.get(project), rater, 0.0, 1)
            return str(turn.item.prompt)

        with ThreadPoolExecutor(6) as pool:
            given = list(pool.map(load, raters))
        assert len(set(given)) == (1 if gold_every else 6), given
        assert ("gold" in given) == bool(gold_every)


ORDERS: dict[str, Callable[[Projects, str], object]] = {
    "prioritise": lambda projects, id: projects.prioritise(id, dict.fromkeys(projects.store.items(), 1.0)),
    "close": lambda projects, id: projects.close(id, [next(iter(projects.store.items()))]),
    "reconcile": lambda projects, id: projects.change(id, task=Task(kind="comparison", overlap=1)),
    "forget": lambda projects, _: projects.store.erase_rater("bob"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_who_asks_while_the_slots_of_many_change_waits_and_is_given_something(
    store: Store, order: str
) -> None:
    projects = Projects(store)
    project = projects.create("Pairs", Task(kind="comparison", overlap=2)).id
    projects.add(project, [Entry(f"p{i}", (f"a{i}", f"b{i}")) for i in range(8)])
    for rater in ("ann", "bob"):
        store.set_identity(rater, {})
    with ThreadPoolExecutor(1) as pool:
        with schema.writing(store.engine):
            ORDERS[order](projects, project)
            asked = pool.submit(answering.upcoming, projects, projects.get(project), "ann", 0.0, 2)
            with pytest.raises(TimeoutError):
                asked.result(0.5)
        assert len(asked.result(30)) == 2


def test_served_answers_are_judged_by_many_at_once(store: Store) -> None:
    """Eight people, each of whom says the same twice at once and then otherwise; and a release beside them."""
    served, releases = Served(store), Releases(store)

    def one(number: int) -> str:
        who = served.requester("shop", f"u{number}")
        said = (Said("a", "stop"), Said("b", "stop"))
        given = Response(f"r{number}", 1.0, who, "c", "m", "v", 1.0, "a prompt", said)
        token = served.keep(given)
        with ThreadPoolExecutor(2) as both:
            for done in [both.submit(served.judge, token, Opinion(chosen=0)) for _ in range(2)]:
                assert len(done.result()) == 1
        served.judge(token, Opinion(chosen=1, score=0.5, comment="so so"))
        served.notice(token, "copy", 1.0, 2.0)
        releases.publish("m", [Arm(f"v{number}", "x")], by="test")
        return who

    with ThreadPoolExecutor(8) as people:
        names = [each.result() for each in [people.submit(one, number) for number in range(8)]]
    stands = Counter((event.kind, event.rater) for event in store.current())
    assert stands == {(kind, name): 1 for kind in ("rating", "comparison") for name in names}
    assert {event.payload["choice"] for event in store.current() if event.kind == "comparison"} == {1}
    assert [release.number for release in releases.history("m")] == list(range(1, 9))
    assert releases.roll_back("m", by="test").restores == 7
    assert served.purge(before=2.0) == 8
    store.forget_rater(names[0])
    assert len(served.signals()) == 7
