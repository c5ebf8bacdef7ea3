"""What a served model said, what people did with it, and which models answer under which name."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the four tables."""
    op.create_table(
        "responses",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("requester", sa.Text, sa.ForeignKey("raters.id"), nullable=False, index=True),
        sa.Column("conversation", sa.Text, nullable=False, index=True),
        sa.Column("regenerates", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("propensity", sa.Double, nullable=False),
        sa.Column("prompt", sa.JSON),
        sa.Column("completions", sa.JSON),
        sa.Column("sampling", sa.JSON, nullable=False),
        sa.Column("usage", sa.JSON, nullable=False),
        sa.Column("masked", sa.JSON, nullable=False),
    )
    words = sa.text("prompt IS NOT NULL")
    op.create_index("responses_kept", "responses", ["created_at"], sqlite_where=words, postgresql_where=words)
    op.create_table(
        "opinions",
        sa.Column("response", sa.Text, sa.ForeignKey("responses.id"), primary_key=True),
        sa.Column("event", sa.Text, sa.ForeignKey("events.id"), primary_key=True),
        sa.Column("part", sa.Text, nullable=False),
    )
    op.create_table(
        "signals",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("response", sa.Text, sa.ForeignKey("responses.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )  # fmt: skip
    op.create_table(
        "releases",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False, index=True),
        sa.Column("arms", sa.JSON, nullable=False),
        sa.Column("made_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("restores", sa.Integer),
    )
