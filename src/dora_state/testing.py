"""Tests of how an operator crashes, in a few lines of pytest and without dora:

    from dora_state.testing import run_operator

    def test_the_total_survives_a_crash(tmp_path):
        with run_operator("counter.py", tmp_path) as op:
            op.send("number", 1)
            op.kill()                       # SIGKILL, and wait for the successor
            op.kill_at("after-commit")      # the next event dies there
            op.send("number", 2)            # returns when it is committed, whatever happened on the way
            assert op.outputs("total") == [1, 3]
            assert op.state() == {"total": 3}

The operator runs in a real child process under the real runtime; a kill is a real one.
"""

from __future__ import annotations

import contextlib
import os
import signal as signals
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dora_state import typed_state
from dora_state.codec import Coded
from dora_state.errors import OperatorError
from dora_state.host import OperatorHost
from dora_state.operator import FIELDS_PREFIX
from dora_state.runtime import killpoint, step
from dora_state.runtime.policy import RestartPolicy
from dora_state.store import Store
from dora_state.traffic import Output, input_event

PATIENCE_S = 30.0

# Where an event can be interrupted, in this order. Those of outputs need an operator that sends one.
EVENT_POINTS = killpoint.EVENT_POINTS
# With shared_writes = "commit", as well.
SHARED_POINTS = killpoint.SHARED_POINTS
# Where a successor can be interrupted: arm it, then `kill`.
START_POINTS = tuple(point for point in killpoint.START_POINTS if point != "import")
HOW = tuple(how for how in killpoint.HOW if how != "stop")

# Restarts at once; an operator that cannot come back ends the test instead of waiting.
POLICY = RestartPolicy(max_restarts=5, restart_delay=0.0, exhausted="stop")


