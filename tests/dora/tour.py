"""The tour of the command line in docs/cli.md: a real dataflow, real kills, real output.

    python3 tests/dora/tour.py            walks, and prints it
    python3 tests/dora/tour.py --write    and puts it into the document

test_tour.py walks it too, and compares what it sees with the document, but for the numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dataflows

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"
MARKS = ("<!-- tour -->\n", "<!-- end of tour -->\n")
SHOWN_AS = "/home/me/robot"  # the folder of the dataflow
PATIENCE_S = 60

FILES = {
    "dataflow.yml": """
nodes:
  - id: wheels
    path: wheels.py
    inputs: {tick: dora/timer/millis/10}
    outputs: [step]
  - id: odometry
    path: dora-state
    args: run odometry.py
    inputs: {step: wheels/step}
""",
    "wheels.py": """
from dora import Node
node = Node()
for event in node:
    if event["type"] == "INPUT":
        node.send_output("step", b"0.01")
""",
    "odometry.py": """
import msgpack
import numpy as np
from dora_state import kvs_write, state

class Operator:
    steps: int = state(0)
    position = state(np.zeros(3))

    def __init__(self):
        kvs_write("robot/name", "Käthe".encode())
        kvs_write("map/origin", msgpack.packb({"x": 1.5, "y": -2.0, "frame": "hall"}))
        kvs_write("map/tile/0", bytes(range(64)))

    def on_event(self, event, send_output):
        if event["type"] == "INPUT":
            self.steps += 1
            self.position[0] += float(bytes(event["value"].to_pylist()))
            kvs_write("odometry/steps", msgpack.packb(1000 + self.steps))
        return 0
