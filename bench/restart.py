"""What a crash costs, and an event, as markdown: python restart.py [--quick]

    restart   from just before os.kill(worker, SIGKILL) to the operator's own clock in the next event, which waits
              already, and the parts of that; the operator's `__init__` and `restore_state` do next to nothing
    lock      the same while the host keeps Python's lock for 63 ms at a time, as dora's send_output does for 16 MB
    dora      a plain dora node under dora's own restart_policy and one of ours, in one dataflow, killed at the same
              moments: when each has its next event, and which events never arrive
    event     host to worker and back with one save_state of 100 bytes, beside a bare ping-pong of 200 bytes over the
              same kind of socket between two processes; both ends on one core, and where the kernel puts them

All clocks are CLOCK_MONOTONIC, which processes share. Compare within one run.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dora_state.runtime.config import SupervisorConfig
from dora_state.runtime.outputs import Output
from dora_state.runtime.policy import RestartPolicy
from dora_state.runtime.restart import Restart
from dora_state.runtime.supervisor import Supervisor

OPERATOR = """
import struct
import time

from dora_state import save_state

class Operator:
    def __init__(self):
        self.saved = False
        self.restored = 0

    def restore_state(self, state):
        self.saved = True
        self.restored = time.monotonic_ns()

    def on_event(self, event, send_output):
        now = time.monotonic_ns()
        if not self.saved:
            save_state("state", bytes({state_kib} << 10))
            self.saved = True
        save_state("small", bytes(100))
        if event["id"] == "grow":  # not in __init__, which would be timed
            self.heap = bytearray(b"x") * ({heap_mib} << 20)
        if event["id"] != "plain":
            send_output("handled", struct.pack("<qq", self.restored, now))
        return 0
"""
PARTS = ("detect", "handover", "restore", "first event")


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
        self.handled: list[tuple[int, int]] = []  # when it was restored, and in the event
        self._changed = threading.Condition()
        self.supervisor.load()
        self.supervisor.start(folder / "store")

    def _take(self, output: Output) -> None:
        with self._changed:
            self.handled.append(struct.unpack("<qq", output.value))
            self._changed.notify_all()

    def _note(self, status: dict[str, object]) -> None:
        with self._changed:
            self.status = status
            self._changed.notify_all()

    def handle_one(self, input_id: str = "timed") -> tuple[int, int]:
        count = len(self.handled)
        self.supervisor.submit(event(input_id))
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


@contextlib.contextmanager
def noted_restarts(into: list[tuple[float, float]]) -> Iterator[None]:
    """When the host noticed each death, and when the successor had START."""
    finish = Restart.finish

    def note(restart: Restart, successor, now: float) -> None:
        into.append((restart.died, successor.started))
        finish(restart, successor, now)

    Restart.finish = note
    try:
        yield
    finally:
        Restart.finish = finish


def measure_restarts(host: Host, kills: int, pause_s: float) -> list[tuple[float, ...]]:
    """For each kill the milliseconds of each part."""
    parts: list[tuple[float, ...]] = []
    noted: list[tuple[float, float]] = []

    def drive() -> None:
        incarnation = 0
        for _ in range(kills):
            status = host.wait_running(incarnation + 1)
            incarnation = status["incarnation"]
            host.handle_one("grow")
            time.sleep(pause_s)  # a robot does not crash again before its spare is there
            begin = time.monotonic_ns()
            os.kill(status["worker_pid"], signal.SIGKILL)
            restored, handled = host.handle_one()
            host.wait_running(incarnation + 1)
            while len(noted) <= len(parts):
                time.sleep(0.001)
            died, started = (int(each * 1e9) for each in noted[len(parts)])
            times = (begin, died, started, restored, handled)
            parts.append(tuple((b - a) / 1e6 for a, b in itertools.pairwise(times)))
        host.supervisor.close_input()

    thread = threading.Thread(target=drive, daemon=True)
    with noted_restarts(noted):
        thread.start()
        host.supervisor.run()
        thread.join()
    return parts


def at(times: list[float], part: float) -> float:
    ordered = sorted(times)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def restarts(quick: bool) -> None:
    # A large heap takes a second to fill for each kill. Of 20 kills the p99 is the slowest.
    heaps = {0: 5} if quick else {0: 100, 256: 40, 1024: 20}
    states = (64,) if quick else (64, 16 << 10)
    print("SIGKILL to the next event handled, ms; the parts are medians.\n")
    print("| heap MiB | state KiB | spare | kills | p50 | p99 |", " | ".join(PARTS), "|")
    print("| --- " * (6 + len(PARTS)) + "|")
    for heap, kills in heaps.items():
        for state in states:
            for standby in ("fork", "off"):
                with tempfile.TemporaryDirectory() as folder:
                    host = Host(Path(folder), standby, heap, state)
                    parts = measure_restarts(host, kills, 0.05 + heap / 1000)
                totals = [sum(each) for each in parts]
                medians = [at(list(column), 0.5) for column in zip(*parts, strict=True)]
                figures = (at(totals, 0.5), at(totals, 0.99), *medians)
                spare = "yes" if standby == "fork" else "no"
                print(
                    f"| {heap} | {state} | {spare} | {kills} |",
                    *(f"{each:.2f} |" for each in figures),
                )


@contextlib.contextmanager
def kept_lock(milliseconds: int) -> Iterator[None]:
    """Something in this process that keeps Python's lock again and again."""
    over = threading.Event()
    keep = ctypes.PyDLL(None).usleep  # a call that does not give it up

    def run() -> None:
        while not over.wait(0.001):
            keep(milliseconds * 1000)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def lock(quick: bool) -> None:
    """Timed from the kill, which the operator's child does, as this process cannot."""
    kills = 5 if quick else 50
    print("\nThe same while a call in the host keeps Python's lock, 63 ms at a time: ms from the")
    print("kill of a worker in a handler to the handler's second attempt.\n")
    print("| who hands over | p50 | p99 |\n| --- | --- | --- |")
    for name, arms in (("the host's interpreter", False), ("the lifeline's thread", True)):
        times = lock_times(kills, arms=arms)
        print(f"| {name} | {at(times, 0.5):.2f} | {at(times, 0.99):.2f} |")


