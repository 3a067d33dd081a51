"""Measures the operator runtime: python bench/restart.py [--kills 100] [--heap-mib 0] [--state-kib 64]

Needs dora-state, numpy and pyarrow installed. Two figures, both by clocks that all processes share:

    restart   from just before os.kill(worker, SIGKILL) to the operator's own clock in the next event, which waits
              already; the operator's `__init__` and `restore_state` do next to nothing. The host's part of it (from
              the moment it notices) is printed beside.
    event     host to worker and back with one save_state of 100 bytes, beside a bare ping-pong of 200 bytes over the
              same kind of socket between two processes of this run.

Times differ by machine and load: compare within one run.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import socket
import struct
import tempfile
import threading
import time
from pathlib import Path

from dora_state.runtime.outputs import Output
from dora_state.runtime.policy import RestartPolicy
from dora_state.runtime.supervisor import Supervisor, SupervisorConfig

OPERATOR = """
import struct
import time

from dora_state import save_state

class Operator:
    def __init__(self):
        self.heap = bytearray(b"x") * ({heap_mib} << 20)
        self.saved = False

    def restore_state(self, state):
        self.saved = True

    def on_event(self, event, send_output):
        now = time.monotonic_ns()
        if not self.saved:
            save_state("state", bytes({state_kib} << 10))
            self.saved = True
        save_state("small", bytes(100))
        if event["id"] == "timed":
            send_output("handled", struct.pack("<q", now))
        return 0
"""


def event(input_id: str) -> dict[str, object]:
    return {"kind": "dora", "type": "INPUT", "id": input_id, "value": bytes(200), "metadata": {}}


class Host:
    """An operator, hosted in this thread; `drive` runs in another."""

    def __init__(self, folder: Path, standby: str, heap_mib: int, state_kib: int) -> None:
        operator = folder / "operator.py"
        operator.write_text(OPERATOR.format(heap_mib=heap_mib, state_kib=state_kib))
        config = SupervisorConfig(
            operator=operator,
            policy=RestartPolicy(max_restarts=0, restart_delay=0),
            standby=standby,
            preload=("numpy", "pyarrow"),
        )
        self.supervisor = Supervisor(config, self._take, publish=self._note)
        self.status: dict[str, object] = {}
        self.handled: list[int] = []
        self._changed = threading.Condition()
        self.supervisor.load()
        self.supervisor.start(folder / "store")

    def _take(self, output: Output) -> None:
        with self._changed:
            self.handled += struct.unpack("<q", output.value)
            self._changed.notify_all()

    def _note(self, status: dict[str, object]) -> None:
        with self._changed:
            self.status = status
            self._changed.notify_all()

    def handle_one(self) -> int:
        count = len(self.handled)
        self.supervisor.submit(event("timed"))
        with self._changed:
            self._changed.wait_for(lambda: len(self.handled) > count)
        return self.handled[-1]

    def wait_running(self, incarnation: int) -> dict[str, object]:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self.status["state"] == "running" and self.status["incarnation"] >= incarnation
                )
            )
            return self.status


def measure_restarts(host: Host, kills: int, pause_s: float) -> list[float]:
    times: list[float] = []

    def drive() -> None:
        incarnation = 0
        for _ in range(kills):
            status = host.wait_running(incarnation + 1)
            incarnation = status["incarnation"]
            host.handle_one()
            time.sleep(pause_s)  # a robot does not crash again before its spare is there
            begin = time.monotonic_ns()
            os.kill(status["worker_pid"], signal.SIGKILL)
            times.append((host.handle_one() - begin) / 1e6)
        host.supervisor.close_input()

    thread = threading.Thread(target=drive)
    thread.start()
    host.supervisor.run()
    thread.join()
    return times


def measure_events(host: Host, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        host.supervisor.submit(event("plain"))
        host.supervisor.turn_until_idle()
        times.append((time.perf_counter_ns() - begin) / 1e3)
    host.supervisor.close()
    return times


def measure_ping_pong(rounds: int) -> list[float]:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while data := theirs.recv(4096):
            theirs.send(data)
        os._exit(0)
    theirs.close()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        ours.send(bytes(200))
        ours.recv(4096)
        times.append((time.perf_counter_ns() - begin) / 1e3)
    ours.close()
    os.waitpid(pid, 0)
    return times


def show(name: str, unit: str, times: list[float]) -> None:
    ordered = sorted(times)
    at = {part: ordered[min(int(len(ordered) * part), len(ordered) - 1)] for part in (0.5, 0.99)}
    print(f"{name:34} p50 {at[0.5]:8.2f} {unit}   p99 {at[0.99]:8.2f} {unit}   n {len(times)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Restart latency and cost of an event.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--heap-mib", type=int, default=0)
    parser.add_argument("--state-kib", type=int, default=64)
    options = parser.parse_args()
    sizes = (options.heap_mib, options.state_kib)
    print(
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; "
        f"heap {options.heap_mib} MiB, state {options.state_kib} KiB"
    )
    for standby in ("fork", "off"):
        with tempfile.TemporaryDirectory() as folder:
            host = Host(Path(folder), standby, *sizes)
            times = measure_restarts(host, options.kills, 0.05 + options.heap_mib / 1000)
            show(f"restart, standby {standby}", "ms", times)
            show("  of it, after the host noticed", "ms", list(host.supervisor.restart_ms))
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder), "off", 0, options.state_kib)
        times = measure_events(host, 5000)
    show("bare ping-pong", "us", measure_ping_pong(5000))
    show("event with one save_state", "us", times)


if __name__ == "__main__":
    main()
