"""Differentiable geometric optimisation: layers whose output is the minimum of a least-squares problem."""
