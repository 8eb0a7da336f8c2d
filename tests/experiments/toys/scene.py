"""What the learners of the toys' tests are given."""

import torch


class Place:
    """As much of a Run as a learner looks at."""

    device, dtype = torch.device("cpu"), torch.float64
