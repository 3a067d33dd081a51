"""Three targets on ellipses and a sensor with noise. The same seed gives the same measurements, to the last bit."""

import math
import os
import random
from collections.abc import Iterator

HERTZ = 100
TARGETS = 3
SEED = int(os.environ.get("TRACKER_SEED", "7"))
COUNT = round(float(os.environ.get("TRACKER_SECONDS", "20")) * HERTZ)


def measurements() -> Iterator[tuple[int, int, float, float]]:
    """Number, target, and where it was seen, in m."""
    chance = random.Random(SEED)
    for number in range(COUNT):
        target, time_s = number % TARGETS, number / HERTZ
        angle = time_s * (0.5 + 0.2 * target)
        x, y = (3 + target) * math.cos(angle), 2 * math.sin(angle)
        yield number, target, x + chance.gauss(0, 0.05), y + chance.gauss(0, 0.05)
