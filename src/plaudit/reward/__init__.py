"""Scorers: what gives a sample its number."""
