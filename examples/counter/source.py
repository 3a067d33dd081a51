"""Sends 1, 2, 3, ... at 100 Hz and writes into the shared store how many it sent.

It stays until the killer has left, so that every kill falls into the run and none into the stop, and until the sink has
seen the last number: dora 1.1 may lose the last messages of a node that ends right after it sent them.
"""

import os

import pyarrow as pa
from dora import Node

from dora_state import kvs_read, kvs_write

HERTZ = 100
PATIENCE_TICKS = 10 * HERTZ  # for the sink; what has not come by then is lost


def main() -> None:
    wanted = round(float(os.environ.get("COUNTER_SECONDS", "20")) * HERTZ)
    sent = waited = 0
    killer_is_here = True
    kvs_write("counter/sent", b"0")
    kvs_write("counter/seen", b"0")
    node = Node()
    for event in node:
        if event["type"] == "STOP":
            break
        if event["type"] == "INPUT_CLOSED" and event["id"] == "killer_left":
            killer_is_here = False
        elif event["type"] == "INPUT" and sent < wanted:
            sent += 1
            node.send_output("number", pa.array([sent]))
        elif sent == wanted and not killer_is_here:
            waited += 1
            if int(kvs_read("counter/seen")) == sent or waited == PATIENCE_TICKS:
                break
    kvs_write("counter/sent", str(sent).encode())


main()