@contextlib.contextmanager
def run_operator(
    operator: str | os.PathLike[str] | type,
    folder: str | os.PathLike[str],
    *,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[OperatorUnderTest]:
    """Run an operator for the length of a block.

    Args:
        operator: its file, relative to the working directory, or its class.
        folder: pytest's tmp_path. Its state lives there: a second block with the same folder goes on with it.
        environment: more variables for its process.
        options: those of OperatorHost.

    Raises OperatorError if it does not start, and AssertionError at the end if a point of `kill_at` was not reached.
    """
    folder = Path(folder)
    armed = folder / "kill-point"
    variables = {**os.environ, **(environment or {}), killpoint.FILE_ENVIRONMENT: str(armed)}
    options = {"policy": POLICY, "durability": "process", **options}
    with OperatorHost(operator, folder / "state", environment=variables, **options) as host:
        tested = OperatorUnderTest(host, armed)
        try:
            yield tested
            tested.check_kill_point()
        finally:
            armed.unlink(missing_ok=True)


class OperatorUnderTest:
    """An operator that runs in a process of its own, and can be killed. Calls wait at most PATIENCE_S."""

    def __init__(self, host: OperatorHost, armed: Path) -> None:
        self.host = host
        self._armed = armed  # a file, while a kill point is armed
        self._point = ""
        self._outputs: list[Output] = []

    def send(
        self, input_id: str, value: Any = None, metadata: Mapping[str, Any] | None = None
    ) -> list[Output]:
        """Hand over an event, wait until it is committed, and return its outputs.

        If the operator died at the point of `kill_at`, its successor has restored the state. Raises OperatorError, with
        the traceback of the crash, if the operator gave up on the event or ended.
        """
        return self.send_event(input_event(input_id, value, metadata))

    def send_event(self, event: Mapping[str, Any]) -> list[Output]:
        """The same with an event of any type, as dora would give it: `{"type": "PARAM_UPDATE", ...}`."""
        before, was_armed = self.host.status, self._armed.exists()
        sent = self.host.send_event(event, timeout=PATIENCE_S)
        self._outputs += sent
        # after-ack is reached for sure, but after we know of the commit.
        if was_armed and (self._point == "after-ack" or not self._armed.exists()):
            self._wait_restarted(before)
        return sent

    def kill(self, signal: int = signals.SIGKILL) -> None:
        """End the operator's process, and wait until its successor has restored the state.

        Raises OperatorError if there is no process, or no successor: with the crash that prevented it.
        """
        before = self.host.status
        pid = before["worker_pid"]
        if not pid:  # 0 would be our own process group
            raise OperatorError(
                f"the operator has no process: it is {before['state']}; kill it while it is running"
            )
        os.kill(pid, signal)
        self._wait_restarted(before)

    def _wait_restarted(self, before: Mapping[str, Any]) -> None:
        def is_settled(status: dict[str, Any]) -> bool:
            if status["state"] in ("degraded", "ended"):
                return True
            crash = status["last_crash"]
            return (
                status["restarts"] > before["restarts"]
                and status["state"] == "running"
                and any(crash[name] is not None for name in ("error", "signal", "exit_code"))
            )

        status = self.host.wait_status(is_settled, PATIENCE_S)
        if status["state"] != "running":
            crash = status["last_crash"] or {}
            told = f"{crash.get('reason')}\n{crash.get('traceback') or ''}"
            raise OperatorError(f"the operator does not come back: {told}".rstrip())

    def kill_at(self, point: str, how: str = "kill") -> None:
        """Have the operator die when it next gets to a point of EVENT_POINTS, SHARED_POINTS or START_POINTS.

        Args:
            how: one of HOW: "kill" (SIGKILL), "abort", "segv", "exit" (os._exit(0)), "quit" (sys.exit), "raise".
        """
        points = EVENT_POINTS + SHARED_POINTS + START_POINTS
        if point not in points:
            raise ValueError(f"there is no kill point {point!r}; use one of {', '.join(points)}")
        if how not in HOW:
            raise ValueError(f"how is {how!r}; use one of {', '.join(HOW)}")
        if point == "torn-output" and how in ("quit", "raise"):
            raise ValueError(f"what is torn is not told of: {point} takes no {how!r}; use another")
        self.check_kill_point()
        with Store(self.host.store_path, read_only=True) as store:
            last = step.read(store).number  # what follows the commit of that may still be going on
        self._point = point
        draft = self._armed.with_suffix(".new")
        draft.write_text(f"{point}@{last + 1 if point not in START_POINTS else 0}={how}")
        draft.rename(self._armed)

    def check_kill_point(self) -> None:
        """Raise AssertionError if the point of the last `kill_at` was not reached: the test has shown nothing."""
        if self._armed.exists():
            self._armed.unlink()
            raise AssertionError(f"the operator never got to the kill point {self._point!r}")

    def outputs(self, output_id: str | None = None) -> list[Any]:
        """The values that it has sent so far, of one output or of all, in the order of their commits."""
        with contextlib.suppress(TimeoutError):  # those that belong to no event
            while (output := self.host.receive(0)) is not None:
                self._outputs.append(output)
        return [each.value for each in self._outputs if output_id in (None, each.id)]

    def state(self) -> dict[str, Any]:
        """What is committed, and what a successor would be given: the keys of save_state as bytes, and the fields of
        typed state by name, as values. A value with a codec of its own is what the codec has made.
        """
        with Store(self.host.store_path, read_only=True) as store:
            saved = dict(store.items())
        if FIELDS_PREFIX not in saved:
            return saved
        fields, _ = typed_state.unpack(saved)
        plain = {key: data for key, data in saved.items() if key[:1] != FIELDS_PREFIX}
        return {**plain, **{name: _without_codec(value) for name, value in fields.items()}}

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return int(self.host.status["restarts"])

    @property
    def last_crash(self) -> dict[str, Any] | None:
        """Why it ended last: `reason`, `phase`, `error`, `traceback`, `signal`, `exit_code`, ..."""
        crash: dict[str, Any] | None = self.host.status["last_crash"]
        return crash


def _without_codec(value: Any) -> Any:
    if type(value) is Coded:
        return value.data
    if isinstance(value, dict):
        return {key: _without_codec(each) for key, each in value.items()}
    return value
