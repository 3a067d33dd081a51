"""What a host lets threads and coroutines wait for, as futures, so that both can: room for an event, and outputs.

A future that is cancelled before it was served takes nothing: the room goes to the next, the output stays.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Generic, TypeVar

_T = TypeVar("_T")


def deadline_of(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def wait(future: Future[_T], deadline: float | None, why_late: str) -> _T:
    """The future's result. Raises TimeoutError after the deadline; the future is then cancelled."""
    try:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return future.result(left)
    except FutureTimeout:
        if future.cancel():
            raise TimeoutError(why_late) from None
        return future.result()  # it was served at the last moment
    except BaseException:  # a signal's
        future.cancel()
        raise


def serve(future: Future[_T], result: _T) -> bool:
    """Give a result to who still waits for it."""
    if not future.set_running_or_notify_cancel():
        return False
    future.set_result(result)
    return True


def refuse(future: Future[_T], error: BaseException) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


class Rooms:
    """Room for events: so many of each input, and so many bytes; served in the order of asking.

    One event of an input always has room, however large it is.
    """

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._taken: dict[str | None, int] = defaultdict(int)
        self._taken_bytes: dict[str | None, int] = defaultdict(int)
        self._waiting: dict[str | None, deque[tuple[Future[None], int]]] = defaultdict(deque)
        self._closed: BaseException | None = None
        self._lock = threading.Lock()

    def take(self, input_id: str | None, size_bytes: int) -> Future[None]:
        room: Future[None] = Future()
        with self._lock:
            if self._closed is not None:
                refuse(room, self._closed)
            else:
                self._waiting[input_id].append((room, size_bytes))
                self._serve(input_id)
        return room

    def give_back(self, input_id: str | None, size_bytes: int) -> None:
        with self._lock:
            self._taken[input_id] -= 1
            self._taken_bytes[input_id] -= size_bytes
            self._serve(input_id)

    def close(self, error: BaseException) -> None:
        with self._lock:
            self._closed = error
            for waiting in self._waiting.values():
                for room, _ in waiting:
                    refuse(room, error)
                waiting.clear()

    def _serve(self, input_id: str | None) -> None:
        waiting = self._waiting[input_id]
        while waiting:
            room, size_bytes = waiting[0]
            full = self._taken[input_id] >= self._limit
            heavy = self._taken_bytes[input_id] + size_bytes > self._limit_bytes
            if (full or heavy) and self._taken[input_id] and not room.cancelled():
                return
            waiting.popleft()
            if serve(room, None):
                self._taken[input_id] += 1
                self._taken_bytes[input_id] += size_bytes


class Stream(Generic[_T]):
    """Things with a size on their way from one thread to whoever takes them."""

    def __init__(self, limit_bytes: int, on_room: Callable[[], None]) -> None:
        self._limit_bytes = limit_bytes
        self._on_room = on_room
        self._things: deque[tuple[_T, int]] = deque()
        self._bytes = 0
        self._was_full = False
        self._takers: deque[Future[_T | None]] = deque()
        self._closed = False
        self._lock = threading.Lock()

    def put(self, things: Iterable[tuple[_T, int]]) -> None:
        with self._lock:
            for thing, size_bytes in things:
                self._things.append((thing, size_bytes))
                self._bytes += size_bytes
            self._serve()

    def take(self) -> Future[_T | None]:
        """The next thing; None when there will be no more."""
        taker: Future[_T | None] = Future()
        with self._lock:
            while self._takers and self._takers[0].cancelled():  # timed out
                self._takers.popleft()
            self._takers.append(taker)
            self._serve()
            has_room = self._was_full and self._bytes <= self._limit_bytes
        if has_room:
            self._on_room()
        return taker

    def has_room(self) -> bool:
        """`on_room` is called when that changes."""
        with self._lock:
            self._was_full = self._bytes > self._limit_bytes
            return not self._was_full

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._serve()

    def _serve(self) -> None:
        while self._takers and (self._things or self._closed):
            thing, size_bytes = self._things[0] if self._things else (None, 0)
            if serve(self._takers.popleft(), thing) and self._things:
                self._things.popleft()
                self._bytes -= size_bytes
