"""A custom node: counts in the shared store as fast as it is let, and notes in a file what it has begun and what was
acknowledged. It is killed at any moment, and started again by dora.
"""

import os
import random
import time
from pathlib import Path

from dora import Node

from dora_state import kvs_read, kvs_update, kvs_write

REST_S = 0.001  # after each ten, or four of these would leave no processor for the others
SHARE = 0.01  # of these for the counter that the operators use too: each conflict costs an operator a restart


def increment(value: bytes) -> bytes:
    return b"%d" % (int(value) + 1)


def main() -> None:
    _node = Node()
    name = os.environ["NAME"]
    kvs_write(f"pid/{name}", str(os.getpid()).encode())
    Path("out").mkdir(exist_ok=True)
    ledger = os.open(Path("out", name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    chance = random.Random()
    while kvs_read("stop", default=None) is None:
        for _ in range(10):
            os.write(ledger, b"b")  # begun
            kvs_update("count/nodes", increment, default=b"0")
            os.write(ledger, b"a")  # acknowledged
        if chance.random() < SHARE:
            os.write(ledger, b"B")
            kvs_update("count/all", increment, default=b"0")
            os.write(ledger, b"A")
        time.sleep(REST_S)


main()
