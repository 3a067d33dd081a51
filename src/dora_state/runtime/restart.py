"""One restart, from the death of a worker to the first event that its successor has handled."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from dora_state.runtime.handle import Worker
from dora_state.runtime.inputs import Event
from dora_state.runtime.status import Account

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


class Restarts:
    """Tells of them in the log and in the account; at most one is under way.

    Args:
        publish: the account has changed.
    """

    def __init__(self, node_id: str, account: Account, publish: Callable[[], None]) -> None:
        self._node_id = node_id
        self._account = account
        self._publish = publish
        self._restart: Restart | None = None

    def note_crash(self, dead: Worker, replay: Event | None) -> None:
        if replay is None or dead.begun != replay.number:
            self._account.take_crash(dead, None, 0)
        else:
            self._account.replayed += 1
            self._account.take_crash(dead, replay.number, replay.attempt - 1)

    def begin(self, dead: Worker, replay: Event | None) -> None:
        self._tell_last()  # nobody could tell its reason in time
        assert dead.noticed_end is not None
        self._restart = Restart(dead, dead.noticed_end)
        if replay is not None:
            self._restart.number = replay.number
            self._restart.attempt = replay.attempt

    def finish(self, successor: Worker) -> None:
        """The first event after a restart is handled, or it is ready and there is none."""
        restart = self._restart
        if restart is None or restart.successor is not None:
            return
        restart.finish(successor, time.monotonic())
        self._account.restart_ms.append(restart.took_ms)
        self._publish()
        self.on_reaped(restart.dead)

    def on_reaped(self, dead: Worker) -> None:
        """How a worker ended is known now, which may be before or after the restart is over."""
        if self._account.take_end(dead):
            self._publish()
        restart = self._restart
        if restart is not None and restart.dead is dead and restart.is_told_completely:
            self._tell_last()

    def end(self) -> None:
        """No more will come."""
        self._tell_last()

    def _tell_last(self) -> None:
        if self._restart is not None and self._restart.successor is not None:
            self._restart.log(self._node_id)
            self._restart = None
