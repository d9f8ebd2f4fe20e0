"""Prompts, answers and responses from files, the hub or a generator; the only place where text becomes tokens."""
