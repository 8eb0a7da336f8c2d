"""Drivers of the geometry tasks of `geometry.tasks`, one file each: python -m experiments.tasks.homography default."""
