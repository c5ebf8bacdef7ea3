"""Who may come in: accounts, their log-ins, invitations and API keys; and the audit log with its guards."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates every table and guard."""
    op.create_table(
        "accounts",
        sa.Column("name", sa.Text, sa.ForeignKey("raters.id"), primary_key=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("password", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
    )
    op.create_table(
        "sign_ins",
        sa.Column("token", sa.Text, primary_key=True),
        sa.Column("account", sa.Text, _account(), nullable=False, index=True),
        sa.Column("seen", sa.Double, nullable=False),
        sa.Column("ends", sa.Double, nullable=False),
    )
    op.create_table(
        "invitations",
        sa.Column("token", sa.Text, primary_key=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("project", sa.Text),
        sa.Column("invited_by", sa.Text),
        sa.Column("ends", sa.Double, nullable=False),
        sa.Column("used_by", sa.Text),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("account", sa.Text, _account(), nullable=False, index=True),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("ends", sa.Double),
    )
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("chain", sa.Text, nullable=False),
    )
    follows = "NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM audit)"
    _guard("INSERT", follows, "lines of the audit log follow one another without a gap")
    _guard("UPDATE", "1 = 1", "the audit log is never changed")
    _guard("DELETE", "1 = 1", "the audit log is never deleted")


def _account() -> sa.ForeignKey:
    return sa.ForeignKey("accounts.name", ondelete="CASCADE")


def _guard(verb: str, refused: str, reason: str) -> None:
    name = f"audit_{verb.lower()}"
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {verb} ON audit WHEN {refused} "
            f"BEGIN SELECT RAISE(ABORT, '{reason}'); END"
        )
        return
    row = "OLD" if verb == "DELETE" else "NEW"
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {refused} THEN "
        f"RAISE EXCEPTION '{reason}'; END IF; RETURN {row}; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON audit FOR EACH ROW EXECUTE FUNCTION {name}()")
    if verb == "DELETE":
        op.execute(
            f"CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
        )
