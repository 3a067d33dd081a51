"""Values of events and outputs, as raw buffers beside a small head that says how to put them
together again.

An Arrow array of a plain type is its own buffers: no IPC, no copy (0.5 and 1.2 us to take apart and
put together, against 10 and 7 us with Arrow IPC). Its type is sent once per channel and named by a
number afterwards. What is nested, or sliced where its bits do not start at a byte, goes through
Arrow IPC. Bytes stay bytes. Anything else that msgpack can carry is allowed too, for use without
dora. Nothing is ever pickled.

pyarrow is only imported when a value needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from dora_state.runtime import channel, slots
from dora_state.runtime.slots import LARGE, Slot

NONE, BYTES, PACKED, ARROW, ARROW_IPC = range(5)

# How the buffers of a type are laid out: a positive number is the width in bytes of a fixed-size
# value.
_IPC = 0
_BITS = -1
_NULL = -2
_VAR32 = -4
_VAR64 = -8


MakeSlot = Callable[[int], Slot | None]


class Value:
    def __init__(
        self,
        head: tuple[Any, ...],
        buffers: Sequence[Any],
        type_number: int | None = None,
        slot: Slot | None = None,
    ) -> None:
        self.head = head
        self.buffers = buffers
        self.type_number = type_number
        self.slot = slot  # where the buffers are, if they are in shared memory

    @property
    def size_bytes(self) -> int:
        size = 0
        for buffer in self.buffers:
            size += len(buffer) if type(buffer) is bytes else memoryview(buffer).nbytes
        return size


class _Types:
    """The Arrow types this process has sent, numbered."""

    def __init__(self) -> None:
        self.numbers: dict[Any, tuple[int, int]] = {}
        self.schemas: list[bytes] = []

    def look_up(self, arrow_type: Any) -> tuple[int, int]:
        known = self.numbers.get(arrow_type)
        if known is None:
            import pyarrow as pa

            schema = pa.schema([pa.field("value", arrow_type)]).serialize().to_pybytes()
            known = (len(self.schemas), _layout(arrow_type))
            self.schemas.append(schema)
            self.numbers[arrow_type] = known
        return known


_types = _Types()


def _layout(arrow_type: Any) -> int:
    import pyarrow as pa
    from pyarrow import types

    if isinstance(arrow_type, pa.BaseExtensionType) or types.is_dictionary(arrow_type):
        return _IPC
    if arrow_type.num_fields:
        return _IPC
    if types.is_null(arrow_type):
        return _NULL  # what dora's timers send
    if types.is_boolean(arrow_type):
        return _BITS
    if types.is_string(arrow_type) or types.is_binary(arrow_type):
        return _VAR32
    if types.is_large_string(arrow_type) or types.is_large_binary(arrow_type):
        return _VAR64
    try:
        bits = arrow_type.bit_width
    except ValueError:
        return _IPC
    return bits // 8 if bits % 8 == 0 and bits else _IPC


def encode(value: Any, *, copy: bool, make_slot: MakeSlot | None = None) -> Value:
    """Take a value apart. Without `copy` the buffers are the value's own memory: send them before
    it changes. With `make_slot` a large value is copied into a slot, once.
    """
    if type(value) is bytes and len(value) <= LARGE:
        return Value((BYTES,), (value,))  # most events: small, and nobody can change it
    taken = _take_apart(value, make_slot)
    if taken.slot is not None:
        return taken
    if make_slot is not None and taken.size_bytes > LARGE:
        slot = make_slot(sum(slots.aligned(memoryview(each).nbytes) for each in taken.buffers))
        if slot is not None:
            return Value(taken.head, slot.fill(taken.buffers), taken.type_number, slot)
    return _copied(taken) if copy else taken


def _copied(taken: Value) -> Value:
    if taken.head[0] not in (BYTES, ARROW):
        return taken  # its buffers were made just now
    buffers = [each if isinstance(each, bytes) else bytes(each) for each in taken.buffers]
    return Value(taken.head, buffers, taken.type_number, taken.slot)


def _take_apart(value: Any, make_slot: MakeSlot | None) -> Value:
    if value is None:
        return Value((NONE,), ())
    if isinstance(value, bytes):
        return Value((BYTES,), (value,))
    if isinstance(value, (bytearray, memoryview)):
        return Value((BYTES,), (value,))
    pa = sys.modules.get("pyarrow")
    if pa is not None:
        if isinstance(value, pa.Array):
            return _encode_array(value, make_slot)
        if isinstance(value, pa.Scalar):
            return _encode_array(pa.array([value.as_py()], type=value.type), make_slot)
    try:
        return Value((PACKED,), (channel.pack(value),))
    except TypeError as error:
        raise TypeError(
            f"cannot send a {type(value).__name__}: use bytes or a pyarrow array"
        ) from error


def _encode_array(array: Any, make_slot: MakeSlot | None) -> Value:
    number, layout = _types.look_up(array.type)
    buffers = _plain_buffers(array, layout)
    if buffers is None:
        return _encode_as_ipc(array, make_slot)
    mask = 0
    present = []
    for i, buffer in enumerate(buffers):
        if buffer is not None:
            mask |= 1 << i
            present.append(buffer)
    return Value((ARROW, number, len(array), len(buffers), mask), present, number)


def _plain_buffers(array: Any, layout: int) -> list[Any] | None:
    """The array's buffers, cut to what it uses; None if that takes more than cutting."""
    if layout == _IPC:
        return None
    if layout == _NULL:
        return [None]
    offset, length = array.offset, len(array)
    buffers = array.buffers()
    if array.null_count == 0:
        validity = None
    elif offset % 8 == 0:
        validity = buffers[0].slice(offset // 8, (length + 7) // 8)
    else:
        return None
    if buffers[1] is None:  # an empty array may have no memory at all
        return [validity, None, *buffers[2:]]
    if layout > 0:
        return [validity, buffers[1].slice(offset * layout, length * layout)]
    if layout == _BITS:
        if offset % 8:
            return None
        return [validity, buffers[1].slice(offset // 8, (length + 7) // 8)]
    if offset:
        return None
    offsets = buffers[1].slice(0, (length + 1) * -layout)
    if buffers[2] is None:
        return [validity, offsets, None]
    used = int.from_bytes(memoryview(offsets)[length * -layout :], "little")
    return [validity, offsets, buffers[2].slice(0, used)]


def _encode_as_ipc(array: Any, make_slot: MakeSlot | None) -> Value:
    import pyarrow as pa

    batch = pa.record_batch([array], names=["value"])
    if make_slot is not None and array.nbytes > LARGE:
        measure = pa.MockOutputStream()
        _write_ipc(measure, batch)
        slot = make_slot(measure.size())
        if slot is not None:
            place = slot.writable(measure.size())
            _write_ipc(pa.FixedSizeBufferWriter(pa.py_buffer(place)), batch)
            return Value((ARROW_IPC,), (place.toreadonly(),), None, slot)
    sink = pa.BufferOutputStream()
    _write_ipc(sink, batch)
    return Value((ARROW_IPC,), (sink.getvalue(),))


def _write_ipc(sink: Any, batch: Any) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


def decode(head: Sequence[Any], buffers: Sequence[memoryview], types: dict[int, Any]) -> Any:
    """Put a value together. `types` is what the sender told: Channel.types."""
    kind = head[0]
    if kind == NONE:
        return None
    if kind == BYTES:
        return bytes(buffers[0])
    if kind == PACKED:
        return channel.unpack(buffers[0])
    import pyarrow as pa

    if kind == ARROW_IPC:
        batch = pa.ipc.open_stream(pa.py_buffer(buffers[0])).read_next_batch()
        return batch.column(0)
    _, number, length, count, mask = head
    rest = iter(buffers)
    arranged = [pa.py_buffer(next(rest)) if mask >> i & 1 else None for i in range(count)]
    return pa.Array.from_buffers(types[number], length, arranged)


def tell_type(to: channel.Channel, value: Value) -> None:
    """Send the value's type, if the peer was not told yet."""
    number = value.type_number
    if number is not None and number not in to.known_types:
        # Marked after it was sent: another thread that comes between sends it twice, which does no
        # harm.
        to.send(channel.TYPE, channel.pack((number, _types.schemas[number])))
        to.known_types.add(number)


def on_the_wire(kind: int, value: Value) -> tuple[int, Sequence[Any]]:
    """The kind and the buffers of a message that carries a value."""
    if value.slot is None:
        return kind, value.buffers
    return kind | channel.SHARED, (value.slot.where(value.buffers),)


def send(to: channel.Channel, kind: int, document: bytes, value: Value) -> None:
    """Send a message that carries a value, and its type first."""
    tell_type(to, value)
    if value.slot is not None:
        to.sharing.lend(value.slot)
    kind, buffers = on_the_wire(kind, value)
    to.send(kind, document, buffers)


def learn_type(at: channel.Channel, document: Any) -> None:
    """Note the type that a TYPE message tells."""
    number, schema = document
    at.types[number] = _read_type(schema)


def _read_type(schema: bytes) -> Any:
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(schema)).field(0).type


def pack_value(encoded: Value) -> list[Any]:
    """A value for a file: its head and its buffers, and its Arrow type instead of its number."""
    number = encoded.type_number
    schema = _types.schemas[number] if number is not None else None
    return [list(encoded.head), schema, [bytes(buffer) for buffer in encoded.buffers]]


def encode_again(packed: Sequence[Any]) -> Value:
    """What `pack_value` gave, to be sent. The Arrow type gets the number that it has in this process."""
    head, schema, buffers = packed
    if schema is None:
        return Value(tuple(head), buffers)
    number, _ = _types.look_up(_read_type(schema))
    return Value((head[0], number, *head[2:]), buffers, number)


def unpack_value(packed: Sequence[Any]) -> Any:
    """The value that `pack_value` was given in parts."""
    head, schema, buffers = packed
    types = {head[1]: _read_type(schema)} if schema is not None else {}
    return decode(head, [memoryview(buffer) for buffer in buffers], types)
