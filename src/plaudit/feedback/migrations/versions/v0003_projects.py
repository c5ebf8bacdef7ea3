"""Projects: what is asked of whom, with guidelines, gold and training items, drafts; assignments know theirs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates every table and the columns of assignments."""
    op.create_table(
        "projects",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("task", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("archived", sa.Boolean, nullable=False),
    )
    op.create_table(
        "guidelines",
        sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("texts", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    op.create_table(
        "project_items",
        sa.Column("item", sa.Text, sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("project", sa.Text, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("part", sa.Text, nullable=False),
        sa.Column("answer", sa.JSON),
        sa.Column("queue", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
    )
    op.create_index("project_items_parts", "project_items", ["project", "part", "number"])
    op.create_table(
        "practice",
        sa.Column("rater", sa.Text, sa.ForeignKey("raters.id"), primary_key=True),
        sa.Column("item", sa.Text, sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("payload", sa.JSON, nullable=False),
    )
    op.create_table(
        "drafts",
        sa.Column("rater", sa.Text, sa.ForeignKey("raters.id"), primary_key=True),
        sa.Column("item", sa.Text, sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.add_column("assignments", sa.Column("project", sa.Text))
    op.add_column("assignments", sa.Column("queue", sa.Integer, nullable=False, server_default="0"))
    op.add_column("assignments", sa.Column("priority", sa.Double, nullable=False, server_default="0"))
    op.create_index(
        "assignments_queue", "assignments",
        ["project", "event", "queue", sa.text("priority DESC"), "slot", "id"],
    )  # fmt: skip
    op.create_index("assignments_rater", "assignments", ["rater", "event"])
    op.create_index("events_by_item", "events", ["item"])
    op.create_index("events_by_assignment", "events", ["assignment"])
