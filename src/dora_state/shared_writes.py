"""What a handler does to the shared store, kept until its commit: for operators with `shared_writes = "commit"`.

A `Staged` stands in for the shared store while such a handler runs. kvs.py asks `current` whether there is one; it is
found by context variable, as save_state finds its stage. It shows the store with the handler's own changes on top, and
writes nothing. What the handler has read in order to write (kvs_update, kvs_compare_and_write, kvs_delete, `expected`
in a batch) it notes as an expected sequence, and all of these are checked in the one commit that makes the changes
(runtime/shared_step.py). A plain kvs_read is not checked, and a plain kvs_write overwrites whatever is there.

What the handler has written itself it sees under a provisional sequence, which is good as `expected` until its end: the
real one comes with the commit.

Calls from other threads, and after the handler has ended, go to the store itself and are visible at once.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from ._core import USER
from .errors import Conflict
from .store import Entry, Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._core import Batch

AT_ONCE, COMMIT = "at-once", "commit"
MODES = (AT_ONCE, COMMIT)

_RAISE: Any = object()
_PROVISIONAL = 1 << 62  # and up; no store ever gets there
_provisional = itertools.count(_PROVISIONAL)

current: ContextVar[Staged | None] = ContextVar("dora_state.shared_writes", default=None)


def seen_by_handler(store: Store) -> Store:
    """The shared store as the calling handler sees it: `store` itself, or what stands in for it."""
    staged = current.get()
    return store if staged is None else staged.over(store)


_BatchStep = tuple[str, "Buffer | None", int | None, dict[str, Any]]


class Staged:
    """The shared store under the changes of one handler. Has what kvs.py uses of a Store."""

    def __init__(self) -> None:
        self.is_open = True
        self._store: Any = None
        # The value (None: deleted), the options, the provisional sequence (0: deleted).
        self._changes: dict[str, tuple[bytes | None, dict[str, Any], int]] = {}
        self._expected: dict[str, int] = {}
        self._lock = threading.RLock()

    def over(self, store: Store) -> Store:
        self._store = store
        return cast(Store, self) if self.is_open else store

    # For the runtime

    @property
    def path(self) -> str:
        """Of the shared store."""
        return str(self._store.path)

    def close(self) -> bool:
        """End the staging; returns whether there is anything to commit or to check."""
        with self._lock:
            self.is_open = False
            return bool(self._changes or self._expected)

    def fill(self, batch: Batch) -> None:
        """Put the changes and what they expect into a batch on the shared store."""
        for key, (value, options, _) in self._changes.items():
            expected = self._expected.get(key)
            if value is None:
                batch.delete(key, USER, expected)
            else:
                batch.put(key, value, USER, expected, **options)
        for key in self._expected.keys() - self._changes.keys():
            batch.expect(key, self._expected[key])

    # Reading

    def _look(self, key: str) -> tuple[bytes | None, int]:
        """A key's value and sequence as the handler sees them."""
        changed = self._changes.get(key)
        if changed is not None:
            return changed[0], changed[2]
        found = self._store._get(USER, key) or (None, 0)
        return found[0], self._expected.get(key, found[1])

    def get(self, key: str, default: Any = None) -> Any:
        with self._lock:
            value, _ = self._look(key)
        return default if value is None else value

    def __getitem__(self, key: str) -> bytes:
        return self.entry(key).value

    def entry(self, key: str) -> Entry:
        with self._lock:
            value, sequence = self._look(key)
        if value is None:
            raise KeyError(key)
        return Entry(value, sequence)

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            keys = set(self._store)
            for key, (value, *_) in self._changes.items():
                keys.discard(key) if value is None else keys.add(key)
        return iter(keys)

    def wait(self, key: str, *, after: int = 0, **options: Any) -> Any:
        return self._store.wait(key, after=self._wait_after(after), **options)

    async def wait_async(self, key: str, *, after: int = 0, **options: Any) -> Any:
        return await self._store.wait_async(key, after=self._wait_after(after), **options)

    def _wait_after(self, sequence: int) -> int:
        """After what the handler itself has written, others can only write from now on."""
        return sequence if sequence < _PROVISIONAL else self._store.stats()["sequence"]

    # Writing

    def put(self, key: str, value: Buffer, **options: Any) -> int:
        with self._lock:
            if not self.is_open:
                return int(self._store.put(key, value, **options))
            return self._stage(key, value, options, next(_provisional))

    def _stage(self, key: str, value: Buffer | None, options: dict[str, Any], sequence: int) -> int:
        if value is not None:
            self._store._batch().put(key, value, **options)  # only for its errors
            if type(value) is not bytes:
                value = memoryview(value).tobytes()
        self._changes[key] = value, options, 0 if value is None else sequence
        return sequence

    def compare_and_put(self, key: str, value: Buffer, *, expected: int, **options: Any) -> int:
        with self._lock:
            if not self.is_open:
                return int(self._store.compare_and_put(key, value, expected=expected, **options))
            self._expect(key, expected)
            return self._stage(key, value, options, next(_provisional))

    def _expect(self, key: str, expected: int) -> None:
        _, sequence = self._look(key)
        if sequence != expected:
            raise Conflict(
                f"{self.path}: key {key!r:.80} is at sequence {sequence}, not {expected};"
                " read it again and decide anew",
                sequence,
            )
        self._note(key, sequence)

    def _note(self, key: str, sequence: int) -> None:
        """What the handler goes by must still be so at its commit; what it has written itself will be."""
        if key not in self._changes:
            self._expected[key] = sequence

    def _modify(
        self, key: str, function: Callable[[Any], Buffer], default: Any = None, **options: Any
    ) -> Entry:
        with self._lock:
            if not self.is_open:
                return cast(Entry, self._store._modify(key, function, default, **options))
            value, sequence = self._look(key)
            new = function(default if value is None else value)
            self._note(key, sequence)
            own = self._stage(key, new, options, next(_provisional))
            staged, _ = self._look(key)
            return Entry(staged or b"", own)

    def pop(self, key: str, default: Any = _RAISE) -> Any:
        with self._lock:
            if not self.is_open:
                return self._store.pop(key, *(() if default is _RAISE else (default,)))
            value, sequence = self._look(key)
            if value is not None:
                self._note(key, sequence)
                self._stage(key, None, {}, 0)
                return value
        if default is _RAISE:
            raise KeyError(key)
        return default

    def batch(self) -> StagedBatch:
        return StagedBatch(self)

    def take_over(self, steps: list[_BatchStep]) -> int:
        """Stage the changes of a batch: all, or none if one of its keys is not where it should be."""
        with self._lock:
            if not self.is_open:
                return self._write_through(steps)
            before = dict(self._changes), dict(self._expected)
            own = next(_provisional)
            try:
                for key, _, expected, _ in steps:
                    if expected is not None:
                        self._expect(key, expected)
                for key, value, _, options in steps:
                    if "only expected" not in options:
                        self._stage(key, value, options, own)
            except BaseException:
                self._changes, self._expected = before
                raise
            return own

    def _write_through(self, steps: list[_BatchStep]) -> int:
        batch = self._store._batch()
        for key, value, expected, options in steps:
            if "only expected" in options:
                batch.expect(key, expected)
            elif value is None:
                batch.delete(key, USER, expected)
            else:
                batch.put(key, value, USER, expected, **options)
        return int(batch.commit())


class StagedBatch:
    """What kvs_batch gives to a handler: its changes join the handler's when the block ends."""

    def __init__(self, staged: Staged) -> None:
        self._staged = staged
        self._steps: list[_BatchStep] = []

    def __enter__(self) -> StagedBatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.clear()

    def __len__(self) -> int:
        return len(self._steps)

    def put(
        self,
        key: str,
        value: Buffer,
        keyspace: int = USER,
        expected: int | None = None,
        **options: Any,
    ) -> None:
        self._staged._store._batch().put(key, value, **options)  # only for its errors
        copied = value if type(value) is bytes else memoryview(value).tobytes()
        self._steps.append((key, copied, expected, options))

    def delete(self, key: str, keyspace: int = USER, expected: int | None = None) -> None:
        self._steps.append((key, None, expected, {}))

    def expect(self, key: str, sequence: int, keyspace: int = USER) -> None:
        self._steps.append((key, None, sequence, {"only expected": True}))

    def clear(self) -> None:
        self._steps = []

    def commit(self) -> int:
        steps, self._steps = self._steps, []
        return self._staged.take_over(steps)
