"""Messages between host and worker, over a stream socket pair.

A message is a header, a msgpack document and any number of raw buffers:

    offset  size  what
    0       1     kind
    1       1     number of buffers, n
    2       2     attempt, of an event; else zero
    4       4     size of the document
    8       8     size of what follows the header
    16      8*n   size of each buffer
    ...           the document, padded to 8
    ...           each buffer, padded to 8

Everything starts at a multiple of 8, so that Arrow can use the buffers where they were received.
They are never copied in Python: sent by sendmsg from where they lie, received into memory that they
keep. Nothing is pickled.

A peer may die anywhere, also inside a message. What it sent before stays in the socket and is read
to its end; a message that is not complete is dropped with the channel.
"""

from __future__ import annotations

import datetime
import functools
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from dora_state.runtime import slots

# host to worker
OPEN = 1  # which incarnation it is, and the store to open
START = 2  # build the operator, restore its state
EVENT = 3
STOP = 4  # end in order
RELOAD = 5  # replace the operator by one of the new code
MEMORY = 6  # which memory it shares with the host
# worker to host
IMPORTED = 16  # the operator's file is imported
READY = 17  # __init__ and restore_state are done
OUTPUT = 18
DONE = 19  # the event's commit is made
FAILED = 20  # an exception came out; the worker ends
RECOVERED = 21  # a prepared step of the worker before is finished or dropped: see shared_step.py
CONFLICT = (
    22  # the shared store has changed under the handler, which has to run again; the worker ends
)
RESTORING = 25  # __init__ is done, there is state to restore
RELOADED = 26  # or not, and why
RELOADING = 28  # the new code is about to run
HOLDS = 27  # what a successor must not open at the same time
# both
TYPE = 32  # an Arrow type: what a number in later values means
RETURNED = 33  # memory of the receiver's that the sender has no use for any more: see slots.py
SHARED = (
    0x80  # added to a kind: its buffers are in shared memory, and the one that is sent says where
)

_KINDS = frozenset(
    {OPEN, START, EVENT, STOP, RELOAD, MEMORY, IMPORTED, READY, OUTPUT, DONE, FAILED}
    | {RECOVERED, CONFLICT, RESTORING, RELOADING, RELOADED, HOLDS, TYPE, RETURNED}
)
_HEADER = struct.Struct("<BBHIQ")
_HEADER_BYTES = _HEADER.size
MOST_ATTEMPTS = 0xFFFF  # that can be told; a degraded operator makes as many in three weeks
_SIZES = [struct.Struct(f"<{n}Q") for n in range(8)]
_RECEIVE_BYTES = 1 << 16
_IOV_MAX = 1024
_LOCAL_TIME = 1
_PADDING = [b"", *(bytes(n) for n in range(1, 8))]

Buffer = Any  # anything with the buffer protocol; collections.abc.Buffer needs Python 3.12


class Message:
    def __init__(
        self, kind: int, document: Any, buffers: list[memoryview], attempt: int = 0
    ) -> None:
        self.kind = kind
        self.document = document
        self.buffers = buffers
        self.attempt = attempt


# Making one takes longer than packing with it. Taken out while one is used: `pack` may be called by any thread.
_packers: list[Any] = []


def pack(document: object, other: Callable[[Any], Any] | None = None) -> bytes:
    """`other` turns what msgpack does not know into something that it does."""
    if other is not None:
        convert = functools.partial(_pack_other, other=other)
        return msgpack.packb(document, datetime=True, default=convert)  # type: ignore[no-any-return]
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer(datetime=True, default=_pack_other)
    data: bytes = packer.pack(document)
    _packers.append(packer)  # one that has raised is not used again
    return data


def _pack_other(content: Any, other: Callable[[Any], Any] | None = None) -> Any:
    if isinstance(content, datetime.datetime):  # one without a zone; msgpack's own are instants
        return msgpack.ExtType(_LOCAL_TIME, content.isoformat().encode())
    if other is None:
        raise TypeError(f"cannot send a {type(content).__name__} in an event or in metadata")
    return other(content)


def unpack(data: Buffer) -> Any:
    return msgpack.unpackb(data, timestamp=3, ext_hook=_unpack_other, strict_map_key=False)


def _unpack_other(code: int, data: bytes) -> object:
    if code == _LOCAL_TIME:
        return datetime.datetime.fromisoformat(data.decode())
    raise ValueError(f"an unknown extension type {code} in a message")


NOTE_BYTES = (
    512  # see lifeline.h, which fills in the end: the event that was begun, whether one follows
)


def describe_failure(failure: Mapping[str, Any]) -> str:
    return f"exception in {failure['phase']}: {failure['error']}"


def pack_note(reason: str, detail: str) -> bytes:
    """How a worker ends, for its successor; shortened to what fits."""
    room = NOTE_BYTES - 48
    return pack((reason, detail.encode()[:room].decode(errors="ignore")))


def unpack_note(note: memoryview) -> dict[str, Any]:
    """What a note says beyond START; there may be none."""
    told: dict[str, Any] = {"replayed": note[-1]}
    if note[0]:
        unpacker = msgpack.Unpacker()
        unpacker.feed(note)
        told["reason"], told["detail"] = unpacker.unpack()
    return told


