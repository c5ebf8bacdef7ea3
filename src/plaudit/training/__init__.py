"""Training: the machine made ready, optimisers, checkpoints, metrics, stop rules."""
