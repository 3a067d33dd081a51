"""Enters every output of the operator into the ledger and judges the run at its end: exit code 1 if it is not exact."""

import os
import sys

import msgpack
from dora import Node
from ledger import Ledger, summary

from dora_state import kvs_read, kvs_write, operator_status

OPERATORS = os.environ.get("COUNTER_OPERATORS", "counter").split()


def main() -> int:
    ledger = Ledger()
    for event in Node():
        if event["type"] == "INPUT":
            number, total = event["value"].to_pylist()
            ledger.take(number, total)
            kvs_write("counter/seen", str(number).encode())

    sent = int(kvs_read("counter/sent", default=b"0"))
    restart_ms = msgpack.unpackb(kvs_read("counter/restart_ms", default=b"\x90"))
    found = [operator_status(operator) for operator in OPERATORS]
    restarts = sum(status["restarts"] for status in found if status)

    ledger.close(sent, kills=len(restart_ms), restarts=restarts)
    for problem in ledger.problems[:20]:
        print(problem, file=sys.stderr)
    print(summary(sent, ledger.lost, ledger.twice, restart_ms), flush=True)
    return 1 if ledger.problems else 0


if __name__ == "__main__":
    sys.exit(main())
