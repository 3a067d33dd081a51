"""The portable file: the keys of a store as one file that any machine can read. docs/export.md has its bytes.

    magic     8 bytes
    header    a msgpack map
    entries   for each key a msgpack array [key, size, time to live], then its value in pieces of at most 1 MiB
    end       a msgpack map {"keys", "bytes"}
    checksum  32 bytes: SHA-256 of everything before

Written and read as a stream. A reader knows only at the end whether the file is what was written, so what it has read
until then must not have had consequences: `entries` ends without an error, or the file is none.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import msgpack

from .errors import FormatError

MAGIC = b"\x8bDSEXP\r\n"
FORMAT = 1
PIECE_BYTES = 1 << 20
_DIGEST_BYTES = 32
_KEY_LIMIT = 65535
_TTL_LIMIT_S = 10 * 366 * 86400


class Damaged(FormatError):
    """The file is cut, altered, or was never one."""


def write(
    file: BinaryIO,
    entries: Iterable[tuple[bytes, memoryview, float | None]],
    header: dict[str, Any],
) -> Iterator[int]:
    """Writes a whole file of (key, value, seconds left to live); yields how many bytes of values are in it so far."""
    packer = msgpack.Packer()
    digest = hashlib.sha256()

    def out(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    out(MAGIC)
    out(packer.pack({"format": FORMAT, "written": time.time(), **header}))
    keys = done = 0
    for key, value, ttl in entries:
        out(packer.pack([key, len(value), ttl]))
        for at in range(0, len(value), PIECE_BYTES):
            out(packer.pack(bytes(value[at : at + PIECE_BYTES])))
        keys += 1
        done += len(value)
        yield done
    out(packer.pack({"keys": keys, "bytes": done}))
    file.write(digest.digest())


class Reader:
    """Reads a file once, from its beginning, checking as it goes."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        self._body = _Body(file)
        if self._body.read(len(MAGIC)) != MAGIC:
            raise self._damaged("it is not a file of `dora-state export`")
        self._unpacker = msgpack.Unpacker(self._body, read_size=PIECE_BYTES, strict_map_key=False)
        self.header = self._next()
        if not isinstance(self.header, dict) or type(self.header.get("format")) is not int:
            raise self._damaged("it has no header")
        if self.header["format"] != FORMAT:
            raise FormatError(
                f"{name} has format {self.header['format']}, this version knows {FORMAT};"
                " use the dora-state that wrote it"
            )

    def entries(self) -> Iterator[tuple[bytes, bytes, float | None]]:
        """Keys, values, seconds left to live. Raises Damaged, possibly only after the last one."""
        keys = done = 0
        while isinstance(item := self._next(), list):
            key, size, ttl = self._entry(item)
            pieces = []
            for at in range(0, size, PIECE_BYTES):
                piece = self._next()
                if not isinstance(piece, bytes) or len(piece) != min(PIECE_BYTES, size - at):
                    raise self._damaged("a value is not as long as it should be")
                pieces.append(piece)
            keys += 1
            done += size
            yield key, b"".join(pieces), ttl
        if item != {"keys": keys, "bytes": done}:
            raise self._damaged("it does not hold as many keys as it should")
        if self._body.rest() or self._unpacker.tell() != self._body.length - len(MAGIC):
            raise self._damaged("there is more behind its end")
        if not self._body.is_intact():
            raise self._damaged("its checksum is wrong")

    def _entry(self, item: list[Any]) -> tuple[bytes, int, float | None]:
        if len(item) == 3:
            key, size, ttl = item
            is_key = isinstance(key, bytes) and len(key) <= _KEY_LIMIT
            lives = ttl is None or (type(ttl) is float and 0 < ttl <= _TTL_LIMIT_S)
            if is_key and type(size) is int and size >= 0 and lives:
                return key, size, ttl
        raise self._damaged("it holds what is no key")

    def _next(self) -> Any:
        try:
            return self._unpacker.unpack()
        except msgpack.OutOfData:
            raise self._damaged("it is cut off") from None
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise self._damaged(f"it cannot be read ({error})") from None

    def _damaged(self, what: str) -> Damaged:
        return Damaged(
            f"{self._name} is damaged or no export: {what}; nothing was changed, export again or use another copy"
        )


class _Body:
    """A file but for its last 32 bytes, which are the checksum of what comes before."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._held = b""
        self.length = 0

    def read(self, count: int) -> bytes:
        """At most `count` bytes; none at the end."""
        while len(self._held) <= _DIGEST_BYTES:
            more = self._file.read(count)
            if not more:
                return b""
            self._held += more
        give = min(count, len(self._held) - _DIGEST_BYTES)
        data, self._held = self._held[:give], self._held[give:]
        self._digest.update(data)
        self.length += give
        return data

    def rest(self) -> bool:
        return bool(self.read(PIECE_BYTES))

    def is_intact(self) -> bool:
        return self._digest.digest() == self._held
