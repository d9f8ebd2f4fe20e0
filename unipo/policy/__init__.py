"""The model: packed forward passes with shared prompts, log-probabilities without logits, loading and storing."""