""",
}


class Tour:
    """Walks, and writes down what is typed and what comes back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages: list[str] = []
        self.environment = {
            **os.environ,
            "PATH": f"{dataflows.BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "COLUMNS": "110",
        }

    def say(self, text: str) -> None:
        self.pages.append(f"{text}\n")

    def run(self, *commands: str) -> None:
        """Types commands, as on a terminal."""
        lines = []
        for command in commands:
            code, output = self._run(command)
            lines += [f"$ {command}", *output.splitlines()]
            if code:
                lines += ["$ echo $?", str(code)]
        text = "\n".join(lines).replace(str(self.folder), SHOWN_AS)
        self.pages.append(f"```\n{text}\n```\n")

    def _run(self, command: str) -> tuple[int, str]:
        """Its exit code, and what a terminal shows: standard output is one, for progress bars there is no time."""
        master, slave = pty.openpty()
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, master)
            with tempfile.TemporaryFile("w+") as errors:
                process = subprocess.Popen(
                    shlex.split(command),
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=slave,
                    stderr=errors,
                )
                os.close(slave)
                shown = b""
                with contextlib.suppress(OSError):  # so Linux says that the other side is closed
                    while piece := os.read(master, 65536):
                        shown += piece
                code = process.wait(PATIENCE_S)
                errors.seek(0)
                return code, shown.decode().replace("\r\n", "\n") + errors.read()

    def wait(self, condition: Callable[[dict], bool]) -> dict:
        """Until the runtime's account of the operator fulfils a condition."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            _, output = self._run("dora-state stats --format json")
            for line in output.splitlines():
                record = json.loads(line) if line.startswith("{") else {}
                if record.get("operator") == "odometry" and condition(record):
                    return record
            time.sleep(0.05)
        raise AssertionError(f"the operator does not get there: {output}")

    def wait_steps(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            _, output = self._run("dora-state get odometry/steps --format json")
            if output.startswith("{") and json.loads(output)["value"] >= 1000 + count:
                return
            time.sleep(0.05)
        raise AssertionError(f"no step: {output}")


def walk(folder: Path) -> str:
    """The whole tour, as markdown."""
    for name, content in FILES.items():
        (folder / name).write_text(content.lstrip())
    tour = Tour(folder)
    with dataflows.start(folder) as flow:
        tour.wait_steps(50)
        walk_running(tour)
        flow.kill()
    walk_stopped(tour)
    return "\n".join(tour.pages)


def walk_running(tour: Tour) -> None:
    tour.say(
        "A dataflow runs, in this folder: wheels that send a step each 10 ms, and an operator that adds them up,\n"
        "with typed state, and writes into the shared store."
    )
    tour.run("dora-state stats", "dora-state list", "dora-state list --node odometry")
    tour.run(
        "dora-state get map/origin", "dora-state get map/tile/0", "dora-state get @position --node odometry"
    )  # fmt: skip
    tour.say(
        "Other nodes, and people, may write into the shared store. Changes are seen as they come:"
    )
    tour.run("dora-state put speed/limit 0.5", "dora-state watch odometry/ --count 3")
    tour.run('dora-state put map/origin \'{"x": 0, "y": 0}\' --json --expected 1')
    tour.say(
        "The operator would not see a change of its private store, so that is refused while it runs:"
    )
    tour.run("dora-state put @steps 0 --node odometry")
    victim = tour.wait(lambda record: record["worker_pid"] > 0)["worker_pid"]
    os.kill(victim, signal.SIGKILL)
    tour.wait(lambda record: record["restarts"] == 1 and record["worker_pid"] not in (0, victim))
    tour.say(
        "Now the operator is killed, with `kill -9` and the number of its worker. It is back at once, and goes on:"
    )
    tour.run("dora-state stats", "dora-state watch odometry/ --count 2")
    tour.say("A copy of the shared store, as of one point, while everybody writes:")
    tour.run("dora-state export before.dse", "dora-state verify")


def walk_stopped(tour: Tour) -> None:
    tour.say(
        "Then everything is killed: dora, the host, the operator. All that was acknowledged is there."
    )
    tour.run("dora-state list", "dora-state list --node odometry")
    tour.say(
        "Nobody runs now, so the private store may be changed; the next run would go on from there."
    )
    tour.run("dora-state delete @position --node odometry", "dora-state list --node odometry")
    flip_a_bit(tour.folder / "state" / "shared")
    tour.say("A disk that forgets: one bit of the shared store flips.")
    tour.run(
        "dora-state verify", "dora-state get robot/name", "dora-state repair", "dora-state verify"
    )
    tour.say("And the copy comes back, all of it in one commit:")
    tour.run("dora-state import before.dse", "dora-state import before.dse --overwrite")
    tour.run("dora-state get robot/name", "dora-state get robot/nickname")


def flip_a_bit(store: Path) -> None:
    """In the value of robot/name; and, as after a boot, nobody keeps an index."""
    log = next(path for path in store.glob("*.log") if "Käthe".encode() in path.read_bytes())
    data = bytearray(log.read_bytes())
    data[data.index("Käthe".encode())] ^= 1
    log.write_bytes(data)
    for path in store.iterdir():
        if path.name == "control" or path.name.startswith("index."):
            path.unlink()


def masked(text: str) -> list[str]:
    """Without what differs from walk to walk: numbers, and the width of the columns that they are in."""
    lines = (
        re.sub(r"\s+", " ", re.sub(r"[0-9]+(\.[0-9]*)?", "0", line)) for line in text.splitlines()
    )
    lines = (re.sub(r" ([,\]])", r"\1", line) for line in lines)  # numpy aligns 3. with 2.68
    return [re.sub(r"0 (B|KiB|MiB)\b", "0 B", line).strip() for line in lines]


def documented() -> str:
    return DOCUMENT.read_text().partition(MARKS[0])[2].partition(MARKS[1])[0]


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as name:
        text = walk(Path(name).resolve())
    if arguments == ["--write"]:
        before, begin, rest = DOCUMENT.read_text().partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        DOCUMENT.write_text(f"{before}{begin}{text}{end}{after}")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
