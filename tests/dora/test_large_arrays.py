"""Arrays of a megabyte go through an operator in a real dataflow; it keeps some for ever, and is killed."""

from __future__ import annotations

import dataflows

COUNT = 40
DATAFLOW = f"""
nodes:
  - id: source
    path: source.py
    inputs: {{tick: dora/timer/millis/20}}
    outputs: [image]
  - id: op
    path: dora-state
    args: run op.py
    env: {{DORA_STATE_KILL: "after-output@7,after-commit@15,before-commit@28,event@33"}}
    inputs: {{image: {{source: source/image, queue_size: 100, queue_policy: backpressure}}}}
    outputs: [image]
  - id: sink
    path: sink.py
    env: {{COUNT: {COUNT}}}
    inputs: {{image: {{source: op/image, queue_size: 100, queue_policy: backpressure}}}}
"""
# Stays until the sink has seen them all: dora may lose the last messages of a node that ends right after it sent them.
SOURCE = f"""
import numpy as np, pyarrow as pa
from dora import Node
from dora_state import kvs_read

node, sent, patience = Node(), 0, 1000
for event in node:
    if event["type"] != "INPUT" or kvs_read("sink/done", None) or not (patience := patience - 1):
        break
    if sent < {COUNT}:
        node.send_output("image", pa.array(np.full(131_072, sent, dtype=np.int64)), {{"number": sent}})
        sent += 1
"""
OPERATOR = """
import numpy as np, pyarrow as pa
from dora import DoraStatus

class Operator:
    def __init__(self):
        self.kept = []

    def on_event(self, event, send_output):
        if event["type"] != "INPUT":
            return DoraStatus.CONTINUE
        number, value = event["metadata"]["number"], event["value"]
        if number % 5 == 0:
            self.kept.append((number, value))
        for name, kept in self.kept:
            seen = np.unique(np.asarray(kept)).tolist()
            assert seen == [name], f"a kept {name} has become {seen}"
        send_output("image", pa.array(np.asarray(value) * 2), {"number": number})
        return DoraStatus.CONTINUE
"""
SINK = """
import os
import numpy as np
from dora import Node
from dora_state import kvs_write

for event in Node():
    if event["type"] == "INPUT":
        number = event["metadata"]["number"]
        print("image", number, np.unique(np.asarray(event["value"])).tolist(), flush=True)
        if number == int(os.environ["COUNT"]) - 1:
            kvs_write("sink/done", b"1")
"""


def test_every_array_arrives_once_and_unchanged_whatever_dies(flow):
    files = {"dataflow.yml": DATAFLOW, "source.py": SOURCE, "op.py": OPERATOR, "sink.py": SINK}
    for name, text in files.items():
        (flow / name).write_text(text)
    result = dataflows.run(flow)
    assert result.said("sink") == [f"image {n} [{2 * n}]" for n in range(COUNT)], result.log
    assert "has become" not in result.log
    assert result.log.count("operator restarted") >= 4
