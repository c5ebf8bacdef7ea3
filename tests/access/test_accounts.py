"""Accounts: who comes in, until when, and as what."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa

from plaudit.access import accounts as rooms
from plaudit.access import audit, secrets
from plaudit.access.accounts import IDLE_SECONDS, LONGEST_SECONDS, Accounts
from plaudit.access.keys import Keys
from plaudit.access.roles import ALLOWED, PERMISSIONS, ROLES, may_give
from plaudit.feedback import schema
from plaudit.feedback.store import Store
from plaudit.types import UserError

WORD = "correct horse"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """argon2 at its lowest costs."""
    from argon2 import PasswordHasher

    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(secrets, "_hasher", lambda: cheap)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture
def accounts(store: Store) -> Accounts:
    found = Accounts(store.engine)
    found.create("Olga", "owner", WORD)
    return found


def test_who_is_let_in_stays_until_the_log_in_ends(accounts: Accounts) -> None:
    token = accounts.sign_in("Olga", WORD, 1000.0)
    found = accounts.signed_in(token, 1001.0)
    assert found is not None
    assert (found.name, found.role) == ("Olga", "owner")
    assert accounts.signed_in(token + "x", 1001.0) is None
    assert accounts.signed_in(token, 1000.0 + IDLE_SECONDS) is None
    accounts.sign_out(token)
    accounts.sign_out(token)
    assert accounts.signed_in(token, 1001.0) is None


def test_use_keeps_a_log_in_alive_but_not_for_ever(accounts: Accounts) -> None:
    token, now = accounts.sign_in("Olga", WORD, 0.0), 0.0
    while now + IDLE_SECONDS / 2 < LONGEST_SECONDS:
        now += IDLE_SECONDS / 2
        assert accounts.signed_in(token, now) is not None, now
    assert accounts.signed_in(token, LONGEST_SECONDS) is None


@pytest.mark.parametrize(("name", "password"), [("Olga", "wrong horse"), ("Nobody", WORD), ("", "")])
def test_a_refusal_does_not_tell_what_was_wrong(accounts: Accounts, name: str, password: str) -> None:
    with pytest.raises(UserError, match=r"^log-in: name or password is wrong$"):
        accounts.sign_in(name, password, 0.0)


def test_the_store_holds_nothing_that_opens(accounts: Accounts, store: Store) -> None:
    token = accounts.sign_in("Olga", WORD, 0.0)
    invited = accounts.invite("rater", 0.0, by="Olga")
    _, sent = Keys(store.engine).create("Olga", ["judge"])
    assert store.engine.url.database is not None
    held = "".join(sqlite3.connect(store.engine.url.database).iterdump())
    for secret in (WORD, token, invited, sent.split("_", 2)[2]):
        assert secret not in held


def test_an_invitation_makes_one_account_of_its_role(accounts: Accounts, store: Store) -> None:
    token = accounts.invite("reviewer", 0.0, by="Olga", project="p1")
    assert accounts.invitation(token, 1.0).project == "p1"
    account, begun = accounts.accept(token, " Quiet otter ", WORD, 1.0, {"e-mail": "o@example.org"})
    assert (account.name, account.role) == ("Quiet otter", "reviewer")
    assert accounts.signed_in(begun, 2.0) == account
    assert store.identity("Quiet otter") == {"e-mail": "o@example.org"}
    with pytest.raises(UserError, match="was used or has run out; ask for a new one"):
        accounts.accept(token, "Another", WORD, 2.0)
    late = accounts.invite("rater", 0.0, by="Olga", seconds=60)
    with pytest.raises(UserError, match="was used or has run out"):
        accounts.accept(late, "Another", WORD, 60.0)
    assert accounts.get("Another") is None


@pytest.mark.parametrize(
    ("giver", "given"),
    [("owner", {"rater", "reviewer", "admin", "owner"}), ("admin", {"rater", "reviewer"}), ("reviewer", set()),
     ("rater", set())],
)  # fmt: skip
def test_nobody_gives_what_is_not_below_them(accounts: Accounts, giver: str, given: set[str]) -> None:
    accounts.create("Giver", giver, WORD)  # type: ignore[arg-type]
    for role in ROLES:
        assert may_give(giver, role) == (role in given)  # type: ignore[arg-type]
        if role in given:
            accounts.invite(role, 0.0, by="Giver")
        else:
            with pytest.raises(UserError, match=f"may not invite somebody as {role}"):
                accounts.invite(role, 0.0, by="Giver")


def test_each_role_may_all_that_those_below_may() -> None:
    for below, above in pairwise(ROLES):
        assert ALLOWED[below] < ALLOWED[above]
    assert ALLOWED["owner"] == set(PERMISSIONS)


@pytest.mark.parametrize(
    ("name", "said"),
    [("olga", "this name is taken"), ("studio", "this name is taken"), ("Command Line", "taken"),
     ("anonymous", "taken"), ("behaviour", "taken"), ("panel-3", "taken"), ("panel-saw", None),
     ("", "is no name"), ("a" * 41, "is no name"), ("<b>", "is no name"),
     ("-x", "is no name"), ("x ", None), ("王小明", None), ("D'Arcy-Smith 2", None)],
)  # fmt: skip
def test_names(accounts: Accounts, name: str, said: str | None) -> None:
    if said is None:
        assert accounts.create(name, "rater", WORD).name == name.strip()
    else:
        with pytest.raises(UserError, match=said):
            accounts.create(name, "rater", WORD)


def test_there_is_always_an_owner(accounts: Accounts) -> None:
    said = "is the last owner; make somebody else an owner first"
    with pytest.raises(UserError, match=said):
        accounts.change_role("Olga", "rater", by="Olga")
    with pytest.raises(UserError, match=said):
        accounts.disable("Olga", by="Olga")
    with pytest.raises(UserError, match=said):
        accounts.close("Olga", by="Olga")
    accounts.create("Pia", "owner", WORD)
    accounts.close("Olga", by="Pia")
    assert [account.name for account in accounts.all()] == ["Pia"]


def test_who_is_kept_out_is_out_at_once_and_may_come_back(accounts: Accounts, store: Store) -> None:
    accounts.create("Ann", "rater", WORD)
    token = accounts.sign_in("Ann", WORD, 0.0)
    _, sent = Keys(store.engine).create("Ann", ["judge"])
    accounts.disable("Ann", by="Olga")
    assert accounts.signed_in(token, 1.0) is None
    assert Keys(store.engine).holder(sent, 1.0) is None
    with pytest.raises(UserError, match="name or password is wrong"):
        accounts.sign_in("Ann", WORD, 1.0)
    accounts.disable("Ann", by="Olga", disabled=False)
    assert accounts.signed_in(accounts.sign_in("Ann", WORD, 2.0), 2.0) is not None
    assert accounts.signed_in(token, 2.0) is None


def test_a_new_password_ends_all_log_ins(accounts: Accounts) -> None:
    token = accounts.sign_in("Olga", WORD, 0.0)
    accounts.set_password("Olga", "another horse", by="Olga")
    assert accounts.signed_in(token, 1.0) is None
    with pytest.raises(UserError, match="wrong"):
        accounts.sign_in("Olga", WORD, 1.0)
    assert accounts.sign_in("Olga", "another horse", 1.0)


@pytest.mark.parametrize("change", ["password", "disable", "close"])
def test_who_is_kept_out_while_their_password_is_checked_stays_out(
    accounts: Accounts, store: Store, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Checking is slow: what an owner or the holder does meanwhile holds."""
    accounts.create("Ann", "rater", WORD)
    proved = accounts.proved("Ann", WORD)

    def meanwhile(_: str) -> bool:
        monkeypatch.setattr(secrets, "is_outdated", lambda _: False)
        if change == "password":
            accounts.set_password("Ann", "another horse", by="Ann")
        elif change == "disable":
            accounts.disable("Ann", by="Olga")
        else:
            accounts.close("Ann", by="Olga")
        return False

    monkeypatch.setattr(secrets, "is_outdated", meanwhile)
    with pytest.raises(UserError, match="name or password is wrong"):
        accounts.sign_in("Ann", WORD, 0.0)
    with store.engine.connect() as connection:
        assert connection.execute(sa.select(schema.sign_ins)).all() == []
    with pytest.raises(UserError, match="wrong" if change != "close" else "no such account"):
        accounts.set_password("Ann", "a third horse", by="Ann", proved=proved)