DIES = """
import os, signal, struct, time

class Operator:
    def on_event(self, event, send_output):
        path = {path!r}
        if event["attempt"] == 1:
            time.sleep({pause_s})
            with open(path, "w") as file:
                file.write(str(time.monotonic_ns()))
            os.kill(os.getpid(), signal.SIGKILL)
        now = time.monotonic_ns()
        send_output("handled", struct.pack("<qq", int(open(path).read()), now))
        return 0
"""


def lock_times(kills: int, *, arms: bool) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        operator = Path(folder, "operator.py")
        operator.write_text(DIES.format(path=f"{folder}/killed", pause_s=0.4))
        taken: list[float] = []

        def take(output: Output) -> None:
            killed, handled = struct.unpack("<qq", output.value)
            taken.append((handled - killed) / 1e6)

        config = SupervisorConfig(
            operator=operator,
            policy=RestartPolicy(max_restarts=0, restart_delay=0),
            queue_sizes={"in": kills},
        )
        supervisor = Supervisor(config, take)
        if not arms:
            supervisor._machine.succession._handover.arm = lambda *arguments: None
        supervisor.load()
        supervisor.start(Path(folder, "store"))
        for _ in range(kills):
            supervisor.submit(event("in"))
        supervisor.close_input()
        with kept_lock(63):
            supervisor.run()
        return taken


# Beside dora's own restart

RATE_HZ = 100
DATAFLOW = """
nodes:
  - id: source
    path: source.py
    inputs: {{tick: dora/timer/millis/{period_ms}}}
    outputs: [number]
  - id: ours
    path: dora-state
    args: run ours.py --max-restarts 0
    inputs: {{number: {{source: source/number, queue_size: 1000, queue_policy: backpressure}}}}
  - id: plain
    path: plain.py
    restart_policy: on-failure
    max_restarts: 0
    inputs: {{number: {{source: source/number, queue_size: 1000, queue_policy: backpressure}}}}
"""
SOURCE = """
from dora import Node

node = Node()
number = 0
for event in node:
    if event["type"] == "INPUT":
        number += 1
        node.send_output("number", str(number).encode())
"""
LOG = """
import json, os, time

file = open({path!r}, "a", buffering=1)

def note(event):
    number = int(bytes(event["value"].to_pylist()))
    print(json.dumps([os.getpid(), number, time.monotonic_ns()]), file=file)
"""
OURS = """
class Operator:
    def on_event(self, event, send_output):
        if event["type"] == "INPUT":
            note(event)
            self.save_state("n", b"1")
        return 0
"""
PLAIN = """
from dora import Node

for event in Node():
    if event["type"] == "INPUT":
        note(event)
"""


class Log:
    """What a node has noted: its pid, the event's number, and when."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[list[int]]:
        if not self.path.exists():
            return []
        text = self.path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_beyond(self, when: int, patience_s: float = 30.0) -> list[int]:
        """The first entry by another process after `when`."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            for entry in reversed(self.read()):
                if entry[2] > when:
                    return entry
            time.sleep(0.05)
        raise SystemExit(f"error: {self.path.name} got no event for {patience_s:.0f} s")


