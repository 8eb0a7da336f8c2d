"""Perspective-n-point: the layer, its solvers, a pose among wrong matches, and losses of poses."""
