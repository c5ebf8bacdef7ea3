"""Measures of models and rewards, and the report that shows them."""
