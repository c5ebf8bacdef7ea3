"""API keys: of an account, for some of what it may do, shown once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from plaudit.access import audit, secrets
from plaudit.access.accounts import Account, Accounts, account_of
from plaudit.access.roles import ALLOWED, PERMISSIONS, Permission
from plaudit.feedback import schema
from plaudit.types import Missing, UserError

PREFIX = "plaudit"
_HOLDER = (
    sa.select(*schema.api_keys.c["secret", "scopes", "ends"], schema.accounts)
    .join(schema.accounts, schema.accounts.c.name == schema.api_keys.c.account)
    .where(schema.api_keys.c.id == sa.bindparam("key"))
)


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; not the key. ends: seconds since 1970, None: never."""

    id: str
    account: str
    label: str
    scopes: tuple[Permission, ...]
    created_at: str
    ends: float | None


class Keys:
    """All keys of one store."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.accounts = Accounts(engine)

    def create(
        self,
        account: str,
        scopes: Sequence[Permission],
        label: str = "",
        *,
        ends: float | None = None,
        by: str | None = None,
    ) -> tuple[Key, str]:
        """The key, and what its holder sends, which cannot be shown again. by: who makes it, None being the account
        itself. UserError for a scope that the account does not have."""
        unknown = [scope for scope in scopes if scope not in PERMISSIONS]
        if unknown or not scopes:
            raise UserError(
                f"scopes are {list(scopes)}, not some of {', '.join(PERMISSIONS)}", where="API key"
            )
        id, secret = secrets.new_token()[:12].replace("_", "-"), secrets.new_token()
        made = Key(id, account, label, tuple(dict.fromkeys(scopes)), _now(), ends)
        row: dict[str, Any] = {"id": id, "account": account, "label": label, "scopes": list(made.scopes)}
        row |= {"secret": secrets.digest(secret), "created_at": made.created_at, "ends": ends}
        with schema.writing(self.engine) as connection:
            holder = self.accounts.get(account)
            if holder is None or holder.disabled:
                raise Missing("account", account)
            if over := [scope for scope in scopes if scope not in ALLOWED[holder.role]]:
                raise UserError(f"a {holder.role} may not {', '.join(over)}", where=f"account {account}")
            connection.execute(schema.api_keys.insert(), row)
            audit.note(connection, by or account, "create", f"key {id}", scopes=list(made.scopes))
        return made, f"{PREFIX}_{id}_{secret}"

    def rotate(self, id: str, *, by: str, until: float) -> tuple[Key, str]:
        """Another key in the place of this one, which is good until then (seconds since 1970), unless it ends before.
        UserError where there is none."""
        with schema.writing(self.engine) as connection:
            row = connection.execute(sa.select(schema.api_keys).where(schema.api_keys.c.id == id)).first()
            if row is None:
                raise Missing("key", id)
            old = _key(row)
            ends = until if old.ends is None else min(old.ends, until)
            connection.execute(schema.api_keys.update().where(schema.api_keys.c.id == id).values(ends=ends))
            audit.note(connection, by, "rotate", f"key {id}")
            return self.create(old.account, old.scopes, old.label, by=by)

    def of(self, account: str | None = None) -> list[Key]:
        """All keys, or an account's, the oldest first."""
        query = sa.select(schema.api_keys).order_by(schema.api_keys.c.created_at, schema.api_keys.c.id)
        if account is not None:
            query = query.where(schema.api_keys.c.account == account)
        with schema.reading(self.engine) as connection:
            return [_key(row) for row in connection.execute(query)]

    def holder(self, sent: str, now: float) -> tuple[Account, frozenset[Permission], float | None] | None:
        """Whose key it is, what it is good for (its scopes, as far as the account still has them), and when it ends.
        None for what is no key, or has ended."""
        parts = sent.split("_", 2)
        if len(parts) != 3 or parts[0] != PREFIX:
            return None
        with schema.reading(self.engine) as connection:
            row = connection.execute(_HOLDER, {"key": parts[1]}).first()
        if row is None or not secrets.equal(row.secret, secrets.digest(parts[2])):
            return None
        if row.disabled or (row.ends is not None and now >= row.ends):
            return None
        account = account_of(row)
        return account, frozenset(row.scopes) & ALLOWED[account.role], row.ends

    def revoke(self, id: str, *, by: str) -> None:
        """From now on it opens nothing. UserError where there is none."""
        with schema.writing(self.engine) as connection:
            gone = connection.execute(schema.api_keys.delete().where(schema.api_keys.c.id == id)).rowcount
            if not gone:
                raise Missing("key", id)
            audit.note(connection, by, "revoke", f"key {id}")


def _key(row: sa.Row[tuple[object, ...]]) -> Key:
    return Key(row.id, row.account, row.label, tuple(row.scopes), row.created_at, row.ends)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
