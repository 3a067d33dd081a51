"""Sends the measurements at 100 Hz.

It stays until the killer has left, so that every kill falls into the run, and until the sink has seen the last one:
dora 1.1 may lose the last messages of a node that ends right after it sent them.
"""

import pyarrow as pa
import world
from dora import Node

from dora_state import kvs_read, kvs_write


def main() -> None:
    waiting = world.measurements()
    measurement = next(waiting, None)
    killer_is_here = True
    patience_ticks = 10 * world.HERTZ
    kvs_write("tracker/seen", b"0")
    node = Node()
    for event in node:
        if event["type"] == "STOP":
            break
        if event["type"] == "INPUT_CLOSED" and event["id"] == "killer_left":
            killer_is_here = False
        elif event["type"] != "INPUT":
            continue
        elif measurement is not None:
            node.send_output("measurement", pa.array([float(part) for part in measurement]))
            measurement = next(waiting, None)
        elif not killer_is_here:
            patience_ticks -= 1
            if int(kvs_read("tracker/seen")) == world.COUNT or patience_ticks == 0:
                break


main()
