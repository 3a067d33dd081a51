"""The status of an operator, for everybody: one record for each node in the dataflow's shared store.

    keyspace   RUNTIME, which no user key can collide with
    key        "status/<node id>"
    value      a msgpack map; docs/runtime.md has its fields

The host writes it after every start, crash, restart and end, never for a single event. Any process
reads it, without the host: `read` and `read_all` take an open store, `dora_state.operator_status`
finds the shared store by itself. `Account` is what a host counts for it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

import msgpack

from dora_state._core import RUNTIME, Store
from dora_state.runtime.handle import Worker

KEY_PREFIX = "status/"
VERSION = 1
RESTART_TIMES_KEPT = 1000
# Upper bounds in milliseconds of the buckets of the restore histogram; what takes longer is in a last one.
RESTORE_BOUNDS_MS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)


def write(store: Store, node_id: str, record: dict[str, Any]) -> None:
    """Replace the record of a node."""
    batch = store._batch()
    batch.put(KEY_PREFIX + node_id, msgpack.packb(record), keyspace=RUNTIME)
    batch.commit()


def read(store: Store, node_id: str) -> dict[str, Any] | None:
    """The record of a node; None if it never wrote one."""
    found = store._get(RUNTIME, KEY_PREFIX + node_id)
    return _unpack(found[0]) if found is not None else None


def read_all(store: Store) -> dict[str, dict[str, Any]]:
    """The records of all nodes, by node id, as of one point."""
    return {
        key.removeprefix(KEY_PREFIX): _unpack(value)
        for key, value, _ in store._scan(RUNTIME)
        if key.startswith(KEY_PREFIX)
    }


def _unpack(data: bytes) -> dict[str, Any]:
    record: dict[str, Any] = msgpack.unpackb(data)
    return record


class Account:
    """What is counted and remembered of an operator since its host started."""

    def __init__(self) -> None:
        self.since = time.time()
        self.restarts = 0
        self.replayed = 0  # events handed out again
        self.unreplayed = 0  # outputs sent outside of a handler
        self.conflicts = 0  # handlers run again because the shared store had changed under them
        self.restart_ms: deque[float] = deque(maxlen=RESTART_TIMES_KEPT)
        self.restore_counts = [0] * (len(RESTORE_BOUNDS_MS) + 1)
        self.last_rollback: dict[str, Any] | None = None
        self.last_crash: dict[str, Any] | None = None
        self._crashed: Worker | None = None

    def take_crash(self, dead: Worker, event: int | None, attempt: int) -> None:
        """Note a death, and the event that was with the worker, if its end left that undecided."""
        self._crashed = dead
        self.last_crash = {
            "time": time.time(),
            "incarnation": dead.incarnation,
            "event": event,
            "attempt": attempt,
            "phase": None,
            "error": None,
            "traceback": None,
            "signal": None,
            "exit_code": None,
        }
        self._describe_crash()

    def take_end(self, dead: Worker) -> bool:
        """How a worker ended is known now, possibly later than its death. True: that is news."""
        if dead is not self._crashed:
            return False
        self._describe_crash()
        return True

    def _describe_crash(self) -> None:
        dead, crash = self._crashed, self.last_crash
        assert dead is not None
        assert crash is not None
        crash["reason"] = dead.describe_end()
        if dead.failure is not None:
            crash.update(dead.failure)
        elif dead.wait_status is not None:
            if os.WIFSIGNALED(dead.wait_status):
                crash["signal"] = os.WTERMSIG(dead.wait_status)
            else:
                crash["exit_code"] = os.waitstatus_to_exitcode(dead.wait_status)

    def take_ready(self, ready: dict[str, Any]) -> None:
        """An operator is built; if it had state to restore, count how long that took."""
        if not ready.get("restored_keys"):
            return
        took = ready["restore_ms"]
        bucket = sum(took > bound for bound in RESTORE_BOUNDS_MS)
        self.restore_counts[bucket] += 1

    def as_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "since": self.since,
            "updated": time.time(),
            "host_pid": os.getpid(),
            "restarts": self.restarts,
            "restart_ms": list(self.restart_ms),
            "restore_ms": [
                [bound, count]
                for bound, count in zip(
                    (*RESTORE_BOUNDS_MS, None), self.restore_counts, strict=True
                )
            ],
            "replayed": self.replayed,
            "last_rollback": self.last_rollback,
            "unreplayed": self.unreplayed,
            "conflicts": self.conflicts,
            "last_crash": dict(self.last_crash) if self.last_crash is not None else None,
        }
