"""What `dora-state run` is given: a Python file with the class Operator."""

from fast_odometry import Operator

__all__ = ["Operator"]
