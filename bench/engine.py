"""Runs test_engine.py with pytest-benchmark and prints its table as markdown: python engine.py [--quick]

A figure is the median over all rounds of all passes. In brackets stands how many times the store's it is: above 1 the
store is better.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from peers import PEERS
from test_engine import ROWS, OurStore, RawFdatasync

UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1, "ns"))


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        # A native traceback: pytest's own reads the source, and has failed at that itself.
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=native"]
        command += ["-p", "no:cacheprovider", "-o", "addopts="]
        settings = ["--benchmark-json", report, "--benchmark-save-data", "--benchmark-quiet"]
        if "--quick" not in arguments:
            settings.append("--full")
        tests = Path(__file__).parent / "test_engine.py"
        result = subprocess.run(
            [*command, *map(str, settings), str(tests)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if result.returncode:
            print(result.stdout, file=sys.stderr)
            return 1
        print_tables(json.loads(report.read_text())["benchmarks"])
    return 0


def figure(runs: list[dict]) -> tuple[float, str, dict[str, float]]:
    """The median of the passes of one workload and peer, its unit, and what was told beside it."""
    info = runs[0]["extra_info"]
    if "value" in info:
        beside = {
            name: statistics.median(run["extra_info"][name] for run in runs)
            for name in ("p50", "max", "peak")
            if name in info
        }
        return statistics.median(run["extra_info"]["value"] for run in runs), info["unit"], beside
    times = [time for run in runs for time in run["stats"]["data"]]
    return statistics.median(times) * 1e9 / info["operations"], "ns", {}


def text(value: float, unit: str) -> str:
    if unit == "ns":
        scale, unit = next((pair for pair in UNITS if value >= pair[0]), UNITS[-1])
        value /= scale
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def print_tables(benchmarks: list[dict]) -> None:
    runs: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        runs[info["workload"], info["peer"]].append(benchmark)
    absent = {
        peer: found[0]["extra_info"]["absent"]
        for (_, peer), found in runs.items()
        if "absent" in found[0]["extra_info"]
    }
    columns = [kind for kind in (*PEERS, RawFdatasync) if kind.name not in absent]
    print("| workload | " + " | ".join(kind.name for kind in columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for workload in ROWS:
        ours = figure(runs[workload, OurStore.name])[0]
        cells = []
        for kind in columns:
            if (workload, kind.name) not in runs:
                cells.append("")
                continue
            value, unit, beside = figure(runs[workload, kind.name])
            cell = text(value, unit)
            for name, other in beside.items():
                cell += f", {name} {text(other, unit)}"
            cells.append(cell if kind is OurStore else f"{cell} ({value / ours:.2g})")
        print(f"| {workload} | " + " | ".join(cells) + " |")
    print()
    for kind in (*PEERS, RawFdatasync):
        state = f"**absent here**: {absent[kind.name]}" if kind.name in absent else kind.settings
        print(f"- {kind.name}: {state}.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
