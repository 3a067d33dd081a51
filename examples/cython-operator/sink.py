"""Kills the operator now and then, and checks that its poses are those of a run without a crash."""

import os
import random
import signal
import struct

import track
from dora import Node

from dora_state import kvs_read, operator_status

STEPS = int(os.environ.get("STEPS", "500"))
kills = sorted(random.sample(range(1, STEPS), int(os.environ.get("KILLS", "5"))))
victims: list[int] = []
seen = 0
node = Node()
for event in node:
    if event["type"] != "INPUT":
        continue
    seen += 1
    count, *pose = struct.unpack("<Qddd", bytes(event["value"].to_pylist()))
    if count != seen or pose != list(track.pose(count)):
        raise SystemExit(f"pose {count} of step {seen} is {pose}, not {track.pose(seen)}")
    if struct.unpack("<Q", kvs_read("odometry/pose")[:8])[0] < count:
        raise SystemExit(f"pose {count} has arrived and is not yet in the shared store")
    worker = operator_status("odometry")["worker_pid"]
    if (
        kills and seen >= kills[0] and worker not in (0, *victims)
    ):  # else it is down from the last time
        del kills[0]
        victims.append(worker)
        os.kill(worker, signal.SIGKILL)
    if seen == STEPS:
        print(f"steps {seen}, kills {len(victims)}, lost 0, twice 0", flush=True)
        node.send_output("done", b"")
        break
