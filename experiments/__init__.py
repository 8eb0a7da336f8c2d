"""Experiment drivers: `python -m experiments.NAME PRESET`. The folders beside them hold what drivers share."""
