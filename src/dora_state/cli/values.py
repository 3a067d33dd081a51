"""Values as people read them.

A value is any bytes; nothing in the store says what they mean. Tried in this order: a numpy file (.npy), text, msgpack
with the types of codec.py; and for all else its bytes. Text comes before msgpack, so an integer that is the code of a
printable character is shown as that character; but not in typed state, where all values are msgpack.
"""

from __future__ import annotations

import base64
import io
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgpack

from .. import codec
from . import text

_LOOK_BYTES = 64 * 1024  # of a value that is only looked at, not shown in full
_NPY = b"\x93NUMPY"
_WIDTH = 16
_TYPED = "@"  # how the keys of typed state begin, whose values are msgpack: typed_state.py


class Value(NamedTuple):
    """What a value is taken for, and what it says."""

    kind: str
    """`text`, `npy`, `msgpack`, `bytes`"""
    content: Any


def decode(data: memoryview | bytes, key: str = "") -> Value:
    """The whole value, decoded."""
    if bytes(data[:6]) == _NPY:
        return _npy(data)
    if key.startswith(_TYPED) and (value := _msgpack(data)):
        return value
    try:
        return Value("text", _text(bytes(data)))
    except ValueError:
        return _msgpack(data) or Value("bytes", bytes(data))


def _msgpack(data: memoryview | bytes) -> Value | None:
    try:
        return Value("msgpack", codec.decode(data))
    except Exception:  # of bytes that mean something else, anything may come out
        return None


def _text(data: bytes) -> str:
    decoded = data.decode()
    if not all(character.isprintable() or character in "\n\t\r" for character in decoded):
        raise ValueError("not text")
    return decoded


def _npy(data: memoryview | bytes) -> Value:
    try:
        import numpy

        return Value("npy", numpy.load(io.BytesIO(data), allow_pickle=False))
    except (ImportError, ValueError, OSError):
        return Value("bytes", bytes(data))


def line(data: memoryview, key: str = "", room: int = 60) -> str:
    """The beginning of a value on one line."""
    if not data:
        return "(empty)"
    large = len(data) > _LOOK_BYTES
    head = bytes(data[:_LOOK_BYTES])
    if large and (array := _array_head(head)):
        return array
    if large:  # its end may cut a character
        try:
            return text.shorten(text.visible(_text(head[:-4] if _cut(head) else head)), room)
        except ValueError:
            return _hex(head, room)
    value = decode(head, key)
    if value.kind == "text":
        return text.shorten(text.visible(value.content), room)
    if value.kind == "bytes":
        return _hex(head, room)
    return text.shorten(_short(value.content), room)


def _cut(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 4
    return False


def _array_head(head: bytes) -> str | None:
    """What a large array of codec.py is, without its elements."""
    if head[0] != 0xC9 or head[5] != codec.ARRAY:
        return None
    try:
        unpacker = msgpack.Unpacker(max_buffer_size=0, ext_hook=lambda _, data: codec.decode(data))
        unpacker.feed(head[6:])
        descr, shape, _ = unpacker.unpack()
    except Exception:
        return None
    return f"array {_dtype(descr)} {tuple(shape)}"


def _dtype(descr: Any) -> str:
    try:
        import numpy

        return str(numpy.dtype(descr)) if isinstance(descr, str) else "structured"
    except (ImportError, TypeError):
        return str(descr)


def _short(content: Any) -> str:
    if (dtype := getattr(content, "dtype", None)) is not None and content.ndim:
        return f"array {dtype} {content.shape}"
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 60
    shown.maxdict = shown.maxlist = 8
    return text.visible(shown.repr(content).replace("\n", " "))


def _hex(head: bytes, room: int) -> str:
    return text.shorten(head[: room // 2].hex(" "), room)


def lines(value: Value) -> Iterator[str]:
    """A value in full, for a terminal."""
    if value.kind == "text":
        for row in value.content.split("\n"):
            yield text.visible(row.removesuffix("\r")).replace("\\t", "\t").replace("\\\\", "\\")
    elif value.kind == "bytes":
        yield from hexdump(value.content)
    elif isinstance(value.content, (dict, list)):
        yield json.dumps(plain(value.content), ensure_ascii=False, indent=2)
    else:
        yield repr(value.content)


def hexdump(data: bytes) -> Iterator[str]:
    """Offset, sixteen bytes, and what of them is ASCII."""
    for at in range(0, len(data), _WIDTH):
        row = data[at : at + _WIDTH]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{at:08x}  {row[:8].hex(' '):23}  {row[8:].hex(' '):23}  {shown}"


def plain(content: Any) -> Any:
    """What JSON can say: bytes as {"base64": ...}, arrays as nested lists, what else there is as text."""
    if content is None or isinstance(content, (bool, int, str)):
        return (
            text.visible(content) if isinstance(content, str) and not _is_utf8(content) else content
        )
    if isinstance(content, float):
        return content if math.isfinite(content) else repr(content)
    if isinstance(content, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(content).decode()}
    if isinstance(content, Mapping):
        return {
            key if isinstance(key, str) else str(key): plain(item) for key, item in content.items()
        }
    if hasattr(content, "tolist"):
        return plain(content.tolist())
    if isinstance(content, codec.Coded):
        return plain(content.data)
    if isinstance(content, (list, tuple, set, frozenset)) or hasattr(content, "maxlen"):
        return [plain(item) for item in content]
    return str(content)


def _is_utf8(content: str) -> bool:
    try:
        content.encode()
    except UnicodeEncodeError:
        return False
    return True
