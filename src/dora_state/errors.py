"""Every error of the package, in one tree.

    StateError
    ├── StoreError                 something about a store on disk
    │   ├── NotAStoreError         (also ValueError)       the path is something else
    │   ├── FormatError            written by an incompatible version
    │   ├── CorruptionError        the log is damaged
    │   ├── StoreIOError           (also OSError)          a system call failed
    │   │   └── StoreFull          no space left for the log
    │   ├── LockTimeout            (also TimeoutError)     another writer held the lock for too long
    │   ├── Conflict               a key is not at the expected sequence
    │   ├── Fenced                 a newer incarnation has taken over
    │   ├── StoreInUse             another process holds it in a state that cannot be shared
    │   ├── ReadOnlyError          the handle was opened with read_only=True
    │   ├── UnsupportedError       this file system or platform cannot keep the promises
    │   ├── StoreClosed            (also ValueError)       the handle is closed
    │   ├── Compacted              the commits asked for were compacted away
    │   └── ForkedHandle           the handle was inherited through fork()
    ├── TooLarge                   (also ValueError)       a key, value or batch beyond the limits
    └── OperatorError              something about an operator: its file, its class, where its state lives
        ├── FieldError             a field of typed state cannot be saved or restored; `field` is its name
        └── StateVersionError      saved by another version of the class, and there is no way from it

Misuse is a plain TypeError or ValueError, a missing key a KeyError, no memory a MemoryError. Every message says
what happened, which file, offset or key, and what to do next.
"""

from __future__ import annotations


class StateError(Exception):
    """Base of all errors of dora-state."""


class StoreError(StateError):
    """Something about a store on disk."""


class NotAStoreError(StoreError, ValueError):
    """The path is not a dora-state store."""


class FormatError(StoreError):
    """The store was written by an incompatible version."""


class CorruptionError(StoreError):
    """The log is damaged."""


class StoreIOError(StoreError, OSError):
    """A system call failed; `errno` says why."""


class StoreFull(StoreIOError):
    """No space left for the log. What was there before is intact."""


class LockTimeout(StoreError, TimeoutError):
    """Another writer, sync or compaction held its lock for longer than `lock_timeout` seconds."""


class Conflict(StoreError):
    """A key is not at the expected sequence.

    `sequence` is where it really is: the sequence of its last commit, or 0 if the key is missing.
    """

    def __init__(self, message: str, sequence: int = 0) -> None:
        super().__init__(message)
        self.sequence = sequence


class Fenced(StoreError):
    """A newer incarnation has taken over; this one may not commit any more."""


class StoreInUse(StoreError):
    """Another process holds the store in a state that cannot be shared."""


class ReadOnlyError(StoreError):
    """The handle was opened with read_only=True."""


class UnsupportedError(StoreError):
    """This file system or platform cannot keep the store's promises."""


class StoreClosed(StoreError, ValueError):
    """The handle is closed."""


class Compacted(StoreError):
    """The commits asked for were compacted away; read all keys and go on from there."""


class ForkedHandle(StoreError):
    """The handle was inherited through fork(); open the store again in the child."""


class TooLarge(StateError, ValueError):
    """A key, value or batch is larger than the store can hold."""


class OperatorError(StateError):
    """An operator's file, class or state directory cannot be used."""


class FieldError(OperatorError):
    """A field of typed state cannot be saved or restored. `field` is its name."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class StateVersionError(OperatorError):
    """State was saved by another version of the class, and there is no way from it to this one."""
