"""Language models: one frozen trunk, and the adapters and heads that policy, value and reward put on it."""
