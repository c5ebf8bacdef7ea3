"""The log: what is said once stays, replays are harmless, and older snapshots never change."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit.feedback import schema
from plaudit.feedback.events import (
    Event,
    Item,
    comparison_event,
    demonstration_event,
    event_id,
    ranking_event,
    rating_event,
    skip_event,
)
from plaudit.feedback.judgements import demonstrations, preferences, rankings, ratings
from plaudit.feedback.store import Store
from plaudit.types import Demonstration, Message, Preference, Ranking, Rating, UserError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        opened.add_items(PAIRS)
        yield opened


PAIRS = [
    Item(f"prompt {i}", (f"left {i}", f"right {i}"), policy_version="sft-1", id=f"pair-{i}") for i in range(4)
]


def ids(events: list[Event]) -> list[str]:
    return [event.id for event in events]


def test_events_are_numbered_without_a_gap_in_the_order_of_writing(store: Store) -> None:
    assert store.last_seq() == 0
    assert store.append(comparison_event("pair-0", "ann", 0, id="a")) == 1
    assert store.extend([skip_event("pair-1", "ann", id="b"), skip_event("pair-2", "bob", id="c")]) == [2, 3]
    assert store.last_seq() == 3
    assert ids(store.log()) == ["a", "b", "c"]
    assert ids(store.log(after=1, limit=1)) == ["b"]


def test_a_transaction_within_another_is_a_part_of_it(store: Store) -> None:
    def half_way() -> None:
        with schema.writing(store.engine):
            store.append(comparison_event("pair-0", "ann", 0, id="a"))
            assert ids(store.log()) == ["a"], "what was just written is seen"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_way()
    assert store.log() == []
    with schema.writing(store.engine):
        store.append(comparison_event("pair-0", "ann", 0, id="b"))
    assert store.append(comparison_event("pair-1", "ann", 0, id="c")) == 2, "and the next stands alone"


def test_every_field_comes_back_as_it_was_given(store: Store) -> None:
    given = comparison_event(
        "pair-0",
        "ann",
        "both_bad",
        presented=(1, 0),
        id="a",
        policy_version="ppo-3",
        guideline_version="g2",
        comment="déjà vu — both repeat 🙃",
    )
    store.append(given)
    (stored,) = store.current()
    assert replace(stored, seq=0, created_at="") == given
    assert stored.seq == 1
    assert stored.created_at.endswith("+00:00")


def test_a_replay_is_harmless_and_another_content_under_the_same_id_is_refused(store: Store) -> None:
    event = comparison_event("pair-0", "ann", 0, strength=2, presented=(0, 1), id="a", comment="clear")
    assert store.append(event) == 1
    assert store.append(skip_event("pair-1", "ann", id="b")) == 2
    assert store.extend([event, event]) == [1, 1]
    for other in (
        replace(event, payload={"choice": 1, "strength": 2}),
        replace(event, presented=(1, 0)),
        replace(event, rater="bob"),
        replace(event, comment="unclear"),
        replace(event, item="pair-1"),
        replace(event, policy_version="x"),
    ):
        with pytest.raises(UserError, match="id belongs to an event that says something else"):
            store.append(other)
    assert store.last_seq() == 2


def test_a_batch_is_written_whole_or_not_at_all(store: Store) -> None:
    with pytest.raises(UserError, match="there is no item nowhere"):
        store.extend([skip_event("pair-0", "ann", id="a"), skip_event("nowhere", "ann", id="b")])
    assert store.log() == []
    assert store.append(skip_event("pair-0", "ann", id="c")) == 1


def test_a_correction_supersedes_and_the_older_snapshot_keeps_what_was_said(store: Store) -> None:
    store.append(comparison_event("pair-0", "ann", 0, id="a"))
    assert store.correct("a", comparison_event("pair-0", "ann", 1, id="b")) == 2
    assert store.correct("a", comparison_event("pair-0", "ann", 1, id="b")) == 2
    assert ids(store.current()) == ["b"]
    assert ids(store.current(up_to=1)) == ["a"]
    with pytest.raises(UserError, match="superseded by b; supersede that one"):
        store.correct("a", comparison_event("pair-0", "ann", 1, id="c"))
    assert store.correct("b", skip_event("pair-0", "ann", id="c")) == 3
    assert [event.kind for event in store.current()] == ["skip"]


@pytest.mark.parametrize(("rater", "item"), [("bob", "pair-0"), ("ann", "pair-1")])
def test_nobody_corrects_another_rater_or_another_item(store: Store, rater: str, item: str) -> None:
    store.append(comparison_event("pair-0", "ann", 0, id="a"))
    with pytest.raises(UserError, match="of another rater or item"):
        store.correct("a", comparison_event(item, rater, 1, id="b"))
    with pytest.raises(UserError, match="no event nothing to supersede"):
        store.correct("nothing", comparison_event("pair-0", "ann", 1, id="b"))
    assert ids(store.current()) == ["a"]


def test_one_judgement_is_taken_back_and_can_be_given_anew(store: Store) -> None:
    store.append(comparison_event("pair-0", "ann", 0, id="a"))
    assert store.retract("a") == 2
    assert store.retract("a") == 2
    assert store.current() == []
    assert ids(store.current(up_to=1)) == ["a"]
    store.correct(store.log()[-1].id, comparison_event("pair-0", "ann", 1, id="b"))
    assert ids(store.current()) == ["b"]
    with pytest.raises(UserError, match="no such event"):
        store.retract("nothing")


def test_a_retracted_rater_is_hidden_from_there_on_and_comes_back_when_restored(store: Store) -> None:
    store.append(comparison_event("pair-0", "ann", 0, id="a"))
    store.append(comparison_event("pair-0", "bob", 1, id="b"))
    assert store.retract_rater("ann") == 3
    assert store.retract_rater("ann") == 3
    assert ids(store.current()) == ["b"]
    assert ids(store.current(up_to=2)) == ["a", "b"]
    with pytest.raises(UserError, match="retracted"):
        store.append(comparison_event("pair-1", "ann", 0))
    with pytest.raises(UserError, match="retracted"):
        store.extend([comparison_event(item, "ann", 0) for item in ("pair-1", "pair-2")])
    with pytest.raises(UserError, match="retracted"):
        store.correct("a", comparison_event("pair-0", "ann", 1))
    with pytest.raises(UserError, match="retracted"):
        store.claim("ann", 0, 1)
    assert store.append(comparison_event("pair-0", "ann", 0, id="a")) == 1  # a replay is still harmless
    assert store.restore_rater("ann") == 4
    assert ids(store.current()) == ["a", "b"]
    assert ids(store.current(up_to=3)) == ["b"]
    assert store.retract_rater("ann") == 5
    assert ids(store.current()) == ["b"]
    with pytest.raises(UserError, match="no such rater"):
        store.retract_rater("zoe")


def test_a_forgotten_rater_is_gone_from_every_snapshot_and_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with Store.open(path) as store:
        store.add_items(PAIRS)
        store.set_identity("ann", {"name": "Ann Annotatrix", "email": "ann@example.org"})
        store.append(
            rating_event("pair-0", "ann", {"zest-of-ann": 0.25}, id="a", comment="my cat is called Murr")
        )
        store.append(comparison_event("pair-0", "bob", 1, id="b", comment="bob's words"))
        store.add_items([Item("ann's private prompt", ("x", "y"), author="ann", id="of-ann")])
        store.append(comparison_event("of-ann", "bob", 1, id="c"))
        store.name_snapshot("model-1", 3)
        assert store.identity("ann") == {"name": "Ann Annotatrix", "email": "ann@example.org"}
        with store.engine.connect() as connection:
            key = connection.scalar(schema.raters.select().with_only_columns(schema.raters.c.key))
        assert key is not None
        assert _bytes_on_disk(tmp_path, [b"Murr", b"Annotatrix"]) == []
        assert set(_bytes_on_disk(tmp_path, [b"zest-of-ann", b"private prompt", key])) == {
            b"zest-of-ann",
            b"private prompt",
            key,
        }
        assert store.forget_rater("ann") == 4
        assert store.forget_rater("ann") == 4
        assert _bytes_on_disk(tmp_path, [b"zest-of-ann", b"private prompt", key]) == []
        for up_to in (None, 3, 4):
            assert ids(store.current(up_to)) == ["b"]
        tombstone = store.log()[0]
        assert (tombstone.seq, tombstone.id, tombstone.kind, tombstone.rater) == (1, "a", "rating", "ann")
        assert tombstone.payload == {}
        assert tombstone.comment is None
        assert store.identity("ann") == {}
        assert store.items(["of-ann"]) == {}
        assert store.models_trained_on("ann") == ["model-1"]
        assert store.current()[0].comment == "bob's words"
        # neither a replay nor a new event brings anything back
        assert store.append(rating_event("pair-0", "ann", {"zest-of-ann": 0.25}, id="a", comment="Murr")) == 1
        assert store.log()[0].payload == {}
        with pytest.raises(UserError, match="forgotten"):
            store.append(skip_event("pair-1", "ann"))
        with pytest.raises(UserError, match="this item was forgotten"):
            store.add_items([Item("ann's private prompt", ("x", "y"), author="ann", id="of-ann")])
        with pytest.raises(UserError, match="item of-ann was forgotten"):
            store.append(skip_event("of-ann", "bob"))
        with pytest.raises(UserError, match="forgotten"):
            store.set_identity("ann", {"name": "Ann"})
        with pytest.raises(UserError, match="forgotten"):
            store.claim("ann", 0, 1)
    assert _bytes_on_disk(tmp_path, [b"zest-of-ann", b"private prompt", key]) == []


def test_a_judgement_is_taken_back_whoever_was_retracted_or_forgotten(store: Store) -> None:
    store.append(comparison_event("pair-0", "ann", 0, id="a"))
    store.retract_rater("ann")
    with pytest.raises(UserError, match="no such event"):
        store.retract(store.log()[-1].id)
    store.retract("a")
    store.restore_rater("ann")
    assert store.current() == []
    store.add_items([Item("cy's own", ("x", "y"), author="cy", id="of-cy")])
    store.append(comparison_event("of-cy", "ann", 1, id="b"))
    store.forget_rater("cy")
    assert store.retract("b") == store.last_seq()
    with pytest.raises(UserError, match="of no item"):
        store.append(Event("x", "retract", "ann", supersedes=store.log()[1].id))


def test_a_reader_that_keeps_the_log_from_being_cut_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.05)
    with Store.open(tmp_path / "f.db") as store:
        store.add_items(PAIRS)
        store.append(rating_event("pair-0", "ann", {"zest-of-ann": 0.25}))
        with sqlite3.connect(tmp_path / "f.db") as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM events").fetchall()
            with pytest.raises(UserError, match="was erased, but the write-ahead log still holds") as told:
                store.forget_rater("ann")
            assert told.value.fix == "forget the rater again when the readers are gone"
            assert store.raters() == {"ann": "forgotten"}
            assert _bytes_on_disk(tmp_path, [b"zest-of-ann"]) == [b"zest-of-ann"]
        reader.close()
        assert store.forget_rater("ann") == 2
        assert _bytes_on_disk(tmp_path, [b"zest-of-ann"]) == []


def _bytes_on_disk(folder: Path, needles: list[bytes]) -> list[bytes]:
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    return [needle for needle in needles if needle in content]


def test_the_database_itself_refuses_to_change_or_delete(store: Store, tmp_path: Path) -> None:
    store.append(comparison_event("pair-0", "ann", 0, id="a"))
    store.name_snapshot("m", 1)
    with sqlite3.connect(tmp_path / "feedback.db") as raw:
        raw.execute("PRAGMA foreign_keys = ON")
        for statement in (
            "UPDATE events SET payload = '{}'",
            "UPDATE events SET payload = NULL, comment = NULL, presented = NULL",
            "UPDATE events SET rater = 'bob'",
            "DELETE FROM events",
            "INSERT OR REPLACE INTO events SELECT * FROM events",
            "INSERT INTO events (seq, id, kind, rater, created_at) VALUES (3, 'b', 'skip', 'ann', '')",
            "INSERT OR REPLACE INTO events (seq, id, kind, rater, created_at) VALUES (2, 'a', 'skip', 'ann', '')",
            "UPDATE items SET prompt = '\"other\"'",
            "DELETE FROM items",
            "INSERT OR REPLACE INTO items (id) VALUES ('pair-0')",
            "DELETE FROM raters",
            "UPDATE snapshots SET seq = 0",
            "DELETE FROM snapshots",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                raw.execute(statement)
    raw.close()
    assert [event.payload["choice"] for event in store.current()] == [0]


def test_forgetting_may_erase_content_and_nothing_else(store: Store, tmp_path: Path) -> None:
    store.append(comparison_event("pair-0", "ann", 0, id="a"))
    store.forget_rater("ann")
    with sqlite3.connect(tmp_path / "feedback.db") as raw:
        for statement in (
            "UPDATE events SET payload = '{\"choice\":1}' WHERE seq = 1",
            "UPDATE events SET payload = NULL, comment = NULL, presented = NULL, kind = 'skip' WHERE seq = 1",
            "UPDATE raters SET forgotten = NULL",
            "UPDATE raters SET key = 'k'",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                raw.execute(statement)
    raw.close()


def test_snapshots_have_one_meaning(store: Store) -> None:
    store.append(comparison_event("pair-0", "ann", 0, id="a"))
    store.append(skip_event("pair-0", "bob"))
    named = store.name_snapshot("m1", 1, note="first round")
    assert store.name_snapshot("m1", 1) == named
    assert named.note == "first round"
    with pytest.raises(UserError, match="this name stands for event 1"):
        store.name_snapshot("m1", 2)
    with pytest.raises(UserError, match="there are 2 events, not 3"):
        store.name_snapshot("m2", 3)
    store.retract_rater("ann")
    store.name_snapshot("m3", 3)
    assert [snapshot.name for snapshot in store.snapshots()] == ["m1", "m3"]
    assert store.models_trained_on("ann") == ["m1"]
    assert store.models_trained_on("bob") == []  # nothing is learnt from a skip


def test_items_are_written_once(store: Store) -> None:
    messages = (Message("system", "Be kind."), Message("user", "Hello"))
    (made,) = store.add_items([Item(messages, ("a", "b"), "p", {"n": [1, 2.5, None]})])
    assert store.add_items([Item(messages, ("a", "b"), "p", {"n": [1, 2.5, None]})]) == [made]
    assert store.items([made])[made] == Item(messages, ("a", "b"), "p", {"n": [1, 2.5, None]})
    assert Item(messages, ("a", "b"), "q").id != Item(messages, ("a", "b"), "p").id
    assert len(store.items()) == len(PAIRS) + 1
    with pytest.raises(UserError, match="belongs to another item"):
        store.add_items([replace(PAIRS[0], completions=("a", "c"))])


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: comparison_event("pair-0", "ann", cast(Any, True)), "choice is True"),
        (lambda: comparison_event("pair-0", "ann", 0, strength=5), "strength is 5, not 1 to 4"),
        (lambda: comparison_event("pair-0", "ann", 0, strength=True), "strength is True"),
        (lambda: comparison_event("pair-0", "ann", cast(Any, 0.0)), "choice is 0.0"),
        (
            lambda: comparison_event("pair-0", "ann", 0, strength=cast(Any, 3.0)),
            "strength is 3.0, not 1 to 4",
        ),
        (lambda: comparison_event("pair-0", "ann", 0, presented=cast(Any, (1.0, 0.0))), "not an order of 2"),
        (lambda: comparison_event("pair-0", "ann", 0, presented=(True, False)), "not an order of 2"),
        (lambda: comparison_event("pair-0", "ann", 0, presented=(0, 2)), "not an order of 2"),
        (lambda: comparison_event("pair-0", "ann", 0, presented=(0,)), "not an order of 2"),
        (lambda: rating_event("pair-0", "ann", {"overall": 1.1}), "1.1, not within 0 to 1"),
        (lambda: rating_event("pair-0", "ann", {"overall": float("nan")}), "nan, not a number"),
        (lambda: rating_event("pair-0", "ann", {}), "no scores"),
        (lambda: rating_event("pair-0", "ann", {"": 0.5}), "a criterion without a name"),
        (lambda: rating_event("pair-0", "ann", {"overall": 1}, completion=2), "completion 2 is none"),
        (lambda: ranking_event("pair-0", "ann", [0, 0]), "does not name each of 2"),
        (lambda: ranking_event("pair-0", "ann", [0, 1, 2]), "does not name each of 2"),
        (lambda: demonstration_event("pair-0", "ann", ""), "empty or not text"),
        (lambda: skip_event("pair-0", ""), "rater is ''"),
        (lambda: Event("x", "opinion", "ann"), "kind is 'opinion'"),  # type: ignore[arg-type]
        (lambda: Event("x", "comparison", "ann", "pair-0", {}), "choice is None"),
        (lambda: Event("x", "forget_rater", "ann"), "the store's own"),
        (lambda: Event("x", "retract", "ann", "pair-0"), "no event None to supersede"),
        (lambda: Event("x", "skip", "ann", "pair-0", {"n": {1, 2}}), "cannot be kept as JSON"),
    ],
)
def test_what_does_not_make_sense_is_refused(store: Store, make: Any, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        store.append(make())
    assert store.last_seq() == 0


def test_a_maker_refuses_an_order_of_one_before_any_store_sees_it() -> None:
    with pytest.raises(UserError, match="not an order of 2"):
        comparison_event("pair-0", "ann", 0, presented=(0,))


def test_records_for_training(store: Store) -> None:
    store.append(comparison_event("pair-0", "ann", 1, strength=3, presented=(1, 0)))
    store.append(rating_event("pair-1", "ann", {"overall": 0.5}, completion=1, policy_version="ppo-1"))
    store.append(ranking_event("pair-2", "bob", [1, 0]))
    store.append(demonstration_event("pair-3", "bob", "as I would say it"))
    (preference,) = preferences(store)
    assert preference.record == Preference("prompt 0", ("left 0", "right 0"), 1, 3, (1, 0), "ann")
    assert (preference.item, preference.policy_version, preference.seq) == ("pair-0", "sft-1", 1)
    (rating,) = ratings(store)
    assert rating.record == Rating("prompt 1", "right 1", {"overall": 0.5}, "ann")
    assert rating.policy_version == "ppo-1"
    assert rankings(store)[0].record == Ranking("prompt 2", ("left 2", "right 2"), (1, 0), "bob")
    assert demonstrations(store)[0].record == Demonstration("prompt 3", "as I would say it", "bob")
    assert ratings(store, up_to=1) == []


def test_event_ids_depend_on_the_key_and_on_nothing_else() -> None:
    assert event_id("round", 1, "item") == event_id("round", 1, "item")
    assert len({event_id("a", 1), event_id("a", "1"), event_id("a1"), event_id(1, "a")}) == 4


RATERS, ITEMS = ("ann", "bob", "cy"), ("pair-0", "pair-1")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["say", "say", "say", "correct", "retract", "out", "in", "forget"]),
            st.integers(0, 20),
            st.sampled_from(RATERS),
        ),
        max_size=20,
    )
)
def test_a_snapshot_says_the_same_for_ever_but_for_the_forgotten(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, str]]
) -> None:
    with Store.open(tmp_path_factory.mktemp("store") / "f.db") as store:
        store.add_items(PAIRS)
        seen: dict[int, list[Event]] = {}
        forgotten: set[str] = set()
        for number, (step, n, rater) in enumerate(steps):
            _take(store, step, n, rater, number, forgotten)
            seen.setdefault(store.last_seq(), store.current())
            for up_to, before in seen.items():
                assert store.current(up_to) == [event for event in before if event.rater not in forgotten]
        assert [event.seq for event in store.log()] == list(range(1, store.last_seq() + 1))


def _take(store: Store, step: str, n: int, rater: str, number: int, forgotten: set[str]) -> None:
    log = [event for event in store.log() if event.item is not None]
    try:
        if step == "say":
            choice = n % 2
            store.append(
                comparison_event(ITEMS[n % 2], rater, 1 if choice else 0, id=f"e{number}", comment="c")
            )
        elif step == "correct" and log:
            old = log[n % len(log)]
            store.correct(old.id, comparison_event(str(old.item), old.rater, 1, id=f"e{number}"))
        elif step == "retract" and log:
            store.retract(log[n % len(log)].id)
        elif step == "out":
            store.retract_rater(rater)
        elif step == "in":
            store.restore_rater(rater)
        elif step == "forget" and n % 3 == 0:
            store.forget_rater(rater)
            forgotten.add(rater)
    except UserError:
        pass  # refused, as it should be


def test_opening_again_finds_everything_and_odd_files_are_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "deep" / "f.db") as store:
        store.add_items(PAIRS)
        store.append(skip_event("pair-0", "ann", id="a"))
        with store.engine.connect() as connection:
            pragmas = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "secure_delete")
            ]
        assert pragmas == ["wal", 2, 1, 30000, 1]
    with Store.open(f"sqlite:///{tmp_path}/deep/f.db") as store:
        assert ids(store.log()) == ["a"]
    (tmp_path / "text.db").write_text("no database, this" * 100)
    with pytest.raises(UserError, match="cannot be opened as a feedback store"):
        Store.open(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as raw:
        raw.execute("CREATE TABLE items (id)")
    raw.close()
    others = (tmp_path / "other.db").read_bytes()
    with pytest.raises(UserError, match=r"other.db: is no feedback store; name another file"):
        Store.open(tmp_path / "other.db")
    assert (tmp_path / "other.db").read_bytes() == others
    with sqlite3.connect(tmp_path / "deep" / "f.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(UserError, match="newer Plaudit"):
        Store.open(tmp_path / "deep" / "f.db")
    for address, fault in (
        ("sqlite://", "in memory would be lost"),
        ("mysql://u:secret@h/d", "neither SQLite nor PostgreSQL"),
        ("://", "not a database address"),
    ):
        with pytest.raises(UserError, match=fault) as refused:
            Store.open(address)
        assert "secret" not in str(refused.value)


def test_the_tables_in_code_are_those_of_the_migrations(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    with Store.open(tmp_path / "f.db") as store, store.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)
        changed = [d for d in differences if "index" not in str(d[0]) and "constraint" not in str(d[0])]
        assert changed == []
    folder = Path(schema.__file__).with_name("migrations")
    assert ScriptDirectory(str(folder)).get_current_head() == schema.HEAD


def test_the_store_starts_fast_and_without_torch() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import plaudit.feedback.store; "
        "took = time.perf_counter() - start; "
        "import plaudit.feedback.judgements, plaudit.feedback.panel; "
        "print(took, [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    out = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(
            " ", 1
        )
        for _ in range(3)
    ]
    assert {rest.strip() for _, rest in out} == {"[]"}
    assert (
        min(float(took) for took, _ in out) < 2.0
    )  # 0.2 s on a quiet machine; the best of three on a busy one
