"""Hosts an operator in tests, without dora: a supervisor in a thread, and a ledger of what came
out.

Everything is waited for by condition. A test that fails leaves no process behind: `Hosted.close`
kills them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dora_state._core import USER, Store
from dora_state.runtime import step
from dora_state.runtime.config import SupervisorConfig
from dora_state.runtime.machine import Machine
from dora_state.runtime.outputs import Output
from dora_state.runtime.policy import RestartPolicy
from dora_state.runtime.stopping import Outcome
from dora_state.runtime.supervisor import Supervisor

PATIENCE_S = 60.0  # far more than anything takes; only a bug waits this long

# Restarts at once and for ever, whatever it is that was killed, so that tests do not wait for delays.
EAGER = RestartPolicy(
    max_restarts=0, restart_delay=0.0, max_event_attempts=0, max_restore_attempts=0
)

# Keeps an exact account: how many events, their sum, and an output that says both for each event.
LEDGER = """
    from dora_state.operator import save_state

    class Operator:
        def __init__(self):
            self.count = self.total = 0

        def restore_state(self, state):
            self.count, self.total = int(state["count"]), int(state["total"])

        def on_event(self, event, send_output):
            if event["type"] == "INPUT":
                number = int(event["value"])
                self.count += 1
                self.total += number
                save_state("count", b"%d" % self.count)
                save_state("total", b"%d" % self.total)
                send_output("sum", b"%d %d %d" % (number, self.count, self.total))
            return 0
"""


def ledger(count: int) -> list[str]:
    """The outputs of LEDGER after events 0 to count - 1, each handled exactly once."""
    return [f"{n} {n + 1} {n * (n + 1) // 2}" for n in range(count)]


class Hosted:
    """An operator under a supervisor that runs in a thread of its own."""

    def __init__(
        self, folder: Path, source: str = LEDGER, *, kill: str = "", **config: Any
    ) -> None:
        self.operator = folder / "op.py"
        self.operator.write_text(textwrap.dedent(source))
        self.store_path = folder / "store"
        self.outputs: list[Output] = []
        self.statuses: list[dict[str, Any]] = []
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self._changed = threading.Condition()
        self._started = threading.Event()
        self._ended = threading.Event()
        environment = {**os.environ, **config.pop("environment", {})}
        environment["DORA_STATE_KILL"] = kill
        config.setdefault("policy", EAGER)
        config.setdefault("durability", "process")
        config.setdefault("queue_sizes", {"in": 1_000_000})
        self.supervisor = Supervisor(
            SupervisorConfig(operator=self.operator, environment=environment, **config),
            self._on_output,
            publish=self._on_status,
        )
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def _run(self) -> None:
        try:
            self.supervisor.load()
            self.supervisor.start(self.store_path)
            self._started.set()
            self.outcome = self.supervisor.run()
        except BaseException as error:
            self.error = error
        finally:
            self._started.set()
            self._ended.set()
            with self._changed:
                self._changed.notify_all()

    def _on_output(self, output: Output) -> None:
        with self._changed:
            self.outputs.append(output)
            self._changed.notify_all()

    def _on_status(self, status: dict[str, Any]) -> None:
        with self._changed:
            self.statuses.append(status)
            self._changed.notify_all()

    @property
    def machine(self) -> Machine:
        """For tests that look inside."""
        return self.supervisor._machine

    # What tests do

    def start(self) -> Hosted:
        self._thread.start()
        assert self._started.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return self

    def send(self, *values: Any, type: str = "INPUT", id: str = "in") -> None:
        for each in values:
            data = each if isinstance(each, bytes) else str(each).encode()
            self.supervisor.submit(
                {"kind": "dora", "type": type, "id": id, "value": data, "metadata": {}}
            )

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until an output or a status makes the condition true, and return what it gives."""
        with self._changed:
            met = self._changed.wait_for(lambda: condition() or self._ended.is_set(), PATIENCE_S)
            result = condition()
            if not (met and result):
                raise AssertionError(
                    f"waited in vain; outputs {self.texts[-3:]}, status {self.statuses[-1:]}, "
                    f"outcome {self.outcome}, error {self.error!r}"
                )
            return result

    def wait_outputs(self, count: int) -> list[str]:
        self.wait(lambda: len(self.outputs) >= count)
        return self.texts

    def wait_running(self, incarnation: int = 1) -> dict[str, Any]:
        """Wait for the status of a ready worker with at least this incarnation."""

        def running() -> dict[str, Any] | None:
            last = self.statuses[-1] if self.statuses else None
            if last and last["state"] == "running" and last["incarnation"] >= incarnation:
                return last if last["worker_pid"] else None
            return None

        return self.wait(running)  # type: ignore[no-any-return]

    def wait_spare(self, *, imported: bool = True) -> None:
        """Wait until there is a spare, which has imported the operator's file. Polled: nobody is
        told of it.
        """
        deadline = time.monotonic() + PATIENCE_S
        workers = self.supervisor.workers
        while (spare := workers.spares.spare) is None or (imported and spare.signature is None):
            assert time.monotonic() < deadline, "no spare"
            time.sleep(0.002)

    def finish(self) -> Outcome:
        """Close the input, and wait for the end."""
        self.supervisor.close_input()
        return self.wait_end()

    def wait_end(self) -> Outcome:
        assert self._ended.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome

    @property
    def texts(self) -> list[str]:
        return [bytes(output.value).decode() for output in self.outputs]

    def state(self) -> dict[str, bytes]:
        """The saved state, after the end."""
        store = Store(str(self.store_path))
        try:
            return {key: value for key, value, _ in store._scan(USER)}
        finally:
            store.close()

    def step(self) -> step.Step:
        store = Store(str(self.store_path))
        try:
            return step.read(store)
        finally:
            store.close()

    def close(self) -> None:
        self.supervisor.request_stop()
        if self._thread.is_alive() and not self._ended.wait(PATIENCE_S):
            self.supervisor.close()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_at_random(hosted: Hosted, kills: int) -> int:
    """Kills at times that the noise of the machine makes random, each some outputs after the last.

    Returns how many events were sent.
    """
    events = incarnation = 0
    for round in range(kills):
        status = hosted.wait_running(incarnation + 1)
        incarnation = status["incarnation"]
        hosted.send(*range(events, events + 5))
        hosted.wait(lambda n=events + round % 5: len(hosted.outputs) >= n)
        kill(status["worker_pid"])
        events += 5
    hosted.wait_running(incarnation + 1)  # the last kill may fall after the last output
    return events


def wait_gone(pid: int) -> bool:
    """Wait until a process that need not be our child has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], PATIENCE_S)[0])
    finally:
        os.close(fd)


def wait_stopped(pid: int) -> None:
    """Wait until a process has stopped itself. Polled: only its parent is told."""
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, "it did not stop"
        time.sleep(0.002)


def wait_file(path: Path) -> str:
    """Wait until a file written by another process is there and ends in a newline.

    Polled: what the operator prints is no event that a test could wait for.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            text = path.read_text()
            if text.endswith("\n"):
                return text
        time.sleep(0.005)
    raise AssertionError(f"{path} was not written")
