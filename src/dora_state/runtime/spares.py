"""The spare: a worker that has imported the operator's file and waits. Which one there is, whether it is still good,
and when the next one may be made.

    the file has changed since              it is not used
    it died before it was needed            the next one 1 s later, then 2, up to 30
    importing takes what two must not hold  the next ones import when they are started (`imports_late`)
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from dora_state.runtime import loading
from dora_state.runtime.handle import Worker

log = logging.getLogger("dora_state.supervisor")

_BACKOFF_S = (1.0, 30.0)


class Spares:
    """At most one at a time.

    Args:
        operator: the operator's file.
        is_kept: whether there is to be one at all.
    """

    def __init__(self, operator: Path, *, is_kept: bool) -> None:
        self.spare: Worker | None = None
        self.imports_late = False
        self.not_before = 0.0  # by time.monotonic()
        self._operator = operator
        self._is_kept = is_kept
        self._backoff_s = 0.0

    def is_wanted(self) -> bool:
        return self._is_kept and self.spare is None

    def take(self) -> Worker | None:
        """It is none from here on, but a worker like any."""
        spare, self.spare = self.spare, None
        return spare

    @property
    def warm(self) -> Worker | None:
        """The spare, if a lifeline can start it."""
        spare = self.spare
        if spare is None or spare.is_ending or spare.signature is None:
            return None
        return spare if spare.channel.is_flushed else None

    def is_current(self, spare: Worker) -> bool:
        """Whether the operator's file is still what the spare has imported."""
        now = self.signature()
        if now is None:
            return True  # the file is gone: better an operator than none
        # One that is just importing may have read the file before a change since its birth.
        return now == (spare.signature or spare.born_with)

    def signature(self) -> tuple[int, ...] | None:
        """Of the operator's file as it is now."""
        try:
            return loading.file_signature(str(self._operator))
        except OSError:
            return None

    def has_imported(self, why_late: str) -> None:
        """A worker has. What that takes, two would hold at once, as a spare imports the file too."""
        self._backoff_s = 0.0
        if self._is_kept and why_late and not self.imports_late:
            self.imports_late = True
            log.warning(
                "a restart takes longer, as a spare must not import %s: that %s; "
                "do that in __init__, or preload the module that does",
                *(self._operator, why_late),
            )

    def has_ended(self, spare: Worker) -> None:
        """Before it was needed."""
        self.spare = None
        low, high = _BACKOFF_S
        self._backoff_s = min(max(low, self._backoff_s * 2), high)
        self.not_before = time.monotonic() + self._backoff_s
        log.warning(
            "the spare worker ended before it was needed; the next one in %g s%s",
            self._backoff_s,
            f": {spare.describe_end()}" if spare.end_is_known else "",
        )
