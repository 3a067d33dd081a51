"""Sends wheel ticks, STEPS times, and stays until the sink has seen all."""

import os

import pyarrow as pa
import track
from dora import Node

STEPS = int(os.environ.get("STEPS", "500"))
sent = 0
node = Node()
for event in node:
    if event["type"] in ("STOP", "INPUT_CLOSED") or event["id"] == "sink_done":
        break
    if event["type"] == "INPUT" and sent < STEPS:
        node.send_output("ticks", pa.array(track.ticks(sent)))
        sent += 1
