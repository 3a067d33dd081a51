"""Operators in real dataflows: the shared store, state between runs, an operator that can never start."""

from __future__ import annotations

from pathlib import Path

import dataflows
import pytest

DATAFLOW = """
nodes:
  - id: source
    path: source.py
    inputs: {{tick: dora/timer/millis/20}}
    outputs: [number]
  - id: op
    path: dora-state
    args: run op.py {args}
    inputs: {{number: {{source: source/number, queue_size: 100, queue_policy: backpressure}}}}
    outputs: [total]
  - id: sink
    path: sink.py
    inputs: {{total: {{source: op/total, queue_size: 100, queue_policy: backpressure}}}}
"""
# Sends COUNT ones, or ones for ever, and stays until the sink has seen them: dora may lose the last messages of a node
# that ends right after it sent them.
SOURCE = """
import os
from dora import Node
from dora_state import kvs_read, kvs_write
count = int(os.environ["COUNT"])
patience = int(os.environ.get("PATIENCE", "1000"))
sent = 0
print("shared total", kvs_read("op/total", b"none").decode(), flush=True)
kvs_write("sink/seen", b"0")
node = Node()
for event in node:
    if event["type"] != "INPUT" or int(kvs_read("sink/seen")) == count:
        break
    if sent != count:
        sent += 1
        node.send_output("number", b"1")
    elif not (patience := patience - 1):
        break
"""
OPERATOR = """
from dora import DoraStatus
from dora_state import kvs_write, save_state

class Operator:
    def __init__(self):
        self.total = 0

    def restore_state(self, state):
        self.total = int(state["total"])

    def on_event(self, event, send_output):
        if event["type"] == "INPUT":
            self.total += 1
            save_state("total", str(self.total).encode())
            kvs_write("op/total", str(self.total).encode())
            send_output("total", str(self.total).encode())
        return DoraStatus.CONTINUE
"""
SINK = """
from dora import Node
from dora_state import kvs_read, kvs_write
seen = 0
for event in Node():
    if event["type"] == "INPUT":
        seen += 1
        total = bytes(event["value"].to_pylist()).decode()
        # What was written before the output left is there when the output has come.
        assert int(kvs_read("op/total")) >= int(total)
        print("total", total, flush=True)
        kvs_write("sink/seen", str(seen).encode())
"""


@pytest.fixture
def write(flow):
    def write(args: str = "", operator: str = OPERATOR) -> Path:
        (flow / "dataflow.yml").write_text(DATAFLOW.format(args=args))
        (flow / "source.py").write_text(SOURCE)
        (flow / "op.py").write_text(operator)
        (flow / "sink.py").write_text(SINK)
        return flow

    return write


# Within a run, and between runs


def totals(first: int, count: int = 10) -> list[str]:
    return [f"total {total}" for total in range(first, first + count)]


def test_operators_and_custom_nodes_share_a_store(write):
    result = dataflows.run(write("--state-dir elsewhere"), COUNT="10")
    assert result.said("sink") == totals(1), result.log
    assert result.code == 0
    assert not (write() / "state").exists()


def test_an_immediate_output_arrives(write):
    result = dataflows.run(write("--immediate total"), COUNT="10")
    assert result.said("sink") == totals(1), result.log


def test_after_a_clean_stop_the_next_run_starts_empty(write):
    for _ in range(2):
        result = dataflows.run(write(), COUNT="10")
        assert result.said("sink") == totals(1), result.log
        assert result.said("source") == ["shared total none"]


def test_keep_adopts_also_after_a_clean_stop(write):
    """The shared store, too, though a custom node comes first that was told nothing."""
    dataflows.run(write(), COUNT="10")
    result = dataflows.run(write("--keep"), COUNT="10")
    assert result.said("sink") == totals(11), result.log
    assert result.said("source") == ["shared total 10"]


def test_a_run_that_was_killed_is_continued_by_the_next(write):
    flow = write()
    with dataflows.start(flow, COUNT="-1") as running:
        for line in running.stdout:
            if "sink: total 5" in line:
                break
    # All of it is dead, at once and without a word, as after a power loss.
    result = dataflows.run(flow, COUNT="10")
    first = int(result.said("sink")[0].split()[1])
    assert first >= 6
    assert result.said("sink") == totals(first)
    assert "adopts the state" in result.log
    result = dataflows.run(flow, COUNT="10")
    assert result.said("sink") == totals(1), "the run before had a clean stop"


def test_fresh_does_not_adopt(write):
    flow = write("--fresh")
    with dataflows.start(flow, COUNT="-1") as running:
        for line in running.stdout:
            if "sink: total 5" in line:
                break
    assert dataflows.run(flow, COUNT="10").said("sink") == totals(1)


def test_an_operator_that_can_never_start_ends_by_the_restart_policy(write):
    operator = OPERATOR.replace("self.total = 0", 'print("trying", flush=True); self.total = 1 / 0')
    args = "--max-restarts 3 --restart-delay 0.05 --exhausted stop"
    result = dataflows.run(write(args, operator), COUNT="10", PATIENCE="10")
    said = "\n".join(result.said("op"))
    assert sum(line == "trying" for line in result.said("op")) == 4, result.log
    assert said.count("Traceback (most recent call last)") >= 1
    assert "ZeroDivisionError: division by zero" in said
    assert "the operator is not restarted" in said


def test_a_degraded_operator_does_not_stop_the_dataflow(write):
    operator = OPERATOR.replace("self.total = 0", "self.total = 1 / 0")
    args = "--max-restarts 1 --restart-delay 0.05"
    result = dataflows.run(write(args, operator), COUNT="10", PATIENCE="10")
    assert result.code == 0, result.log
    assert result.said("sink") == []
    assert "the operator is degraded" in result.log
