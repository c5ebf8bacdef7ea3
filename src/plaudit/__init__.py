"""Plaudit: from a person's rating to a better language model, and round again."""

__version__ = "0.1.0"
