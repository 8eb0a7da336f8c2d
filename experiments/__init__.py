"""Experiment drivers: `python -m experiments.<name> <preset>`. The folders beside them hold what they share, by family."""
