"""Sends EVENTS numbers at 100 Hz to both operators. When all is counted and the killer has left, it stops the nodes."""

import os

import pyarrow as pa
from dora import Node

from dora_state import kvs_read, kvs_write

EVENTS = int(os.environ.get("EVENTS", "500"))
PATIENCE_TICKS = 3000  # for what is not counted by then


def main() -> None:
    sent = waited = 0
    killer_is_here = True
    node = Node()
    for event in node:
        if event["type"] == "STOP":
            break
        if event["type"] == "INPUT_CLOSED" and event["id"] == "killer_left":
            killer_is_here = False
        elif event["type"] == "INPUT" and sent < EVENTS:
            sent += 1
            node.send_output("number", pa.array([sent]))
        elif sent == EVENTS and not killer_is_here:
            waited += 1
            if (
                int(kvs_read("count/operators", default=b"0")) >= 2 * sent
                or waited == PATIENCE_TICKS
            ):
                break
    kvs_write("stop", b"")


main()
