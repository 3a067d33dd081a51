"""The operator: one Kalman filter for each target. It may be killed at any moment.

Nothing here saves or restores. The fields are saved when they have changed, also in place, and are what they were
when a successor goes on.
"""

import kalman
import numpy as np
import pyarrow as pa
from dora import DoraStatus

from dora_state import state


class Operator:
    measurements: int = state(0)
    means: dict[int, np.ndarray] = state(
        {}, keyed=True
    )  # of a target: (4,), x, y in m, velocities in m/s
    covariances: dict[int, np.ndarray] = state({}, keyed=True)  # (4, 4)

    def on_event(self, event, send_output):
        if event["type"] == "INPUT":
            number, target, *measured = event["value"].to_numpy()
            track = self.track(int(target), np.array(measured))
            send_output("track", pa.array([number, target, self.measurements, *track]))
        return DoraStatus.CONTINUE

    def track(self, target, measured):
        """Take in a measurement; returns mean and covariance as 20 numbers."""
        self.measurements += 1
        if target in self.means:
            kalman.update(self.means[target], self.covariances[target], measured)
        else:
            self.means[target], self.covariances[target] = kalman.begin(measured)
        return np.concatenate([self.means[target], self.covariances[target].ravel()])
