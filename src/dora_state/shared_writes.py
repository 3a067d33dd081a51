"""What a handler does to the shared store, kept until its commit: for operators with `shared_writes = "commit"`.

A `Staged` stands in for the shared store while such a handler runs. kvs.py asks `current` whether there is one; it is
found by context variable, as save_state finds its stage. It shows the store with the handler's own changes on top, and
writes nothing. What the handler has read in order to write (kvs_update, kvs_compare_and_write, kvs_delete, `expected`
in a batch) it notes as an expected sequence, and all of these are checked in the one commit that makes the changes
(runtime/shared_step.py). A plain kvs_read is not checked, and a plain kvs_write overwrites whatever is there.

Calls from other threads, and after the handler has ended, go to the store itself and are visible at once.
"""

from __future__ import annotations

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

current: ContextVar[Staged | None] = ContextVar("dora_state.shared_writes", default=None)


def seen_by_handler(store: Store) -> Store:
    """The shared store as the calling handler sees it: `store` itself, or what stands in for it."""
    staged = current.get()
    return store if staged is None else staged.over(store)


class Staged:
    """The shared store under the changes of one handler. Has what kvs.py uses of a Store."""

    def __init__(self) -> None:
        self.is_open = True
        self._store: Any = None
        self._changes: dict[str, tuple[bytes | None, dict[str, Any]]] = {}  # None: deleted
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
        for key, (value, options) in self._changes.items():
            expected = self._expected.get(key)
            if value is None:
                batch.delete(key, USER, expected)
            else:
                batch.put(key, value, USER, expected, **options)
        for key in self._expected.keys() - self._changes.keys():
            batch.expect(key, self._expected[key])

    # Reading

    def _look(self, key: str) -> tuple[bytes | None, int]:
        """A key's value as the handler sees it, and the sequence that the store has it at."""
        found = self._store._get(USER, key) or (None, 0)
        sequence = self._expected.get(key, found[1])
        changed = self._changes.get(key)
        return (found[0] if changed is None else changed[0]), sequence

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
            for key, (value, _) in self._changes.items():
                keys.discard(key) if value is None else keys.add(key)
        return iter(keys)

    def wait(self, key: str, **options: Any) -> Any:
        return self._store.wait(key, **options)

    async def wait_async(self, key: str, **options: Any) -> Any:
        return await self._store.wait_async(key, **options)

    # Writing. None of it has a sequence yet, so 0 is returned for it.

    def put(self, key: str, value: Buffer, **options: Any) -> int:
        with self._lock:
            if not self.is_open:
                return int(self._store.put(key, value, **options))
            self._stage(key, value, options)
            return 0

    def _stage(self, key: str, value: Buffer | None, options: dict[str, Any]) -> None:
        if value is not None:
            self._store._batch().put(key, value, **options)  # only for its errors
            if type(value) is not bytes:
                value = memoryview(value).tobytes()
        self._changes[key] = value, options

    def compare_and_put(self, key: str, value: Buffer, *, expected: int, **options: Any) -> int:
        with self._lock:
            if not self.is_open:
                return int(self._store.compare_and_put(key, value, expected=expected, **options))
            self._expect(key, expected)
            self._stage(key, value, options)
            return 0

    def _expect(self, key: str, expected: int) -> None:
        _, sequence = self._look(key)
        if sequence != expected:
            raise Conflict(
                f"{self.path}: key {key!r:.80} is at sequence {sequence}, not {expected};"
                " read it again and decide anew",
                sequence,
            )
        self._expected[key] = expected

    def _modify(
        self, key: str, function: Callable[[Any], Buffer], default: Any = None, **options: Any
    ) -> Entry:
        with self._lock:
            if not self.is_open:
                return cast(Entry, self._store._modify(key, function, default, **options))
            value, sequence = self._look(key)
            self._stage(key, function(default if value is None else value), options)
            self._expected[key] = sequence
            staged, _ = self._look(key)
            return Entry(staged or b"", 0)

    def pop(self, key: str, default: Any = _RAISE) -> Any:
        with self._lock:
            if not self.is_open:
                return self._store.pop(key, *(() if default is _RAISE else (default,)))
            value, sequence = self._look(key)
            if value is not None:
                self._stage(key, None, {})
                self._expected[key] = sequence
                return value
        if default is _RAISE:
            raise KeyError(key)
        return default

    def batch(self) -> StagedBatch:
        return StagedBatch(self)

    def take_over(self, steps: list[tuple[str, Buffer | None, int | None, dict[str, Any]]]) -> None:
        """Stage the changes of a batch: all, or none if one of its keys is not where it should be."""
        with self._lock:
            if not self.is_open:
                self._write_through(steps)
                return
            before = dict(self._changes), dict(self._expected)
            try:
                for key, value, expected, options in steps:
                    if expected is not None:
                        self._expect(key, expected)
                    if "only expected" not in options:
                        self._stage(key, value, options)
            except BaseException:
                self._changes, self._expected = before
                raise

    def _write_through(self, steps: list[Any]) -> None:
        batch = self._store._batch()
        for key, value, expected, options in steps:
            if "only expected" in options:
                batch.expect(key, expected)
            elif value is None:
                batch.delete(key, USER, expected)
            else:
                batch.put(key, value, USER, expected, **options)
        batch.commit()


class StagedBatch:
    """What kvs_batch gives to a handler: its changes join the handler's when the block ends."""

    def __init__(self, staged: Staged) -> None:
        self._staged = staged
        self._steps: list[tuple[str, Buffer | None, int | None, dict[str, Any]]] = []

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
        self._staged.take_over(steps)
        return 0
