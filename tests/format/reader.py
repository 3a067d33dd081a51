"""A reader of a store's files, written from docs/format.md alone.

It shares nothing with the engine, not even the checksum, so what both say about a store is what the document says. It
checks everything that can be checked, and is slow.

    python tests/format/reader.py DIRECTORY       prints every frame and record
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = bytes.fromhex("8b44535441540d0a")
HEADER, FRAME, RECORD, FLOOR = 128, 24, 40, 32
COMMIT, RELOCATE, HEAD = 1, 2, 3
PUT, TOMBSTONE, BLOB, START, EXPIRING, EXPIRING_BLOB = 1, 2, 3, 4, 9, 11
OPS = (PUT, TOMBSTONE, BLOB, START, EXPIRING, EXPIRING_BLOB)
MAY_EXPIRE = 1  # in a segment's incompat
MARK = 0xD57A
ONES = 0xFFFFFFFF
LARGEST_KEY = 65535
LANES_FROM = 4096


class DamagedError(Exception):
    """The files are not what a store may be."""


class UnknownFormatError(Exception):
    """Written by a version that this reader does not know."""


# ---- checksums -------------------------------------------------------------------------------


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = _table()


def crc(state: int, *parts: bytes) -> int:
    """CRC-32C continued from `state`, inverted at neither end."""
    for part in parts:
        for byte in part:
            state = TABLE[(state ^ byte) & 255] ^ state >> 8
    return state


def rotl(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & ONES


def lanes(state: int, data: bytes) -> int:
    run = len(data) // 24 * 8
    a = crc(state, data[:run])
    b = crc(state ^ ONES, data[run : 2 * run])
    c = crc(rotl(state, 16), data[2 * run : 3 * run])
    d = crc(state, data[3 * run :])
    low = crc(state, struct.pack("<4I", a, b, c, d))
    return (a ^ rotl(b, 11) ^ rotl(c, 22) ^ rotl(d, 5)) << 32 | low


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def align8(size: int) -> int:
    return size + 7 & ~7


# ---- what the files hold ------------------------------------------------------------------------


@dataclass
class Expiry:
    deadline: int
    written: int
    wall_ahead_s: int


@dataclass
class Record:
    offset: int
    op: int  # without the expiry
    keyspace: int
    key: bytes
    value: bytes  # without the expiry
    expiry: Expiry | None
    sequence: int
    previous: int
    hash: int
    length: int


@dataclass
class Frame:
    offset: int
    length: int
    type: int
    sequence: int
    crc: int
    records: list[Record]

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass
class Segment:
    base: int
    size: int
    data: bytes
    uuid: bytes
    first_sequence: int
    before_base: int
    before_end: int
    before_sequence: int
    before_crc: int
    crc: int
    seed: int
    may_expire: bool
    frames: list[Frame] = field(default_factory=list)

    @property
    def frames_end(self) -> int:
        return self.frames[-1].end if self.frames else self.base + HEADER

    @property
    def last_crc(self) -> int:
        return self.frames[-1].crc if self.frames else self.crc

    @property
    def last_sequence(self) -> int:
        return self.frames[-1].sequence if self.frames else self.before_sequence


@dataclass
class Entry:
    value: bytes
    sequence: int


@dataclass
class Log:
    uuid: bytes
    segments: list[Segment]
    end: int  # where the frames end
    torn: int  # bytes from there to the last that is not zero, and segments that follow nothing
    floor: int
    clean: bool
    state: tuple[dict[bytes, Entry], dict[bytes, Entry]]

    def frames(self) -> Iterator[Frame]:
        for segment in self.segments:
            yield from segment.frames


# ---- parsing -------------------------------------------------------------------------------------


def parse_segment(data: bytes, base: int) -> Segment:
    """The header, checked. Frames are for parse_frames(), which needs no neighbour either."""
    if len(data) < HEADER or data[:8] != MAGIC:
        raise DamagedError(f"segment {base:#x}: no magic number")
    version, _, _, incompat = struct.unpack_from("<4I", data, 8)
    if version == 0:
        raise DamagedError(f"segment {base:#x}: half a header")
    if version != 1 or incompat & ~MAY_EXPIRE:
        raise UnknownFormatError(f"segment {base:#x}: version {version}, features {incompat:#x}")
    if struct.unpack_from("<I", data, 124)[0] != crc(ONES, data[:124]):
        raise DamagedError(f"segment {base:#x}: the header's crc is wrong")
    uuid = data[24:40]
    named, size, salt, _, first, b_base, b_end, b_sequence, b_crc = struct.unpack_from(
        "<8QI", data, 40
    )
    if named != base or size != len(data):
        raise DamagedError(f"segment {base:#x}: made for another name or size")
    if any(data[108:124]):
        raise DamagedError(f"segment {base:#x}: reserved bytes are not zero")
    seed = crc(ONES, uuid, u64(salt), u64(base))
    own_crc = struct.unpack_from("<I", data, 124)[0]
    segment = Segment(
        base,
        size,
        data,
        uuid,
        first,
        b_base,
        b_end,
        b_sequence,
        b_crc,
        own_crc,
        seed,
        bool(incompat & MAY_EXPIRE),
    )
    parse_frames(segment)
    return segment


def parse_frames(segment: Segment) -> None:
    """Every frame up to the first that is none."""
    sequence = segment.before_sequence
    while True:
        frame = parse_frame(segment, segment.frames_end, segment.last_crc)
        if frame is None or frame.sequence < sequence:
            return
        if frame.type == COMMIT and frame.sequence == sequence:
            return
        sequence = frame.sequence
        segment.frames.append(frame)


def parse_frame(segment: Segment, offset: int, before: int) -> Frame | None:
    """The frame at `offset`, or None if there is no valid one."""
    at = offset - segment.base
    if segment.size - at < FRAME:
        return None
    word0, sequence, count, own_crc = struct.unpack_from("<QQII", segment.data, at)
    length, kind = word0 & ONES, word0 >> 32 & 255
    if word0 >> 48 != MARK or word0 >> 40 & 255 or kind not in (COMMIT, RELOCATE, HEAD):
        return None
    if length < FRAME or length % 8 or length > segment.size - at:
        return None
    records: list[Record] = []
    position = offset + FRAME
    for _ in range(count):
        record = parse_record(segment, position, offset + length)
        if record is None:
            return None
        records.append(record)
        position += record.length
    if position != offset + length:
        return None
    if (kind == HEAD) != any(record.op == START for record in records):
        return None
    state = crc(segment.seed, u64(offset), u64(word0), u64(sequence), u32(before), u32(count))
    if crc(state, *(u64(record.hash) for record in records)) != own_crc:
        return None
    return Frame(offset, length, kind, sequence, own_crc, records)


def parse_record(segment: Segment, offset: int, limit: int) -> Record | None:
    at = offset - segment.base
    if limit - offset < RECORD:
        return None
    header = segment.data[at : at + RECORD]
    own_hash, sequence, previous, value_size, key_size, op, keyspace, check = struct.unpack(
        "<4QIBBH", header
    )
    length = RECORD + align8(key_size) + align8(value_size)
    if key_size > LARGEST_KEY or length > limit - offset:
        return None
    if op not in OPS or keyspace > 1:
        return None
    start = crc(segment.seed, u64(offset), bytes(8) + header[8:38] + bytes(2))
    body = segment.data[at + RECORD : at + length]
    if start & 0xFFFF != check:
        return None
    if (crc(start, body) if length < LANES_FROM else lanes(start, body)) != own_hash:
        return None
    key, value = body[:key_size], body[align8(key_size) : align8(key_size) + value_size]
    if any(body[key_size : align8(key_size)]) or any(body[align8(key_size) + value_size :]):
        return None
    expiry = None
    if op in (EXPIRING, EXPIRING_BLOB):
        if not segment.may_expire or len(value) < 24:
            return None
        op, expiry, value = op - 8, parse_expiry(value[:24]), value[24:]
    return Record(offset, op, keyspace, key, value, expiry, sequence, previous, own_hash, length)


def parse_expiry(data: bytes) -> Expiry:
    deadline, written, wall_ahead_s, own_crc = struct.unpack("<QQiI", data)
    if own_crc != crc(ONES, data[:20]):
        raise DamagedError("the crc of an expiry is wrong")
    return Expiry(deadline, written, wall_ahead_s)


def read_floor(path: Path, uuid: bytes) -> tuple[int, bool]:
    """(offset, closed cleanly); (0, False) without a floor."""
    data = path.read_bytes() if path.exists() else b""
    best = (0, 0, False)
    for slot in (0, 4096):
        part = data[slot : slot + FLOOR]
        if len(part) < FLOOR:
            continue
        offset, _, count, flags, own_crc = struct.unpack("<QQQII", part)
        if (
            own_crc == crc(crc(ONES, uuid), part[:28])
            and count > best[0]
            and count % 2 == slot // 4096
        ):
            best = (count, offset, bool(flags & 1))
    return best[1], best[2]


def follows(segment: Segment, last: Segment) -> bool:
    return (
        segment.uuid == last.uuid
        and segment.base == last.base + last.size
        and segment.before_base == last.base
        and segment.before_end == last.frames_end
        and segment.before_crc == last.last_crc
        and segment.before_sequence >= last.last_sequence
    )


def drop_frames(segment: Segment, successor: Segment) -> None:
    """Those behind the end that the next segment tells, with lower sequences than it: a recovery has dropped them."""
    for i, frame in enumerate(segment.frames):
        if frame.offset >= successor.before_end and frame.sequence < successor.before_sequence:
            del segment.frames[i:]
            return


def left_over(segment: Segment, last: Segment) -> bool:
    """Made by a writer that died before it used it; others went on in the one before."""
    return (
        segment.before_base == last.base
        and segment.before_end < last.frames_end
        and segment.before_sequence <= last.last_sequence
    )


def last_run(files: dict[int, bytes]) -> list[int]:
    """The bases of the last unbroken run of segments."""
    run: list[int] = []
    for base in sorted(files):
        if run and run[-1] + len(files[run[-1]]) != base:
            run = []
        run.append(base)
    return run


def read_segments(directory: Path) -> tuple[list[Segment], int]:
    """Those that follow each other, and how many bytes of headers do not."""
    files = {int(path.stem, 16): path.read_bytes() for path in directory.glob("*.log")}
    if not files:
        raise DamagedError(f"{directory}: no segments")
    segments: list[Segment] = []
    lost = 0
    for base in last_run(files):
        try:
            segment = parse_segment(files[base], base)
        except DamagedError:
            if not segments:
                raise
            lost += HEADER
            break
        if segments and segment.before_base == segments[-1].base:
            drop_frames(segments[-1], segment)
        if segments and not follows(segment, segments[-1]):
            lost += 0 if left_over(segment, segments[-1]) else HEADER
            break
        segments.append(segment)
    check_start(segments)
    return segments, lost


def read_log(directory: Path, wall_ns: int | None = None) -> Log:
    """The whole store, or DamagedError. `wall_ns`: what a wall clock shows; this machine's, if none is given."""
    segments, lost = read_segments(directory)
    floor, clean = read_floor(directory / "floor", segments[0].uuid)
    end = segments[-1].frames_end
    dead = segments[-1].data[end - segments[-1].base :].rstrip(b"\0")
    # A segment that was never used may hide damage behind the end that it tells: its predecessor must reach the floor.
    floors = [
        segment
        for segment in segments[:-1]
        if segment.base <= floor < segment.base + len(segment.data)
    ]
    sensible = floors[0].frames_end if floors else end
    if sensible < floor:
        raise DamagedError(f"the log makes sense up to {sensible:#x}, below the floor {floor:#x}")
    return Log(
        segments[0].uuid,
        segments,
        end,
        len(dead) + lost,
        floor,
        clean and floor == end,
        replay(directory, segments, wall_ns or time.time_ns()),
    )


