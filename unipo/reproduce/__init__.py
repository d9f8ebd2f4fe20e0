"""Claims of papers as small experiments: stated, searched, run over seeds, and judged by a rule."""

from unipo.reproduce.claim import Metric, Reproduction

__all__ = ["Metric", "Reproduction"]
