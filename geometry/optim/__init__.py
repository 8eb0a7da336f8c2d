"""Nonlinear least squares and quadratic programs: problems, solutions, their gradients and covariances."""
