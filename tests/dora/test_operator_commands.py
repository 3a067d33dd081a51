"""Commands for operators, beside a running dataflow and after it: dead-letters, reload, stats."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import dataflows
import pytest

from dora_state import Store
from dora_state.runtime import status

DATAFLOW = """
nodes:
  - id: source
    path: source.py
    inputs: {tick: dora/timer/millis/20}
    outputs: [number]
  - id: op
    path: dora-state
    args: run op.py --restart-delay 0
    inputs: {number: {source: source/number, queue_size: 100, queue_policy: backpressure}}
    outputs: [total]
  - id: sink
    path: sink.py
    inputs: {total: {source: op/total, queue_size: 100, queue_policy: backpressure}}
"""
# Sends 1, 2, 3, ... until there is a file called "stop".
SOURCE = """
import os, pyarrow as pa
from dora import Node
node = Node()
number = 0
for event in node:
    if event["type"] != "INPUT" or os.path.exists("stop"):
        break
    number += 1
    node.send_output("number", pa.array([number]), {"camera": "left"})
"""
OPERATOR = """
import os
from dora import DoraStatus
from dora_state import save_state

class Operator:
    def __init__(self):
        self.count = 0

    def restore_state(self, state):
        self.count = int(state["count"])

    def on_event(self, event, send_output):
        if event["type"] == "INPUT":
            number = event["value"][0].as_py()
            if number == 3 and os.path.exists("trouble"):
                raise ValueError(f"cannot take {number}\\x1b[31m")
            self.count += 1
            save_state("count", str(self.count).encode())
            send_output("total", f"old {number}".encode())
        return DoraStatus.CONTINUE
"""
SINK = """
from dora import Node
for event in Node():
    if event["type"] == "INPUT":
        print("saw", bytes(event["value"].to_pylist()).decode(), flush=True)
"""


@pytest.fixture
def written(flow: Path) -> Path:
    (flow / "dataflow.yml").write_text(DATAFLOW)
    (flow / "source.py").write_text(SOURCE)
    (flow / "op.py").write_text(OPERATOR)
    (flow / "sink.py").write_text(SINK)
    (flow / "trouble").touch()
    return flow


def command(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [dataflows.BIN / "dora-state", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def wait_line(running: subprocess.Popen[str], part: str) -> str:
    assert running.stdout is not None
    seen = []
    for line in running.stdout:
        seen.append(line)
        if part in line:
            return line
    raise AssertionError(f"{part!r} never came:\n{''.join(seen)}")


def count_in(folder: Path) -> int:
    with Store(folder / "state" / "op", read_only=True) as store:
        return int(store["count"])


def wait_letter(folder: Path) -> dict[str, object]:
    """Polled: the command line is made for looking, not for waiting."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        told = command(folder, "dead-letters", "list", "--format", "json")
        if told.returncode == 0 and told.stdout:
            return json.loads(told.stdout)
        time.sleep(0.05)
    raise AssertionError(f"no dead letter: {told}")


