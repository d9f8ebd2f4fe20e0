"""Methods side by side: the same starting weights, evaluation prompts and budget, several seeds, intervals."""
