"""Held-out accuracy, estimators and intervals, paired comparison, statistics over seeds."""
