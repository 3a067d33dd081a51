"""A file that is locked and holds one small record.

The lock is a flock: the kernel drops it when the last process that has it ends, however it ends. A file with a pid
in it would outlive its process and then name somebody else. The file is never removed: a lock on an unlinked
file excludes nobody.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

_POLL_S = 0.01


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
        try:
            record = json.loads(os.pread(self._descriptor, 1 << 20, 0))
        except ValueError:
            return {}
        return record if isinstance(record, dict) else {}

    def write(self, record: dict[str, Any]) -> None:
        """Replaces the record, durably. Only under the exclusive lock."""
        text = json.dumps(record).encode() + b"\n"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text, 0)
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
