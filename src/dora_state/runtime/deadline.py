"""Hangs: how long an operator may take for its start, its restore, a reload and each event, and what is done then.

A deadline that passes is told once in the log. For a phase in `kill_hung` the worker is also killed,
in two steps, so that the log shows where it hung:

    SIGABRT    faulthandler prints the stacks of all threads, even if one holds the GIL for ever
    SIGKILL    when that has not ended it after ABORT_S, as it is stopped or ignores the signal, or when it goes on

A reload has the deadline of a start. Its new code is interrupted first (reload.py): the old object then goes on.
It is killed like the others when it is there still after ABORT_S.

Every output restarts the deadline: a handler that sends is alive.
"""

from __future__ import annotations

import logging
import signal
import time

from dora_state.runtime import channel, reload
from dora_state.runtime.handle import Worker
from dora_state.runtime.policy import PHASES, RestartPolicy
from dora_state.runtime.workers import Workers

log = logging.getLogger("dora_state.supervisor")

ABORT_S = 1.0
_WHERE = {
    "start": "__init__",
    "restore": "restore_state",
    "event": "on_event",
    "reload": "its reload",
}


def earlier(one: float | None, other: float | None) -> float | None:
    """Of two times, of which one may never come."""
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)


class Deadline:
    """Of what the current worker is doing, if it is doing anything."""

    def __init__(self, node_id: str, policy: RestartPolicy, workers: Workers) -> None:
        self._node_id = node_id  # for the log
        self._kills = set(policy.kill_hung)
        self._seconds = {phase: policy.deadline(phase) for phase in PHASES}
        self._seconds["reload"] = self._seconds["start"]
        if "start" in self._kills:
            self._kills.add("reload")
        self._workers = workers
        self._worker: Worker | None = None
        self._phase = ""
        self._interrupted = False
        self._aborted = False
        self._began = 0.0
        self.due: float | None = None  # by time.monotonic()
        self.passed = 0

    def begin(self, worker: Worker, phase: str) -> None:
        """The worker begins something, or goes on with it and has shown that it is alive."""
        if self._aborted:
            if phase != self._phase:
                self._workers.kill(worker)  # it got through after all, too late
            return
        if self._phase == "reload" and (phase == "event" or self._interrupted):
            return  # an event behind it, which begins at its end; or an output of one that has had its time
        self._worker, self._phase = worker, phase
        seconds = self._seconds[phase]
        self._began = time.monotonic()
        self.due = self._began + seconds if seconds else None

    def extend(self) -> None:
        """An output came."""
        if self._worker is not None and self._phase:
            self.begin(self._worker, self._phase)

    def end(self) -> None:
        """It is through with it, or dead."""
        if self._aborted and self._worker is not None and not self._worker.is_ending:
            self._workers.kill(self._worker)  # as was said; nothing that it gets next is to blame
        self._worker, self._phase, self.due = None, "", None
        self._interrupted = self._aborted = False

    def check(self, now: float) -> bool:
        """To be called when `due` may have come. True: a deadline has passed."""
        worker = self._worker
        if worker is None or self.due is None or now < self.due:
            return False
        if self._aborted:
            self.due = None
            self._workers.kill(worker)
            return False
        if self._interrupted:
            self._tell(worker, now, "; it does not take the interrupt and is killed", killed=True)
            self._abort(worker, now)
            return False
        self.passed += 1
        self.due = None
        if self._phase not in self._kills:
            self._tell(worker, now, "", killed=False)
        elif self._phase == "reload":
            self._tell(
                worker, now, "; that is interrupted, and the old object goes on", killed=False
            )
            self._interrupted, self.due = True, now + ABORT_S
            self._workers.send_signal(worker, reload.INTERRUPT)
        else:
            self._tell(worker, now, "; it is killed", killed=True)
            self._abort(worker, now)
        return True

    def _abort(self, worker: Worker, now: float) -> None:
        worker.hung = self._phase
        worker.lifeline.note(channel.pack_note("hang", worker.describe_end()))
        self._aborted, self.due = True, now + ABORT_S
        self._workers.send_signal(worker, signal.SIGABRT)

    def _tell(self, worker: Worker, now: float, what_now: str, *, killed: bool) -> None:
        where = "its import" if worker.signature is None else _WHERE[self._phase]
        log.warning(
            "the operator has been in %s for %.3g s without an output%s",
            *(where, now - self._began, what_now),
            extra={
                "dora_state": {
                    "node": self._node_id,
                    "hang": self._phase,
                    "incarnation": worker.incarnation,
                    "seconds": round(now - self._began, 3),
                    "killed": killed,
                }
            },
        )
