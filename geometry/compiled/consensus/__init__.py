"""Kernels of RANSAC."""
