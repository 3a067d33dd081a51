"""The calls for Cython operators beside the same from Python, as markdown: python cython_calls.py [--quick]

A save is staged in a handler; its commit, which is the same for both, is not in the figure.
"""

from __future__ import annotations

import random
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dora_state
from dora_state import Store, operator, save_state
from dora_state.runtime.step import Stage

COUNT = 1000
VALUE = random.Random(2).randbytes(100)


def build(folder: Path) -> None:
    """Compiles typed_calls.pyx as a user would, with optimization, and puts it on the path."""
    source = folder / "typed_calls.c"
    module = folder / f"typed_calls{sysconfig.get_config_var('EXT_SUFFIX')}"
    pyx = Path(__file__).with_name("typed_calls.pyx")
    subprocess.run([sys.executable, "-m", "cython", "-3", pyx, "-o", source], check=True)
    compiler = shlex.split(sysconfig.get_config_var("CC"))
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{dora_state.get_include()}"]
    command = [*compiler, "-shared", "-fPIC", "-O2", "-w", *includes, source, "-o", module]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(folder))


def best_ns(passes: int, pairs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Nanoseconds of the shortest pass of each; they take turns, so what disturbs one disturbs both."""
    best = dict.fromkeys(pairs, float("inf"))
    for _ in range(passes):
        for name, function in pairs.items():
            begin = time.perf_counter_ns()
            function()
            best[name] = min(best[name], time.perf_counter_ns() - begin)
    return best


def main(arguments: list[str]) -> int:
    keys = [f"key-{number:012d}" for number in range(COUNT)]
    random.Random(1).shuffle(keys)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        import typed_calls

        with Store(folder / "store") as store:
            store.update(dict.fromkeys(keys, VALUE))
            typed = typed_calls.Pass(store, keys, VALUE)
            operator.session = object()
            operator.stage.set(Stage())
            rows = measure(store, keys, typed, 20 if "--quick" in arguments else 2000)
    print("| | Python | Cython | Python takes |\n| --- | --- | --- | --- |")
    for row, (operations, best) in rows.items():
        python, direct = (best[name] / operations for name in ("Python", "Cython"))
        print(f"| {row} | {python:.0f} ns | {direct:.0f} ns | {python / direct:.1f} times |")
    return 0


def measure(
    store: Store, keys: list[str], typed: object, passes: int
) -> dict[str, tuple[int, dict[str, float]]]:
    def put() -> None:
        for key in keys:
            store.put(key, VALUE)

    def get() -> None:
        for key in keys:
            store.get(key)

    def view() -> None:
        for key in keys:
            store.view(key).release()

    def batch() -> None:
        for first in range(0, COUNT, 10):
            with store.batch() as changes:
                for key in keys[first : first + 10]:
                    changes.put(key, VALUE)

    def save() -> None:
        for key in keys:
            save_state(key, VALUE)

    rows = {}
    for row, operations, python in [
        ("put", COUNT, put),
        ("get", COUNT, get),
        ("view", COUNT, view),
        ("batch of 10", COUNT // 10, batch),
        ("save_state, staged", COUNT, save),
    ]:
        direct = getattr(typed, python.__name__)
        rows[row] = operations, best_ns(passes, {"Python": python, "Cython": direct})
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
