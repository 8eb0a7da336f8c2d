"""Kernels of quadratic programs."""
