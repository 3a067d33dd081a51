"""One restart, from the death of a worker to the first event that its successor has handled."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from dora_state.runtime.workers import Worker

log = logging.getLogger("dora_state.supervisor")


@dataclass
class Restart:
    """What is told about a restart. Its time and its reason become known in either order."""

    dead: Worker
    died: float  # when the host noticed, by time.monotonic()
    number: int | None = None  # of the event that is handled again
    attempt: int = 1
    successor: Worker | None = None  # set when the restart is over
    took_ms: float = 0.0

    def finish(self, successor: Worker, now: float) -> None:
        self.successor = successor
        self.took_ms = (now - self.died) * 1e3

    @property
    def is_told_completely(self) -> bool:
        return self.successor is not None and self.dead.end_is_known

    def log(self, node_id: str) -> None:
        """One line of name=value pairs, also attached to the record as `dora_state`."""
        assert self.successor is not None
        ready = self.successor.ready
        fields = {
            "node": node_id,
            "reason": self.dead.describe_end(),
            "incarnation": self.successor.incarnation,
            "restored_keys": ready.get("restored_keys", 0),
            "replayed": self.number,
            "attempt": self.attempt,
            "restart_ms": round(self.took_ms, 3),
            "init_ms": round(ready.get("init_ms", 0.0), 3),
            "restore_ms": round(ready.get("restore_ms", 0.0), 3),
        }
        text = " ".join(f"{name}={content!r}" for name, content in fields.items())
        log.warning("operator restarted: %s", text, extra={"dora_state": fields})
