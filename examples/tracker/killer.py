"""Kills the tracker's process with SIGKILL at random moments of the run, and waits each time for its successor."""

import os
import random
import signal
import time
from pathlib import Path

import world
from dora import Node

from dora_state import kvs_write, operator_status

KILLS = int(os.environ.get("TRACKER_KILLS", "20"))
PATIENCE_S = 30.0


def worker(other_than: int = 0) -> int:
    """The process that runs the operator now. Asks our host's status, in the shared store of this dataflow."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        status = operator_status("tracker")
        if status and status["state"] == "running" and status["worker_pid"] not in (0, other_than):
            return status["worker_pid"]
        time.sleep(0.001)
    raise SystemExit(f"the tracker is not running after {PATIENCE_S:.0f} s")


def kill(victim: int) -> None:
    """SIGKILL, to a process of this dataflow only: the store may still name one of a run that was killed."""
    descriptor = os.pidfd_open(victim)
    try:
        ancestors, pid = set(), victim
        while pid > 1:
            # The second field is the name in brackets, which may hold anything: look behind the last bracket.
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            ancestors.add(pid)
        if os.getppid() not in ancestors:
            raise SystemExit(f"process {victim} does not belong to this dataflow")
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)


def main() -> None:
    chance = random.Random(world.SEED)
    length_s = 0.9 * world.COUNT / world.HERTZ
    moments = sorted(chance.uniform(0, length_s) for _ in range(KILLS))
    kills, begin = 0, 0.0
    kvs_write("tracker/kills", b"0")
    for event in Node():
        if event["type"] == "STOP" or not moments:
            break
        if event["type"] != "INPUT":
            continue
        if not begin:
            worker()  # it has begun
            begin = time.monotonic()
        elif time.monotonic() - begin >= moments[0]:
            del moments[0]
            time.sleep(chance.uniform(0, 0.01))  # or it would keep in step with the source
            victim = worker()
            kill(victim)
            worker(other_than=victim)
            kills += 1
            kvs_write("tracker/kills", str(kills).encode())


main()
