"""What a project's items have their ids from beside their content; in which order a rater was given what they hold."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the two columns; projects that there are go on without a salt, so that their items stay the same."""
    op.add_column("projects", sa.Column("salt", sa.Text))
    op.add_column("assignments", sa.Column("given", sa.Integer, nullable=False, server_default="0"))
