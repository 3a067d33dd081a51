"""SIGKILL at random moments, from Python against the installed package.

A child process writes batches through `dora_state.Store`. Each batch puts, overwrites and deletes
several keys, with values that follow from its number, and says in shared memory which number it
has begun and which was acknowledged. The parent kills the child at a random moment, opens the store
and compares every value with what batches 1..m must leave, for the one m that the store claims,
acknowledged <= m <= begun. In every fourth round the control page and the index are deleted first,
as a reboot would, and all comes from the log.

tests/c/kill_sweep.c does the same in C, faster, with several writers. DORA_STATE_KILLS=2000 makes
this one long.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import time
import zlib
from pathlib import Path

import pytest

from dora_state import Store

KILLS = int(os.environ.get("DORA_STATE_KILLS", "200"))
SEED = int(os.environ.get("DORA_STATE_SEED", "0")) or random.SystemRandom().getrandbits(32)
KEYS = [f"key-{i}" + "x" * (i * 7 % 60) for i in range(24)]
ROUNDS_PER_STORE = 25


class Board:
    """Two numbers in memory that parent and child share."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, 16)

    def get(self) -> tuple[int, int]:
        begun, acknowledged = struct.unpack("QQ", self.page[:16])
        return begun, acknowledged

    def begin(self, number: int) -> None:
        self.page[0:8] = struct.pack("Q", number)

    def acknowledge(self, number: int) -> None:
        self.page[8:16] = struct.pack("Q", number)


def changes_of(seed: int, number: int) -> list[tuple[str, bytes | None]]:
    """What batch `number` does, in order; None deletes. It follows from the seed alone."""
    rng = random.Random(f"{seed}/{number}")
    changes: list[tuple[str, bytes | None]] = []
    for _ in range(rng.randrange(1, 7)):
        size = rng.choice((0, 1, 40, 300, 3000, 8192))
        value = None if rng.random() < 0.25 else rng.randbytes(rng.randrange(size + 1))
        changes.append((rng.choice(KEYS), value))
    changes.insert(rng.randrange(len(changes) + 1), ("batch", struct.pack("Q", number)))
    return changes


def batch_in(store: Store) -> int:
    value = store.get("batch")
    return 0 if value is None else struct.unpack("Q", value)[0]


def write_for_ever(path: str, seed: int, board: Board) -> None:
    store = Store(path)
    store.settle()
    number = batch_in(store)
    while True:
        number += 1
        board.begin(number)
        with store.batch() as batch:
            for key, value in changes_of(seed, number):
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
        board.acknowledge(number)
        if number % 97 == 0:
            store.close()
            store = Store(path)


def start_writer(path: str, seed: int, board: Board) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        write_for_ever(path, seed, board)
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(1)  # never back into pytest, whatever happened


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"the writer ended by itself with status {status:#x}"
    assert os.WTERMSIG(status) == signal.SIGKILL


def reboot(path: Path) -> None:
    for file in path.iterdir():
        if file.name == "control" or file.name.startswith("index."):
            file.unlink()


class Expected:
    """The content after batches 1..m, moved forward as m grows."""

    def __init__(self, seed: int) -> None:
        self.seed, self.number, self.content = seed, 0, {}

    def advance(self, number: int) -> dict[str, bytes]:
        while self.number < number:
            self.number += 1
            for key, value in changes_of(self.seed, self.number):
                if value is None:
                    self.content.pop(key, None)
                else:
                    self.content[key] = value
        return self.content


def show(content: dict[str, bytes]) -> dict[str, str]:
    return {
        key: f"{len(value)} bytes, crc {zlib.crc32(value):08x}" for key, value in content.items()
    }


def judge(path: Path, board: Board, expected: Expected, why: str) -> None:
    begun, acknowledged = board.get()
    with Store(str(path)) as store:
        store.settle()
        number = batch_in(store)
        assert acknowledged <= number <= begun, why
        wanted = expected.advance(number)
        by_key = {key: store[key] for key in [*KEYS, "batch"] if key in store}
        assert show(by_key) == show(wanted), why
        assert show(dict(store.items())) == show(wanted), why
        assert by_key == wanted, why
        assert len(store) == len(wanted), why
        store.verify()


@pytest.mark.timeout(60 + KILLS)
def test_state_after_sigkill_is_that_of_the_acknowledged_batches(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    kills = 0
    while kills < KILLS:
        seed = rng.getrandbits(32)
        path = tmp_path / f"store-{seed:08x}"
        board, expected = Board(), Expected(seed)
        for number in range(min(ROUNDS_PER_STORE, KILLS - kills)):
            why = f"DORA_STATE_SEED={SEED} store {seed:#x} round {number}"
            start = board.get()[0]
            pid = start_writer(str(path), seed, board)
            try:
                if rng.random() < 0.85:  # otherwise while it opens or repairs
                    while board.get()[0] <= start:
                        assert os.waitpid(pid, os.WNOHANG) == (0, 0), f"the writer ended: {why}"
                        time.sleep(0.0002)
                time.sleep(rng.random() * 0.004)
            finally:
                kill(pid)
            kills += 1
            if rng.random() < 0.25:
                reboot(path) if path.exists() else None
            judge(path, board, expected, why)
