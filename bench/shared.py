"""The shared store between processes, as markdown: python shared.py [--quick]

What kvs_* cost, beside a put and a get of a store; how soon a waiter in another process runs after a write; what a
counter costs that several processes want at once. Costs are of the best of many passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dora_state
from dora_state import kvs_read, kvs_update, kvs_wait, kvs_wait_async, kvs_write

SPAWN = multiprocessing.get_context("spawn")
COUNT = 1000
VALUE = bytes(range(100))
PATIENCE_S = 60
KEYS = [f"key-{number:012d}" for number in range(COUNT)]


def increment(value: bytes) -> bytes:
    return b"%d" % (int(value) + 1)


def best_ns(passes: int, function: Callable[[], object]) -> float:
    """Nanoseconds of one of COUNT calls in the shortest pass."""
    best = float("inf")
    for _ in range(passes):
        begin = time.perf_counter_ns()
        function()
        best = min(best, time.perf_counter_ns() - begin)
    return best / COUNT


def percentiles(nanoseconds: list[int]) -> str:
    in_order = sorted(nanoseconds)
    p99 = in_order[min(len(in_order) - 1, len(in_order) * 99 // 100)]
    return f"{statistics.median(in_order) / 1000:.1f} us, p99 {p99 / 1000:.1f} us"


@contextlib.contextmanager
def others(role: Callable[..., None], *arguments: Any, count: int = 1) -> Iterator[None]:
    """Processes that are at work during the block, and are told to stop at its end."""
    before = kvs_write("stop", b"")
    dora_state.kvs_delete("stop")
    processes = [SPAWN.Process(target=role, args=(i, *arguments)) for i in range(count)]
    for process in processes:
        process.start()
    try:
        for i in range(count):
            assert kvs_wait(f"ready/{i}", after=before, timeout=PATIENCE_S)
        yield
    finally:
        kvs_write("stop", b"")
        for process in processes:
            process.join(PATIENCE_S)
            process.kill()


def working() -> bool:
    return kvs_read("stop", default=None) is None


# ---- what a call costs ----------------------------------------------------------------------------


def cost_rows(passes: int) -> Iterator[tuple[str, str]]:
    with dora_state.Store(Path(os.environ["DORA_STATE_DIR"]).with_name("plain")) as store:

        def put() -> None:
            for key in KEYS:
                store.put(key, VALUE)

        def get() -> None:
            for key in KEYS:
                store.get(key)

        put_ns, get_ns = best_ns(passes, put), best_ns(passes, get)

    def write() -> None:
        for key in KEYS:
            kvs_write(key, VALUE)

    def write_expiring() -> None:
        for key in KEYS:
            kvs_write(key, VALUE, ttl=60)

    def read() -> None:
        for key in KEYS:
            kvs_read(key)

    def update() -> None:
        for _ in KEYS:
            kvs_update("n", increment, default=b"0")

    write_ns, read_ns = best_ns(passes, write), best_ns(passes, read)
    yield "`kvs_write`, 100 B", f"{write_ns:.0f} ns; `Store.put` {put_ns:.0f} ns"
    yield "`kvs_read`, 100 B", f"{read_ns:.0f} ns; `Store.get` {get_ns:.0f} ns"
    yield "`kvs_write(ttl=60)`", f"{best_ns(passes, write_expiring):.0f} ns"
    yield "`kvs_read` of a key that expires", f"{best_ns(passes, read):.0f} ns"
    yield "`kvs_update`, alone", f"{best_ns(passes, update):.0f} ns"


def read_on(_number: int, passes: int) -> None:
    """Another process, which reads."""

    def read() -> None:
        for key in KEYS:
            kvs_read(key)

    kvs_read(KEYS[0])
    kvs_write("ready/0", b"")
    kvs_write("answer", b"%d" % round(best_ns(passes, read)))


def write_on(number: int) -> None:
    kvs_write(f"ready/{number}", b"")
    while working():
        for key in KEYS:
            kvs_write(key, VALUE)


def read_rows(passes: int) -> Iterator[tuple[str, str]]:
    for row, busy in (("idle", False), ("busy", True)):
        for key in KEYS:
            kvs_write(key, VALUE)
        before = kvs_write("now", b"")
        with others(read_on, passes):
            while busy and kvs_wait("answer", after=before, timeout=0) is None:
                for key in KEYS:
                    kvs_write(key, VALUE)
            kvs_wait("answer", after=before, timeout=PATIENCE_S)
        yield f"`kvs_read` in another process, writer {row}", f"{int(kvs_read('answer'))} ns"


# ---- how soon a waiter runs -----------------------------------------------------------------------


def wait_on(_number: int, waits: int, asynchronous: bool) -> None:
    """Another process, which waits and tells after each wait how long ago the write began."""

    async def wait(after: int) -> int | None:
        if asynchronous:
            return await kvs_wait_async("call", after=after, timeout=PATIENCE_S)
        return kvs_wait("call", after=after, timeout=PATIENCE_S)

    async def main() -> None:
        sequence, late = kvs_write("call", b"0"), []
        kvs_write("ready/0", b"")
        for number in range(waits):
            found = await wait(sequence)
            late.append(time.monotonic_ns() - int(kvs_read("call")))
            assert found is not None
            sequence = found
            kvs_write("heard", b"%d" % (number + 1))
        kvs_write("answer", ",".join(map(str, late)).encode())

    asyncio.run(main())


def wake_rows(waits: int) -> Iterator[tuple[str, str]]:
    for row, asynchronous in (("`kvs_wait`", False), ("`kvs_wait_async`", True)):
        before = kvs_write("heard", b"0")
        with others(wait_on, waits, asynchronous):
            heard = before
            for _ in range(waits):
                time.sleep(0.001)  # until it sleeps
                kvs_write("call", b"%d" % time.monotonic_ns())
                found = kvs_wait("heard", after=heard, timeout=PATIENCE_S)
                assert found is not None
                heard = found
            kvs_wait("answer", after=before, timeout=PATIENCE_S)
        late = [int(number) for number in kvs_read("answer").split(b",")]
        yield f"{row} in another process: from the write to its return", percentiles(late)


# ---- a counter that several want ------------------------------------------------------------------


def count_on(number: int) -> None:
    kvs_write(f"ready/{number}", b"")
    while working():
        kvs_update("pieces", increment, default=b"0")


def counter_rows(seconds: float) -> Iterator[tuple[str, str]]:
    for count in (1, 2, 4):
        kvs_write("pieces", b"0")
        with others(count_on, count=count):
            begin, first = time.monotonic(), int(kvs_read("pieces"))
            time.sleep(seconds)
            counted, took = int(kvs_read("pieces")) - first, time.monotonic() - begin
        processes = "1 process" if count == 1 else f"{count} processes"
        yield f"`kvs_update` of one key by {processes}", f"{counted / took / 1000:.0f} thousand/s"


def main(arguments: list[str]) -> int:
    quick = "--quick" in arguments
    with tempfile.TemporaryDirectory() as folder:
        for name in ("DORA_NODE_CONFIG", "DORA_STATE_SHARED"):
            os.environ.pop(name, None)
        os.environ["DORA_STATE_DIR"] = f"{folder}/state"
        print("| | |\n| --- | --- |")
        for rows in (
            cost_rows(20 if quick else 500),
            read_rows(20 if quick else 500),
            wake_rows(50 if quick else 2000),
            counter_rows(0.1 if quick else 2.0),
        ):
            for row, figure in rows:
                print(f"| {row} | {figure} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
