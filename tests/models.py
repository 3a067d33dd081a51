"""Model checking: every order of the steps of commit, repair, reading, compaction and recovery (T9).

    python3 tests/models.py            checks the models in tests/model with Spin, and that every seeded fault is found
    python3 tests/models.py --large    with more commits, deaths and power losses

Spin (https://spinroot.com) translates a model into a C program that visits every state. It is a package of Debian and
Ubuntu (`apt-get install spin`); where it is not installed this says so and proves nothing. A model that could not fail
would prove nothing either, so each is also built with faults (-DFAULT_...), one at a time, and each must be found.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "model"
DEPTH = "-m1000000"


class ModelError(Exception):
    """A model is violated, or a fault of it is not found."""


@dataclass(frozen=True)
class Model:
    name: str
    usual: tuple[str, ...]
    large: tuple[str, ...]
    faults: tuple[str, ...] = field(default=())


MODELS = [
    Model(
        "commit",
        ("-DN=2", "-DDEATHS=2"),
        ("-DN=3", "-DDEATHS=3"),
        (
            "no_repair",
            "intent_cleared_first",
            "torn_bytes_stay",
            "intent_before_its_content",
            "slots_before_the_frame",
            "committed_before_the_slots",
            "tail_before_committed",
            "intent_cleared_before_the_tail",
            "no_step_back",
            "no_one_point",
        ),
    ),
    Model(
        "compaction",
        ("-DCOMMITS=3", "-DLOSSES=2"),
        ("-DCOMMITS=4", "-DLOSSES=3"),
        (
            "forgets_to_relocate",
            "relocates_the_dead",
            "no_head",
            "drops_before_the_sync",
            "any_head_is_believed",
            "names_not_synced",
            "tombstones_forgotten",
        ),
    ),
]


def check(model: Model, options: tuple[str, ...]) -> tuple[int, bool]:
    """How many states there are, and whether a claim is violated in one of them."""
    with tempfile.TemporaryDirectory() as folder:
        for command in (
            ["spin", *options, "-a", str(FOLDER / f"{model.name}.pml")],
            ["cc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c"],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode or "Error" in done.stdout:
                raise ModelError(f"{model.name}: {done.stdout}{done.stderr}")
        done = subprocess.run(
            ["./pan", DEPTH], cwd=folder, capture_output=True, text=True, check=False
        )
        errors = re.search(r"errors: (\d+)", done.stdout)
        states = re.search(r"(\d+) states, stored", done.stdout)
        if not errors or not states or "max search depth too small" in done.stdout:
            raise ModelError(f"{model.name}: the search did not end:\n{done.stdout}{done.stderr}")
        return int(states[1]), int(errors[1]) > 0


def is_installed() -> bool:
    return shutil.which("spin") is not None


def run(large: bool = False, workers: int = 2) -> tuple[int, int]:
    """Checks all models and all their faults; the number of states and of faults found."""

    def holds(model: Model) -> int:
        begin = time.monotonic()
        states, violated = check(model, model.large if large else model.usual)
        if violated:
            raise ModelError(f"{model.name}: a claim is violated; spin -t shows the way there")
        seconds = time.monotonic() - begin
        print(f"{model.name}: {states:,} states, 0 violations, {seconds:.1f} s", flush=True)
        return states

    def finds(model: Model, fault: str) -> int:
        if not check(model, (*model.usual, f"-DFAULT_{fault}"))[1]:
            raise ModelError(f"{model.name}: the fault {fault} is not found")
        print(f"{model.name}: {fault} is found", flush=True)
        return 1

    with ThreadPoolExecutor(workers) as pool:
        states = [pool.submit(holds, model) for model in MODELS]
        faults = [pool.submit(finds, model, fault) for model in MODELS for fault in model.faults]
        return sum(future.result() for future in states), sum(f.result() for f in faults)


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks the models of the engine with Spin.")
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    if not is_installed():
        print("spin is not installed: no model is checked; apt-get install spin", file=sys.stderr)
        return 1
    try:
        states, faults = run(options.large)
    except ModelError as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    print(f"{states:,} states, {faults} seeded faults found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
