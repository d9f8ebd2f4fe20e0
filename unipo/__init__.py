"""unipo: policy optimisation for language models, every method made of the same small parts."""

from __future__ import annotations

__version__ = "0.1.0"
