"""Accounts, log-ins and invitations.

An account's name is its holder's pseudonym in the feedback store; who is behind it is sealed there, under a key of
their own. Tokens are given out once; what is stored of them opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from plaudit.access import audit, secrets
from plaudit.access.roles import ALLOWED, ROLES, Permission, Role, may_give
from plaudit.feedback import privacy, schema
from plaudit.types import Missing, UserError

IDLE_SECONDS, LONGEST_SECONDS = 12 * 3600.0, 14 * 86400.0
"""A log-in ends when it was not used for so long, and at the latest after so long."""
SEEN_EVERY = 60.0
"""How exactly it is known when a log-in was used last, in seconds; each look would be a write otherwise."""
INVITED_SECONDS = 7 * 86400.0
NAME = re.compile(r"[^\W_](?:[\w .'-]{0,38}[\w.])?")
"""Letters of any script, digits, and a little between them; 40 characters at most."""
NOBODY = "studio"
"""Who has done what nobody asked for."""
RESERVED = frozenset({NOBODY, "command line", "anonymous", "behaviour", "me"})
"""Names that mean somebody else, in the audit log or as a rater."""
OURS = re.compile(r"panel-\d+|user-[0-9a-f]{20}")
"""Pseudonyms that are made: simulated raters, and those who ask through an account."""
_SIGNED_IN = (
    sa.select(*schema.sign_ins.c["seen", "ends"], schema.accounts)
    .join(schema.accounts, schema.accounts.c.name == schema.sign_ins.c.account)
    .where(schema.sign_ins.c.token == sa.bindparam("token"))
)


@dataclass(frozen=True, slots=True)
class Account:
    """Who may come in."""

    name: str
    role: Role
    created_at: str
    disabled: bool

    def may(self, permission: Permission) -> bool:
        return not self.disabled and permission in ALLOWED[self.role]


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a link offers. project: where its holder begins to judge."""

    role: Role
    project: str | None
    ends: float
    by: str = NOBODY


