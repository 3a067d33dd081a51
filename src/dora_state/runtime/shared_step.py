"""Shared writes as part of a step: two stores, one decision, for operators with `shared_writes = "commit"`.

    (1) private store   prepare   the step and its saves, invisible: a key in the RUNTIME keyspace
    (2) shared store    one batch: every expected sequence, the handler's changes, and the marker. This decides
    (3) private store   the saves and the step become visible, the prepare goes

A prepare that is there is a step that nobody has finished. Whoever starts next asks the marker: it names this prepare,
so (2) has happened, and (3) is done for the dead (roll forward); or it does not, the prepare is dropped, and the event
is handled again. Every start does this, before `__init__`, whatever the operator's file says by then.

A worker that was stopped between (1) and (2) must not wake up and do (2) after its successor has decided that it never
happened. So the successor first writes the marker anew: (2) expects the marker's sequence as it was before (1).

    marker     key "step/<node id>" in the RUNTIME keyspace of the shared store
               16 bytes the worker, at random; 8 bytes the number of the event. Zeros: none yet
    prepare    key "prepare": the same 24 bytes, then msgpack of
               [path of the shared store, step record, {key: value or nil}, number of the dead letter or 0]

Both stores must be there for that. After a power loss each has a prefix of its own, unless both are durable at once
(`--durability commit`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from dora_state._core import RUNTIME, Batch, Store
from dora_state.errors import Conflict, Fenced
from dora_state.runtime import killpoint, step
from dora_state.runtime.step import Step
from dora_state.shared_writes import Staged

KEY = "prepare"
VARIABLE = "DORA_STATE_SHARED"  # where the host says that the shared store is
_NAME = struct.Struct("<16sQ")
_NONE = bytes(_NAME.size)


class ConflictError(Exception):
    """Somebody else has written what the handler had read: it has to run again, on what is there now."""


@dataclass(frozen=True)
class Prepare:
    name: bytes
    """What the marker says if (2) has happened."""
    shared: str
    step: bytes
    changes: dict[str, bytes | None]
    letter: int = 0
    """The dead letter that the event was."""

    def pack(self) -> bytes:
        return self.name + msgpack.packb([self.shared, self.step, self.changes, self.letter])  # type: ignore[no-any-return]


def pending_number(private: Store) -> int:
    """The event whose step is prepared and not finished; 0: there is none."""
    found = private._get(RUNTIME, KEY)
    return 0 if found is None else int(_NAME.unpack_from(found[0])[1])


def _read(private: Store) -> Prepare | None:
    found = private._get(RUNTIME, KEY)
    if found is None:
        return None
    data = found[0]
    return Prepare(data[: _NAME.size], *msgpack.unpackb(data[_NAME.size :]))


def _marker_key(node_id: str) -> str:
    return f"step/{node_id}"


def _finish(private: Store, prepare: Prepare) -> None:
    """(3)"""
    batch = private._batch()
    step.fill(batch, prepare.changes)
    batch.put(step.KEY, prepare.step, RUNTIME)
    if prepare.letter:
        batch.delete(step.letter_key(prepare.letter), RUNTIME)
    batch.delete(KEY, RUNTIME)
    batch.commit()


def _drop(private: Store) -> None:
    batch = private._batch()
    batch.delete(KEY, RUNTIME)
    batch.commit()


class SharedSteps:
    """The steps of one worker that reach into the shared store."""

    def __init__(self, private: Store, node_id: str) -> None:
        self._private = private
        self._marker = _marker_key(node_id)
        self._worker = os.urandom(16)
        self._shared: Store | None = None
        self._marker_sequence = 0

    def _open(self, path: str) -> Store:
        if self._shared is None:
            self._shared = Store(path, durability=self._private.durability, create=False)
            found = self._shared._get(RUNTIME, self._marker)
            self._marker_sequence = found[1] if found is not None else 0
        return self._shared

    def close(self) -> None:
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def commit(self, staged: Staged, changes: Mapping[str, bytes | None], done: Step) -> None:
        """Make the step, its saves and its shared writes one. Raises ConflictError if it has to be handled again."""
        shared = self._open(staged.path)  # before (1): this fixes the marker's sequence
        prepare = Prepare(
            _NAME.pack(self._worker, done.number),
            staged.path,
            done.pack(),
            dict(changes),
            done.letter,
        )
        killpoint.reach("before-prepare", done.number)
        batch = self._private._batch()
        batch.put(KEY, prepare.pack(), RUNTIME)
        batch.commit()
        killpoint.reach("after-prepare", done.number)
        decision = shared._batch()
        staged.fill(decision)
        self._decide(shared, decision, prepare)
        killpoint.reach("after-marker", done.number)
        _finish(self._private, prepare)

    def _decide(self, shared: Store, decision: Batch, prepare: Prepare) -> None:
        """(2)"""
        decision.put(self._marker, prepare.name, RUNTIME, self._marker_sequence)
        try:
            self._marker_sequence = decision.commit()
        except Conflict as conflict:
            found = shared._get(RUNTIME, self._marker)
            if (found[1] if found is not None else 0) != self._marker_sequence:
                raise Fenced(
                    f"{shared.path}: another worker of this operator has taken over its shared writes;"
                    " start the operator once only"
                ) from conflict
            _drop(self._private)
            raise ConflictError(str(conflict)) from conflict


def recover(private: Store, node_id: str, incarnation: int) -> bool:
    """Finish or drop what a dead worker has prepared; returns whether there was anything.

    May itself be killed anywhere: what it does can be done again.
    """
    prepare = _read(private)
    if prepare is None:
        return False
    killpoint.reach("recover", incarnation)
    path = os.environ.get(VARIABLE) or prepare.shared  # the folder may have been moved since
    shared = Store(path, durability=private.durability, create=False)
    try:
        happened = _claim(shared, _marker_key(node_id)) == prepare.name
    finally:
        shared.close()
    killpoint.reach("after-claim", incarnation)
    if happened:
        _finish(private, prepare)
    else:
        _drop(private)
    killpoint.reach("after-recover", incarnation)
    return True


def _claim(shared: Store, key: str) -> bytes:
    """Read the marker, and write it anew with what it says: nobody older can write it any more."""
    while True:
        found: tuple[Any, int] = shared._get(RUNTIME, key) or (_NONE, 0)
        batch = shared._batch()
        batch.put(key, found[0], RUNTIME, found[1])
        try:
            batch.commit()
        except Conflict:
            continue
        return bytes(found[0])
