"""The store as Python sees it: the handle of the engine, with the methods of a mapping.

The fast calls (put, get, delete, view, [], in, len) are the engine's own methods, inherited; nothing wraps them.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import (
    Callable,
    ItemsView,
    Iterator,
    MutableMapping,
    ValuesView,
)
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from . import _core
from .errors import Conflict

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

_T = TypeVar("_T")
_RAISE: Any = object()
Batch = _core.Batch
# modify(): after so many lost races it asks for a turn, as long as four times its function took, within these limits.
_LOST_RACES = 8
_TURN_S, _TURN_LIMIT_S = 0.05, 1.0
_SLICE_S = 0.1  # of a wait; a cancelled one ends with it
_FOR_EVER_S = 1e9  # a timeout of infinity is 30 years


class Entry(NamedTuple):
    """A value, and the sequence of the commit that wrote it."""

    value: bytes
    sequence: int


class Repaired(NamedTuple):
    """What `repair` found and did."""

    commits: int
    """kept; those that compaction had dissolved before are not counted"""
    records: int
    """kept, whatever they were part of"""
    dropped_bytes: int
    """of the log: damaged, or missing"""
    damages: int
    """places in the log; a commit beside one may be intact"""
    lost_blobs: int
    """keys whose newest value was in a damaged or missing file: they have their newest intact value, or none"""
    first_damage: int | None
    """log offset; None: there was none"""
    sequence: int
    """of the repaired store: 2**32 above all that were ever seen"""
    damaged_path: str
    """where the directory is now that was repaired"""


def repair(path: str | os.PathLike[str]) -> Repaired:
    """Makes a new store of what is intact in a damaged one, and puts it in its place.

    The damaged directory is kept beside it, as `<path>.damaged-<n>`. A commit is kept as a whole or not at all; a key
    whose newest version is damaged has its newest intact one again. Nobody may have the store open (StoreInUse). Unless
    the message begins with "repaired", an error has changed nothing. See docs/consistency.md.
    """
    return Repaired(*_core.repair(os.fspath(path)))


class Store(_core.Store, MutableMapping[str, bytes]):  # type: ignore[misc]  # update() tells its sequence
    """A crash-safe key-value store in a directory, open to any number of processes of this machine.

        with Store("robot", durability="process") as store:
            store["pose"] = buffer
            with store.batch() as batch:
                batch.put("map", grid)
                batch.delete("draft")

    Keys are str, values any C-contiguous buffer; they come back as bytes. What a call has written when it returns is
    visible to every process and survives the death of any of them; see docs/consistency.md for power loss.

    `len(store)`, and with it `bool(store)`, is a load until some key has had a `ttl`. From then on it walks over all
    keys, for some may have expired. An empty store is false; whether it is open says `closed`.

    Args:
        path: the directory; created if it is not there, unless `create` is false.
        durability: "process", "group" or "commit".
        group_ms: within how many milliseconds `group` is on disk.
        lock_timeout: how many seconds a write waits for another process that is writing; None: for ever.
        read_only: change nothing, not even to repair. A store that nobody has opened for writing in this boot
            shows what was in it when it was opened here, until it is opened here again.
        incarnation: commits are refused with Fenced once a higher one was fenced in; 0: never.

    Raises the errors of `dora_state.errors`.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(os.fspath(path), **options)

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ", read_only=True" if self.read_only else ""
        return f"Store({self.path!r}, durability={self.durability!r}{state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Reading. Keys, values and items are each taken at one point, also while other processes write.

    def __iter__(self) -> Iterator[str]:
        return self._keys()

    def values(self) -> ValuesView[bytes]:
        """The values; each iteration is at one point."""
        return _Values(self)

    def items(self) -> ItemsView[str, bytes]:
        """Pairs of key and value; each iteration is at one point."""
        return _Items(self)

    def entry(self, key: str) -> Entry:
        """The value of a key with its sequence, for `compare_and_put`. KeyError if it is missing."""
        found = self._get(_core.USER, key)
        if found is None:
            raise KeyError(key)
        return Entry(*found)

    def snapshot(self) -> dict[str, bytes]:
        """All keys and values as of one point."""
        return dict(self.items())

    # Writing

    def compare_and_put(
        self, key: str, value: Buffer, *, expected: int, ttl: float | None = None
    ) -> int:
        """Puts only if the key is at this sequence still (0: is missing); else Conflict, with the real sequence."""
        if expected is None:  # which a batch takes for "whatever there is"
            raise TypeError("expected is a sequence, or 0 for a missing key, not None")
        batch = self._batch()
        batch.put(key, value, _core.USER, expected, ttl=ttl)
        return batch.commit()

    def modify(
        self,
        key: str,
        function: Callable[[Any], Buffer],
        *,
        default: bytes | None = None,
        ttl: float | None = None,
    ) -> int:
        """Puts what `function` makes of the present value, or of `default`; calls it again if another was faster.

        Nobody is outrun for ever: after some lost races other calls of `modify` for the key wait until this one is
        done, for a second at most.
        """
        return self._modify(key, function, default, ttl=ttl).sequence

    def _modify(
        self,
        key: str,
        function: Callable[[Any], Buffer],
        default: bytes | None,
        *,
        ttl: float | None = None,
    ) -> Entry:
        """modify(), and what was put."""
        turn = 0
        try:
            for tries in itertools.count(1):
                self._turn_wait(key, turn)
                began = time.monotonic()
                value, sequence = self._get(_core.USER, key) or (default, 0)
                new = function(value)
                if type(new) is not bytes:
                    self._batch().put(key, new)  # only for its errors
                    new = memoryview(new).tobytes()
                try:
                    return Entry(new, self.compare_and_put(key, new, expected=sequence, ttl=ttl))
                except Conflict:
                    if tries % _LOST_RACES == 0:
                        took = time.monotonic() - began
                        turn = self._turn_take(
                            key, min(max(_TURN_S, 4 * took), _TURN_LIMIT_S), turn
                        )
            raise AssertionError("unreachable")
        finally:
            if turn:
                self._turn_end(turn)

    def clear(self) -> None:
        """Deletes all keys in one commit."""
        batch = self._batch()
        for key in self:
            batch.delete(key)
        batch.commit()

    @overload
    def pop(self, key: str) -> bytes: ...
    @overload
    def pop(self, key: str, default: _T) -> bytes | _T: ...
    def pop(self, key: str, default: Any = _RAISE) -> Any:
        """Deletes a key and returns the very value that it deleted."""
        while found := self._get(_core.USER, key):
            value, sequence = found
            batch = self._batch()
            batch.delete(key, _core.USER, sequence)
            try:
                batch.commit()
                return value
            except Conflict:
                continue
        if default is _RAISE:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[str, bytes]:
        """Deletes some key and returns it with its value."""
        for key in self:
            if (value := self.pop(key, None)) is not None:
                return key, value
        raise KeyError("the store is empty")

    def setdefault(self, key: str, default: Buffer = b"") -> bytes:
        """The value of a key, which is put there if there is none."""
        while (found := self._get(_core.USER, key)) is None:
            try:
                self.compare_and_put(key, default, expected=0)
            except Conflict:
                continue
        return found[0]

    # Waiting; wait() is the engine's.

    async def wait_async(
        self, key: str, *, after: int, timeout: float | None = None, prefix: bool = False
    ) -> int | None:
        """wait() for asyncio: the event loop runs on meanwhile, and the wait can be cancelled."""
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout is None or seconds from 0 up, not {timeout!r}")
        from . import waiting  # asyncio takes as long to import as all of dora-state

        deadline = None if timeout is None else time.monotonic() + min(timeout, _FOR_EVER_S)

        def wait(cancelled: threading.Event) -> int | None:
            nonlocal after
            while not cancelled.is_set():
                left = _SLICE_S
                if deadline is not None:
                    left = max(0.0, min(left, deadline - time.monotonic()))
                found, after = self._wait_on(key, after, left, prefix)
                if found is not None or (deadline is not None and time.monotonic() >= deadline):
                    return found
            return None

        return await waiting.in_thread(wait)


class _Values(ValuesView[bytes]):
    _mapping: Store

    def __iter__(self) -> Iterator[bytes]:
        return self._mapping._values()

    def __contains__(self, value: object) -> bool:
        return any(value == mine for mine in self)


class _Items(ItemsView[str, bytes]):
    _mapping: Store

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return self._mapping._items()
