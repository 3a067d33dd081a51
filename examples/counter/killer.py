"""Kills the operator's worker with SIGKILL at random moments of the run, and times how long it is away.

Whom to kill it learns from the status that the runtime keeps in the shared store. Of several operators it takes one at
random each time.
"""

import os
import random
import signal
import time
from pathlib import Path

import msgpack
from dora import Node

from dora_state import kvs_write, operator_status

OPERATORS = os.environ.get("COUNTER_OPERATORS", "counter").split()
TICK_S = 0.01
PATIENCE_S = 30.0


def worker_pid(operator: str) -> int:
    """The process that runs the operator now, or 0."""
    status = operator_status(operator)
    return status["worker_pid"] if status else 0


def is_ours(pid: int) -> bool:
    """Whether dora's daemon, our parent, is the grandparent of this process or further up: it is behind a host."""
    ancestors = []
    while pid > 1:
        # The second field is the name in brackets, which may hold anything: look behind the last bracket.
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        ancestors.append(pid)
    return os.getppid() in ancestors[1:]


def kill(operator: str, pid: int) -> bool:
    """Sends SIGKILL to this very process, never to another one that got its number. False: it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not is_ours(pid):
            raise SystemExit(
                f"process {pid} is in the status of {operator} but does not belong to this dataflow"
            )
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except (ProcessLookupError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
    return True


def kill_once(operator: str) -> float:
    """Kills the worker and returns after how many milliseconds the runtime says that its successor is at work."""
    deadline = time.monotonic() + PATIENCE_S
    while not ((victim := worker_pid(operator)) and kill(operator, victim)):
        if time.monotonic() > deadline:
            raise SystemExit(
                f"no worker to kill: the status of {operator} names {victim or 'none'}"
            )
        time.sleep(0.001)
    killed_at = time.monotonic()
    while worker_pid(operator) in (0, victim):
        if time.monotonic() > killed_at + PATIENCE_S:
            raise SystemExit(
                f"worker {victim} was killed and has no successor after {PATIENCE_S:.0f} s"
            )
        time.sleep(0.0005)
    return (time.monotonic() - killed_at) * 1000


def main() -> None:
    kills = int(os.environ.get("COUNTER_KILLS", "20"))
    seconds = float(os.environ.get("COUNTER_SECONDS", "20"))
    seed = int(os.environ.get("COUNTER_SEED") or random.randrange(2**32))
    print(f"{kills} kills in {seconds:g} s, COUNTER_SEED={seed}", flush=True)
    chance = random.Random(seed)
    moments = sorted(chance.uniform(0, 0.95 * seconds) for _ in range(kills))
    restart_ms: list[float] = []
    begin = 0.0  # when the first number came

    kvs_write("counter/restart_ms", msgpack.packb(restart_ms))
    for event in Node():
        if event["type"] == "STOP" or not moments:
            break
        if event["type"] == "INPUT" and event["id"] == "number" and not begin:
            begin = time.monotonic()
        elif begin and time.monotonic() - begin >= moments[0]:
            del moments[0]
            time.sleep(chance.uniform(0, TICK_S))  # or it would keep in step with the source
            restart_ms.append(kill_once(chance.choice(OPERATORS)))
            kvs_write("counter/restart_ms", msgpack.packb(restart_ms))


main()
