"""How a Python value becomes bytes and comes back: as msgpack, never as pickle.

What comes back equals what went in and has its type. msgpack by itself turns a tuple into a list and
knows neither numpy nor sets; each of those is an extension:

    code  content
    1     numpy array: a msgpack document [descr, shape, order], then the elements as they lie in memory
    2     tuple: a msgpack document, its items
    3, 4  set, frozenset: a msgpack document, its items
    5     an int beyond 64 bits, as decimal text
    6     complex: two little-endian doubles
    7     datetime.datetime, as isoformat() writes it; "~" behind it: the second of two hours that a clock shows (fold)
    8     collections.deque: a msgpack document [maxlen, items]
    9     bytearray (the value itself; one inside of a container comes back as bytes)
    10    a numpy scalar: as an array without dimensions
    11    what a codec of the user's has made

`descr` is numpy's own description of a dtype (numpy.lib.format), so structured dtypes work; `order` is
"C" or "F", and an array that is neither is stored in C order. Objects in an array are refused.
"""

from __future__ import annotations

import collections
import datetime
import functools
import math
import struct
import sys
from typing import Any, NamedTuple

import msgpack

ARRAY, TUPLE, SET, FROZENSET, INTEGER, COMPLEX, DATETIME, DEQUE, BYTEARRAY, SCALAR, CODED = range(
    1, 12
)
_EXT32 = struct.Struct(">BIb")  # the head of a large extension: 0xc9, size, code
_COMPLEX = struct.Struct("<dd")
_SMALL_BYTES = 1 << 14  # of an array: up to here a copy is cheaper than a view
_CONSTANT = frozenset({int, float, bool, str, bytes, type(None), complex})


class Coded(NamedTuple):
    """What a codec of the user's has made of a value."""

    data: bytes


def encode(value: Any) -> bytes:
    """The value as bytes. Raises TypeError or ValueError for what cannot come back as it was."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and type(value) is numpy.ndarray:
        return _extension(ARRAY, *_array_pieces(value))
    kind = type(value)
    if kind is Coded:
        return _extension(CODED, value.data)
    if kind is bytearray:
        return _extension(BYTEARRAY, value)
    if kind is memoryview:
        raise TypeError("a memoryview does not come back as one")
    return _pack(value)


def decode(data: Any) -> Any:
    """The value that `encode` was given; a new object each time, and a Coded for what has a codec."""
    return msgpack.unpackb(data, ext_hook=_from_extension, strict_map_key=False)


def is_constant(value: Any) -> bool:
    """Whether the value cannot be changed in place, whoever has it."""
    kind = type(value)
    if kind in _CONSTANT:
        return True
    if kind is tuple or kind is frozenset:
        return all(map(is_constant, value))
    numpy = sys.modules.get("numpy")
    # A structured scalar (numpy.void) can be changed in place.
    return numpy is not None and isinstance(value, numpy.generic) and kind is not numpy.void


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, default=_to_extension, strict_types=True)
    return packed


def _extension(code: int, *pieces: Any) -> bytes:
    """An extension as a document, its content copied once."""
    size = sum(len(piece) for piece in pieces)
    if size >> 32:
        raise ValueError(f"{size} bytes are more than one value may have (4 GiB)")
    return b"".join((_EXT32.pack(0xC9, size, code), *pieces))


def _to_extension(value: Any) -> msgpack.ExtType:
    kind = type(value)
    if kind is tuple:
        return msgpack.ExtType(TUPLE, _pack(list(value)))
    if kind is set:
        return msgpack.ExtType(SET, _pack(list(value)))
    if kind is frozenset:
        return msgpack.ExtType(FROZENSET, _pack(list(value)))
    if kind is int:
        return msgpack.ExtType(INTEGER, b"%d" % value)
    if kind is complex:
        return msgpack.ExtType(COMPLEX, _COMPLEX.pack(value.real, value.imag))
    if kind is datetime.datetime:
        return msgpack.ExtType(DATETIME, (value.isoformat() + "~" * value.fold).encode())
    if kind is collections.deque:
        return msgpack.ExtType(DEQUE, _pack([value.maxlen, list(value)]))
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        return msgpack.ExtType(ARRAY, b"".join(_array_pieces(value)))
    if numpy is not None and isinstance(value, numpy.generic):
        return msgpack.ExtType(SCALAR, b"".join(_array_pieces(numpy.asarray(value))))
    raise TypeError(
        f"a {kind.__module__}.{kind.__qualname__} is none of the types that can be saved"
    )


def _from_extension(code: int, data: bytes) -> Any:
    if code == ARRAY:
        return _to_array(data)
    if code == TUPLE:
        return tuple(decode(data))
    if code == SET:
        return set(decode(data))
    if code == FROZENSET:
        return frozenset(decode(data))
    if code == INTEGER:
        return int(data)
    if code == COMPLEX:
        return complex(*_COMPLEX.unpack(data))
    if code == DATETIME:
        text = data.decode()
        when = datetime.datetime.fromisoformat(text.removesuffix("~"))
        return when.replace(fold=1) if text.endswith("~") else when
    if code == DEQUE:
        maxlen, items = decode(data)
        return collections.deque(items, maxlen)
    if code == BYTEARRAY:
        return bytearray(data)
    if code == SCALAR:
        return _to_array(data)[()]
    if code == CODED:
        return Coded(data)
    raise ValueError(f"an unknown extension {code}; it was saved by a newer dora-state")


# numpy


def _array_pieces(array: Any) -> tuple[bytes, Any]:
    """The head of an array and its elements; large ones uncopied where they lie in one piece."""
    flags = array.flags
    order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    head = _head(array.dtype, array.shape, order)
    if array.nbytes <= _SMALL_BYTES:
        return head, array.tobytes(order)
    whole = array.T if order == "F" else array
    # Of a strided array reshape makes a copy, in C order.
    return head, memoryview(whole.reshape(-1).view("u1"))


@functools.lru_cache(256)  # it costs more than all the rest of a small array
def _head(dtype: Any, shape: tuple[int, ...], order: str) -> bytes:
    from numpy.lib import format as numpy_format

    if dtype.hasobject:
        raise TypeError(f"an array of dtype {dtype} holds Python objects, which are never pickled")
    return _pack([numpy_format.dtype_to_descr(dtype), shape, order])


def _to_array(data: bytes) -> Any:
    """A new, writable array."""
    import numpy
    from numpy.lib import format as numpy_format

    unpacker = msgpack.Unpacker(ext_hook=_from_extension, max_buffer_size=0)
    unpacker.feed(data)
    descr, shape, order = unpacker.unpack()
    dtype = numpy_format.descr_to_dtype(descr)
    if math.prod(shape) * dtype.itemsize != len(data) - unpacker.tell():
        raise ValueError(
            f"an array of {len(data) - unpacker.tell()} bytes does not fit its shape {shape}"
        )
    array = numpy.empty(shape, dtype, order)
    if array.size and dtype.itemsize:
        whole = array.T if order == "F" else array
        flat = whole.reshape(-1).view(numpy.uint8)
        flat[:] = numpy.frombuffer(data, numpy.uint8, offset=unpacker.tell())
    return array
