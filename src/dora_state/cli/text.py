"""Keys and numbers as text that is safe to print, and back.

A key is any bytes. What a terminal could stumble over is escaped: control characters, marks that turn the direction of
writing, and what is not UTF-8. `unescape` understands what `visible` writes, so a key can be copied from a table.
"""

from __future__ import annotations

import re

_NAMED = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPE = re.compile(r"\\(?:([\\\\nrt])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|)")
_UNITS = ("KiB", "MiB", "GiB", "TiB")
_BACK = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}


def visible(text: str) -> str:
    """Printable, on one line. Bytes that are no UTF-8 come in as Python's surrogate escapes and go out as \\xff."""
    return "".join(map(_visible, text))


def visible_lines(text: str) -> str:
    """The same for several lines that nobody reads back, such as a traceback: backslashes stay."""
    return "".join(each if each in "\n\\" else _visible(each) for each in text)


def _visible(character: str) -> str:
    code = ord(character)
    if character in _NAMED:
        return _NAMED[character]
    if character.isprintable():
        return character
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def unescape(text: str) -> bytes:
    """The key that `visible` has shown."""
    pieces = []
    at = 0
    for match in _ESCAPE.finditer(text):
        named, byte, short, long = match.groups()
        pieces.append(text[at : match.start()].encode("utf-8", "surrogateescape"))
        if named:
            pieces.append(_BACK[named].encode())
        elif byte:
            pieces.append(bytes([int(byte, 16)]))
        elif short or long:
            pieces.append(chr(int(short or long, 16)).encode())
        else:
            raise ValueError(
                f"{text!r} has a backslash that begins no escape; write a backslash as two"
            )
        at = match.end()
    pieces.append(text[at:].encode("utf-8", "surrogateescape"))
    return b"".join(pieces)


def of_key(key: str | bytes) -> str:
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key


def size(count: int) -> str:
    """A number of bytes, for people."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, len(_UNITS))
    return f"{count / 1024**power:.1f} {_UNITS[power - 1]}"


def shorten(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 3]}..."
