"""A Kalman filter for a target that moves in a plane at a nearly constant velocity."""

import numpy as np

STEP_S = 0.03  # between two measurements of a target
# The state is x, y in m and their velocities in m/s.
TRANSITION = np.array([[1, 0, STEP_S, 0], [0, 1, 0, STEP_S], [0, 0, 1, 0], [0, 0, 0, 1.0]])
OBSERVATION = np.array([[1, 0, 0, 0], [0, 1, 0, 0.0]])
_GUST = np.array([[STEP_S**2 / 2, 0], [0, STEP_S**2 / 2], [STEP_S, 0], [0, STEP_S]])
PROCESS_NOISE = _GUST @ _GUST.T * 4.0  # an acceleration of 2 m/s2
MEASUREMENT_NOISE = np.eye(2) * 0.05**2  # m2


def begin(measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (4,) and covariance (4, 4) of a target that was seen once, at `measured` (2,)."""
    return np.array([*measured, 0.0, 0.0]), np.diag([0.05**2, 0.05**2, 9.0, 9.0])


def update(mean: np.ndarray, covariance: np.ndarray, measured: np.ndarray) -> None:
    """Predict one step and take in a measurement (2,); changes mean and covariance in place."""
    mean[:] = TRANSITION @ mean
    covariance[:] = TRANSITION @ covariance @ TRANSITION.T + PROCESS_NOISE
    spread = OBSERVATION @ covariance @ OBSERVATION.T + MEASUREMENT_NOISE
    gain = np.linalg.solve(spread, OBSERVATION @ covariance).T
    mean += gain @ (measured - OBSERVATION @ mean)
    covariance -= gain @ spread @ gain.T
