"""A step: one event handled, its saves and its position in the input made one commit.

The commit record is a key in the store's RUNTIME keyspace, which no user key can collide with,
written in the same frame as the saves. After the death of a worker it is the only thing that
decides whether the event counts as handled, and it is only believed after `Store.fence` (see
delivery.py).

    key     "step"
    offset  size  what
    0       1     layout version, 1
    1       1     status: what on_event returned (DoraStatus by value)
    2       2     zero
    4       4     outputs sent by the handler
    8       8     number of the event
    16      8     incarnation that made the commit
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping
from typing import Any

from dora_state._core import RUNTIME, Store
from dora_state.errors import FormatError

KEY = "step"
_LAYOUT = struct.Struct("<BBxxIQQ")
_VERSION = 1

CONTINUE, STOP, STOP_ALL = range(3)


class Step:
    def __init__(
        self,
        number: int = 0,
        incarnation: int = 0,
        status: int = CONTINUE,
        outputs: int = 0,
        letter: int = 0,
    ) -> None:
        self.number = number
        self.incarnation = incarnation
        self.status = status
        self.outputs = outputs
        self.letter = letter  # that the event was: not on record, but deleted with it

    def pack(self) -> bytes:
        return _LAYOUT.pack(_VERSION, self.status, self.outputs, self.number, self.incarnation)


def letter_key(number: int) -> str:
    """Where the content of a dead letter is: see dead_letter.py."""
    return f"dead-letter/{number:016x}"


def read(store: Store) -> Step:
    """The last step on record; number 0 if there is none."""
    found = store._get(RUNTIME, KEY)
    if found is None:
        return Step()
    data = found[0]
    if len(data) != _LAYOUT.size or data[0] != _VERSION:
        raise FormatError(
            f"{store.path}: the commit record has an unknown layout "
            f"({data[:1].hex()}, {len(data)} bytes); it was written by another version of "
            "dora-state: use that one, or start with --fresh"
        )
    _, status, outputs, number, incarnation = _LAYOUT.unpack(data)
    return Step(number, incarnation, status, outputs)


_lock = threading.Lock()  # one for all, as a process has one handler at a time


class Stage:
    """The saves of one handler until its commit.

    A save can also come from another thread that carries the handler's context, so taking the
    changes and closing happen under one lock: a save is either in the commit or finds the stage
    closed.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number  # of the event; 0 for __init__ and restore_state
        self.outputs = 0
        self.output_bytes = 0
        self.is_open = True
        self._changes: dict[str, bytes | None] = {}  # None: deleted

    def put(self, key: str, value: bytes | None) -> bool:
        """Stage a save, or a deletion (None). False: the handler is over."""
        with _lock:
            if self.is_open:
                self._changes[key] = value
            return self.is_open

    def forget(self, key: str) -> None:
        """Drop what is staged for a key, because a newer value of it was committed by itself."""
        with _lock:
            self._changes.pop(key, None)

    def close(self) -> dict[str, bytes | None]:
        """End the stage and hand over what was saved."""
        with _lock:
            self.is_open = False
            changes, self._changes = self._changes, {}
            return changes


def fill(batch: Any, changes: Mapping[str, bytes | None]) -> None:
    for key, value in changes.items():
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)


def commit(store: Store, changes: dict[str, bytes | None], step: Step | None = None) -> None:
    """Make the changes, and the step if there is one, one commit."""
    batch: Any = store._batch()
    fill(batch, changes)
    if step is not None:
        batch.put(KEY, step.pack(), RUNTIME)
        if step.letter:
            batch.delete(letter_key(step.letter), RUNTIME)
    batch.commit()
