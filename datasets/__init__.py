"""Data as tensors: loaders of real formats and synthetic scenes. Everything is float64, on the CPU.

A loader raises FileNotFoundError for a path that does not exist, and, for a file it cannot trust, ValueError
naming the file, the place in it, what was wanted and what was found.
"""
