"""Seeing a run: what it wrote, as a page, over a local server and in the terminal. Nothing here loads a model."""
