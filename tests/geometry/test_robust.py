import math

import numpy as np
import pytest
import torch
from scipy.optimize._lsq import least_squares as scipy_losses
from torch import Tensor

from geometry.robust import Kernel, cauchy, geman_mcclure, huber, kernel_derivatives
