"""What the supervisor's loop waits for: descriptors, and what to call when one is ready.

As `selectors` has it, without what that allocates for each event (4 of the 60 us that one took from
host to worker and back).
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
Call = Callable[[], None]


class Poller:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Call] = {}

    def register(self, thing: Any, events: int, call: Call) -> None:
        """`thing` is a descriptor, or has one."""
        fd = _number(thing)
        self._epoll.register(fd, events)
        self._calls[fd] = call

    def modify(self, thing: Any, events: int) -> None:
        fd = _number(thing)
        if fd in self._calls:
            self._epoll.modify(fd, events)

    def unregister(self, thing: Any) -> None:
        """To be called before it is closed. Does nothing if it is not registered."""
        fd = _number(thing)
        if self._calls.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self, timeout: float | None) -> None:
        """Wait until something is ready, and call what belongs to all that is."""
        found = self._epoll.poll(timeout)
        if len(found) == 1:  # nearly always
            call = self._calls.get(found[0][0])
            if call is not None:
                call()
            return
        # Looked up before any is made: a call may close a descriptor, and another may get its number.
        ready = [(fd, self._calls.get(fd)) for fd, _ in found]
        for fd, call in ready:
            if call is not None and self._calls.get(fd) is call:
                call()

    def close(self) -> None:
        self._epoll.close()
        self._calls.clear()


def _number(thing: Any) -> int:
    return thing if isinstance(thing, int) else int(thing.fileno())
