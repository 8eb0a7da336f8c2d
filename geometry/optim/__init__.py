"""Nonlinear least squares and quadratic programs: problems, solutions, their gradients and covariances.

problem      Problem: one instance, written once           solution     Solution, Status
descent      minimize: batched Levenberg-Marquardt         adjoint      argmin: x differentiable in the data
transforms   the implicit gradient of all solvers
captured     what a residual may not take from around it
uncertainty  covariance                                    linear       solve_spd, the rule of what is singular
nested       outer unknowns, inner ones at their argmin    constrained  linear equations beside a cost
quadratic, equations, interior_point, eliminated           quadratic_program: a QP layer, in tensors and compiled
"""

from geometry.optim.adjoint import Gradient, argmin, attach_gradient, stop_gradient_where
from geometry.optim.captured import constant
from geometry.optim.constrained import Constrained
from geometry.optim.descent import (
    Descent,
    ExactSystem,
    Newton,
    System,
    begin,
    descend,
    levenberg_marquardt,
    minimize,
    polish,
    trial,
)
from geometry.optim.linear import (
    ADJOINT,
    FEIGNED,
    chain_of_blocks,
    damped_step,
    margin,
    share,
    share_by_solving,
    share_of_factor,
    solve_spd,
)
from geometry.optim.nested import NestedProblem, NestedState, nested_start, nested_step
from geometry.optim.problem import (
    Linearization,
    Problem,
    Program,
    batch_data,
    exact_hessian,
    jacobian,
    linearize,
    map_state,
    select,
)
from geometry.optim.quadratic import QuadraticProgram, quadratic_program
from geometry.optim.solution import ConstrainedSolution, Solution, SolverError, State, Status
from geometry.optim.transforms import (
    Batch,
    Equation,
    along,
    forward_mode,
    implicit,
    opaque,
    primals,
    solved,
    transpose,
)
from geometry.optim.uncertainty import covariance, laplace, score_variance

__all__ = [
    "ADJOINT",
    "Batch",
    "FEIGNED",
    "Constrained",
    "ConstrainedSolution",
    "Descent",
    "Equation",
    "ExactSystem",
    "Gradient",
    "Linearization",
    "NestedProblem",
    "NestedState",
    "Newton",
    "Problem",
    "Program",
    "QuadraticProgram",
    "Solution",
    "SolverError",
    "State",
    "Status",
    "System",
    "along",
    "argmin",
    "attach_gradient",
    "batch_data",
    "begin",
    "chain_of_blocks",
    "constant",
    "covariance",
    "damped_step",
    "descend",
    "exact_hessian",
    "forward_mode",
    "implicit",
    "jacobian",
    "laplace",
    "levenberg_marquardt",
    "linearize",
    "map_state",
    "margin",
    "minimize",
    "nested_start",
    "nested_step",
    "opaque",
    "polish",
    "primals",
    "quadratic_program",
    "score_variance",
    "select",
    "share",
    "share_by_solving",
    "share_of_factor",
    "solve_spd",
    "solved",
    "stop_gradient_where",
    "transpose",
    "trial",
]
