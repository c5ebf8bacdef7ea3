"""What a worker computes: jobs, and the scores and vectors that it writes."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates every table."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("arguments", sa.JSON, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("asked_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("lease", sa.Double),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("result", sa.JSON),
    )
    op.create_index("jobs_state", "jobs", ["state", "id"])
    for name, value in (
        ("scores", (sa.Column("mean", sa.Double, nullable=False), sa.Column("deviation", sa.Double))),
        ("vectors", (sa.Column("floats", sa.LargeBinary, nullable=False),)),
    ):
        op.create_table(
            name,
            sa.Column("item", sa.Text, sa.ForeignKey("items.id"), primary_key=True),
            sa.Column("completion", sa.Integer, primary_key=True),
            sa.Column("model", sa.Text, primary_key=True),
            *value,
        )
