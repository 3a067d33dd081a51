"""Runs all tests: python3 tests/run.py [PART ...]

    package   builds sdist and wheel, the wheel from the sdist, and installs it
    lint      ruff, mypy, clang-format
    c         the C tests, warnings as errors
    models    commit, compaction and recovery in Spin, if it is installed (models.py)
    mutants   seeded bugs in the engine: each must be noticed by a test (mutants.py)
    figures   the proofs at their full size, release builds (figures.py)
    asan      the C tests under the address and the undefined-behaviour sanitizer
    tsan      the C tests under the thread sanitizer
    python    pytest, against the installed wheel
    runtime-kills   an operator killed 1,000 times, its ledger exact (soak.py)
    binding   the tests of the binding once more, under the address and the undefined-behaviour sanitizer
    bench     the benchmarks in quick mode: do they work? No time is looked at

Without a part, all of them in this order. The first that fails ends the run with exit code 1. The end is a table of
what was proven by which method, how much of it, and how long that took. Needs Python with pip, a C compiler, cmake and
make; everything else goes into a virtual environment in the repository.
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
sys.path[:0] = [str(REPOSITORY / "tools"), str(REPOSITORY / "tests")]

import environment  # noqa: E402
import figures  # noqa: E402
import models  # noqa: E402
import mutants  # noqa: E402

DISTRIBUTIONS = REPOSITORY / "build" / "dist"
ROWS: list[figures.Row] = []  # the table at the end
JOBS = str(os.cpu_count() or 1)
RUNTIME_KILLS = 1000


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


def installed() -> None:
    """For a part that is run by itself: after `package` there is nothing to do."""
    environment.install_package("dora", "test")


def lint() -> None:
    installed()
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
    run("cmake", "--build", "--preset", preset, "--parallel", JOBS)
    run("ctest", "--preset", preset, "--parallel", JOBS)


def asan() -> None:
    c("asan")


def tsan() -> None:
    c("tsan")


def models_part() -> None:
    begin = time.monotonic()
    if not models.is_installed():
        absent = "absent: spin is not installed (apt-get install spin), nothing was checked"
        print(absent, flush=True)
        ROWS.append(figures.Row("models", absent, 0))
        return
    try:
        states, faults = models.run(workers=int(JOBS))
    except models.ModelError as failure:
        raise PartError(str(failure)) from failure
    what = f"{states:,} states of the models (T9), 0 violations, {faults} seeded faults found"
    ROWS.append(figures.Row("models", what, time.monotonic() - begin))


def mutants_part() -> None:
    begin = time.monotonic()
    survivors = mutants.run()
    if survivors:
        raise PartError(f"no test notices {', '.join(survivors)}")
    what = mutants.summary(len(mutants.MUTANTS), survivors)
    ROWS.append(figures.Row("mutants", what, time.monotonic() - begin))


def figures_part() -> None:
    figures.build()
    try:
        ROWS.extend(figures.run_methods(figures.METHODS))
    except figures.FigureError as failure:
        raise PartError(str(failure)) from failure


def python_tests() -> None:
    if not DISTRIBUTIONS.is_dir():
        package()
    installed()
    python("-m", "pytest", DORA_STATE_DISTRIBUTIONS=str(DISTRIBUTIONS))


def runtime_kills() -> None:
    installed()
    begin = time.monotonic()
    command = [environment.program("python"), "tests/soak.py", "--kills", str(RUNTIME_KILLS)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment.variables(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout + done.stderr, end="", flush=True)
    figure = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    if done.returncode or not figure.startswith(f"kills {RUNTIME_KILLS},"):
        raise PartError(f"soak.py ended with exit code {done.returncode}")
    ROWS.append(figures.Row("runtime-kills", figure, time.monotonic() - begin))


SANITIZED = REPOSITORY / "build" / "binding"
# A store and its binding. Not test_sigbus.py: the sanitizer has a handler of its own for that signal.
BINDING_TESTS = ["core", "store", "model", "views", "repair"]


def runtime_of(sanitizer: str) -> str:
    """The library that a program must load first when only a module of it was built with the sanitizer."""
    found = [os.environ.get("CC", "cc"), f"-print-file-name=lib{sanitizer}.so"]
    return subprocess.run(found, capture_output=True, text=True, check=True).stdout.strip()


def binding() -> None:
    installed()
    shutil.rmtree(SANITIZED, ignore_errors=True)
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1"
    words = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    words += ["--target", str(SANITIZED), "-Ccmake.build-type=Debug", "-Cinstall.strip=false"]
    words += [f"-Ccmake.define.CMAKE_C_FLAGS={flags}", f"-Cbuild-dir={SANITIZED}-objects", "."]
    python(*words)
    python(
        *("-m", "pytest", "-p", "no:cacheprovider"),
        *(f"tests/unit/test_{name}.py" for name in BINDING_TESTS),
        LD_PRELOAD=f"{runtime_of('asan')} {runtime_of('ubsan')}",
        ASAN_OPTIONS="detect_leaks=0",  # CPython keeps what it has until the end
        PYTHONPATH=str(SANITIZED),
    )


def bench() -> None:
    python("bench/run.py", "--quick")


PARTS: dict[str, Callable[[], None]] = {
    "package": package,
    "lint": lint,
    "c": c,
    "asan": asan,
    "tsan": tsan,
    "models": models_part,
    "mutants": mutants_part,
    "figures": figures_part,
    "python": python_tests,
    "runtime-kills": runtime_kills,
    "binding": binding,
    "bench": bench,
}


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in PARTS]:
        print(f"error: there is no part {unknown[0]}; use {', '.join(PARTS)}", file=sys.stderr)
        return 2
    environment.create()
    begin = time.monotonic()
    for name in names or PARTS:
        part_begin = time.monotonic()
        print(f"\n== {name} (at {part_begin - begin:.0f} s)", flush=True)
        rows = len(ROWS)
        try:
            PARTS[name]()
        except (PartError, subprocess.CalledProcessError) as failure:
            print(f"\n== FAILED in {name}: {failure}", flush=True)
            return 1
        if len(ROWS) == rows:
            ROWS.append(figures.Row(name, "passed", time.monotonic() - part_begin))
    figures.print_table(ROWS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
