"""Runs the same filter on the same measurements without being killed, and compares every track bit by bit.

Ends with one line; exit code 1 if anything was lost, came twice, or differs, or if nobody was killed.
"""

import sys

import numpy as np
import world
from dora import Node
from tracker import Operator

from dora_state import kvs_read, kvs_write


def reference() -> list[bytes]:
    """The track after each measurement, of an operator that lives for ever."""
    unkilled = Operator()
    return [
        unkilled.track(target, np.array(measured)).tobytes()
        for _, target, *measured in world.measurements()
    ]


def main() -> int:
    right = reference()
    seen: list[int] = []
    different = 0
    for event in Node():
        if event["type"] == "INPUT":
            number, _, count, *track = event["value"].to_numpy()
            seen.append(int(number))
            different += np.array(track).tobytes() != right[int(number)] or count != number + 1
            kvs_write("tracker/seen", str(len(seen)).encode())
    lost = len(right) - len(set(seen))
    twice = len(seen) - len(set(seen))
    kills = int(kvs_read("tracker/kills", default=b"0"))
    is_good = right and kills and not (lost or twice or different) and seen == sorted(seen)
    print(
        f"measurements {len(right)}, kills {kills}, lost {lost}, twice {twice}, different {different}: "
        f"{'every track is bit-identical' if is_good else 'NOT the same'}",
        flush=True,
    )
    return 0 if is_good else 1


sys.exit(main())
