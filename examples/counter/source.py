"""Sends 1, 2, 3, ... at 100 Hz and writes into the shared store how many it sent.

It stays until the killer has left, so that every kill falls into the run and none into the stop.
"""

import os

import pyarrow as pa
from dora import Node

from dora_state import kvs_write

HERTZ = 100


def main() -> None:
    wanted = round(float(os.environ.get("COUNTER_SECONDS", "20")) * HERTZ)
    sent = 0
    killer_is_here = True
    kvs_write("counter/sent", b"0")
    node = Node()
    for event in node:
        if event["type"] == "INPUT" and sent < wanted:
            sent += 1
            node.send_output("number", pa.array([sent]))
        elif event["type"] == "INPUT_CLOSED" and event["id"] == "killer_left":
            killer_is_here = False
        if event["type"] == "STOP" or (sent == wanted and not killer_is_here):
            break
    kvs_write("counter/sent", str(sent).encode())


main()
