"""Configuration, set-up, the loop, updates, the optimiser, ranks, checkpoints, the run directory."""
