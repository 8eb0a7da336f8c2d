"""Kernels of the bundle."""
