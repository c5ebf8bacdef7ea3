"""What waits in a queue, indexed alone and in its order, so that PostgreSQL walks it; and what a rater holds."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the two indexes anew."""
    op.drop_index("assignments_queue", "assignments")
    waiting = sa.text("event IS NULL")
    op.create_index(
        "assignments_queue", "assignments", ["project", "queue", sa.text("priority DESC"), "slot", "id"],
        sqlite_where=waiting, postgresql_where=waiting,
    )  # fmt: skip
    op.drop_index("assignments_rater", "assignments")
    op.create_index("assignments_rater", "assignments", ["rater", "project", "event"])
