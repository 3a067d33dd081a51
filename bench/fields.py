"""Measures typed state beside save_state, as markdown: python fields.py [--quick]

The end of a handler, in this process: change a value, stage it, commit it to a store with durability "process". By hand
that is save_state with the value's bytes; typed, the runtime finds and encodes what has changed. Both commit the same
keys. The rows "unchanged" are what a field costs an event that leaves it alone, without a commit. Alternating
rounds, the fastest of each counts. Times differ by machine and load: compare within one run.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from dora_state import operator, save_state, state
from dora_state._core import Store
from dora_state.runtime.step import Stage, Step, commit
from dora_state.typed_state import Fields

TABLE = {n: n / 3 for n in range(1000)}


class Number:
    value: int = state(0)

    def change(self) -> None:
        self.value += 1

    def save(self) -> None:
        save_state("value", struct.pack("<q", self.value))


class Matrix:
    value = state(np.eye(4))

    def change(self) -> None:
        self.value[0, 0] += 1

    def save(self) -> None:
        save_state("value", self.value)


class Grid(Matrix):
    value = state(np.zeros((256, 512)))


class Table:
    value: dict[int, float] = state(TABLE)

    def change(self) -> None:
        self.value[5] += 1

    def save(self) -> None:
        save_state("value", msgpack.packb(self.value))


class Keyed(Table):
    value: dict[int, float] = state(TABLE, keyed=True)

    def save(self) -> None:
        save_state("value/5", struct.pack("<d", self.value[5]))


CASES = {
    "int": (Number, 2000),
    "array of 4 x 4 doubles": (Matrix, 2000),
    "array of 1 MiB": (Grid, 50),
    "dict of 1,000 floats": (Table, 500),
    "the same, keyed": (Keyed, 2000),
}


def time_of(call: Callable[[], None], count: int) -> float:
    """Microseconds for one call."""
    begin = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - begin) / count / 1e3


def end_handler(store: Store, change: Callable[[Stage], Any]) -> None:
    stage = Stage(1)
    token = operator.stage.set(stage)
    try:
        change(stage)
    finally:
        operator.stage.reset(token)
    commit(store, stage.close(), Step(1, 1, 0, 0))


def measure(cls: Any, count: int, rounds: int, folder: str) -> tuple[float, float, float]:
    """By hand, typed, and typed without a change."""
    by_hand, typed = cls(), cls()
    fields = Fields.of(typed)
    assert fields is not None
    fields.save(lambda key, data: None)
    with contextlib.closing(Store(os.path.join(folder, cls.__name__))) as store:

        def run_by_hand() -> None:
            end_handler(store, lambda stage: (by_hand.change(), by_hand.save()))

        def run_typed() -> None:
            end_handler(store, lambda stage: (typed.change(), fields.save(stage.put)))

        times = [
            (
                time_of(run_by_hand, count),
                time_of(run_typed, count),
                time_of(lambda: fields.save(print), count),  # prints nothing: there is no change
            )
            for _ in range(rounds)
        ]
    fastest = [min(column) for column in zip(*times, strict=True)]
    return fastest[0], fastest[1], fastest[2]


def main(arguments: list[str]) -> None:
    rounds = 1 if "--quick" in arguments else 20
    print("| us for an event | by hand | typed | times by hand | unchanged |")
    print("| --- | --- | --- | --- | --- |")
    operator.session = object()  # type: ignore[assignment]  # we are the runtime
    with tempfile.TemporaryDirectory() as folder:
        for name, (cls, count) in CASES.items():
            by_hand, typed, unchanged = measure(cls, count, rounds, folder)
            figures = f"{by_hand:.2f} | {typed:.2f} | {typed / by_hand:.2f} | {unchanged:.2f}"
            print(f"| {name} | {figures} |")


if __name__ == "__main__":
    main(sys.argv[1:])