def beside_dora(quick: bool) -> None:
    kills = 3 if quick else 30
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        logs = {node: Log(folder / f"{node}.log") for node in ("ours", "plain")}
        (folder / "dataflow.yml").write_text(DATAFLOW.format(period_ms=1000 // RATE_HZ))
        (folder / "source.py").write_text(SOURCE)
        for node, code in (("ours", OURS), ("plain", PLAIN)):
            note = LOG.format(path=str(logs[node].path))
            (folder / f"{node}.py").write_text(note + code)
        times = run_dataflow(folder, logs, kills)
        print(
            f"\nBeside dora's own `restart_policy: on-failure`, {RATE_HZ} events a second: ms from the"
        )
        print(
            "SIGKILL to the next event (it may have to be sent first), and events that never came.\n"
            "Both inputs have `queue_policy: backpressure`, so that none is lost on the way.\n"
        )
        print("| | p50 | p99 | kills | events | lost |\n| --- | --- | --- | --- | --- | --- |")
        titles = {"ours": "`path: dora-state`", "plain": "a plain node, restarted by dora"}
        for node, log in logs.items():
            entries = log.read()
            numbers = {number for _, number, _ in entries}
            sent = max(numbers) - min(numbers) + 1
            figures = f"{at(times[node], 0.5):.1f} | {at(times[node], 0.99):.1f} | {kills}"
            print(f"| {titles[node]} | {figures} | {sent} | {sent - len(numbers)} |")


def run_dataflow(folder: Path, logs: dict[str, Log], kills: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {node: [] for node in logs}
    programs = Path(sys.executable).parent
    flow = subprocess.Popen(
        [str(programs / "dora"), "run", "dataflow.yml"],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            # dora asks `uv run which` for a node's program; in a project's folder that would install it.
            "UV_NO_PROJECT": "1",
            "UV_NO_SYNC": "1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for log in logs.values():
            log.wait_beyond(0, 60)
        for _ in range(kills):
            time.sleep(0.5)
            victims = {node: log.read()[-1][0] for node, log in logs.items()}
            killed = {}
            for node, pid in victims.items():
                killed[node] = time.monotonic_ns()
                os.kill(pid, signal.SIGKILL)
            for node, log in logs.items():
                log.wait_beyond(killed[node] + 2_000_000_000)  # all that it lost is behind it
                entries = [entry for entry in log.read() if entry[2] > killed[node]]
                first = next(entry for entry in entries if entry[0] != victims[node])
                times[node].append((first[2] - killed[node]) / 1e6)
    finally:
        flow.send_signal(signal.SIGINT)
        try:
            flow.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(flow.pid, signal.SIGKILL)
            flow.wait()
    return times


# One event


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """For this process and those it starts meanwhile: waking an idle one takes longer than an event."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def event_host() -> Iterator[Callable[[], None]]:
    with tempfile.TemporaryDirectory() as folder:
        supervisor = Host(Path(folder), "fork", 0, 64).supervisor

        def handle_one() -> None:
            supervisor.submit(event("plain"))
            supervisor.turn_until_idle()

        for _ in range(300):  # the spare is born meanwhile
            handle_one()
        yield handle_one
        supervisor.close()


@contextlib.contextmanager
def ping_pong() -> Iterator[Callable[[], None]]:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while data := theirs.recv(4096):
            theirs.send(data)
        os._exit(0)
    theirs.close()

    def exchange() -> None:
        ours.send(bytes(200))
        ours.recv(4096)

    yield exchange
    ours.close()
    os.waitpid(pid, 0)


def timed(call: Callable[[], None]) -> float:
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / 1e3


def event_times(blocks: int, size: int = 100) -> tuple[list[float], list[float]]:
    """Of ping-pongs and of events, in turns, so that both meet the same machine."""
    bare: list[float] = []
    whole: list[float] = []
    with ping_pong() as exchange, event_host() as handle_one:
        for _ in range(blocks):
            bare += [timed(exchange) for _ in range(size)]
            whole += [timed(handle_one) for _ in range(size)]
    return bare, whole


def events(quick: bool) -> None:
    blocks = 5 if quick else 50
    print("\nOne event, us.\n\n| | best | p50 | p99 |\n| --- | --- | --- | --- |")
    for where, place in (("one core", one_core), ("any core", contextlib.nullcontext)):
        with place():
            bare, whole = event_times(blocks)
        for name, times in (("bare ping-pong", bare), ("event with one `save_state`", whole)):
            figures = f"{min(times):.1f} | {at(times, 0.5):.1f} | {at(times, 0.99):.1f}"
            print(f"| {name}, {where} | {figures} |")


def main() -> None:
    logging.getLogger("dora_state").setLevel(logging.CRITICAL)
    quick = "--quick" in sys.argv[1:]
    restarts(quick)
    lock(quick)
    beside_dora(quick)
    events(quick)


if __name__ == "__main__":
    main()
