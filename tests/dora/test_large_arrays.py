"""Arrays of a megabyte go through an operator in a real dataflow; it keeps some for ever, and is killed."""

from __future__ import annotations

import dataflows

from dora_state import Store
from dora_state.runtime import status

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
    env: {{DORA_STATE_KILL: "after-output@5,after-commit@11,before-commit@17,event@23"}}
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
from dora_state import save_state

class Operator:
    def __init__(self):
        self.kept, self.handled = [], []

    def restore_state(self, state):
        self.handled = list(state["handled"])

    def on_event(self, event, send_output):
        if event["type"] != "INPUT":
            return DoraStatus.CONTINUE
        number, value = event["metadata"]["number"], event["value"]
        if number % 5 == 0:
            self.kept.append((number, value))
        for name, kept in self.kept:
            seen = np.asarray(kept)
            assert (seen == name).all(), f"a kept {name} has become {np.unique(seen)}"
        self.handled.append(number)
        save_state("handled", bytes(self.handled))
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


def test_every_array_counts_once_and_is_unchanged_whatever_dies(flow):
    files = {"dataflow.yml": DATAFLOW, "source.py": SOURCE, "op.py": OPERATOR, "sink.py": SINK}
    for name, text in files.items():
        (flow / name).write_text(text)
    result = dataflows.run(flow)
    with Store(flow / "state" / "op") as store:
        handled = list(store["handled"])
    with Store(flow / "state" / "shared") as store:
        said = status.read(store, "op")
    seen = [int(line.split()[1]) for line in result.said("sink")]
    # Under load dora itself may lose some on either side, and the host's buffer holds 16 MiB.
    assert handled == sorted(set(handled)), result.log
    assert seen == [number for number in handled if number in seen], result.log
    assert len(seen) > COUNT // 2, result.log
    assert result.said("sink") == [f"image {number} [{2 * number}]" for number in seen]
    assert len(handled) + sum(said["dropped"].values()) <= COUNT
    assert said["last_crash"]["error"] is None, "the operator has seen a kept array change"
    assert said["restarts"] >= 4