class Accounts:
    """All accounts of one store. Times are seconds since 1970, given by whoever calls."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    # Accounts

    def all(self) -> list[Account]:
        """By name."""
        with schema.reading(self.engine) as connection:
            rows = connection.execute(sa.select(schema.accounts).order_by(schema.accounts.c.name))
            return [account_of(row) for row in rows]

    def get(self, name: str) -> Account | None:
        with schema.reading(self.engine) as connection:
            return _get(connection, name)

    def create(
        self,
        name: str,
        role: Role,
        password: str,
        *,
        by: str = NOBODY,
        identity: Mapping[str, str] | None = None,
    ) -> Account:
        """UserError where the name is taken or no name, or the password is too short."""
        hashed = secrets.hash_password(password)  # slow, and so before the store is held
        with schema.writing(self.engine) as connection:
            return _create(connection, name, role, hashed, by, identity or {})

    def change_role(self, name: str, role: Role, *, by: str) -> None:
        """UserError where that would leave no owner."""
        with schema.writing(self.engine) as connection:
            account = _must(connection, name)
            if role not in ROLES:
                raise UserError(f"role is {role!r}, not one of {', '.join(ROLES)}", where=f"account {name}")
            if account.role == "owner" and role != "owner":
                _refuse_last_owner(connection, name)
            _set(connection, name, role=role)
            audit.note(connection, by, "change role", f"account {name}", before=account.role, after=role)

    def disable(self, name: str, *, by: str, disabled: bool = True) -> None:
        """Ends its log-ins and keeps it out, until it is let in again. What was judged stands."""
        with schema.writing(self.engine) as connection:
            account = _must(connection, name)
            if disabled and account.role == "owner":
                _refuse_last_owner(connection, name)
            _set(connection, name, disabled=disabled)
            if disabled:
                connection.execute(schema.sign_ins.delete().where(schema.sign_ins.c.account == name))
            audit.note(connection, by, "disable" if disabled else "enable", f"account {name}")

    def close(self, name: str, *, by: str) -> None:
        """Takes the account away, with its log-ins and keys. The pseudonym's judgements stay."""
        with schema.writing(self.engine) as connection:
            if _must(connection, name).role == "owner":
                _refuse_last_owner(connection, name)
            connection.execute(schema.accounts.delete().where(schema.accounts.c.name == name))
            audit.note(connection, by, "close", f"account {name}")

    def set_password(
        self, name: str, password: str, *, by: str, proved: sa.Row[*tuple[Any, ...]] | None = None
    ) -> None:
        """All log-ins of the account end. proved: what the old password was checked against."""
        hashed = secrets.hash_password(password)
        with schema.writing(self.engine) as connection:
            _must(connection, name)
            if proved is not None:
                _check_unchanged(connection, proved)
            _set(connection, name, password=hashed)
            connection.execute(schema.sign_ins.delete().where(schema.sign_ins.c.account == name))
            audit.note(connection, by, "set password", f"account {name}")

    # Log-ins

    def sign_in(self, name: str, password: str, now: float) -> str:
        """A token for the browser's cookie. UserError, the same for all reasons, where it is refused."""
        row = self.proved(name, password)
        fresh = secrets.hash_password(password) if secrets.is_outdated(row.password) else None
        token = secrets.new_token()
        with schema.writing(self.engine) as connection:
            _check_unchanged(connection, row)
            if fresh is not None:
                _set(connection, row.name, password=fresh)
            _forget_ended(connection, now)
            _begin(connection, row.name, token, now)
        return token

    def proved(self, name: str, password: str) -> sa.Row[*tuple[Any, ...]]:
        """The account's row. UserError, the same for all reasons, where it may not come in with this password."""
        with schema.reading(self.engine) as connection:
            row = _row(connection, name.strip())
        known = secrets.fits(password, None if row is None else row.password)
        if row is None or not known or row.disabled:
            raise _wrong()
        return row

    def signed_in(self, token: str, now: float) -> Account | None:
        """Whose log-in the token is; None where it has ended."""
        table = schema.sign_ins
        with schema.reading(self.engine) as connection:
            row = connection.execute(_SIGNED_IN, {"token": secrets.digest(token)}).first()
        if row is None or row.disabled or now >= row.ends or now >= row.seen + IDLE_SECONDS:
            return None
        if now >= row.seen + SEEN_EVERY:
            with schema.writing(self.engine) as connection:
                mine = table.c.token == secrets.digest(token)
                connection.execute(table.update().where(mine).values(seen=now))
        return account_of(row)

    def sign_out(self, token: str) -> None:
        """Ends this log-in; again is harmless."""
        with schema.writing(self.engine) as connection:
            mine = schema.sign_ins.c.token == secrets.digest(token)
            connection.execute(schema.sign_ins.delete().where(mine))

    # Invitations

    def invite(
        self,
        role: Role,
        now: float,
        *,
        by: str = NOBODY,
        project: str | None = None,
        seconds: float = INVITED_SECONDS,
    ) -> str:
        """A token that makes one account of this role. UserError where the inviter may not give it."""
        token = secrets.new_token()
        with schema.writing(self.engine) as connection:
            inviter = _get(connection, by)
            if by != NOBODY and (inviter is None or inviter.disabled or not may_give(inviter.role, role)):
                raise UserError(f"may not invite somebody as {role}", where=f"account {by}")
            row = {"token": secrets.digest(token), "role": role, "project": project, "invited_by": by}
            connection.execute(schema.invitations.insert(), row | {"ends": now + seconds})
            audit.note(connection, by, "invite", f"role {role}", project=project)
        return token

    def invitation(self, token: str, now: float) -> Invitation:
        """What the link offers. UserError where it was used or has run out."""
        with schema.reading(self.engine) as connection:
            return _invitation(connection, token, now)

    def accept(
        self,
        token: str,
        name: str,
        password: str,
        now: float,
        identity: Mapping[str, str] | None = None,
    ) -> tuple[Account, str]:
        """Makes the account that was offered, and logs it in: the account and the token of its log-in."""
        hashed, begun = secrets.hash_password(password), secrets.new_token()
        with schema.writing(self.engine) as connection:
            offered = _invitation(connection, token, now)
            _check_still_given(connection, offered)
            account = _create(connection, name, offered.role, hashed, name.strip(), identity or {})
            mine = schema.invitations.c.token == secrets.digest(token)
            connection.execute(schema.invitations.update().where(mine).values(used_by=account.name))
            _begin(connection, account.name, begun, now)
        return account, begun


