"""The store engine beside its peers (peers.py), a row of docs/benchmarks.md for each workload. Nothing asserts a time.

All peers of a workload take turns, pass by pass, so that a machine that gets slower or busier meets all of them. A pass
is one benchmark of pytest-benchmark; engine.py takes medians over all rounds of all passes. Keys have 16 bytes, and
values 100 bytes unless the row says otherwise. A row that does not fit a timed call puts its figure into `value`, with
its unit.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from other_process import KEYS, VALUE, hot_keys
from peers import PEERS, OurStore, Peer

PASSES = 4
OTHER = VALUE[::-1]  # writes alternate, since a peer may notice that a value is the same
SLOW = ("libmdbx", "SQLite WAL", "Redis")  # a twentieth of the work shows as much of them
KIB, MIB = 1 << 10, 1 << 20
REST = 0.02  # s


class RawFdatasync(Peer):
    """Not a store: the floor of a durable put, one page of a file that has its blocks."""

    name = "raw fdatasync"
    settings = "pwrite of 4 KiB into an allocated file, and fdatasync"

    def __init__(self, path: Path, durable: bool = False) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(file, bytes(MIB), 0)
        os.fsync(file)
        page = bytes(4 * KIB)

        def put(key: bytes, value: bytes) -> None:
            os.pwrite(file, page, 0)
            os.fdatasync(file)

        self.put, self.close = put, lambda: os.close(file)


class Bench:
    """What a workload is given: stores by peer and contents, kept open between the passes, and the timer."""

    def __init__(self, folder: Path, full: bool) -> None:
        self.folder, self.full = folder, full
        self.peers: dict[tuple[str, str], Peer] = {}
        self.numbers = itertools.count()
        self.benchmark: Any = None

    def sized(self, full: int, quick: int) -> int:
        return full if self.full else quick

    @property
    def many(self) -> int:
        return self.sized(1_000_000, 10_000)

    def many_keys(self, kind: type[Peer]) -> list:
        names = [f"key-{number:012d}" for number in range(self.many)]
        return names if kind.text_keys else [name.encode() for name in names]

    def path(self, kind: type[Peer], contents: str) -> Path:
        return self.folder / f"{kind.name}-{contents}".replace(" ", "_")

    def peer(
        self, kind: type[Peer], contents: str, value: bytes = VALUE, count: int = KEYS
    ) -> Peer:
        """An open store with `count` of the hot keys, or all of them if `contents` begins with `many`."""
        known = (kind.name, contents)
        if known not in self.peers:
            peer = self.peers[known] = kind(self.path(kind, contents), contents == "durable")
            keys = self.many_keys(kind) if contents.startswith("many") else hot_keys(kind)[:count]
            if fill := getattr(peer, "filler", None) or peer.put_many:
                for first in range(0, len(keys), 10_000):
                    fill([(key, value) for key in keys[first : first + 10_000]])
            if hasattr(peer, "hold"):
                peer.hold()
        return self.peers[known]

    def forget(self, kind: type[Peer], contents: str) -> None:
        if peer := self.peers.pop((kind.name, contents), None):
            peer.close()
        path = self.path(kind, contents)
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)

    def time(
        self,
        function: Callable[[], Any],
        operations: int,
        rounds: int,
        pause: float = 0,
        warm: bool = False,
    ) -> None:
        """Times rounds of `function`; before each comes a pause, for whatever works in the background.

        warm: after the pause, which cools caches and branch predictors, it runs once without being timed.
        """

        def rest() -> None:
            time.sleep(pause)
            if warm:
                function()

        self.benchmark.extra_info["operations"] = operations
        self.benchmark.pedantic(
            function, setup=rest if pause else None, rounds=rounds, warmup_rounds=1
        )

    def value(self, value: float, unit: str, **more: float) -> None:
        """A figure that was measured in another way; the timer has seen it all the same."""
        self.benchmark.extra_info.update(value=value, unit=unit, **more)

    def once(self, function: Callable[[], Any]) -> Any:
        self.benchmark.extra_info["operations"] = 1
        return self.benchmark.pedantic(function, rounds=1)

    def child(self, kind: type[Peer], path: Path, task: str) -> subprocess.Popen[str]:
        program = [sys.executable, str(Path(__file__).parent / "other_process.py")]
        child = subprocess.Popen(
            [*program, kind.name, str(path), task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child


def ask(child: subprocess.Popen[str], count: int) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{count}\n")
    child.stdin.flush()


def answer(child: subprocess.Popen[str]) -> float:
    assert child.stdout is not None
    return float(child.stdout.readline())


def end(child: subprocess.Popen[str]) -> None:
    child.communicate("")


# ---- one process ---------------------------------------------------------------------------------


def put_burst(bench: Bench, kind: type[Peer], warm: bool = True) -> None:
    put, keys = bench.peer(kind, "hot").put, hot_keys(kind)
    values = itertools.cycle((OTHER, VALUE))

    def burst() -> None:
        value = next(values)
        for key in keys:
            put(key, value)

    bench.time(burst, len(keys), bench.sized(20, 3), pause=REST, warm=warm)


def put_rested(bench: Bench, kind: type[Peer]) -> None:
    put_burst(bench, kind, warm=False)


def put_sustained(bench: Bench, kind: type[Peer]) -> None:
    put, keys = bench.peer(kind, "hot").put, hot_keys(kind)
    passes = bench.sized(25 if kind.name in SLOW else 500, 3)

    def sustained() -> None:
        for number in range(passes):
            value = OTHER if number % 2 else VALUE
            for key in keys:
                put(key, value)

    bench.time(sustained, passes * len(keys), 1)


def put_tail(bench: Bench, kind: type[Peer]) -> None:
    """Each put timed by itself, with whatever the peer does meanwhile; the clock's own 40 ns are in it."""
    put, keys = bench.peer(kind, "hot").put, hot_keys(kind)
    passes = bench.sized(20 if kind.name in SLOW else 200, 2)
    # Made before: a list that grows takes a page fault for every hundred puts, which would count as tails.
    times = array("q", bytes(8 * passes * len(keys)))

    def tail() -> None:
        now, at = time.perf_counter_ns, 0
        for number in range(passes):
            value = OTHER if number % 2 else VALUE
            for key in keys:
                begin = now()
                put(key, value)
                times[at] = now() - begin
                at += 1

    bench.once(tail)
    ordered = sorted(times)
    value, p50 = ordered[int(len(ordered) * 0.999)], ordered[len(ordered) // 2]
    bench.value(value, "ns", p50=p50, max=ordered[-1])


def get_hot(bench: Bench, kind: type[Peer]) -> None:
    get, keys = bench.peer(kind, "hot").get, hot_keys(kind)

    def read() -> None:
        for key in keys:
            get(key)

    bench.time(read, len(keys), bench.sized(50, 3))


def get_random(bench: Bench, kind: type[Peer]) -> None:
    get, keys = bench.peer(kind, "many").get, bench.many_keys(kind)
    some = random.Random(3).sample(
        keys, bench.sized(100_000 if kind.name not in SLOW else 5000, 1000)
    )

    def read() -> None:
        for key in some:
            get(key)

    bench.time(read, len(some), bench.sized(3, 1))


def iterate(bench: Bench, kind: type[Peer]) -> None:
    items = bench.peer(kind, "many").items
    enough = bench.many // 20 if kind.name in SLOW else bench.many

    def every() -> None:
        count = 0
        for _ in itertools.islice(items(), enough):
            count += 1
        assert count == enough

    bench.time(every, enough, 1)


def batch_of_10(bench: Bench, kind: type[Peer], warm: bool = True) -> None:
    put_many, keys = bench.peer(kind, "hot").put_many, hot_keys(kind)
    starts = range(0, len(keys), 10)
    lots = itertools.cycle(
        [[(key, value) for key in keys[first : first + 10]] for first in starts]
        for value in (OTHER, VALUE)
    )

    def write() -> None:
        for batch in next(lots):
            put_many(batch)

    bench.time(write, len(starts), bench.sized(20, 3), pause=REST, warm=warm)


def batch_rested(bench: Bench, kind: type[Peer]) -> None:
    batch_of_10(bench, kind, warm=False)


def put_durable(bench: Bench, kind: type[Peer]) -> None:
    put, keys = bench.peer(kind, "durable").put, hot_keys(kind)
    turns = itertools.cycle(keys)
    # Never the same value again: libmdbx notices, in the next pass too, and writes nothing.
    bench.time(lambda: put(next(turns), b"%0100d" % next(bench.numbers)), 1, bench.sized(100, 5))


def batch_durable(bench: Bench, kind: type[Peer]) -> None:
    put_many = bench.peer(kind, "durable").put_many
    keys = hot_keys(kind)[:100]
    batches = itertools.cycle([(key, value) for key in keys] for value in (OTHER, VALUE))
    bench.time(lambda: put_many(next(batches)), 1, bench.sized(50, 3))


def put_of(size: int, count: int) -> Callable[[Bench, type[Peer]], None]:
    values = random.Random(4).randbytes(size), random.Random(5).randbytes(size)

    def put_large(bench: Bench, kind: type[Peer]) -> None:
        put = bench.peer(kind, f"put_{size}", values[0], count).put
        keys, turns = hot_keys(kind)[:count], itertools.cycle(values)

        def write() -> None:
            value = next(turns)
            for key in keys:
                put(key, value)

        bench.time(write, count, bench.sized(10, 2), pause=0.05)

    return put_large


def get_of(size: int, count: int, view: bool = False) -> Callable[[Bench, type[Peer]], None]:
    value = random.Random(4).randbytes(size)

    def get_large(bench: Bench, kind: type[Peer]) -> None:
        peer = bench.peer(kind, f"get_{size}", value, count)
        read, keys = peer.view if view else peer.get, hot_keys(kind)[:count]

        def read_all() -> None:
            for key in keys:
                read(key)

        bench.time(read_all, count, bench.sized(20, 3))

    return get_large


# ---- several processes ---------------------------------------------------------------------------


def server_path(bench: Bench, kind: type[Peer]) -> Path:
    bench.peer(kind, "hot")
    return bench.path(kind, "hot")


def read_in_another(bench: Bench, kind: type[Peer], busy: bool) -> None:
    path = server_path(bench, kind)
    reader = bench.child(kind, path, "read")
    writer = (
        bench.child(kind if kind.name != "LMDB held" else PEERS[2], path, "write_on")
        if busy
        else None
    )
    count = bench.sized(5000 if kind.name in SLOW else 100_000, 2000)

    def read() -> float:
        ask(reader, count)
        return answer(reader)

    bench.value(statistics.median(bench.once(read) if n == 0 else read() for n in range(3)), "ns")
    end(reader)
    if writer:
        end(writer)


def read_beside_idle(bench: Bench, kind: type[Peer]) -> None:
    read_in_another(bench, kind, False)


def read_beside_busy(bench: Bench, kind: type[Peer]) -> None:
    read_in_another(bench, kind, True)


def two_writers(bench: Bench, kind: type[Peer]) -> None:
    """Wall time of one put, of all puts of both processes."""
    path = server_path(bench, kind)
    writers = [bench.child(kind, path, "write") for _ in range(2)]
    count = bench.sized(5000 if kind.name in SLOW else 100_000, 2000)

    def write() -> float:
        for writer in writers:
            ask(writer, count)
        return max(answer(writer) for writer in writers)

    bench.value(bench.once(write) / 2, "ns")
    for writer in writers:
        end(writer)


# ---- opening, space ------------------------------------------------------------------------------


def killed_writer(bench: Bench, kind: type[Peer]) -> Path:
    """A store of many keys whose last writer was killed."""
    path = bench.path(kind, "many_killed")
    if not path.exists():
        bench.peer(kind, "many_killed").close()
        del bench.peers[kind.name, "many_killed"]
    child = bench.child(kind, path, "kill")
    assert child.wait() == -signal.SIGKILL
    end(child)
    return path


def open_after_kill(bench: Bench, kind: type[Peer]) -> None:
    path, first = killed_writer(bench, kind), bench.many_keys(kind)[0]

    def reopen() -> Peer:
        peer = kind(path)
        assert peer.get(first) == VALUE
        return peer

    bench.once(reopen).close()


def rebuild(bench: Bench, kind: type[Peer]) -> None:
    """What is derived is gone, as after a reboot: all that remains is the log. The files are in the page cache."""
    path, first = killed_writer(bench, kind), bench.many_keys(kind)[0]
    if kind is OurStore:
        for name in ("control", "index.*"):
            for file in path.glob(name):
                file.unlink()

    def reopen() -> Peer:
        peer = kind(path)
        assert peer.get(first) == VALUE
        return peer

    bench.once(reopen).close()


def occupied(path: Path) -> int:
    """Bytes that a file or folder takes of the disk."""
    total = 0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        try:
            total += file.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def space(bench: Bench, kind: type[Peer]) -> None:
    """The disk 2 s after 10 million overwrites of the hot keys (100,000 where each is slow), and its peak before."""
    peer, path, keys = bench.peer(kind, "space"), bench.path(kind, "space"), hot_keys(kind)
    passes = bench.sized(100 if kind.name in SLOW else 10_000, 10)
    peak = 0

    def overwrite() -> None:
        nonlocal peak
        put = peer.put
        for number in range(passes):
            value = OTHER if number % 2 else VALUE
            for key in keys:
                put(key, value)
            if number % 20 == 9:
                peak = max(peak, occupied(path))

    bench.once(overwrite)
    time.sleep(2)
    bench.value(occupied(path) / 1e6, "MB", peak=peak / 1e6)
    bench.forget(kind, "space")


def index_memory(bench: Bench, kind: type[Peer]) -> None:
    """What the process that put the keys has in memory beside the log, for each; also of files that are unlinked."""
    first, names = bench.many_keys(kind)[0], f"{bench.path(kind, 'many')}/index."
    bench.peer(kind, "many").get(first)  # a call may give back what the one before has left

    def resident() -> int:
        size, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            word = line.split(maxsplit=1)[0]
            if not word.endswith(":"):
                inside = names in line
            elif inside and word == "Rss:":
                size += int(line.split()[1]) * 1024
        return size

    bench.value(bench.once(resident) / bench.many, "B")


SHARED = [peer for peer in PEERS if peer.shared and peer.name != "Redis"]
OPENED = [peer for peer in PEERS if peer.name not in ("dict", "LMDB held", "Redis")]
WRITERS = [peer for peer in PEERS if peer.name != "LMDB held"]
BATCHES = [peer for peer in WRITERS if peer.name != "gdbm"]
DURABLE = [RawFdatasync, *(peer for peer in WRITERS if peer.name != "dict")]
ROWS: dict[str, tuple[Callable[[Bench, type[Peer]], None], list[type[Peer]], int]] = {
    "put, in bursts of 1,000": (put_burst, WRITERS, PASSES),
    "put, after a rest of 20 ms": (put_rested, WRITERS, PASSES),
    "put, sustained": (put_sustained, WRITERS, PASSES),
    "put, p99.9": (put_tail, WRITERS, PASSES),
    "get": (get_hot, list(PEERS), PASSES),
    "get, 1 M keys, random": (get_random, list(PEERS), 3),
    "iterate 1 M items, for each": (iterate, [p for p in WRITERS if p.name != "Redis"], 3),
    "batch of 10": (batch_of_10, BATCHES, PASSES),
    "batch of 10, after a rest of 20 ms": (batch_rested, BATCHES, PASSES),
    "put and sync": (put_durable, DURABLE, PASSES),
    "100 puts and one sync": (batch_durable, [p for p in BATCHES if p.name != "dict"], PASSES),
    "put 4 KiB": (put_of(4 * KIB, 100), WRITERS, PASSES),
    "put 1 MiB": (put_of(MIB, 10), WRITERS, PASSES),
    "get 4 KiB": (get_of(4 * KIB, 100), list(PEERS), PASSES),
    "get 1 MiB": (get_of(MIB, 10), list(PEERS), PASSES),
    "view 1 MiB": (get_of(MIB, 10, True), [p for p in PEERS if p.name in ("dora-state", "LMDB held")], PASSES),
    "get in another process, writer idle": (read_beside_idle, SHARED, 3),
    "get in another process, writer busy": (read_beside_busy, SHARED, 3),
    "put by two processes at once": (two_writers, [p for p in SHARED if p.name != "LMDB held"], 3),
    "open 1 M keys after SIGKILL": (open_after_kill, OPENED, 3),
    "rebuild 1 M keys": (rebuild, [OurStore], 3),
    "disk after 10 M overwrites": (space, [p for p in WRITERS if p.name != "dict"], 1),
    "index beside the log, for each key": (index_memory, [OurStore], 1),
}  # fmt: skip


def pytest_generate_tests(metafunc):
    cases = [
        (workload, turn, kind)
        for workload, (_, kinds, passes) in ROWS.items()
        for turn in range(passes if metafunc.config.getoption("full") else 1)
        for kind in kinds
    ]
    ids = [f"{workload}-{kind.name}-{turn}" for workload, turn, kind in cases]
    metafunc.parametrize(("workload", "turn", "kind"), cases, ids=ids)


@pytest.fixture(scope="session")
def bench(tmp_path_factory, request):
    # Of the disk, where stores live, and not of a temporary file system in memory.
    folder = Path(os.environ.get("DORA_STATE_BENCH_DIR") or tmp_path_factory.mktemp("bench"))
    bench = Bench(folder, request.config.getoption("full"))
    yield bench
    for peer in bench.peers.values():
        peer.close()


def test_row(bench, benchmark, workload, turn, kind):
    benchmark.extra_info.update(workload=workload, peer=kind.name)
    if why := kind.absent():
        benchmark.extra_info["absent"] = why
        benchmark.pedantic(lambda: None)
        return
    bench.benchmark = benchmark
    ROWS[workload][0](bench, kind)
