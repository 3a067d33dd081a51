"""What large arrays cost on their way through the runtime, as markdown: python large.py [--quick]

    event     from before `submit` of an Arrow array until on_event has it
    output    from the operator's call of send_output until the host has the same array in its hands, to give it to
              dora; the commit of the event is within it
    kept      an event, while the arena is full of arrays that the operator keeps

Beside them a memcpy between two buffers of that size, which is what cannot be saved, and the same through the socket,
which takes three copies. The median and the best of rounds that take turns. dora's own copies come on top.
"""

from __future__ import annotations

import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from dora_state.runtime import slots, value
from dora_state.runtime.config import SupervisorConfig
from dora_state.runtime.outputs import Output
from dora_state.runtime.supervisor import Supervisor

OPERATOR = """
import struct, time
import numpy as np, pyarrow as pa
from dora_state.runtime import value
if {socket}:
    value.LARGE = 1 << 62

class Operator:
    def __init__(self):
        self.kept = []
        self.arrays = {{}}

    def on_event(self, event, send_output):
        now = time.monotonic_ns()
        array = event["value"]
        if event["id"] == "keep":
            self.kept.append(array)
        send_output("got", struct.pack("<q", now))
        if event["id"] == "echo":
            count = len(array)
            mine = self.arrays.setdefault(count, pa.array(np.ones(count, dtype=np.uint8)))
            send_output("array", mine, {{"begin": time.monotonic_ns()}})
        return 0
"""
SIZES = {"100 kB": 100_000, "1 MB": 1_000_000, "16 MB": 16_000_000}
THROUGH_THE_SOCKET = 1 << 62
slots.ARENA_BYTES = 64 << 20  # so that it is soon full; how large it is makes no difference before


class Host:
    """An operator; the loop is driven by this thread."""

    def __init__(self, folder: Path, *, socket: bool) -> None:
        self.large = THROUGH_THE_SOCKET if socket else slots.LARGE
        self.got = self.back = 0
        folder.mkdir()
        operator = folder / "operator.py"
        operator.write_text(OPERATOR.format(socket=socket))
        config = SupervisorConfig(operator=operator, standby="off", durability="process")
        self.supervisor = Supervisor(config, self._take)
        self.supervisor.load()
        self.supervisor.start(folder / "store")

    def _take(self, output: Output) -> None:
        if output.id == "got":
            (self.got,) = struct.unpack("<q", output.value)
        else:
            assert output.value[0].as_py() == 1
            self.back = time.monotonic_ns() - output.metadata["begin"]

    def send(self, array: pa.Array, name: str) -> float:
        """Microseconds until on_event has it."""
        value.LARGE = self.large
        begin = time.monotonic_ns()
        self.supervisor.submit(
            {"kind": "dora", "type": "INPUT", "id": name, "value": array, "metadata": {}}
        )
        self.supervisor.turn_until_idle()
        return (self.got - begin) / 1e3

    def echo(self, array: pa.Array) -> float:
        """Microseconds of the way back."""
        self.send(array, "echo")
        return self.back / 1e3

    def fill(self, array: pa.Array) -> None:
        for _ in range(slots.ARENA_BYTES // array.nbytes + 1):
            self.send(array, "keep")


def memcpy(target: np.ndarray, source: np.ndarray) -> float:
    begin = time.monotonic_ns()
    np.copyto(target, source)
    return (time.monotonic_ns() - begin) / 1e3


def row(name: str, times: dict[str, list[float]]) -> str:
    cells = [f"{statistics.median(each):.0f} ({min(each):.0f})" for each in times.values()]
    return f"| {name} | {' | '.join(cells)} |"


def main(arguments: list[str]) -> int:
    rounds = 5 if "--quick" in arguments else 200
    print("| us, median (best) | memcpy | event | event, socket | output | output, socket |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        shared = Host(Path(name) / "shared", socket=False)
        socket = Host(Path(name) / "socket", socket=True)
        try:
            for title, size in SIZES.items():
                source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
                array = pa.array(source)
                times: dict[str, list[float]] = {
                    each: [] for each in ("memcpy", "event", "socket", "output", "back")
                }
                for _ in range(max(5, rounds * 1_000_000 // max(size, 1_000_000))):
                    times["memcpy"].append(memcpy(target, source))
                    times["event"].append(shared.send(array, "event"))
                    times["socket"].append(socket.send(array, "event"))
                    times["output"].append(shared.echo(array))
                    times["back"].append(socket.echo(array))
                print(row(title, times), flush=True)
            array = pa.array(np.ones(1_000_000, np.uint8))
            shared.fill(array)
            kept = [shared.send(array, "keep") for _ in range(rounds)]
            print(
                f"\nWith a full arena, an event of 1 MB: {statistics.median(kept):.0f} ({min(kept):.0f})"
            )
        finally:
            shared.supervisor.close()
            socket.supervisor.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
