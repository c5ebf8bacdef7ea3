"""Alembic migrations of the feedback store; `plaudit.feedback.schema` runs them on opening."""
