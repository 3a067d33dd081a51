"""The engine against a reader that was written from docs/format.md: is the document true?"""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path

import pytest
import reader

from dora_state import Store
from dora_state.errors import CorruptionError, FormatError

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "format.md"
SEEDS = range(int(os.environ.get("DORA_STATE_HISTORIES", "12")))


def live_through(path: Path, seed: int, steps: int, *, expiring: bool = True) -> Store:
    """Random puts, some with a time to live, deletes, batches in both keyspaces, reopening. Whoever drops the result
    closes the store."""
    rng = random.Random(seed)
    keys = [f"k{i}" + "ä" * (i * 5 % 23) for i in range(rng.randrange(3, 40))]
    store = Store(str(path))
    for _ in range(steps):
        size = rng.choice((0, 1, 7, 8, 100, 1000, 4000, 4100, 20000))
        with store.batch() as batch:
            for _ in range(rng.randrange(1, 5)):
                key, keyspace = rng.choice(keys), int(rng.random() < 0.2)
                if rng.random() < 0.25:
                    batch.delete(key, keyspace)
                else:
                    ttl = rng.choice((None, None, None, 1e-9, 3600)) if expiring else None
                    batch.put(key, rng.randbytes(rng.randrange(size + 1)), keyspace, ttl=ttl)
        if rng.random() < 0.03:
            store.close()
            store = Store(str(path))
    return store


def live_and_die(path: Path, seed: int, steps: int) -> None:
    """The same in a process that is killed, so nothing is synced or closed."""
    pid = os.fork()
    if pid == 0:
        try:
            store = live_through(path, seed, steps)
            assert not store.closed
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def engine_view(path: Path) -> list[dict[bytes, reader.Entry]]:
    with Store(str(path), read_only=True) as store:
        return [
            {
                key.encode(): reader.Entry(value, sequence)
                for key, value, sequence in store._scan(keyspace)
            }
            for keyspace in (0, 1)
        ]


def reboot(path: Path) -> None:
    for file in path.iterdir():
        if file.name == "control" or file.name.startswith("index."):
            file.unlink()


@pytest.mark.parametrize("seed", SEEDS)
def test_reader_and_engine_agree_on_a_closed_store(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "store"
    live_through(path, seed, 120).close()
    log = reader.read_log(path)
    assert list(log.state) == engine_view(path)
    assert log.torn == 0
    assert log.clean
    with Store(str(path)) as store:
        assert store.stats()["committed"] == log.end
        commits = [frame for frame in log.frames() if frame.type == reader.COMMIT]
        assert store.stats()["sequence"] == commits[-1].sequence


@pytest.mark.parametrize("seed", SEEDS)
def test_reader_and_engine_agree_after_unclean_ends(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "store"
    for life in range(3):
        live_and_die(path, 1000 * life + seed, 40)
        reboot(path)
        log = reader.read_log(path)
        assert list(log.state) == engine_view(path)
    sequences = [frame.sequence for frame in log.frames() if frame.type == reader.COMMIT]
    assert sequences == sorted(set(sequences))
    assert sequences[-1] >= 2 << 32  # it jumped at each of the two reboots


def test_compaction_is_as_the_document_says(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store(str(path)) as store:
        store.put("rare", b"kept " * 100)
        for i in range(6000):
            store.put(f"busy-{i % 7}", bytes([i % 251]) * 1500)
        store.delete("busy-3")
        store.compact()
    log = reader.read_log(path)
    assert log.segments[0].base > 0
    assert {frame.type for frame in log.frames()} >= {reader.RELOCATE, reader.HEAD}
    assert list(log.state) == engine_view(path)


def test_a_large_value_is_a_blob(tmp_path: Path) -> None:
    path = tmp_path / "store"
    value = (
        random.Random(1).randbytes(1 << 16) * 257
    )  # just above 16 MiB: too much for the slow reader
    with Store(str(path)) as store:
        store.put("map", value)
    segments, _ = reader.read_segments(path)
    (record,) = segments[0].frames[0].records
    assert record.op == reader.BLOB
    identity, size, _ = reader.struct.unpack("<3Q", record.value)
    assert size == len(value)
    assert (path / f"{identity:016x}.blob").read_bytes() == value


def test_what_one_calls_damaged_the_other_does_too(tmp_path: Path) -> None:
    path = tmp_path / "store"
    live_through(path, 5, 8, expiring=False).close()
    reboot(path)
    (segment,) = path.glob("*.log")
    whole, end = segment.read_bytes(), reader.read_log(path).end
    rng = random.Random(5)
    for _ in range(150):
        bit = rng.randrange(end * 8)
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        segment.write_bytes(damaged)
        try:
            reader.read_log(path)
        except (reader.DamagedError, reader.UnknownFormatError):
            with pytest.raises((CorruptionError, FormatError)):
                Store(str(path), read_only=True)
        else:
            Store(str(path), read_only=True).close()  # compat bits, and whatever else is nobody's


def bytes_of_example(title: str) -> dict[int, bytes]:
    """Offset -> bytes of the hexadecimal lines behind `title` in the document."""
    text = DOCUMENT.read_text()
    block = text[text.index(title) :].split("```")[1]
    lines = re.findall(r"^([0-9a-f]{6})  ((?:[0-9a-f]{2} {1,2}){16})", block, re.MULTILINE)
    return {int(offset, 16): bytes.fromhex(row) for offset, row in lines}


def test_the_example_in_the_document_is_true(tmp_path: Path) -> None:
    segment, floor = bytearray(65536), bytearray(8192)
    for offset, row in bytes_of_example("The only segment, `0000000000000000.log`").items():
        segment[offset : offset + 16] = row
    for offset, row in bytes_of_example("and `floor`, slot").items():
        floor[offset : offset + 16] = row
    (tmp_path / "0000000000000000.log").write_bytes(segment)
    (tmp_path / "floor").write_bytes(floor)
    log = reader.read_log(tmp_path)
    assert log.clean
    assert log.torn == 0
    user, runtime = log.state
    assert user == {b"n": reader.Entry(b"two", 2)}
    assert runtime == {b"step": reader.Entry(b"\x07", 2)}
    assert [frame.sequence for frame in log.frames()] == [1, 2, 3]
    assert list(log.state) == engine_view(tmp_path)