def _check_still_given(connection: Connection, offered: Invitation) -> None:
    """UserError where whoever gave the link could not give it any more."""
    inviter = _get(connection, offered.by)
    if offered.by != NOBODY and (
        inviter is None or inviter.disabled or not may_give(inviter.role, offered.role)
    ):
        raise UserError("is no longer good", where="invitation", fix="ask for a new one")


def account_of(row: sa.Row[*tuple[Any, ...]]) -> Account:
    """A row of the accounts."""
    return Account(row.name, cast(Role, row.role), row.created_at, row.disabled)


def _row(connection: Connection, name: str) -> sa.Row[*tuple[Any, ...]] | None:
    return connection.execute(sa.select(schema.accounts).where(schema.accounts.c.name == name)).first()


def _check_unchanged(connection: Connection, proved: sa.Row[*tuple[Any, ...]]) -> None:
    """UserError where the account has another password since it was proved, is disabled or gone: hashing is slow."""
    now = _row(connection, proved.name)
    if now is None or now.disabled or now.password != proved.password:
        raise _wrong()


def _wrong() -> UserError:
    return UserError("name or password is wrong", where="log-in")


def _get(connection: Connection, name: str) -> Account | None:
    row = _row(connection, name)
    return None if row is None else account_of(row)


def _must(connection: Connection, name: str) -> Account:
    if (found := _get(connection, name)) is None:
        raise Missing("account", name)
    return found


def _create(
    connection: Connection, name: str, role: Role, hashed: str, by: str, identity: Mapping[str, str]
) -> Account:
    name = name.strip()
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name", where="account", fix="take 1 to 40 letters, digits, spaces, - . or '"
        )
    folded = name.casefold()
    taken = connection.scalars(sa.select(schema.raters.c.id)).all()
    ours = folded in RESERVED or OURS.fullmatch(folded)
    if ours or any(folded == other.casefold() for other in taken):
        raise UserError("this name is taken", where=f"account {name}", fix="take another")
    privacy.ensure(connection, name)
    privacy.set_identity(connection, name, identity)
    row = {"name": name, "role": role, "password": hashed, "disabled": False}
    row["created_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    connection.execute(schema.accounts.insert(), row)
    audit.note(connection, by, "create", f"account {name}", role=role)
    return _must(connection, name)


def _set(connection: Connection, name: str, **values: object) -> None:
    connection.execute(schema.accounts.update().where(schema.accounts.c.name == name).values(**values))


def _refuse_last_owner(connection: Connection, name: str) -> None:
    people = schema.accounts
    others = sa.select(sa.func.count()).where(
        people.c.role == "owner", people.c.name != name, ~people.c.disabled
    )
    if not connection.scalar(others):
        raise UserError("is the last owner", where=f"account {name}", fix="make somebody else an owner first")


def _begin(connection: Connection, name: str, token: str, now: float) -> None:
    row = {"token": secrets.digest(token), "account": name, "seen": now, "ends": now + LONGEST_SECONDS}
    connection.execute(schema.sign_ins.insert(), row)


def _forget_ended(connection: Connection, now: float) -> None:
    table = schema.sign_ins
    connection.execute(table.delete().where(sa.or_(table.c.ends <= now, table.c.seen <= now - IDLE_SECONDS)))


def _invitation(connection: Connection, token: str, now: float) -> Invitation:
    table = schema.invitations
    row = connection.execute(sa.select(table).where(table.c.token == secrets.digest(token))).first()
    if row is None or row.used_by is not None or now >= row.ends:
        raise UserError("was used or has run out", where="invitation", fix="ask for a new one")
    return Invitation(cast(Role, row.role), row.project, row.ends, row.invited_by or NOBODY)
