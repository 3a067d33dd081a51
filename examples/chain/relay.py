"""An operator in the middle: passes on what it gets, and knows from its state what must come next."""

import pyarrow as pa
from dora import DoraStatus

from dora_state import save_state


class Operator:
    def __init__(self):
        self.last = 0

    def restore_state(self, state):
        self.last = int.from_bytes(state["last"], "little")

    def on_event(self, event, send_output):
        if event["type"] == "INPUT":
            number = event["value"][0].as_py()
            if (
                number != self.last + 1
            ):  # the ledger at the end finds it too; this says where it was
                print(f"got {number} after {self.last}", flush=True)
            self.last = number
            save_state("last", number.to_bytes(8, "little"))
            send_output("number", pa.array([number]))
        return DoraStatus.CONTINUE
