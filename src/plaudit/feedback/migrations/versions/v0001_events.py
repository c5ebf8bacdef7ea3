"""Raters, items, the append-only log of events with its guards, assignments and snapshots."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# An event may change in one way only: its content is erased, once its rater has been forgotten.
KEPT_EVENT = (
    "seq",
    "id",
    "kind",
    "item",
    "rater",
    "policy_version",
    "guideline_version",
    "supersedes",
    "assignment",
    "created_at",
)
ERASED_EVENT = ("payload", "comment", "presented")
# An item likewise: its content is erased, once the person whose words it holds has been forgotten.
KEPT_ITEM = ("id", "policy_version", "author")
ERASED_ITEM = ("prompt", "completions", "meta")


def upgrade() -> None:
    """Creates every table and guard."""
    op.create_table(
        "raters",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("key", sa.LargeBinary),
        sa.Column("identity", sa.LargeBinary),
        sa.Column("forgotten", sa.Integer),
    )
    op.create_table(
        "items",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("prompt", sa.JSON),
        sa.Column("completions", sa.JSON),
        sa.Column("policy_version", sa.Text),
        sa.Column("meta", sa.JSON),
        sa.Column("author", sa.Text, sa.ForeignKey("raters.id"), index=True),
    )
    op.create_table(
        "assignments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("item", sa.Text, sa.ForeignKey("items.id"), nullable=False),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("rater", sa.Text, sa.ForeignKey("raters.id")),
        sa.Column("expires", sa.Double),
        sa.Column("event", sa.Text),
        sa.UniqueConstraint("item", "slot"),
        sa.UniqueConstraint("item", "rater"),
    )
    op.create_index("assignments_open", "assignments", ["event", "slot", "id"])
    op.create_table(
        "events",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("item", sa.Text, sa.ForeignKey("items.id")),
        sa.Column("rater", sa.Text, sa.ForeignKey("raters.id"), nullable=False),
        sa.Column("payload", sa.JSON),
        sa.Column("comment", sa.LargeBinary),
        sa.Column("presented", sa.JSON),
        sa.Column("policy_version", sa.Text),
        sa.Column("guideline_version", sa.Text),
        sa.Column("supersedes", sa.Text, sa.ForeignKey("events.id"), unique=True),
        sa.Column("assignment", sa.Integer, sa.ForeignKey("assignments.id")),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    op.create_index("events_by_rater", "events", ["rater", "item"])
    op.create_index("events_by_kind", "events", ["kind"])
    op.create_table(
        "snapshots",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    guard = _guard_postgresql if op.get_bind().dialect.name == "postgresql" else _guard_sqlite
    guard(
        "events",
        "INSERT",
        _misplaced("events"),
        "events follow one another without a gap and are written once",
    )
    guard(
        "events", "UPDATE", f"NOT {_erasure(KEPT_EVENT, ERASED_EVENT, 'rater')}", "events are never changed"
    )
    guard("items", "UPDATE", f"NOT {_erasure(KEPT_ITEM, ERASED_ITEM, 'author')}", "items are never changed")
    guard("items", "INSERT", _taken("items", "id"), "items are written once")
    guard("snapshots", "INSERT", _taken("snapshots", "name"), "snapshots are written once")
    guard("snapshots", "UPDATE", "1 = 1", "snapshots are never changed")
    for table in ("events", "items", "raters", "snapshots"):
        guard(table, "DELETE", "1 = 1", f"{table} are never deleted")
    guard("raters", "UPDATE", f"OLD.forgotten IS NOT NULL AND NOT ({_same('forgotten')} AND NEW.key IS NULL "
          "AND NEW.identity IS NULL)", "a forgotten rater stays forgotten")  # fmt: skip
    guard("raters", "INSERT", _taken("raters", "id"), "raters are written once")


def _same(column: str) -> str:
    # Never null, which a guard would take for "not refused".
    return f"COALESCE(NEW.{column} = OLD.{column}, NEW.{column} IS NULL AND OLD.{column} IS NULL)"


def _taken(table: str, key: str) -> str:
    # Also keeps INSERT OR REPLACE, which deletes without asking SQLite's DELETE triggers, from replacing a row.
    return f"EXISTS (SELECT 1 FROM {table} WHERE {key} = NEW.{key})"


def _misplaced(table: str) -> str:
    return f"NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM {table}) OR {_taken(table, 'id')}"


def _erasure(kept: tuple[str, ...], erased: tuple[str, ...], person: str) -> str:
    conditions = [_same(column) for column in kept] + [f"NEW.{column} IS NULL" for column in erased]
    conditions += [f"EXISTS (SELECT 1 FROM raters WHERE id = OLD.{person} AND forgotten IS NOT NULL)"]
    return f"({' AND '.join(conditions)})"


def _guard_sqlite(table: str, verb: str, refused: str, reason: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} WHEN {refused} "
        f"BEGIN SELECT RAISE(ABORT, '{reason}'); END"
    )


def _guard_postgresql(table: str, verb: str, refused: str, reason: str) -> None:
    name, row = f"{table}_{verb.lower()}", "OLD" if verb == "DELETE" else "NEW"
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {refused} THEN "
        f"RAISE EXCEPTION '{reason}'; END IF; RETURN {row}; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
    if verb == "DELETE":
        op.execute(
            f"CREATE TRIGGER {table}_truncate BEFORE TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
        )
