"""What the second process of a benchmark does: python other_process.py PEER PATH TASK

It opens the store, says `ready`, and for each line `COUNT` that it reads does its task that many times and answers with
the nanoseconds that one took. Tasks: read (hot keys), write (hot keys of its own), write_on (until it is told to stop),
kill (writes a little and is killed, as by a crash).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

import peers

KEYS = 1000
VALUE = bytes(range(100))


def hot_keys(peer: type[peers.Peer], prefix: str = "key") -> list:
    names = [f"{prefix}-{number:012d}" for number in range(KEYS)]
    return names if peer.text_keys else [name.encode() for name in names]


def main(name: str, path: str, task: str) -> None:
    kind = next(peer for peer in peers.PEERS if peer.name == name)
    peer = kind(Path(path))
    if hasattr(peer, "hold"):
        peer.hold()
    keys = hot_keys(kind, "key" if task == "read" else "own")
    get, put = peer.get, peer.put
    print("ready", flush=True)
    if task == "kill":
        for key in keys:
            put(key, VALUE)
        os.kill(os.getpid(), signal.SIGKILL)
    value, other = VALUE, VALUE[::-1]
    while task == "write_on" and not select.select([sys.stdin], [], [], 0)[0]:
        value, other = other, value
        for key in keys:
            put(key, value)
    for line in sys.stdin:
        rounds = int(line) // KEYS
        begin = time.perf_counter_ns()
        if task == "read":
            for _ in range(rounds):
                for key in keys:
                    get(key)
        else:
            for number in range(rounds):
                value = VALUE if number % 2 else VALUE[::-1]
                for key in keys:
                    put(key, value)
        print((time.perf_counter_ns() - begin) / (rounds * KEYS), flush=True)
    peer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
