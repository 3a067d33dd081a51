"""The operator: adds up the numbers it gets. It may be killed at any moment."""

import pyarrow as pa
from dora import DoraStatus

from dora_state import save_state


class Operator:
    def __init__(self):
        self.total = 0

    def restore_state(self, state):
        self.total = int.from_bytes(state["total"], "little")

    def on_event(self, event, send_output):
        if event["type"] == "INPUT":
            number = event["value"][0].as_py()
            self.total += number
            save_state("total", self.total.to_bytes(8, "little"))
            send_output("total", pa.array([number, self.total]))
        return DoraStatus.CONTINUE