def test_a_key_of_an_account_that_is_closed_meanwhile_is_not_made(
    accounts: Accounts, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts.create("Ann", "rater", WORD)
    made = secrets.new_token

    def closing() -> str:
        if accounts.get("Ann") is not None:
            accounts.close("Ann", by="Olga")
        return made()

    monkeypatch.setattr(secrets, "new_token", closing)
    with pytest.raises(UserError, match="there is no such account"):
        Keys(store.engine).create("Ann", ["judge"])


def test_a_hash_of_lower_costs_is_made_anew_at_the_next_log_in(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from argon2 import PasswordHasher

    dearer = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    monkeypatch.setattr(secrets, "_hasher", lambda: dearer)
    assert accounts.sign_in("Olga", WORD, 0.0)
    monkeypatch.setattr(secrets, "hash_password", None)  # it is up to date, and nothing is hashed
    assert accounts.sign_in("Olga", WORD, 1.0)


def test_who_is_forgotten_has_no_account_any_more(accounts: Accounts, store: Store) -> None:
    accounts.create("Ann", "rater", WORD, identity={"name": "Ann Example"})
    token = accounts.sign_in("Ann", WORD, 0.0)
    _, sent = Keys(store.engine).create("Ann", ["judge"])
    store.forget_rater("Ann")
    assert accounts.get("Ann") is None
    assert accounts.signed_in(token, 1.0) is None
    assert Keys(store.engine).holder(sent, 1.0) is None
    with pytest.raises(UserError, match="this name is taken"):
        accounts.create("ann", "rater", WORD)


def test_a_key_opens_what_it_was_made_for_as_long_as_its_holder_may(accounts: Accounts, store: Store) -> None:
    keys = Keys(store.engine)
    accounts.create("Ada", "admin", WORD)
    made, sent = keys.create("Ada", ["manage", "judge"], "nightly export", ends=100.0)
    found = keys.holder(sent, 99.0)
    assert found is not None
    assert found[0].name == "Ada"
    assert found[1] == {"manage", "judge"}
    assert keys.holder(sent, 100.0) is None
    for wrong in (sent + "x", sent.replace(made.id, "another-id"), "", "plaudit_x", "Bearer " + sent):
        assert keys.holder(wrong, 1.0) is None
    accounts.change_role("Ada", "rater", by="Olga")
    found = keys.holder(sent, 99.0)
    assert found is not None
    assert found[1] == {"judge"}
    assert [key.label for key in keys.of("Ada")] == ["nightly export"]
    keys.revoke(made.id, by="Olga")
    assert keys.holder(sent, 1.0) is None
    with pytest.raises(UserError, match="there is no such key"):
        keys.revoke(made.id, by="Olga")


def test_a_key_is_rotated_and_the_old_one_ends_after_a_while(accounts: Accounts, store: Store) -> None:
    accounts.create("ann", "admin", "correct horse")
    keys = Keys(store.engine)
    old, sent = keys.create("ann", ["answer", "judge"], "shop")
    new, fresh = keys.rotate(old.id, by="command line", until=1000.0)
    assert (new.account, new.scopes, new.label, new.ends) == ("ann", old.scopes, "shop", None)
    assert keys.holder(sent, 999.0) is not None
    assert keys.holder(sent, 1000.0) is None
    assert keys.holder(fresh, 2000.0) is not None
    keys.rotate(old.id, by="command line", until=5000.0)
    assert keys.holder(sent, 1001.0) is None, "what ends is not lengthened"
    with pytest.raises(UserError, match="key none"):
        keys.rotate("none", by="command line", until=1.0)


def test_a_key_for_more_than_its_holder_may_is_refused(accounts: Accounts, store: Store) -> None:
    keys = Keys(store.engine)
    accounts.create("Ann", "rater", WORD)
    with pytest.raises(UserError, match="a rater may not manage, own"):
        keys.create("Ann", ["judge", "manage", "own"])
    with pytest.raises(UserError, match="not some of judge"):
        keys.create("Ann", ["fly"])  # type: ignore[list-item]
    with pytest.raises(UserError, match="not some of judge"):
        keys.create("Ann", [])
    with pytest.raises(UserError, match="there is no such account"):
        keys.create("Nobody", ["judge"])


def test_all_that_was_changed_is_told_and_cannot_be_changed(accounts: Accounts, store: Store) -> None:
    accounts.create("Ann", "rater", WORD, by="Olga", identity={"e-mail": "ann@example.org"})
    accounts.change_role("Ann", "reviewer", by="Olga")
    accounts.disable("Ann", by="Olga")
    told = audit.lines(store.engine)
    assert [(line.actor, line.action, line.target) for line in told] == [
        ("Olga", "disable", "account Ann"),
        ("Olga", "change role", "account Ann"),
        ("Olga", "create", "account Ann"),
        (rooms.NOBODY, "create", "account Olga"),
    ]
    assert told[1].detail == {"before": "rater", "after": "reviewer"}
    assert [line.seq for line in audit.lines(store.engine, before=3, limit=1)] == [2]
    assert audit.check(store.engine) is None
    assert "example.org" not in str(told)
    for statement in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit WHERE seq = 4",
                      "INSERT INTO audit VALUES (9, '', '', '', '', '{}', '')"):  # fmt: skip
        with pytest.raises(Exception, match="audit log"), store.engine.begin() as connection:
            connection.exec_driver_sql(statement)


def test_who_edits_the_file_itself_breaks_the_chain(accounts: Accounts, store: Store) -> None:
    accounts.create("Ann", "rater", WORD)
    accounts.create("Bob", "rater", WORD)
    assert store.engine.url.database is not None
    with sqlite3.connect(store.engine.url.database) as behind:
        behind.execute("DROP TRIGGER audit_update")
        behind.execute("UPDATE audit SET actor = 'somebody' WHERE seq = 2")
    assert audit.check(store.engine) == 2
