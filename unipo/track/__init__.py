"""Trackers: where else a run's numbers are shown. The run directory has them all, with or without any of these."""
