"""The track that the wheels drive, and the pose at its end, computed in Python: what the operator has to come to."""

import math

METERS_PER_TICK = 0.001
WHEEL_DISTANCE = 0.3


def ticks(number: int) -> tuple[int, int]:
    """Of the left and the right wheel, in step `number`."""
    return 10 + number % 3, 10 + number % 5


def pose(steps: int) -> tuple[float, float, float]:
    x = y = heading = 0.0
    for number in range(steps):
        left, right = (count * METERS_PER_TICK for count in ticks(number))
        heading += (right - left) / WHEEL_DISTANCE
        x += (left + right) / 2 * math.cos(heading)
        y += (left + right) / 2 * math.sin(heading)
    return x, y, heading
