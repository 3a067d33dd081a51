"""Snapshots: what the operator's state was some minutes ago, for when the last one cannot be restored.

In the operator's private store, keyspace RUNTIME:

    "snapshots"         the list, newest first: a msgpack array of [id, number, time, size, checksum]
    "snapshot/<id>"     a msgpack map of all keys and values of the USER keyspace, 16 hex digits

`number` is that of the last event whose effects are in it. The keys are read at one point, list and
content are one commit, and the checksum (CRC-32 of the content) is verified before a byte of it is
offered to an operator.

The Keeper takes one when an incarnation has run for a period after it was ready, and then one a period
as long as there is something new; it lives in a thread of the host, and never holds up an event. A
roll back puts the keys of a snapshot in the place of the present ones, in one commit, made by the
worker when the operator has accepted them. The number of the input stays: what was handled is not
handled again, though its effects are undone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import msgpack

from dora_state._core import RUNTIME, USER, Store
from dora_state.errors import Conflict, CorruptionError, StateError
from dora_state.runtime import step

log = logging.getLogger("dora_state.supervisor")

LIST_KEY = "snapshots"
KEPT = 3
PERIOD_S = 60.0
LIMIT_BYTES = 256 << 20  # of a state; the host holds it in memory while it is written
_TRIES = 100


class Snapshot(NamedTuple):
    id: int
    number: int
    time: float  # Unix time
    size_bytes: int
    checksum: int

    @property
    def key(self) -> str:
        return f"snapshot/{self.id:016x}"


def kept(store: Store) -> list[Snapshot]:
    """Newest first."""
    return _read_list(store)[0]


def before(store: Store, offered: int | None) -> Snapshot | None:
    """The snapshot to offer after the one with this id, or after the present state (None)."""
    return next((each for each in kept(store) if offered is None or each.id < offered), None)


def take(store: Store) -> Snapshot | None:
    """Take one; None if nothing has changed since the last, or if there is nothing to take."""
    number, state = _read_state(store)
    if not state:
        return None
    content = msgpack.packb(state)
    known, sequence = _read_list(store)
    last = known[0] if known else Snapshot(0, 0, 0.0, 0, 0)
    new = Snapshot(last.id + 1, number, time.time(), len(content), zlib.crc32(content))
    if known and (new.checksum, new.size_bytes) == (last.checksum, last.size_bytes):
        return None
    batch = store._batch()
    batch.put(new.key, content, RUNTIME)
    for old in known[KEPT - 1 :]:
        batch.delete(old.key, RUNTIME)
    # A worker that rolls back changes the list, too: then this one is about a state that is gone.
    batch.put(LIST_KEY, msgpack.packb([new, *known[: KEPT - 1]]), RUNTIME, sequence)
    batch.commit()
    return new


def _read_state(store: Store) -> tuple[int, dict[str, bytes]]:
    """All keys at one point, and the number of the last event in them."""
    for _ in range(_TRIES):
        number = step.read(store).number
        scan = store._scan(USER)  # stands at one point from here on
        if step.read(store).number == number:
            break
    else:
        log.debug("the state changes faster than its number can be read; taken with the older one")
    state: dict[str, bytes] = {}
    size = 0
    for key, data, _ in scan:
        size += len(key) + len(data)
        if size > LIMIT_BYTES:
            raise StateError(f"the state is larger than {LIMIT_BYTES >> 20} MiB")
        state[key] = data
    return number, state


def load(store: Store, id: int) -> dict[str, bytes]:
    """The state in a snapshot. CorruptionError if it is not what was written."""
    known = next((each for each in kept(store) if each.id == id), None)
    found = store._get(RUNTIME, known.key) if known is not None else None
    if known is None or found is None:
        raise StateError(f"{store.path}: there is no snapshot {id}")
    if (zlib.crc32(found[0]), len(found[0])) != (known.checksum, known.size_bytes):
        raise CorruptionError(f"{store.path}: snapshot {id} does not match its checksum")
    state: dict[str, bytes] = msgpack.unpackb(found[0])
    return state


def roll_back(
    store: Store, id: int, state: dict[str, bytes], changes: dict[str, bytes | None]
) -> None:
    """Put `state`, with `changes` on top, in the place of the present keys. Newer snapshots go: they are
    of states that could not be restored either.
    """
    after = {**state, **changes}
    while True:
        known, sequence = _read_list(store)
        batch = store._batch()
        for key, _, _ in store._scan(USER):
            if key not in after:
                batch.delete(key)
        for key, data in after.items():
            if data is not None:
                batch.put(key, data)
            else:
                batch.delete(key)
        for newer in known:
            if newer.id > id:
                batch.delete(newer.key, RUNTIME)
        remaining = [each for each in known if each.id <= id]
        batch.put(LIST_KEY, msgpack.packb(remaining), RUNTIME, sequence)
        with contextlib.suppress(Conflict):
            batch.commit()
            return


def _read_list(store: Store) -> tuple[list[Snapshot], int]:
    found = store._get(RUNTIME, LIST_KEY)
    if found is None:
        return [], 0
    return [Snapshot(*fields) for fields in msgpack.unpackb(found[0])], found[1]


class Keeper:
    """Takes the snapshots of one operator, in a thread of its own."""

    def __init__(self, path: Path, durability: str, period_s: float) -> None:
        self._path = path
        self._durability = durability
        self._period_s = period_s
        self._changed = threading.Condition()
        self._due: float | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """An incarnation is ready: from now on one snapshot a period."""
        self._set(time.monotonic() + self._period_s)

    def end(self) -> None:
        """The incarnation has ended: its state has yet to be restored by the next."""
        self._set(None)

    def _set(self, due: float | None) -> None:
        with self._changed:
            self._due = due
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(1.0)  # the store may be locked by a worker that is stopped

    def _run(self) -> None:
        store: Store | None = None
        try:
            while self._wait():
                if store is None:
                    store = Store(str(self._path), durability=self._durability)
                self._take(store)
        except (StateError, OSError) as error:
            log.warning("no snapshots are taken any more: %s", error)
        finally:
            if store is not None:
                store.close()

    def _wait(self) -> bool:
        """Until a snapshot is due. False: there will be none any more."""
        with self._changed:
            while not self._closing:
                left = None if self._due is None else self._due - time.monotonic()
                if left is not None and left <= 0:
                    self._due = time.monotonic() + self._period_s
                    return True
                self._changed.wait(left)
            return False

    def _take(self, store: Store) -> None:
        try:
            if taken := take(store):
                log.debug("snapshot %d after event %d", taken.id, taken.number)
        except Conflict:
            pass
        except (StateError, OSError) as error:
            log.warning("no snapshot was taken: %s", error)
