"""Measures the store beside a dict and LMDB: python3 bench/run.py [--quick]

Prints nanoseconds for one operation, the median over all rounds, and how they compare. Times differ by machine and
hour; the ratios are of one run and differ less.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tools"))

import environment  # noqa: E402

ROUNDS = {"": 2000, "--quick": 50}


def main(arguments: list[str]) -> int:
    option = arguments[0] if arguments else ""
    if option not in ROUNDS:
        print(f"error: there is no option {option}\nhint: use --quick, or nothing", file=sys.stderr)
        return 2
    environment.create()
    environment.install_package("bench", "test")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--override-ini", "addopts="]
        settings = ["--benchmark-json", report, "--benchmark-quiet", "--rounds", ROUNDS[option]]
        result = subprocess.run(
            [environment.program("python"), *command, *map(str, settings), "bench"],
            cwd=REPOSITORY,
            env=environment.variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if result.returncode:
            print(result.stdout)
            return 1
        print_table(json.loads(report.read_text())["benchmarks"])
    return 0


def print_table(benchmarks: list[dict]) -> None:
    """One row for a workload: the store, and each peer with its time as a multiple of the store's."""
    table: dict[str, dict[str, float]] = {}
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        nanoseconds = benchmark["stats"]["median"] * 1e9 / info["operations"]
        table.setdefault(info["workload"], {})[info["peer"]] = nanoseconds
    peers = ["dict", "lmdb", "lmdb_held"]
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(f"{'ns for one':12} {'store':>8}" + "".join(f"{peer:>18}" for peer in peers))
    for workload, times in table.items():
        cells = [
            f"{times[peer]:9.0f} ({times[peer] / times['store']:5.2f}x)" if peer in times else ""
            for peer in peers
        ]
        row = f"{workload.replace('_', ' '):12} {times['store']:8.0f}"
        print((row + "".join(f"{cell:>18}" for cell in cells)).rstrip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