def check_start(segments: list[Segment]) -> None:
    base = segments[0].base
    heads = [
        struct.unpack("<Q", record.value)[0]
        for record in records_of(segments)
        if record.op == START
    ]
    if base and max(heads, default=0) < base:
        raise DamagedError(f"the log begins at {base:#x}, and no HEAD says so")


def records_of(segments: list[Segment]) -> Iterator[Record]:
    for segment in segments:
        for frame in segment.frames:
            yield from frame.records


def clock(segments: list[Segment], wall_ns: int) -> int:
    """What time it is for who has only the files and a wall clock."""
    expiries = [record.expiry for record in records_of(segments) if record.expiry]
    if not expiries:
        return 0
    last = max(expiries, key=lambda expiry: expiry.written)
    advanced = wall_ns - last.written - last.wall_ahead_s * 10**9
    return last.written + max(1, advanced)  # the commit was made before anybody could read it


def replay(
    directory: Path, segments: list[Segment], wall_ns: int
) -> tuple[dict[bytes, Entry], dict[bytes, Entry]]:
    state: tuple[dict[bytes, Entry], dict[bytes, Entry]] = ({}, {})
    now = clock(segments, wall_ns)
    for record in records_of(segments):
        keys = state[record.keyspace]
        if record.op == TOMBSTONE or (record.expiry and record.expiry.deadline <= now):
            keys.pop(record.key, None)
        elif record.op in (PUT, BLOB):
            keys[record.key] = Entry(record.value, record.sequence)
    for record in blobs_of(segments, state):
        state[record.keyspace][record.key].value = read_blob(directory, record.value)
    return state


