"""Ours and a peer side by side on the same weights, prompts and lengths. `python -m benchmarks NAME` runs it."""
