"""What of the engine the C tests run: lines and branches of commit, recovery and compaction, by gcov.

    python3 tests/coverage.py            builds build/coverage, runs the C tests, prints a table and what is not taken
    python3 tests/coverage.py --all      the table for all files of csrc
    python3 tests/coverage.py --again    from the last run
    python3 tests/coverage.py --check    and exit 1 if a line has an untaken branch and no reason

The engine is linked into the tests as it is, and once more with failing system calls (tests/c/faults): what either
takes counts. What no test takes is listed, with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "coverage"
OBJECTS = ["CMakeFiles/dora_state_core.dir/csrc", "tests/c/faults/CMakeFiles/faulty_engine.dir"]
FILES = [
    "append.c",
    "commit.c",
    "writer.c",
    "recovery.c",
    "rebuild.c",
    "log.c",
    "compaction.c",
    "relocation.c",
]
FLAGS = "--coverage -O0 -fprofile-update=atomic"
LEFT_OUT = "large|fuzz|kill_sweep|linearizability|every_instruction|bit_flips|test_faults|test_stories"  # slow

# Why no test takes a branch of such a line, where that is known: the file, a piece of the line, the reason.
REASONS = [
    ("commit.c", "count > UINT32_MAX", "needs four billion changes in one commit"),
    (
        "rebuild.c",
        "end->segment != NULL &&",
        "as below: the segment that was read first is still there when it is read again",
    ),
    (
        "rebuild.c",
        "end->segment == NULL",
        "a start was found, so there is a segment, unless the disk gives less at the second reading",
    ),
]
# So many lines may have neither a test nor a reason.
KNOWN = 0


def build() -> None:
    words = ["cmake", "-S", ROOT, "-B", BUILD, "-DCMAKE_BUILD_TYPE=None"]
    words += [f"-DCMAKE_C_FLAGS={FLAGS}", "-DDORA_STATE_PYTHON=OFF", "-DDORA_STATE_TESTS=ON"]
    if shutil.which("ninja") and not (BUILD / "CMakeCache.txt").exists():
        words += ["-G", "Ninja"]
    jobs = str(os.cpu_count() or 1)
    for command in (words, ["cmake", "--build", BUILD, "--parallel", jobs]):
        subprocess.run([str(w) for w in command], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def run_tests() -> None:
    for data in BUILD.rglob("*.gcda"):
        data.unlink()
    command = ["ctest", "--test-dir", BUILD, "-E", LEFT_OUT, "--output-on-failure"]
    command += ["--parallel", str(os.cpu_count() or 1)]
    environment = {**os.environ, "DORA_STATE_TEST_LIMIT_S": "600"}
    subprocess.run([str(word) for word in command], check=True, env=environment)
    for name in ("test_faults", "test_stories"):  # all of it; ctest runs a part
        program = BUILD / "tests" / "c" / "faults" / name
        subprocess.run([str(program)], check=True, env=environment)


class File:
    """The lines of one source and how often each, and each branch of it, was taken."""

    def __init__(self) -> None:
        self.lines: dict[int, int] = defaultdict(int)
        self.branches: dict[tuple[int, int], int] = defaultdict(int)

    def add(self, lines: list[dict]) -> None:
        for line in lines:
            number = line["line_number"]
            self.lines[number] += line["count"]
            for i, branch in enumerate(line["branches"]):
                self.branches[number, i] += branch["count"]

    @staticmethod
    def percent(counts) -> str:
        counts = list(counts)
        taken = sum(count > 0 for count in counts)
        return f"{taken}/{len(counts)} ({100 * taken / max(1, len(counts)):.1f} %)"


def read() -> dict[str, File]:
    files: dict[str, File] = defaultdict(File)
    for folder in OBJECTS:
        for data in sorted((BUILD / folder).rglob("*.gcda")):
            done = subprocess.run(
                ["gcov", "--branch-probabilities", "--json-format", "--stdout", data],
                capture_output=True,
                text=True,
                check=True,
                cwd=BUILD,
            )
            for document in done.stdout.splitlines():
                for file in json.loads(document)["files"]:
                    files[Path(file["file"]).name].add(file["lines"])
    return files


def print_untaken(name: str, file: File) -> tuple[int, int]:
    """Lists the lines with a branch that nobody took. How many there are, and how many without a known reason."""
    text = (ROOT / "csrc" / name).read_text().splitlines()
    untaken = sorted({line for (line, _), count in file.branches.items() if count == 0})
    unexplained = 0
    for number in untaken:
        line = text[number - 1].strip()
        reasons = [why for file_name, piece, why in REASONS if file_name == name and piece in line]
        unexplained += not reasons
        print(f"{name}:{number}: {line}" + (f"\n    {reasons[0]}" if reasons else ""))
    return len(untaken), unexplained


def main() -> int:
    parser = argparse.ArgumentParser(description="Line and branch coverage of the engine.")
    parser.add_argument("--all", action="store_true", help="every file of csrc in the table")
    parser.add_argument("--again", action="store_true", help="do not run the tests again")
    parser.add_argument(
        "--check", action="store_true", help="fail where more is untaken than known"
    )
    options = parser.parse_args()
    if not options.again:
        build()
        run_tests()
    files = read()
    print("| file | lines | branches |\n| --- | --- | --- |")
    shown = sorted(name for name in files if name.endswith(".c")) if options.all else FILES
    for name in shown:
        file = files[name]
        lines, branches = File.percent(file.lines.values()), File.percent(file.branches.values())
        print(f"| {name} | {lines} | {branches} |")
    print()
    counts = [print_untaken(name, files[name]) for name in FILES]
    untaken, unexplained = (sum(column) for column in zip(*counts, strict=True))
    print(
        f"\n{untaken} lines have a branch that no test takes; for {unexplained} no reason is known"
    )
    if options.check and unexplained > KNOWN:
        print(f"{unexplained - KNOWN} more than known: write a test, or a reason in coverage.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