def blobs_of(
    segments: list[Segment], state: tuple[dict[bytes, Entry], dict[bytes, Entry]]
) -> Iterator[Record]:
    """The newest record of each key whose value is a blob."""
    newest = {
        (record.keyspace, record.key): record
        for record in records_of(segments)
        if record.op != START
    }
    return (
        record
        for record in newest.values()
        if record.op == BLOB and record.key in state[record.keyspace]
    )


def read_blob(directory: Path, reference: bytes) -> bytes:
    identity, size, own_hash = struct.unpack("<3Q", reference)
    data = (directory / f"{identity:016x}.blob").read_bytes()
    if len(data) != size or lanes(identity & ONES, data) != own_hash:
        raise DamagedError(f"blob {identity:016x} is damaged")
    return data


def main(directory: str) -> None:
    log = read_log(Path(directory))
    names = {COMMIT: "COMMIT", RELOCATE: "RELOCATE", HEAD: "HEAD"}
    ops = {PUT: "put", TOMBSTONE: "delete", BLOB: "blob", START: "start"}
    for segment in log.segments:
        print(f"segment {segment.base:#x}, {segment.size} bytes")
        for frame in segment.frames:
            print(f"  {frame.offset:#x} {names[frame.type]} {frame.sequence}, {frame.length} bytes")
            for record in frame.records:
                where = f"{'user' if record.keyspace == 0 else 'runtime'} {record.key!r}"
                print(f"    {record.offset:#x} {ops[record.op]} {where}, {len(record.value)} bytes")
    print(f"end {log.end:#x}, {log.torn} bytes torn, floor {log.floor:#x}, clean {log.clean}")


if __name__ == "__main__":
    main(sys.argv[1])
