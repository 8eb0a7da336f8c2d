"""Kernels of PnP."""
