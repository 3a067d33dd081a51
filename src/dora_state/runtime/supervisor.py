"""The supervisor hosts one operator: what a node or a program calls, and the loop in which everything
happens. What happens is machine.py's.

The loop never calls dora and never waits for anything but its own descriptors. `submit`,
`close_input`, `request_stop` and `wake` may be called from any thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dora_state._core import Store
from dora_state.errors import OperatorError
from dora_state.runtime import control, inputs, step
from dora_state.runtime.config import SupervisorConfig
from dora_state.runtime.control import Control
from dora_state.runtime.dead_letter import LetterBox
from dora_state.runtime.inputs import Event, InputBuffer
from dora_state.runtime.machine import Machine, State
from dora_state.runtime.outputs import Output
from dora_state.runtime.pipes import Relay
from dora_state.runtime.poller import Poller
from dora_state.runtime.slots import HostMemory
from dora_state.runtime.snapshot import Keeper
from dora_state.runtime.status import Account
from dora_state.runtime.stopping import Outcome
from dora_state.runtime.waker import Waker
from dora_state.runtime.workers import Workers
from dora_state.runtime.zygote import Zygote

log = logging.getLogger("dora_state.supervisor")

_STARTS_AWAITED = (
    5  # failed starts; policies that allow more, or any number, go on trying beside run()
)


class Supervisor:
    """Hosts one operator. `start` returns when it is ready, `run` when it has ended; same thread
    for both.

    Args:
        send: takes an Output whose event is committed. Called from the loop; must not block.
        publish: takes the status as a dict after every start, restart and end.
        can_send: False holds back the next event; call `wake` when that changes.
    """

    def __init__(
        self,
        config: SupervisorConfig,
        send: Callable[[Output], None],
        *,
        publish: Callable[[dict[str, Any]], None] | None = None,
        can_send: Callable[[], bool] | None = None,
    ) -> None:
        self.config = config
        self.input = InputBuffer(config.queue_sizes, config.queue_size)
        self._poller = Poller()
        self._waker = Waker(self._poller)
        self._memory = HostMemory()
        self._relay: Relay | None = None
        self._control: Control | None = None
        self._machine = Machine(
            config,
            self.input,
            self._poller,
            self._memory,
            self._make_zygote,
            send=send,
            publish=publish or (lambda status: None),
            can_send=can_send or (lambda: True),
        )

    @property
    def state(self) -> State:
        return self._machine.state

    @property
    def outcome(self) -> Outcome | None:
        return self._machine.outcome

    @property
    def account(self) -> Account:
        return self._machine.account

    @property
    def letters(self) -> LetterBox:
        return self._machine.letters

    @property
    def workers(self) -> Workers:
        return self._machine.workers

    @property
    def restarts(self) -> int:
        return self.account.restarts

    @property
    def restart_ms(self) -> Sequence[float]:
        return self.account.restart_ms

    # From any thread

    def submit(self, event: Mapping[str, Any]) -> None:
        """Take an event, copied. Raises TypeError if it holds something that cannot be sent to the
        operator.
        """
        self.put(self.take_apart(event))

    def take_apart(self, event: Mapping[str, Any]) -> Event:
        """Copy an event, for `put`. What it takes is given back with it."""
        return inputs.take_apart(event, self._memory.make_slot)

    def put(self, event: Event) -> None:
        """Take an event that is taken apart already."""
        if self.input.put(event):
            self._machine.succession.withdraw()  # START tells of what was dropped
        self.wake()

    def close_input(self) -> None:
        """No more events will come: handle those that are here, then stop."""
        self._machine.stopping.close_input()
        self.wake()

    def request_stop(self, *, clean: bool = True) -> None:
        """Stop after the event that is being handled. Safe in a signal handler.

        Not `clean`: whoever asks could not know what this does to the run, so state is kept.
        """
        self._machine.stopping.request(clean=clean)
        self.wake()

    def wake(self) -> None:
        self._waker.wake()

    @property
    def wakeup_fd(self) -> int:
        """For signal.set_wakeup_fd. The kernel may give a signal to any thread, and Python's handler
        runs in the main thread only when that wakes up by itself.
        """
        return self._waker.fileno()

    # The thread that owns the loop

    def load(self) -> None:
        """Import the operator's file in a first worker. Raises OperatorError if it cannot be used.

        Nothing is touched on disk before the file is known to be good.
        """
        if not self.config.operator.is_file():
            raise OperatorError(
                f"{self.config.operator} is not a file; give the path of the operator's Python "
                "file, relative to the dataflow's folder"
            )
        with self._closing_on_error():
            self._relay = Relay()
            self.workers.open()
            first = self.workers.make_spare()
            while not first.was_born and self.state is not State.ENDED:
                self._turn()
            self._machine.hang.begin(first, "start")  # an import can hang, too
            while not self.workers.ever_imported and self.state is not State.ENDED:
                self._turn()
            self._machine.hang.end()

    def start(self, store: Path) -> None:
        """Bring up the first incarnation; returns when it is ready, or degraded, or ended, or has failed
        so often that the rest of the dataflow should not wait for it.

        Args:
            store: the directory of the operator's private store; nobody else may write to it.
        """
        with self._closing_on_error():
            if self.state is not State.ENDED:
                self._open_store(store)
                self._machine.start_worker()
            while self.state in (State.STARTING, State.WAITING, State.STOPPING):
                if self._machine.failed_starts > _STARTS_AWAITED:
                    log.error("the operator does not start; its outputs are silent until it does")
                    break
                self._turn()

    def run(self) -> Outcome:
        """Go on until the end, and leave no process behind."""
        try:
            while self.state is not State.ENDED:
                self._turn()
        finally:
            self.close()
        assert self.outcome is not None
        return self.outcome

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def turn_until_idle(self) -> None:
        """Go on until everything that came in is handled. For those who drive the loop themselves."""
        machine = self._machine
        try:  # once for each event: `_closing_on_error` would take a microsecond of it
            while machine.state is not State.ENDED and not machine.delivery.is_all_handled:
                self._turn()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill what is left and free everything but `wakeup_fd`. Does nothing the second time."""
        machine = self._machine
        machine.fail()
        if machine.keeper is not None:
            machine.keeper.close()
            machine.keeper = None
        if self._control is not None:
            self._control.close()
            self._control = None
        machine.workers.close()
        machine.succession.current = None
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        if machine.store is not None:
            machine.store.close()
            machine.store = None
        self._poller.close()
        self._memory.close()

    def close_waker(self) -> None:
        """Free the rest, after `close` and when no signal can be on its way to `wakeup_fd`."""
        self._waker.close()

    def _turn(self) -> None:
        self._waker.turn(self._machine.timeout)
        self._machine.run_timers()
        self._machine.advance()

    def _open_store(self, path: Path) -> None:
        """Open the operator's store, and go on counting where the last host stopped."""
        config, machine = self.config, self._machine
        store = machine.store = Store(str(path), durability=config.durability)
        fence = store.stats()["fence"]
        store.fence(fence + 1)  # a worker of a host before us has no say any more
        machine.delivery.open(store)
        incarnation = max(fence, step.read(store).incarnation)
        machine.workers.open_store(path, config.durability, incarnation)
        for event in machine.letters.open(store):
            self.input.put(event)
        machine.keeper = Keeper(path, config.durability, config.snapshot_period_s)
        try:
            self._control = Control(control.path_beside(path), self._poller, machine.requests.take)
        except OSError as error:
            log.warning("the command line cannot talk to this host: %s", error)

    def _make_zygote(self) -> Zygote:
        assert self._relay is not None
        return self.config.make_zygote(self._relay)
