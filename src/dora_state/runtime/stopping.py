"""The wish to stop: who has it, how much time is left for it, and how it ended.

wish ---------- 0.8 grace ------------- grace
 events that came before it are handled
                those that are left are dropped: STOP and the teardown must not be cut off
                                       SIGKILL
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from dora_state.runtime.inputs import InputBuffer

log = logging.getLogger("dora_state.supervisor")

_BACKLOG_PART = 0.8  # of the grace, for events that came before the stop


@dataclass(frozen=True)
class Outcome:
    """How it ended. `clean`: told to stop, and everything that had come in was handled."""

    clean: bool
    why: str
    failed: bool = False  # a crash after which the policy allowed no restart


class Stopping:
    """Of one operator. `close_input` and `request` may be called from any thread."""

    def __init__(self, input: InputBuffer, grace_s: float) -> None:
        self._input = input
        self.grace_s = grace_s
        self.clean, self.why, self.failed = False, "", False  # the outcome
        self._input_closed = False
        self._requested = False
        self._request_is_clean = True
        self._gave_up = False  # some of what came before the stop
        self._deadline: float | None = None  # when the grace is over
        self._last_call: float | None = None  # when no more of the backlog is handled

    def close_input(self) -> None:
        self._input_closed = True

    def request(self, *, clean: bool) -> None:
        self._request_is_clean = clean
        self._requested = True

    @property
    def is_wanted(self) -> bool:
        return self._input.stop_seen or self._input_closed or self._requested

    def is_due(self, *, is_all_handled: bool) -> bool:
        """No event is with the worker: is it to be told to stop, or handed the next one?"""
        return self._requested or (self._input_closed and is_all_handled)

    def is_clean(self, *, is_all_handled: bool) -> bool:
        """Whether this is a clean stop if the worker ends as told."""
        return is_all_handled and self._request_is_clean and not self._gave_up

    def is_clean_after_stop(self, *, is_all_handled: bool) -> bool:
        """The same once STOP itself was handled: dora said so, whatever else was asked meanwhile."""
        return is_all_handled and not self._gave_up

    def begin_grace(self) -> None:
        """Does nothing the second time."""
        if self._deadline is None:
            now = time.monotonic()
            self._deadline = now + self.grace_s
            self._last_call = now + self.grace_s * _BACKLOG_PART

    def begin(self, *, clean: bool, why: str) -> None:
        """No event is handed out any more."""
        self.clean, self.why = clean, why
        self.begin_grace()
        self._last_call = None

    @property
    def due(self) -> float | None:
        """When `check` is to be called."""
        return self._deadline if self._last_call is None else self._last_call  # which is before it

    def check(self, now: float) -> bool:
        """True, once: the grace is over."""
        if self._last_call is not None and now >= self._last_call:
            self._last_call = None
            self._drop_backlog()
        if self._deadline is None or now < self._deadline:
            return False
        self._deadline = None
        return True

    def _drop_backlog(self) -> None:
        count = self._input.drop_inputs()
        if count:
            self._gave_up = True
            log.error(
                "%d events that came before the stop are dropped: their handling takes longer than "
                "the grace of %g s",
                *(count, self.grace_s),
            )

    def outcome(self) -> Outcome:
        return Outcome(self.clean, self.why, self.failed)
