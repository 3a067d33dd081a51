"""A file that is locked and holds one small record.

The lock is a flock: the kernel drops it when the last process that has it ends, however it ends. A file with a pid
in it would outlive its process and then name somebody else. The file is never removed: a lock on an unlinked
file excludes nobody.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

_POLL_S = 0.01
_RECORD_BYTES = 4096


def peek(path: Path) -> dict[str, Any]:
    """The record of a lock file, which is neither made nor locked for that; empty if there is none."""
    try:
        return _parse(path.read_bytes())
    except FileNotFoundError:
        return {}


def is_held(path: Path) -> bool:
    """Whether a process has the lock of a file, which is neither made nor written for that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _parse(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


class LockFile:
    """One open lock file. Closing it, or the end of the process, gives the lock back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o600)

    def acquire(self, *, shared: bool = False, timeout_s: float = 0.0) -> bool:
        """Takes the lock, or changes it from shared to exclusive or back; False after `timeout_s` without it."""
        deadline = time.monotonic() + timeout_s
        mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        while True:
            try:
                fcntl.flock(self._descriptor, mode)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_POLL_S)

    def read(self) -> dict[str, Any]:
        """The record; empty if there is none or it cannot be read, as after a power loss while it was written."""
        return _parse(os.pread(self._descriptor, 1 << 20, 0))

    def write(self, record: dict[str, Any]) -> None:
        """Replaces the record, durably. Only under the exclusive lock.

        One call over the old record, padded with spaces: who is killed here leaves the old one or the new one, and a
        full disk does not take the old one along.
        """
        text = json.dumps(record).encode()
        size = max(len(text) + 1, os.fstat(self._descriptor).st_size, _RECORD_BYTES)
        block = text.ljust(size - 1) + b"\n"
        if os.pwrite(self._descriptor, block, 0) != len(block):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fsync(self._descriptor)

    def is_held(self) -> bool:
        """Whether somebody has the lock through another open file. Not for one that has it itself."""
        if not self.acquire():
            return True
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
