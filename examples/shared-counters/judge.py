"""Waits for the end of all others and judges the counts: exit code 1 if one is not what it must be."""

import sys
from pathlib import Path

from dora import Node

from dora_state import kvs_read


def ledgers() -> bytes:
    return b"".join(path.read_bytes() for path in Path("out").glob("node-*"))


def main() -> int:
    events = sum(event["type"] == "INPUT" for event in Node())
    notes = ledgers()
    count = {name: int(kvs_read(f"count/{name}")) for name in ("operators", "nodes", "all")}
    begun, acknowledged = notes.count(b"b"), notes.count(b"a")
    begun_all, acknowledged_all = notes.count(b"B"), notes.count(b"A")
    exact = count["operators"] == events
    within = acknowledged <= count["nodes"] <= begun
    within_all = acknowledged_all <= count["all"] - events <= begun_all
    print(
        f"kills {kvs_read('kills').decode()}, operators: {events} events, counted {count['operators']};"
        f" nodes: acknowledged {acknowledged}, counted {count['nodes']}, begun {begun};"
        f" together: {events} and {acknowledged_all} to {begun_all}, counted {count['all']}",
        flush=True,
    )
    return 0 if exact and within and within_all else 1


if __name__ == "__main__":
    sys.exit(main())
