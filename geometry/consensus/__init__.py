"""Hypotheses from samples, choices among them, and gradients through both."""
