"""Generation: what an engine is, and the one that samples with the policy itself."""
