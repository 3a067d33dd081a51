"""An operator: counts its events in the shared store, each exactly once however often it is killed."""

from dora import DoraStatus

from dora_state import kvs_update


def increment(value: bytes) -> bytes:
    return b"%d" % (int(value) + 1)


class Operator:
    shared_writes = "commit"  # what a handler does to the shared store is part of its one commit

    def on_event(self, event, send_output):
        if event["type"] == "INPUT":
            kvs_update("count/operators", increment, default=b"0")
            kvs_update("count/all", increment, default=b"0")
            send_output("done", event["value"])
        return DoraStatus.CONTINUE
