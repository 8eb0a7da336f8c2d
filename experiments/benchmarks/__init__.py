"""Drivers that measure speed and memory beside other libraries; `python -m experiments.benchmarks.NAME`."""
