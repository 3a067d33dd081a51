"""What the current worker's lifeline does at its death, told ahead of time.

The lifeline's thread fences the worker off, reads its record, and sends START and the event to the
spare, while this process may be inside a call that keeps the GIL (dora's send_output, 63 ms for
16 MB). It does so only when the supervisor would do just the same: the decision is "restart at
once", the spare is warm, the event is small. In all other cases it notices and kills, and the
supervisor does the rest.

Numbers and records make it safe to be behind: the thread sends the event that was armed last only
if the record does not name it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dora_state._core import Store
from dora_state.runtime import channel, value
from dora_state.runtime.handle import Worker
from dora_state.runtime.inputs import Event

NO_NOTE = bytes(channel.NOTE_BYTES)


class Handover:
    """At most one pair of a worker and its successor."""

    def __init__(self, operator: Path) -> None:
        self._operator = str(operator)
        self._worker: Worker | None = None
        self._spare: Worker | None = None
        self.terms: object = None  # what it is armed for

    def arm(
        self,
        terms: object,
        worker: Worker,
        spare: Worker,
        store: Store,
        start: Any,
        event: Event | None,
    ) -> None:
        """Have `spare` follow `worker`, which has `event` now."""
        assert spare.signature is not None
        armed = worker.lifeline.arm(
            store,
            spare.incarnation,
            spare.channel.fileno(),
            not worker.holds_nothing,
            b"".join(channel.frame(channel.START, channel.pack(start), (NO_NOTE,))),
            self._operator,
            spare.signature,
        )
        if armed:
            self._worker, self._spare, self.terms = worker, spare, terms
            if event is not None:
                self.give(event)

    def give(self, event: Event) -> bool:
        """To be called before the event is sent. False: the worker is dead, do not send it."""
        if self._worker is None or self._spare is None:
            return True
        if event.value is not None:
            value.tell_type(self._spare.channel, event.value)
        message = event.message() if self._spare.channel.is_flushed else b""
        return self._worker.lifeline.event(event.number, message)

    def withdraw(self) -> None:
        """From any thread: START would not say what is true now. The loop arms anew."""
        worker = self._worker
        if worker is not None:
            worker.lifeline.withdraw()

    def disarm(self) -> Worker | None:
        """Returns the worker if it is dead, and its successor was started."""
        worker, self._worker, self._spare, self.terms = self._worker, None, None, None
        report = worker.lifeline.disarm() if worker is not None else None
        return worker if report is not None and report[0] else None
