"""Runs all tests: python3 tests/run.py [PART ...]

    package   builds sdist and wheel, the wheel from the sdist, and installs it
    lint      ruff, mypy, clang-format
    c         the C tests, warnings as errors
    asan      the C tests under the address and the undefined-behaviour sanitizer
    tsan      the C tests under the thread sanitizer
    python    pytest, against the installed wheel
    bench     the benchmarks in quick mode: do they work? No time is looked at

Without a part, all of them in this order. The first that fails ends the run with exit code 1. Needs Python with pip, a
C compiler, cmake and make; everything else goes into a virtual environment in the repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tools"))

import environment  # noqa: E402

DISTRIBUTIONS = REPOSITORY / "build" / "dist"


class PartError(Exception):
    """A command of a part has failed; it has said why."""


def run(*command: str | Path, **variables: str) -> None:
    result = subprocess.run(
        [str(word) for word in command],
        cwd=REPOSITORY,
        env={**environment.variables(), **variables},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if result.returncode:
        raise PartError(f"{Path(command[0]).name} ended with exit code {result.returncode}")


def python(*arguments: str | Path, **variables: str) -> None:
    run(environment.program("python"), *arguments, **variables)


def package() -> None:
    shutil.rmtree(DISTRIBUTIONS, ignore_errors=True)
    environment.install("build>=1.2")
    python("-m", "build", "--outdir", DISTRIBUTIONS)
    environment.install_wheel(next(DISTRIBUTIONS.glob("*.whl")), "dora", "test")


def lint() -> None:
    python("-m", "ruff", "check")
    python("-m", "ruff", "format", "--check")
    python("-m", "mypy")
    sources = [
        path for folder in ("csrc", "tests/c") for path in (REPOSITORY / folder).rglob("*.[ch]")
    ]
    run(environment.program("clang-format"), "--dry-run", "--Werror", *sorted(sources))


def c(preset: str = "dev") -> None:
    if not shutil.which("cmake"):
        raise PartError("cmake is not installed")
    run("cmake", "--preset", preset)
    run("cmake", "--build", "--preset", preset, "--parallel", str(os.cpu_count() or 1))
    run("ctest", "--preset", preset)


def asan() -> None:
    c("asan")


def tsan() -> None:
    c("tsan")


def python_tests() -> None:
    python("-m", "pytest", DORA_STATE_DISTRIBUTIONS=str(DISTRIBUTIONS))


def bench() -> None:
    python("bench/run.py", "--quick")


PARTS: dict[str, Callable[[], None]] = {
    "package": package,
    "lint": lint,
    "c": c,
    "asan": asan,
    "tsan": tsan,
    "python": python_tests,
    "bench": bench,
}


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in PARTS]:
        print(f"error: there is no part {unknown[0]}; use {', '.join(PARTS)}", file=sys.stderr)
        return 2
    environment.create()
    begin = time.monotonic()
    for name in names or PARTS:
        print(f"\n== {name} (at {time.monotonic() - begin:.0f} s)", flush=True)
        try:
            PARTS[name]()
        except (PartError, subprocess.CalledProcessError) as failure:
            print(f"\n== FAILED in {name}: {failure}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
