"""The thread in which an operator is hosted, from the claim of its state to the end of its processes.

It runs the supervisor's loop, and forks: the kernel ends the children with it. `started` and `ended` are futures,
so that threads and coroutines can wait for either; which of them brings an error tells when that has happened.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from dora_state import location
from dora_state.errors import OperatorError
from dora_state.futures import Rooms
from dora_state.runs import run_in
from dora_state.runtime.config import SupervisorConfig
from dora_state.runtime.machine import State
from dora_state.runtime.publisher import Publisher
from dora_state.runtime.stopping import Outcome
from dora_state.traffic import Traffic


class HostThread:
    """Hosts one operator, once.

    Args:
        state_dir: absolute; where its state lives.
        keep, fresh: as in location.claim.
        rooms: see Traffic.
    """

    def __init__(
        self,
        config: SupervisorConfig,
        state_dir: Path,
        *,
        keep: bool,
        fresh: bool,
        rooms: Rooms | None,
    ) -> None:
        self._name = config.node_id
        self._state_dir = state_dir
        self._keep, self._fresh = keep, fresh
        self._publisher = Publisher(self._name)
        self._status: dict[str, Any] = {}
        self._status_changed = threading.Condition()
        self.traffic = Traffic(config, rooms, self._take_status)
        self._supervisor = self.traffic.supervisor
        self.started: Future[None] = Future()
        self.ended: Future[None] = Future()
        self._begin_lock = threading.Lock()
        self._is_begun = False  # or never will be
        self._thread = threading.Thread(target=self._run, name="dora-state-host", daemon=True)

    # From any thread

    def begin(self) -> None:
        """Start the thread; `started` tells when the operator is ready, or degraded."""
        if not self._take_turn():
            raise OperatorError("an OperatorHost starts once; make a new one")
        try:
            self._thread.start()
        except BaseException:  # no thread can be had
            self._free()
            self.ended.set_result(None)
            raise
        self.traffic.begin()

    def _take_turn(self) -> bool:
        """True, once: for who starts it, or ends it unstarted."""
        with self._begin_lock:
            was_begun, self._is_begun = self._is_begun, True
        return not was_begun

    def close_input(self) -> None:
        """No more events will come; one that is degraded ends at once, as nobody is there to handle any."""
        self.traffic.close()
        self._close_when_idle()

    def request_stop(self) -> None:
        """End after the event that is being handled; `ended` tells when that is done."""
        self._supervisor.request_stop(clean=False)

    def wait_ended(self) -> None:
        """Who was never started ends by this, and never will be."""
        if self._take_turn():
            self._free()
            self.ended.set_result(None)
        self.ended.result()

    @property
    def status(self) -> dict[str, Any]:
        with self._status_changed:
            return dict(self._status)

    def wait_status(
        self, condition: Callable[[dict[str, Any]], bool], timeout: float | None
    ) -> dict[str, Any]:
        """Wait for a status that meets the condition, and return it. Raises TimeoutError."""
        with self._status_changed:
            if not self._status_changed.wait_for(lambda: condition(self._status), timeout):
                raise TimeoutError(f"no such status within {timeout} s; it is {self._status}")
            return dict(self._status)

    @property
    def outcome(self) -> Outcome | None:
        return self._supervisor.outcome

    @property
    def store_path(self) -> Path:
        return self._state_dir / location.escape(self._name)

    # The thread itself

    def _run(self) -> None:
        try:
            self._host()
        except BaseException as error:
            self._end()
            if self.started.done():
                self.ended.set_exception(error)
            else:
                self.started.set_exception(error)
                self.ended.set_result(None)
        else:
            self._end()
            self.ended.set_result(None)

    def _host(self) -> None:
        with contextlib.closing(self._supervisor) as supervisor, run_in(self._state_dir) as run:
            supervisor.load()
            claim = location.claim(
                *(run, self._name),
                state_dir=self._state_dir,
                keep=self._keep,
                fresh=self._fresh,
                cwd=Path.cwd(),
            )
            clean = False
            try:
                self._publisher.open(claim.shared)
                supervisor.start(claim.path)
                if supervisor.state is State.ENDED:
                    raise self.traffic.ended_error()
                self.started.set_result(None)
                clean = supervisor.run().clean
            finally:
                supervisor.close()  # before the claim goes: two hosts must never share a store
                self._publisher.close()
                claim.finish(clean)

    def _end(self) -> None:
        self._put_status({**self.status, "state": State.ENDED.value})
        self.traffic.end()
        self._free()

    def _free(self) -> None:
        """Close every descriptor now: nothing waits for a garbage collection."""
        self._supervisor.close()
        self._supervisor.close_waker()

    def _take_status(self, status: dict[str, Any]) -> None:
        self._publisher.put(status)
        self._put_status(status)
        self._close_when_idle()

    def _put_status(self, status: dict[str, Any]) -> None:
        with self._status_changed:
            self._status = status
            self._status_changed.notify_all()

    def _close_when_idle(self) -> None:
        is_degraded = self.status.get("state") == State.DEGRADED.value
        if self.traffic.is_through or (is_degraded and self.traffic.is_closed):
            self._supervisor.close_input()


class Hosted:
    """What is seen of a hosted operator from outside, the same for threads and for asyncio."""

    _host: HostThread

    @property
    def status(self) -> dict[str, Any]:
        """The status as of the last start, restart or end; docs/runtime.md has its fields."""
        return self._host.status

    @property
    def outcome(self) -> Outcome | None:
        """How it has ended; None as long as it has not."""
        return self._host.outcome

    @property
    def store_path(self) -> Path:
        """The operator's private store. Anybody may open it read-only."""
        return self._host.store_path
