"""Every format that people keep their data in, and how a model reads it."""
