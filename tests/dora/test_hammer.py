"""Two operators and four custom nodes count on one key of the shared store, and all of them are killed meanwhile."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import dataflows

from dora_state import Store
from dora_state.runtime import killpoint, status

OPERATORS = ("op-a", "op-b")
NODES = ("node-1", "node-2", "node-3", "node-4")
KILLS = {**dict.fromkeys(OPERATORS, 6), **dict.fromkeys(NODES, 2)}
PATIENCE_S = 60
# A kill at random hardly ever hits between two commits; these are there.
POINTS = ",".join(
    f"{point}@{number}"
    for point, number in zip(
        ("before-commit", *killpoint.SHARED_POINTS) * 2, range(8, 80, 8), strict=False
    )
)

OPERATOR = """
import os
from dora import DoraStatus
from dora_state import kvs_read, kvs_update, save_state

class Operator:
    shared_writes = "commit"

    def __init__(self):
        self.count = 0

    def restore_state(self, state):
        self.count = int(state["count"])

    def on_event(self, event, send_output):
        if event["type"] != "INPUT":
            return DoraStatus.CONTINUE
        if kvs_read("stop", None):
            return DoraStatus.STOP
        self.count += 1
        save_state("count", str(self.count).encode())
        for key in ("by/" + os.environ["NAME"], "pieces"):
            kvs_update(key, lambda old: str(int(old) + 1).encode(), default=b"0")
        return DoraStatus.CONTINUE
"""
NODE = """
import os
from dora import Node
from dora_state import kvs_read, kvs_update, kvs_write

name = os.environ["NAME"]
begun, done = (int(kvs_read(f"{what}/{name}", b"0")) for what in ("begun", "done"))
kvs_write(f"pid/{name}", str(os.getpid()).encode())
for event in Node():
    if event["type"] == "STOP" or kvs_read("stop", None):
        break
    if event["type"] == "INPUT":
        begun += 1
        kvs_write(f"begun/{name}", str(begun).encode())
        kvs_update("pieces", lambda old: str(int(old) + 1).encode(), default=b"0")
        done += 1
        kvs_write(f"done/{name}", str(done).encode())
"""


def dataflow() -> str:
    lines = ["nodes:"]
    for name in OPERATORS + NODES:
        how = (
            "dora-state, args: run op.py"
            if name in OPERATORS
            else "node.py, restart_policy: on-failure"
        )
        lines.append(
            f"  - {{id: {name}, path: {how}, env: {{NAME: {name}, DORA_STATE_KILL: '{POINTS}'}},"
            " inputs: {tick: {source: dora/timer/millis/10, queue_size: 1000}}}"
        )
    return "\n".join(lines)


def number(store: Store, key: str) -> int:
    return int(store.get(key, b"0"))


def pid_of(store: Store, name: str) -> int:
    """Of who counts under that name now; 0: nobody."""
    if name in NODES:
        return number(store, f"pid/{name}")
    said = status.read(store, name)
    return said["worker_pid"] if said and said["state"] == "running" else 0


def progress(store: Store, name: str) -> int:
    return number(store, f"done/{name}" if name in NODES else f"by/{name}")


def kill_all(store: Store) -> None:
    """Each as often as KILLS says, at random moments, but only when it has got on since the last time."""
    chance, left = random.Random(5), dict(KILLS)
    last = dict.fromkeys(KILLS, (0, 0))  # pid, and how far it was
    deadline = time.monotonic() + PATIENCE_S
    while left:
        assert time.monotonic() < deadline, f"they do not go on: {left}, {last}"
        time.sleep(chance.uniform(0, 0.02))
        for name in list(left):
            pid, at = pid_of(store, name), progress(store, name)
            if not pid or pid == last[name][0] or at < last[name][1] + 5:
                continue
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            last[name] = pid, at
            left[name] -= 1
            if not left[name]:
                del left[name]


def wait_further(store: Store) -> None:
    before = {name: progress(store, name) for name in KILLS}
    deadline = time.monotonic() + PATIENCE_S
    while any(progress(store, name) < at + 5 for name, at in before.items()):
        assert time.monotonic() < deadline, "somebody does not go on"
        time.sleep(0.01)


def test_counts_are_exact_for_operators_and_bounded_for_nodes_that_were_killed(flow):
    (flow / "dataflow.yml").write_text(dataflow())
    (flow / "op.py").write_text(OPERATOR)
    (flow / "node.py").write_text(NODE)
    shared = flow / "state" / "shared"
    with dataflows.start(flow) as running:
        wait_for(shared / "control")
        with Store(shared) as store:
            kill_all(store)
            wait_further(store)
            store["stop"] = b"1"
            log, _ = running.communicate(timeout=PATIENCE_S)
            counts = {name: number(store, f"by/{name}") for name in OPERATORS}
            acknowledged = sum(number(store, f"done/{name}") for name in NODES)
            begun = sum(number(store, f"begun/{name}") for name in NODES)
            pieces = number(store, "pieces")
            told = {name: status.read(store, name) for name in OPERATORS}
    for name, count in counts.items():
        with Store(flow / "state" / name) as private:
            assert count == number(private, "count"), f"the two stores of {name} disagree\n{log}"
        # A kill may hit a worker that is just ending by a conflict.
        assert told[name]["restarts"] + told[name]["conflicts"] >= KILLS[name]
    assert acknowledged <= begun <= acknowledged + sum(KILLS[name] for name in NODES)
    assert acknowledged <= pieces - sum(counts.values()) <= begun, log


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
