"""Geometry tasks: each file a `Problem` of at most thirty lines, and a call that starts, solves and differentiates it.

The first line of each says what it is of. A task of yours is one more file (`python -m experiments.new my_task` writes
its beginning); nothing lists them.
"""
