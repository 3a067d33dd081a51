"""Measures all that dora-state says of its speed: python3 bench/run.py [--quick] [--write] [PART ...]

    engine    the store beside a dict, LMDB, libmdbx, gdbm, RocksDB, SQLite and Redis
    cython    the calls for Cython operators beside the same from Python
    fields    typed state beside save_state
    shared    kvs_* between processes: reads, waits, counters
    restart   a crash in its parts, beside dora's own restart; one event, beside a bare ping-pong
    large     large arrays on their way to the operator and back, beside a memcpy and a socket

Each part is a program of this folder that prints markdown. --quick shows within a minute that it works; its figures
are worth nothing. --write puts what is printed into docs/benchmarks.md, between the marks of the part. Measure on a
machine that does nothing else; figures move by half between runs, and the ratios of one run less.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tools"))

import environment  # noqa: E402

PARTS = {
    "engine": "engine.py",
    "cython": "cython_calls.py",
    "fields": "fields.py",
    "shared": "shared.py",
    "restart": "restart.py",
    "large": "large.py",
}
DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"


def main(arguments: list[str]) -> int:
    options = {argument for argument in arguments if argument.startswith("-")}
    names = [argument for argument in arguments if argument not in options]
    if unknown := [
        *(options - {"--quick", "--write"}),
        *(name for name in names if name not in PARTS),
    ]:
        print(
            f"error: there is no {unknown[0]}\nhint: {', '.join(PARTS)}; --quick, --write",
            file=sys.stderr,
        )
        return 2
    environment.create()
    environment.install_package("bench", "test", "dora")
    for name in names or PARTS:
        begin, load = time.monotonic(), os.getloadavg()[0]
        result = subprocess.run(
            [environment.program("python"), f"bench/{PARTS[name]}", *(options & {"--quick"})],
            cwd=REPOSITORY,
            env=environment.variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        print(result.stdout)
        if result.returncode:
            print(f"error: {name} ended with exit code {result.returncode}", file=sys.stderr)
            return 1
        note = f"{machine()}, load {load:.1f} before; {time.monotonic() - begin:.0f} s."
        print(note, flush=True)
        if "--write" in options:
            write(name, f"{result.stdout.strip()}\n\n{note}")
    return 0


def machine() -> str:
    """What the figures are of."""
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    date = time.strftime("%Y-%m-%d")
    return f"{date}, Python {platform.python_version()}, {system}, {os.cpu_count()} cores"


def write(name: str, markdown: str) -> None:
    """Between the marks of the part, which the document must have."""
    before, begin, rest = DOCUMENT.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->\n")
    if not begin or not end:
        sys.exit(f"error: {DOCUMENT} has no marks for {name}")
    DOCUMENT.write_text(f"{before}{begin}{markdown}\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
