"""The figures of the proof: each method of the C tests at its full size, in release builds, on all processors.

    python3 tests/figures.py                  builds build/release, runs every method, prints a line for each
    python3 tests/figures.py METHOD ...       these only; --list names them
    python3 tests/figures.py --soak MINUTES   all of them again and again with fresh seeds, until the time is over (10)
    python3 tests/figures.py --demo           eight processes for a minute, a kill every 50 ms, compaction running

A method is one or more runs of a program of tests/c. It fails if a run fails or if the runs together did less than was
promised: a program that finds nothing because it did nothing is no proof. Seeds are printed by the programs, and taken.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "build" / "release" / "tests" / "c"
WORKERS = os.cpu_count() or 1
LIMIT_S = 1200


@dataclass(frozen=True)
class Method:
    name: str
    what: str  # is counted
    least: int
    figure: (
        str  # a regular expression that finds the count in what a run prints, as often as it occurs
    )
    runs: tuple[str, ...]  # SEED is replaced by a fresh one


METHODS = [
    Method(
        "power-loss",
        "images of a disk after power loss (T4)",
        1_000_000,
        r"^images (\d+) ",
        ("power_loss 250000 SEED",) * 4,
    ),
    Method(
        "every-store",
        "images of a death at every store, 1,200 operations (T1)",
        300_000,
        r" images (\d+) ",
        ("every_store 600 SEED",) * 2,
    ),
    Method(
        "bit-flips",
        "bits flipped, each recovered twice (T12)",
        524_288,
        r"^bits (\d+),",
        ("bit_flips 1 2 1 0", "bit_flips 1 2 1 1"),
    ),
    Method(
        "kills",
        "SIGKILLs of writers and repairers (T2)",
        20_000,
        r"^kills (\d+) ",
        ("kill_sweep 5000 SEED",) * 4,
    ),
    Method(
        "every-instruction",
        "instructions of seven operations, a death at each (T3)",
        100_000,
        r": (\d+) instructions",
        (
            "every_instruction compacting growing_the_index",
            "every_instruction overwriting putting deleting batching opening_a_segment",
        ),
    ),
    Method(
        "failing-calls",
        "lives with a failing system call or allocation: each, once and for ever (T5)",
        800,
        r"^(\d+) (?:lives|repairs)",
        ("faults/test_faults", "faults/test_stories"),
    ),
    Method(
        "hostile-logs",
        "hostile logs recovered (T7)",
        6000,
        r"^(\d+) iterations",
        ("fuzz_recovery 3000 SEED",) * 2,
    ),
    Method(
        "linearizability",
        "operations of 8 processes, one killed every 50 ms (T8)",
        1_000_000,
        r"^(\d+) operations",
        ("linearizability 15 8 SEED",),
    ),
]
DEMONSTRATION = "linearizability 60 8 SEED"


class FigureError(Exception):
    """A run has failed, or done too little."""


class Runner:
    """Runs programs, and ends those that run when it is told to stop."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, command: str) -> tuple[str, float, float]:
        """What it printed, when it began and ended."""
        words = command.replace("SEED", f"{random.getrandbits(48):#x}").split()
        begin = time.monotonic()
        with self._lock:
            if self._stopped:
                raise FigureError("stopped")
            process = subprocess.Popen(
                [str(PROGRAMS / words[0]), *words[1:]],
                env={**os.environ, "DORA_STATE_TEST_LIMIT_S": "600"},  # a busy disk is slow
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            output, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            end(process)
            raise FigureError(f"{' '.join(words)} still runs after {LIMIT_S} s") from None
        finally:
            with self._lock:
                self._running.discard(process)
        if process.returncode:
            raise FigureError(f"{' '.join(words)} failed:\n{output[-3000:]}")
        return output, begin, time.monotonic()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def build() -> None:
    """The release build of the C tests."""
    quiet = {"stdout": subprocess.DEVNULL, "cwd": ROOT, "check": True}
    subprocess.run(["cmake", "--preset", "release"], **quiet)  # type: ignore[call-overload]
    jobs = ["--parallel", str(WORKERS)]
    subprocess.run(["cmake", "--build", "--preset", "release", *jobs], **quiet)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Row:
    """Of the table: what was done, how much of it, how long it took."""

    method: str
    figure: str
    seconds: float


def conclude(method: Method, results: list[tuple[str, float, float]]) -> Row:
    outputs = [output for output, _, _ in results]
    done = sum(int(n) for output in outputs for n in re.findall(method.figure, output, re.M))
    if done < method.least:
        raise FigureError(
            f"{method.name}: {done} {method.what}, not {method.least}:\n{''.join(outputs)}"
        )
    seconds = max(end for _, _, end in results) - min(begin for _, begin, _ in results)
    row = Row(method.name, f"{done:,} {method.what}, 0 violations", seconds)
    print(f"{row.method}: {row.figure}, {row.seconds:.1f} s", flush=True)
    return row


def run_methods(methods: list[Method]) -> list[Row]:
    """All runs of all methods, as many at once as there are processors, in their order."""
    runner = Runner()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            futures = [[pool.submit(runner.run, run) for run in m.runs] for m in methods]
            return [
                conclude(method, [future.result() for future in runs])
                for method, runs in zip(methods, futures, strict=True)
            ]
        except BaseException:
            runner.stop()
            pool.shutdown(cancel_futures=True)
            raise


def print_table(rows: list[Row]) -> None:
    print("\n| method | figure | wall time |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {row.method} | {row.figure} | {row.seconds:.1f} s |")


def soak(methods: list[Method], minutes: float) -> None:
    begin, rounds = time.monotonic(), 0
    while rounds == 0 or time.monotonic() - begin < minutes * 60:
        rounds += 1
        print(f"== round {rounds}, {(time.monotonic() - begin) / 60:.1f} min", flush=True)
        run_methods(methods)


def main() -> int:
    parser = argparse.ArgumentParser(description="The figures of the proof.")
    parser.add_argument("names", nargs="*", metavar="METHOD")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--soak", nargs="?", type=float, const=10, metavar="MINUTES")
    parser.add_argument("--demo", action="store_true")
    options = parser.parse_args()
    known = {method.name: method for method in METHODS}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no such method: {unknown[0]}; use {', '.join(known)}")
    methods = [known[name] for name in options.names] or METHODS
    if options.list:
        for method in methods:
            print(f"{method.name:18} {method.least:>9,} {method.what}: {'; '.join(method.runs)}")
        return 0
    build()
    try:
        if options.demo:
            print(Runner().run(DEMONSTRATION)[0], end="")
        elif options.soak is not None:
            soak(methods, options.soak)
        else:
            print_table(run_methods(methods))
    except FigureError as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
