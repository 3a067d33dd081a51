"""What the next incarnation is offered, and told: the document of a START message.

Offered is the state on record, or, when that could not be restored, a snapshot. Told is what
`restore_info` gives to the operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dora_state._core import Store
from dora_state.runtime import snapshot, step
from dora_state.runtime.handle import Worker
from dora_state.runtime.snapshot import Snapshot


class Offer:
    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None  # None: the state on record
        self.undone = 0  # events whose effects are not in it
        self._reason = "start"
        self._detail = ""
        self._told: dict[str, int] = {}  # drops that an incarnation knows of
        self._dropped: dict[str, int] = {}  # drops at the last START

    def take_death(self, dead: Worker) -> None:
        """Somebody has to succeed this one."""
        if dead.failure is not None:
            self._reason = "exception"
        elif dead.hung:
            self._reason = "hang"
        elif dead.conflict is not None:
            self._reason = "conflict"
        else:
            self._reason = "asked" if dead.asked_to_stop else "exit"
        self._detail = dead.describe_end() if dead.end_is_known or dead.hung else ""

    def has_older(self, store: Store) -> bool:
        return self._older(store) is not None

    def roll_back(self, store: Store) -> None:
        """Offer the next older snapshot."""
        self.snapshot = self._older(store)
        assert self.snapshot is not None
        self.undone = max(0, step.read(store).number - self.snapshot.number)

    def _older(self, store: Store) -> Snapshot | None:
        return snapshot.before(store, self.snapshot.id if self.snapshot is not None else None)

    def document(
        self, dropped: Mapping[str, int], *, replays: bool, reason: str | None = None
    ) -> dict[str, Any]:
        """Of the next START. With a `reason`: of one that a lifeline sends, which knows nothing yet."""
        self._dropped = dict(dropped)
        return {
            "snapshot": self.snapshot.id if self.snapshot is not None else 0,
            "reason": reason or self._reason,
            "detail": "" if reason else self._detail,
            "replayed": int(replays),
            "dropped": {
                name: count - self._told.get(name, 0)
                for name, count in dropped.items()
                if count > self._told.get(name, 0)
            },
            "rolled_back_to": self.snapshot.number if self.snapshot is not None else None,
            "undone": self.undone,
        }

    def accepted(self) -> dict[str, Any] | None:
        """The incarnation is ready: what it was offered is the state on record now. Tells of a roll back."""
        self._told = self._dropped
        taken, self.snapshot = self.snapshot, None
        undone, self.undone = self.undone, 0
        if taken is None:
            return None
        return {"to": taken.number, "undone": undone, "snapshot_time": taken.time}
