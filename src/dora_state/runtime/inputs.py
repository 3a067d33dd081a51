"""Events on their way to the operator: numbered, kept until their commit, bounded while the
operator is away.

Per input, as in dora: at most `queue_size` events wait, and a new one drops the oldest;
`queue_size: 1` stays freshest-only. A cap on bytes comes on top. Events that are no INPUT are few
and never dropped. Every drop is counted.

They come out in the order of their arrival. An input that drops keeps its places in that order: at the
end of it, its events would be dropped again before their turn, as long as another input is full too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dora_state.runtime import channel, value
from dora_state.runtime.value import Value

QUEUE_SIZE = 10  # dora's default
QUEUE_BYTES = 16 << 20
REPLAY_BYTES = 64 << 10  # up to here a message is copied for the lifeline, which takes 3 us
# How an event can be over.
DONE = "done"
DROPPED = "dropped, as the buffer was full"
DEAD = "a dead letter, as it failed the operator too often"


class Event:
    """One event, taken apart. A replay sends the same bytes, so the content is the same."""

    def __init__(
        self,
        type: str,
        id: str | None,
        packed: bytes,
        value: Value | None,
        size_bytes: int,
        letter: int = 0,
    ) -> None:
        self.type = type
        self.id = id
        self.packed = packed  # the event without its value
        self.value = value
        self.size_bytes = size_bytes
        self.number = 0  # given when it is first handed to a worker
        self.attempt = 1
        self.conflicts = 0  # attempts that ended in one, for which nobody is charged
        self.letter = letter  # the dead letter that it was; its commit deletes that
        self._pieces: list[channel.Buffer] | None = None
        self._framed = 0  # for which attempt
        self.on_over: Callable[[str], None] | None = None

    def over(self, how: str) -> None:
        """Tell who handed it in that it needs no more handling: DONE, DROPPED, DEAD."""
        on_over, self.on_over = self.on_over, None  # who was told may refer to the event itself
        if on_over is not None:
            on_over(how)

    def send(self, to: channel.Channel) -> None:
        if self.value is not None:
            value.tell_type(to, self.value)
            self.lend_to(to)
        if to.sharing.returned:
            to.tell_returned()
        to.send_pieces(self.pieces())

    def pieces(self) -> list[channel.Buffer]:
        """The message, framed once for each attempt."""
        if self._pieces is None or self._framed != self.attempt:
            self._framed = self.attempt
            head, kind = None, channel.EVENT
            buffers: Sequence[Any] = ()
            if self.value is not None:
                head = self.value.head
                kind, buffers = value.on_the_wire(kind, self.value)
            document = channel.pack((self.number, self.packed, head, self.letter))
            self._pieces = channel.frame(kind, document, buffers, self.attempt)
        return self._pieces

    def message(self) -> bytes:
        """The same in one piece, for the lifeline; empty if it is large."""
        pieces = self.pieces()
        if len(pieces) == 1:
            return bytes(pieces[0])
        return b"".join(pieces) if self.size_bytes <= REPLAY_BYTES else b""

    def lend_to(self, to: channel.Channel) -> None:
        """Before it is told of a value in shared memory, or right after a lifeline has told it."""
        if self.value is not None and self.value.slot is not None:
            to.sharing.lend(self.value.slot)


def take_apart(event: Mapping[str, Any], make_slot: value.MakeSlot | None = None) -> Event:
    """An event as dora gives it, copied: dora's buffer can be dropped afterwards. A large value is
    copied to where the worker will see it.
    """
    rest = dict(event)
    encoded = None
    if "value" in rest:
        encoded = value.encode(rest.pop("value"), copy=True, make_slot=make_slot)
    packed = channel.pack(rest)
    size = len(packed) + (encoded.size_bytes if encoded is not None else 0)
    kind, input_id = rest.get("type", ""), rest.get("id")
    return Event(str(kind), input_id if isinstance(input_id, str) else None, packed, encoded, size)


class InputBuffer:
    """Events that wait, in the order of their arrival. Put by one thread, taken by another."""

    def __init__(
        self, queue_sizes: Mapping[str, int] | None = None, queue_size: int = QUEUE_SIZE
    ) -> None:
        self._queue_sizes = dict(queue_sizes or {})
        self._queue_size = queue_size  # of inputs that are not named
        self._order: deque[Event | str] = deque()  # of an INPUT only which input is to come
        self._places: dict[str, int] = {}  # how many it has in there
        self._count = 0
        self._per_input: dict[str, deque[Event]] = {}
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()
        self.dropped: dict[str, int] = {}
        self.dropped_count = 0
        self.stop_seen = False  # a STOP event has come in

    def put(self, event: Event) -> bool:
        """Returns whether others were dropped for it."""
        with self._lock:
            self._count += 1
            if event.type == "STOP":
                self.stop_seen = True
            if event.type != "INPUT" or event.id is None:
                self._order.append(event)
                return False
            before = self.dropped_count
            waiting = self._per_input.setdefault(event.id, deque())
            waiting.append(event)
            self._bytes[event.id] = self._bytes.get(event.id, 0) + event.size_bytes
            limit = max(1, self._queue_sizes.get(event.id, self._queue_size))
            while len(waiting) > limit or (
                self._bytes[event.id] > QUEUE_BYTES and len(waiting) > 1
            ):
                self._drop(event.id)
            places = self._places.get(event.id, 0)
            if places < len(waiting):
                self._order.append(event.id)
                self._places[event.id] = places + 1
            return self.dropped_count != before

    def take(self) -> Event | None:
        with self._lock:
            while self._order:
                place = self._order.popleft()
                if isinstance(place, Event):
                    self._count -= 1
                    return place
                self._places[place] -= 1
                waiting = self._per_input[place]
                if waiting:  # else it has dropped more than has come since
                    event = waiting.popleft()
                    self._bytes[place] -= event.size_bytes
                    self._count -= 1
                    return event
            return None

    def __len__(self) -> int:
        with self._lock:
            return self._count

    def drop_inputs(self) -> int:
        """Drop the INPUT events that wait; returns how many."""
        with self._lock:
            count = 0
            for input_id, waiting in self._per_input.items():
                count += len(waiting)
                while waiting:
                    self._drop(input_id)
            return count

    def _drop(self, input_id: str) -> None:
        event = self._per_input[input_id].popleft()
        self._bytes[input_id] -= event.size_bytes
        self._count -= 1
        event.value, event.packed = None, b""  # whoever is told may keep it
        self.dropped[input_id] = self.dropped.get(input_id, 0) + 1
        self.dropped_count += 1
        event.over(DROPPED)
