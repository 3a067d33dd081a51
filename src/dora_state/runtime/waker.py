"""Wakes the loop from any thread, and from signal handlers."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from dora_state.runtime.poller import READ, Poller


class Waker:
    """The loop turns here: while it works, waking it costs no system call.

    Each turn says that it sleeps before it looks whether it was woken, and who wakes says so before
    looking whether it sleeps: one of the two always sees the other.
    """

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._woken = False
        self._sleeps = False
        self._has_looked = True
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._lock = threading.RLock()  # a signal handler may interrupt `wake`, and call it
        self._is_closed = False
        poller.register(self._reader, READ, self._on_wake)

    def close(self) -> None:
        """Nothing wakes it any more. The lock keeps the number of a closed descriptor from one who is in `wake`."""
        with self._lock:
            self._is_closed = True
            self._reader.close()
            self._writer.close()

    def __del__(self) -> None:
        self.close()

    def wake(self) -> None:
        self._woken = True
        if not self._sleeps:
            return  # it looks before it sleeps
        with self._lock, contextlib.suppress(BlockingIOError):  # it is awake already
            if not self._is_closed:
                self._writer.send(b"\0")

    def fileno(self) -> int:
        """What is written here wakes the loop too."""
        return self._writer.fileno()

    def turn(self, timeout: Callable[[], float | None]) -> None:
        """Wait for the poller's descriptors, not at all if the loop was woken since the last turn.

        What wakes it is mostly an event to hand out: that goes first, and the descriptors are looked at
        in the next turn. Never twice in a row, so that who wakes it all the time keeps nothing from it.
        """
        self._sleeps = not self._woken
        if self._woken:  # after `_sleeps` is set: who wakes us from now on writes to the socket
            self._sleeps = self._woken = False
            if self._has_looked:
                self._has_looked = False
                return
        self._has_looked = True
        self._poller.turn(timeout() if self._sleeps else 0)
        self._sleeps = False

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
