"""Memory that host and workers share, for values that are too large to be sent through a socket.

    Arena     an anonymous file (memfd) in which one side makes slots; the other side maps it. The host has one for the
              events of all its workers, which they map read-only, and one for the outputs of each worker
    Slot      a piece of an arena. It is free again when the last reference to it is gone
    Sharing   one end of a channel: what was lent to the peer, and what was borrowed from it

A value is copied once, into a slot. The message then only says where that is (channel.SHARED), and the receiver uses
the memory in place: an operator's `event["value"]` and the array that dora's send_output gets lie in it.

**What is kept stays unchanged for ever.** Whoever made a slot keeps a reference for as long as the peer may look at it.
The peer's buffers hold a `Borrowed`, and only when the last of them is gone, slices and numpy views included, the next
message returns the slot. Recycled without that, a kept 5 became -7. The death of a worker returns all that it had
borrowed, once its pidfd has fired; what it has lent stays mapped here, so outputs that were committed survive it. After
a fork in the worker nothing borrowed is returned any more before its end: the child may look at it.

An arena is address space; only what is used of it is memory, and what lies beyond the first 64 MiB is given back as
soon as it is free. When it is full, a value that the host receives gets an arena of its own, which lasts until the
worker drops it. An output goes through the socket then.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from dora_state._core import SharedMapping

LARGE = 64 << 10  # bytes; below, a socket is not slower
ARENA_BYTES = 512 << 20
KEPT_BYTES = 64 << 20
_PAGE = 4096
_ALIGN = 64  # of a buffer, as Arrow recommends


def open_arena(path: str, size: int, *, writable: bool) -> SharedMapping:
    """Map an arena of another process, by Arena.path."""
    fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        return SharedMapping(fd, size, writable=writable)
    finally:
        os.close(fd)


class ArenaFile:
    """An anonymous file for others to map. Its path is good while this object is open."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._fd = os.memfd_create("dora-state", os.MFD_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        try:
            os.ftruncate(self._fd, size)
            self.mapping = SharedMapping(self._fd, size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """What somebody looks at stays mapped for as long as he does. The rest goes at once, and not when a
        garbage collection finds whoever still holds this.
        """
        with contextlib.suppress(AttributeError):
            del self.mapping
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


class Arena:
    """Makes slots in a mapping; for any thread. First fit, lowest first, so that memory is used again."""

    def __init__(self, mapping: SharedMapping, file: ArenaFile | None = None) -> None:
        self.mapping = mapping
        self.file = file  # if the peer has to be told which one
        self._free: list[tuple[int, int]] = [(0, mapping.size)]  # offset, size; sorted, with gaps
        self._lock = threading.Lock()
        # A slot may be dropped anywhere, also by a garbage collection inside `make`.
        self._dropped: deque[tuple[int, int]] = deque()

    def make(self, size: int) -> Slot | None:
        """A slot of at least `size` bytes; None if there is no room."""
        size = -(-size // _PAGE) * _PAGE
        with self._lock:
            while self._dropped:
                self._insert(*self._dropped.popleft())
            for i, (offset, room) in enumerate(self._free):
                if room >= size:
                    if room == size:
                        del self._free[i]
                    else:
                        self._free[i] = offset + size, room - size
                    return Slot(self, offset, size)
        return None

    def _insert(self, offset: int, size: int) -> None:
        if offset + size > KEPT_BYTES:
            self.mapping.give_back(offset, size)
        i = bisect.bisect(self._free, (offset, size))
        if i < len(self._free) and self._free[i][0] == offset + size:
            size += self._free.pop(i)[1]
        if i and sum(self._free[i - 1]) == offset:
            before, before_size = self._free[i - 1]
            self._free[i - 1] = before, before_size + size
        else:
            self._free.insert(i, (offset, size))


class Slot:
    """A piece of an arena, free again when the last reference is gone."""

    __slots__ = ("__weakref__", "arena", "offset", "size")

    def __init__(self, arena: Arena, offset: int, size: int) -> None:
        self.arena = arena
        self.offset = offset
        self.size = size

    def __del__(self) -> None:
        self.arena._dropped.append((self.offset, self.size))

    def fill(self, buffers: Sequence[Any]) -> list[memoryview]:
        """Copy the buffers into it; returns where they are now. Each keeps the slot."""
        at, views = self.offset, []
        for buffer in buffers:
            size = memoryview(buffer).nbytes
            self.arena.mapping.write(at, buffer)
            views.append(self.arena.mapping.view(at, size, self))
            at += aligned(size)
        return views

    def writable(self, size: int) -> memoryview:
        """Its first `size` bytes, to be written by the caller."""
        return self.arena.mapping.view(self.offset, size, self, writable=True)

    def where(self, views: Sequence[memoryview]) -> bytes:
        """What the peer is told: `Sharing.take` gets the same views from it."""
        file = self.arena.file
        place = None if file is None else (file.path, file.size)
        return msgpack.packb([place, self.offset, [view.nbytes for view in views]])  # type: ignore[no-any-return]


def aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


class Borrowed:
    """Kept by every buffer over one slot of the peer's."""

    __slots__ = ("__weakref__", "_offset", "_returned")

    def __init__(self, offset: int, returned: deque[int]) -> None:
        self._offset = offset
        self._returned: deque[int] | None = returned

    def keep(self) -> None:
        """Never return it."""
        self._returned = None

    def __del__(self) -> None:
        if self._returned is not None:
            self._returned.append(self._offset)


class Sharing:
    """One end of a channel, as far as slots go."""

    def __init__(self) -> None:
        self.returned: deque[int] = deque()  # offsets that the peer is to be told
        self._lent: dict[int, Slot] = {}
        self._theirs: SharedMapping | None = None
        self._borrowed: weakref.WeakSet[Borrowed] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.make_slot: Callable[[int], Slot | None] | None = None  # in a worker, for outputs

    def join(self, document: Any) -> None:
        """In a worker: map what the host has made."""
        events, outputs = document
        self.look_into(open_arena(*events, writable=False))
        self.make_slot = Arena(open_arena(*outputs, writable=True)).make

    def look_into(self, mapping: SharedMapping) -> None:
        """Which arena the peer makes its slots in."""
        self._theirs = mapping

    def lend(self, slot: Slot) -> None:
        """The peer is about to be told where it is. One with an arena of its own needs no keeping: once
        mapped, the peer has it for as long as it likes.
        """
        if slot.arena.file is None:
            self._lent[slot.offset] = slot

    def take_back(self, offsets: Sequence[int]) -> None:
        for offset in offsets:
            self._lent.pop(offset, None)

    def take_all_back(self) -> None:
        """The peer is gone, and nothing more of it is read."""
        self._lent.clear()
        self._theirs = None

    def take_returned(self) -> list[int]:
        """What the peer is to be told now; each once, whoever asks."""
        taken = []
        with contextlib.suppress(IndexError):  # another thread was faster
            while self.returned:
                taken.append(self.returned.popleft())
        return taken

    def take(self, where: Any) -> list[memoryview]:
        """The buffers that a message with channel.SHARED speaks of, in place."""
        place, at, sizes = msgpack.unpackb(where)
        owner: Borrowed | None = None
        if place is None:
            assert self._theirs is not None
            mapping, owner = self._theirs, Borrowed(at, self.returned)
            with self._lock:
                self._borrowed.add(owner)
        else:
            mapping = open_arena(*place, writable=False)
        views = []
        for size in sizes:
            views.append(mapping.view(at, size, owner))
            at += aligned(size)
        return views

    def keep_all(self) -> None:
        """Before a fork: the child may look at what is borrowed now for as long as it lives."""
        with self._lock:  # another thread may be taking something
            for each in self._borrowed:
                each.keep()


class HostMemory:
    """What the host makes: the arena of the events, which all workers see, and the file for the outputs of each."""

    def __init__(self) -> None:
        self._file = ArenaFile(ARENA_BYTES)
        self._arena: Arena | None = Arena(self._file.mapping)

    def make_slot(self, size: int) -> Slot | None:
        """For an event; in an arena of its own if the common one is full. None: it has to go through the socket."""
        arena = self._arena
        slot = arena.make(size) if arena is not None else None
        if slot is None:
            try:
                file = ArenaFile(-(-size // _PAGE) * _PAGE)
            except OSError:  # no memory, no descriptors
                return None
            slot = Arena(file.mapping, file).make(size)
        return slot

    def share_with(self, worker: Sharing) -> tuple[ArenaFile, Any]:
        """A file for the worker's outputs, and what the worker has to be told: see `Sharing.join`."""
        outputs = ArenaFile(ARENA_BYTES)
        worker.look_into(outputs.mapping)
        return outputs, [(self._file.path, self._file.size), (outputs.path, outputs.size)]

    def close(self) -> None:
        self._arena = None
        self._file.close()