def frame(
    kind: int, document: bytes, buffers: Sequence[Buffer] = (), attempt: int = 0
) -> list[Buffer]:
    """The pieces of one message, to be sent one after the other."""
    attempt = min(attempt, MOST_ATTEMPTS)
    if not buffers:
        padding = _PADDING[-len(document) % 8]
        header = _HEADER.pack(kind, 0, attempt, len(document), len(document) + len(padding))
        return [b"".join((header, document, padding))]
    size = len(document)
    pieces: list[Buffer] = [b"", document, _PADDING[-size % 8]]
    body = 8 * len(buffers) + size + -size % 8
    sizes = []
    for buffer in buffers:
        view = buffer if type(buffer) is bytes else memoryview(buffer).cast("B")
        size = len(view)
        sizes.append(size)
        pieces += (view, _PADDING[-size % 8])
        body += size + -size % 8
    header = _HEADER.pack(kind, len(sizes), attempt, len(document), body)
    pieces[0] = header + _SIZES[len(sizes)].pack(*sizes)
    # One copy of a few bytes is cheaper than a longer system call.
    return [b"".join(pieces)] if body <= 4096 else [piece for piece in pieces if len(piece)]


def _check_header(kind: int, count: int, document_size: int, body_size: int) -> None:
    """Before more is waited for: whatever the operator's code wrote into a descriptor that is not its own."""
    least = 8 * count + document_size
    is_whole = body_size == least + -document_size % 8 if count == 0 else body_size >= least
    if kind & ~SHARED not in _KINDS or count >= len(_SIZES) or not is_whole:
        raise ValueError(f"kind {kind}, {count} buffers, sizes {document_size} and {body_size}")


class Channel:
    """One end of the socket pair. `send` may be called by several threads, the rest by one."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.known_types: set[int] = set()  # numbers of Arrow types that the peer was told
        self.types: dict[int, Any] = {}  # what the peer told us
        self.sharing = slots.Sharing()
        self._lock = threading.Lock()
        self._unsent: deque[memoryview] = deque()  # non-blocking ends only
        self._rest = b""  # the beginning of a message
        self._body: bytearray | None = None  # of a message too large for one read
        self._body_filled = 0
        self._body_header = (0, 0, 0, 0)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    # Sending

    def send(self, kind: int, document: bytes, buffers: Sequence[Buffer] = ()) -> None:
        """Send, or on a non-blocking end send what fits and keep the rest for `flush`."""
        if self.sharing.returned and kind != RETURNED:
            self.tell_returned()
        self.send_pieces(frame(kind, document, buffers))

    def send_pieces(self, pieces: list[Buffer]) -> None:
        """A message that is framed already."""
        with self._lock:
            if not self._unsent and len(pieces) == 1:
                # The usual case: one short message that fits.
                data = pieces[0]
                try:
                    sent = self.socket.send(data)
                except BlockingIOError:
                    sent = 0
                if sent == len(data):
                    return
                pieces = [memoryview(data)[sent:]]
            self._unsent.extend([memoryview(piece) for piece in pieces])
            self._flush()

    def tell_returned(self) -> None:
        """Done by every `send`; by itself for who sends nothing for long."""
        if returned := self.sharing.take_returned():
            self.send(RETURNED, pack(returned))

    def flush(self) -> None:
        with self._lock:
            self._flush()

    @property
    def is_flushed(self) -> bool:
        return not self._unsent

    def _flush(self) -> None:
        while self._unsent:
            pieces = [self._unsent[i] for i in range(min(len(self._unsent), _IOV_MAX))]
            try:
                sent = self.socket.sendmsg(pieces)
            except BlockingIOError:
                return
            while sent or (self._unsent and not len(self._unsent[0])):
                first = self._unsent.popleft()
                if sent < len(first):
                    self._unsent.appendleft(first[sent:])
                    break
                sent -= len(first)

    # Receiving

    def receive(self) -> list[Message] | None:
        """One read, and the messages it completed; None at the end of the stream. BlockingIOError:
        nothing there. Any other exception: what came is no message.
        """
        if self._body is not None:
            view = memoryview(self._body)[self._body_filled :]
            count = self.socket.recv_into(view)
            if count == 0:
                return None
            self._body_filled += count
            if self._body_filled < len(self._body):
                return []
            body, self._body = memoryview(self._body).toreadonly(), None
            kind, count, attempt, document_size = self._body_header
            return [self._parse(kind, count, attempt, document_size, body, 0)]
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            return None
        if self._rest:
            data = self._rest + data
            self._rest = b""
        return self._split(data)

    def _split(self, data: bytes) -> list[Message]:
        messages: list[Message] = []
        at, end = 0, len(data)
        while end - at >= _HEADER_BYTES:
            kind, count, attempt, document_size, body_size = _HEADER.unpack_from(data, at)
            body_at = at + _HEADER_BYTES
            if body_at + body_size > end:
                _check_header(kind, count, document_size, body_size)
                if body_size > _RECEIVE_BYTES:
                    self._body = bytearray(body_size)
                    self._body_filled = end - body_at
                    self._body[: self._body_filled] = memoryview(data)[body_at:]
                    self._body_header = (kind, count, attempt, document_size)
                    return messages
                break
            messages.append(self._parse(kind, count, attempt, document_size, data, body_at))
            at = body_at + body_size
        if at < end:
            self._rest = data[at:]
        return messages

    def _parse(
        self,
        kind: int,
        count: int,
        attempt: int,
        document_size: int,
        data: bytes | memoryview,
        at: int,
    ) -> Message:
        """The message whose body begins at `at`."""
        sizes_at = at
        at += 8 * count
        document = unpack(data[at : at + document_size])
        buffers: list[memoryview] = []
        if count:
            view = memoryview(data)
            at += document_size + -document_size % 8
            for size in _SIZES[count].unpack_from(data, sizes_at):
                buffers.append(view[at : at + size])
                at += size + -size % 8
        if kind & SHARED:
            kind &= ~SHARED
            buffers = self.sharing.take(buffers[0])
        elif kind == RETURNED:
            self.sharing.take_back(document)
        elif kind == MEMORY:  # here, as what comes with the same read may lie in it
            self.sharing.join(document)
        return Message(kind, document, buffers, attempt)
