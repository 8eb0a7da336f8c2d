"""Experiment drivers: `python -m experiments` lists them, `python -m experiments.NAME PRESET` runs one.

The folders beside them hold what drivers share.
"""
