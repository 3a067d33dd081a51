"""Kills operators and custom nodes in turn, KILLS times, at random moments."""

import os
import random
import signal
import time
from pathlib import Path

from dora import Node

from dora_state import kvs_read, kvs_write, operator_status

KILLS = int(os.environ.get("KILLS", "24"))
SEED = int(os.environ.get("SEED") or random.randrange(2**32))
PAUSE_S = 0.3  # at most, between two kills
NODES = [f"node-{i}" for i in range(1, 5)]
OPERATORS = ["left", "right"]


def pid_of(name: str) -> int:
    """The process that is this operator or node now, or 0."""
    if name in OPERATORS:
        status = operator_status(name)
        return status["worker_pid"] if status else 0
    return int(kvs_read(f"pid/{name}", default=b"0"))


def is_ours(pid: int) -> bool:
    """Whether dora's daemon, our parent, is above this process."""
    while pid > 1:
        # The second field is the name in brackets, which may hold anything: look behind the last bracket.
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if pid == os.getppid():
            return True
    return False


def kill(name: str) -> bool:
    """Sends SIGKILL to this very process, never to another one that got its number. False: it is not there."""
    try:
        descriptor = os.pidfd_open(pid_of(name) or 2**22)
    except (ProcessLookupError, OSError):
        return False
    try:
        if not is_ours(pid_of(name)):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True
    except (ProcessLookupError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)


def main() -> None:
    print(f"{KILLS} kills, SEED={SEED}", flush=True)
    chance = random.Random(SEED)
    victims = [(OPERATORS + NODES)[i % 6] for i in range(KILLS)]
    chance.shuffle(victims)
    killed = {name: 0 for name in OPERATORS + NODES}  # the last process of it that was killed
    kvs_write("kills", b"0")
    next_at = time.monotonic()
    for event in Node():
        if event["type"] == "STOP" or not victims:
            break
        name = victims[0]
        # Each of them lives again before it is killed again.
        if time.monotonic() >= next_at and pid_of(name) not in (0, killed[name]):
            killed[name] = pid_of(name)
            if kill(name):
                del victims[0]
                kvs_write("kills", b"%d" % (KILLS - len(victims)))
            next_at = time.monotonic() + chance.uniform(0, PAUSE_S)


main()
