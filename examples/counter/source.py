"""Sends 1, 2, 3, ... at 100 Hz and writes into the shared store how many it sent.

It stays until the killer has left, so that every kill falls into the run and none into the stop.
"""

import os

import pyarrow as pa
from dora import Node

from dora_state import kvs_write

HERTZ = 100
# First come zeros, which change no total. While a dataflow starts, dora 1.1 moves its routes from the daemon to direct
# connections and loses what is sent meanwhile (1 to 14 messages in one start of six, all within 0.2 s of a
# route's first message). That loss is not ours to count.
ZEROS = 2 * HERTZ


def main() -> None:
    wanted = round(float(os.environ.get("COUNTER_SECONDS", "20")) * HERTZ)
    ticks = sent = 0
    killer_is_here = True
    kvs_write("counter/sent", b"0")
    node = Node()
    for event in node:
        if event["type"] == "INPUT" and sent < wanted:
            ticks += 1
            sent = max(0, ticks - ZEROS)
            node.send_output("number", pa.array([sent]))
        elif event["type"] == "INPUT_CLOSED" and event["id"] == "killer_left":
            killer_is_here = False
        if event["type"] == "STOP" or (sent == wanted and not killer_is_here):
            break
    kvs_write("counter/sent", str(sent).encode())


main()