def test_a_dead_letter_of_a_running_dataflow_is_listed_shown_and_replayed(written):
    with dataflows.start(written) as running:
        wait_line(running, "sink: saw old 5")  # it went on behind the bad one
        letter = wait_letter(written)
        assert (letter["node"], letter["input"], letter["attempts"]) == ("op", "number", 3)
        number = letter["number"]

        table = command(written, "dead-letters", "list").stdout
        assert table.splitlines()[0].split()[:3] == ["NODE", "NUMBER", "INPUT"]
        assert "ValueError: cannot take 3" in table

        shown = command(written, "dead-letters", "show", number, "--node", "op").stdout
        assert '"camera": "left"' in shown
        assert "Traceback (most recent call last)" in shown
        assert shown.rstrip().endswith(r"cannot take 3\x1b[31m")  # not to the terminal
        record = json.loads(
            command(written, "dead-letters", "show", number, "--format", "json").stdout
        )
        assert record["event"]["value"] == [3]

        stats = command(written, "stats", "--format", "json").stdout.splitlines()
        (operator,) = [json.loads(line) for line in stats if '"operator": "op"' in line]
        assert operator["state"] == "running"
        assert operator["dead_letters"] == {"kept": 1, "buried": 1, "dropped": 0}
        assert operator["last_crash"]["error"] == "ValueError: cannot take 3\x1b[31m"
        assert "Traceback" in operator["last_crash"]["traceback"]
        assert operator["restarts"] == 3

        wrong = command(written, "dead-letters", "replay", 99999)
        assert wrong.returncode == 3
        assert "op has no dead letter 99999" in wrong.stderr

        (written / "trouble").unlink()
        replayed = command(written, "dead-letters", "replay", number)
        assert replayed.stdout == "1 dead letter is handed out again\n", replayed
        wait_line(running, "sink: saw old 3")
        assert command(written, "dead-letters", "list", "--format", "json").stdout == ""
        (written / "stop").touch()
        running.communicate(timeout=60)


def test_a_dead_letter_of_a_stopped_dataflow_is_handled_by_the_next_run(written):
    with dataflows.start(written) as running:
        wait_line(running, "sink: saw old 5")
        (written / "stop").touch()
        running.communicate(timeout=60)
    count = count_in(written)
    letter = wait_letter(written)
    (written / "trouble").unlink()
    replayed = command(written, "dead-letters", "replay", "--all")
    assert "handed out first by the next run" in replayed.stdout, replayed
    assert "waits for its replay" in command(written, "dead-letters", "list").stdout
    # It had a clean stop: without this the next run would start empty.
    (written / "stop").unlink()
    with dataflows.start(written) as running:
        wait_line(running, "sink: saw old 3")
        wait_line(running, "sink: saw old 5")
        (written / "stop").touch()
        running.communicate(timeout=60)
    assert count_in(written) > count + 1
    assert command(written, "dead-letters", "list", "--format", "json").stdout == ""
    assert letter["replay"] is False


def test_a_dead_letter_is_dropped_after_the_end(written):
    with dataflows.start(written) as running:
        wait_line(running, "sink: saw old 5")
        (written / "stop").touch()
        running.communicate(timeout=60)
    number = wait_letter(written)["number"]
    assert command(written, "dead-letters", "drop").returncode == 2
    assert command(written, "dead-letters", "drop", number, number + 1).returncode == 3
    assert command(written, "dead-letters", "drop", number).stdout == "1 dead letter is dropped\n"
    assert command(written, "dead-letters", "list", "--format", "json").stdout == ""


def test_reload_starts_the_new_code_of_a_running_operator_and_keeps_the_old_if_that_fails(written):
    (written / "trouble").unlink()
    with dataflows.start(written) as running:
        wait_line(running, "sink: saw old 2")
        with Store(written / "state" / "shared", read_only=True) as shared:
            pid = status.read(shared, "op")["worker_pid"]

        (written / "op.py").write_text(OPERATOR + "\n1 / 0\n")
        failed = command(written, "reload", "op")
        assert failed.returncode == 1
        assert "ZeroDivisionError" in failed.stderr
        assert "hint: mend it and reload again" in failed.stderr
        wait_line(running, "sink: saw old")

        (written / "op.py").write_text(
            OPERATOR.replace("old {number}", "new {self.count - number}")
        )
        reloaded = command(written, "reload", "op")
        assert reloaded.stdout == "op runs the new code\n", reloaded
        wait_line(
            running, "sink: saw new 0"
        )  # as many counted as were sent: the attributes went along
        with Store(written / "state" / "shared", read_only=True) as shared:
            assert status.read(shared, "op")["worker_pid"] == pid
        (written / "stop").touch()
        running.communicate(timeout=60)
    stopped = command(written, "reload", "op")
    assert stopped.returncode == 1
    assert "node op is not running" in stopped.stderr
    assert command(written, "reload", "nobody").returncode == 2
