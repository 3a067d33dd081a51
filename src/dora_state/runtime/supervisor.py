"""The supervisor: one loop that starts workers, hands them events, and decides what counts after
one has died.

    state      what holds
    STARTING   a worker is building the operator
    RUNNING    the worker is ready; at most one event is with it
    WAITING    no worker; the restart delay runs
    DEGRADED   no worker; the policy is exhausted, a try is made now and then, outputs are silent
    STOPPING   the worker was told to stop, or killed
    ENDED      the operator is gone for good

    (1) STARTING -> RUNNING               the worker is ready
    (2) STARTING, RUNNING -> STARTING     the worker died; restart at once
    (3) STARTING, RUNNING -> WAITING      the worker died; restart after a delay
    (4) STARTING, RUNNING -> DEGRADED     the worker died; the policy is exhausted
    (5) WAITING, DEGRADED -> STARTING     the time has come
    (6) any but ENDED -> STOPPING         STOP handled, input at its end, the operator asked for it,
                                          told from outside, or the grace is over
    (7) STARTING, RUNNING -> STOPPING     the worker died; the policy says stop
    (8) STOPPING -> ENDED                 no worker is left

After any end of a worker: SIGKILL it, `fence`, read the commit record. Only
that reading decides about the event that was with it: recorded means its held outputs leave, not
recorded means they are dropped and the event is handed out again. A lock-free read instead could
miss a commit that repair then completes, and the event would count twice.

The loop never calls dora and never waits for anything but its own descriptors. `submit`,
`close_input`, `request_stop` and `wake` may be called from any thread.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dora_state._core import Store
from dora_state.errors import OperatorError, StateError
from dora_state.runtime import (
    channel,
    control,
    inputs,
    killpoint,
    outputs,
    policy,
    shared_step,
    slots,
    snapshot,
    step,
)
from dora_state.runtime.control import Control
from dora_state.runtime.dead_letter import LetterBox
from dora_state.runtime.deadline import Deadline
from dora_state.runtime.handover import Handover
from dora_state.runtime.inputs import Event, InputBuffer
from dora_state.runtime.offer import Offer
from dora_state.runtime.outputs import Output
from dora_state.runtime.pipes import Relay
from dora_state.runtime.policy import Action, Ending, History, RestartPolicy
from dora_state.runtime.poller import READ, Poller
from dora_state.runtime.requests import Requests
from dora_state.runtime.restart import Restart
from dora_state.runtime.status import Account
from dora_state.runtime.worker import WorkerConfig
from dora_state.runtime.workers import Worker, Workers, import_error
from dora_state.runtime.zygote import Zygote

log = logging.getLogger("dora_state.supervisor")

_REASON_PATIENCE_S = 0.2
STANDBY = ("fork", "process", "off")
_BACKLOG_PART = 0.8  # of the grace, for events that came before the stop
_STARTS_AWAITED = (
    5  # failed starts; policies that allow more, or any number, go on trying beside run()
)


@dataclass(frozen=True)
class SupervisorConfig:
    """What to host and how.

    Args:
        operator: the operator's Python file.
        class_name: the operator's class in it.
        node_id: its name in logs.
        durability: of its saves.
        standby: "fork", "process" or "off"; see zygote.py.
        shutdown_grace_s: from the wish to stop to SIGKILL.
        immediate: ids of outputs that do not wait for the commit.
        queue_sizes: per input, as in a dataflow's file.
        queue_size: of all other inputs.
        preload: modules that the zygote imports once for all workers.
        environment: of zygote and workers; None: ours.
        descriptor: becomes self.dataflow_descriptor.
        arrow_outputs: outputs are bytes or Arrow arrays, as dora wants them.
        outputs: ids of the node's outputs; what else is sent is ignored, with a warning. None: any.
        snapshot_period_s: how long an incarnation runs before its state is kept as a snapshot, and how
            long until the next one.
        adopts: this process starts no others, and ends what falls to it when the zygote is killed.
    """

    operator: Path
    class_name: str = "Operator"
    node_id: str = "operator"
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    durability: str = "group"
    standby: str = "fork"
    shutdown_grace_s: float = 5.0
    immediate: frozenset[str] = frozenset()
    queue_sizes: Mapping[str, int] = field(default_factory=dict)
    queue_size: int = inputs.QUEUE_SIZE
    preload: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    descriptor: Any = None
    arrow_outputs: bool = False
    outputs: frozenset[str] | None = None
    snapshot_period_s: float = snapshot.PERIOD_S
    adopts: bool = False

    def __post_init__(self) -> None:
        if self.standby not in STANDBY:
            raise ValueError(f"standby is {self.standby!r}; use one of {', '.join(STANDBY)}")
        policy.check_seconds("shutdown_grace_s", self.shutdown_grace_s)


class State(enum.Enum):
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass(frozen=True)
class Outcome:
    """How it ended. `clean`: told to stop, and everything that had come in was handled."""

    clean: bool
    why: str
    failed: bool = False  # a crash after which the policy allowed no restart


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
        self.state = State.STARTING
        self.outcome: Outcome | None = None
        self.account = Account()
        self.input = InputBuffer(config.queue_sizes, config.queue_size)

        self._send = send
        self._publish = publish or (lambda status: None)
        self._can_send = can_send or (lambda: True)
        self._store: Store | None = None
        self._memory = slots.HostMemory()
        self._relay: Relay | None = None
        self._current: Worker | None = None
        self._handover = Handover(config.operator)
        self._awaited: set[Worker] = set()  # dead, not gone; the current worker's START waits
        self._number = 0  # of the last event handed out for the first time
        self._in_flight: Event | None = None
        self._replay: Event | None = None
        self._held: list[Output] = []
        self._history = History()
        self._start_at = 0.0
        self._restart: Restart | None = None

        self._offer = Offer()
        self._letters = LetterBox()
        self._keeper: snapshot.Keeper | None = None
        self._control: Control | None = None
        self._requests = Requests(
            config.operator,
            self._letters,
            put=self.input.put,
            reload=self._reload,
            publish=lambda: self._publish(self.status()),
        )

        self._input_closed = False
        self._stop_requested = False
        self._stop_is_clean = True
        self._gave_up = False  # some of what came before the stop
        self._deadline: float | None = None  # when the grace is over
        self._last_call: float | None = None  # when no more of the backlog is handled
        self._clean, self._why, self._failed = False, "", False

        self._poller = Poller()
        self._woken = False
        self._sleeps = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._poller.register(self._wake_reader, READ, self._on_wake)
        self.workers = Workers(
            self._make_zygote,
            config.operator,
            self._poller,
            self._memory,
            has_spare=config.standby != "off",
            adopts=config.adopts,
            on_message=self._on_message,
            on_end=self._fence_off,
            on_death=self._on_death,
            on_gone=self._on_gone,
            on_reaped=self._on_reaped,
        )
        self._hang = Deadline(config.policy, self.workers)

    @property
    def restarts(self) -> int:
        return self.account.restarts

    @property
    def restart_ms(self) -> Sequence[float]:
        return self.account.restart_ms

    def __del__(self) -> None:
        # Not in close(): another thread may be in wake(), and would then write to whatever gets the
        # number next.
        self._wake_reader.close()
        self._wake_writer.close()

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
            self._handover.withdraw()  # START tells of what was dropped
        self.wake()

    def close_input(self) -> None:
        """No more events will come: handle those that are here, then stop."""
        self._input_closed = True
        self.wake()

    def request_stop(self, *, clean: bool = True) -> None:
        """Stop after the event that is being handled. Safe in a signal handler.

        Not `clean`: whoever asks could not know what this does to the run, so state is kept.
        """
        self._stop_is_clean = clean
        self._stop_requested = True
        self.wake()

    def wake(self) -> None:
        self._woken = True
        if not self._sleeps:
            return  # it looks before it sleeps
        with contextlib.suppress(BlockingIOError):  # it is awake already
            self._wake_writer.send(b"\0")

    @property
    def wakeup_fd(self) -> int:
        """For signal.set_wakeup_fd. The kernel may give a signal to any thread, and Python's handler
        runs in the main thread only when that wakes up by itself.
        """
        return self._wake_writer.fileno()

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
            self.workers.make_spare()
            while not self.workers.ever_imported and self.state is not State.ENDED:
                self._turn()

    def start(self, store: Path) -> None:
        """Bring up the first incarnation; returns when it is ready, or degraded, or ended, or has failed
        so often that the rest of the dataflow should not wait for it.

        Args:
            store: the directory of the operator's private store; nobody else may write to it.
        """
        with self._closing_on_error():
            if self.state is not State.ENDED:
                self._open_store(store)
                self._start_worker()
            while self.state in (State.STARTING, State.WAITING, State.STOPPING):
                if self._history.streak > _STARTS_AWAITED:
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
        with self._closing_on_error():
            while self.state is not State.ENDED and not self._is_all_handled():
                self._turn()

    def close(self) -> None:
        """Kill what is left and free everything. Does nothing the second time."""
        if self.state is not State.ENDED:  # somebody has run into an error
            self.state, self._why = State.ENDED, self._why or "the host failed"
            self._publish(self.status())
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        if self._control is not None:
            self._control.close()
            self._control = None
        self.workers.close()
        self._current = None
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        if self._store is not None:
            self._store.close()
            self._store = None
        self._poller.close()
        self._memory.close()

    def status(self) -> dict[str, Any]:
        """What others may see, as plain data."""
        current = self._current
        return {
            **self.account.as_dict(),
            "state": self.state.value,
            "why": self._why,
            "worker_pid": current.pid if current is not None else 0,
            "incarnation": current.incarnation if current is not None else 0,
            "dropped": dict(self.input.dropped),
            "dead_letters": self._letters.counts(),
            "hangs": self._hang.passed,
        }

    # The loop

    def _turn(self) -> None:
        self._sleeps = not self._woken
        if self._woken:  # after `_sleeps` is set: who wakes us from now on writes to the socket
            self._sleeps = self._woken = False
        self._poller.turn(self._timeout() if self._sleeps else 0)
        self._sleeps = False
        self._run_timers()
        self._advance()

    def _timeout(self) -> float | None:
        times = []
        if self.state in (State.WAITING, State.DEGRADED):
            times.append(self._start_at)
        dues = (self._last_call, self._deadline, self._hang.due, self.workers.answer_due)
        times += [due for due in dues if due is not None]
        if self._wants_spare():
            times.append(self.workers.spare_not_before)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _run_timers(self) -> None:
        now = time.monotonic()
        if self._last_call is not None and now >= self._last_call:
            self._last_call = None
            self._drop_backlog()
        if self._deadline is not None and now >= self._deadline and self.state is not State.ENDED:
            self._deadline = None
            self._cut_off()
        self.workers.check_zygote(now)
        if self._hang.check(now):
            self._publish(self.status())
        if self.state in (State.WAITING, State.DEGRADED) and now >= self._start_at:
            self._start_worker()  # (5)

    def _advance(self) -> None:
        """Do what can be done now: stop, hand out the next event, make a spare."""
        if self.state in (State.STOPPING, State.ENDED):
            return
        if self._wants_to_stop():
            if self._deadline is None:
                self._begin_grace()
            if self._is_time_to_stop():
                clean = self._is_all_handled() and self._stop_is_clean and not self._gave_up
                self._begin_stop(clean=clean, why="told to stop")
                return
        self._prepare_handover()
        self._dispatch()
        if self._wants_spare() and time.monotonic() >= self.workers.spare_not_before:
            self.workers.make_spare()

    def _wants_spare(self) -> bool:
        """A spare is made when the worker is idle or has proven itself: not while it restores."""
        current = self._current
        return (
            self.state is State.RUNNING
            and current is not None
            and (self._in_flight is None or current.commits > 0)
            and self.workers.wants_spare()
        )

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(4096)

    # Events and outputs

    def _dispatch(self) -> None:
        """Hand out the next event. A worker that is still starting gets it too, and finds it when
        it is ready.
        """
        current = self._current
        if current is None or current.is_ending or current.asked_to_stop:
            return
        if not current.was_started:
            return
        if self._in_flight is not None or not self._can_send():
            return
        event = self._replay or self.input.take()
        if event is None:
            return
        self._replay = None
        if event.number == 0:
            self._number += 1
            event.number = self._number
        killpoint.reach("hand-out", event.number)
        if not self._hand_out(event):
            self._replay = event
            return
        self._in_flight = event
        if current.is_ready:
            self._hang.begin(current, "event")
        with contextlib.suppress(OSError):  # it is dying; its lifeline will tell
            event.send(current.channel)
        killpoint.reach("after-hand-out", event.number)
        self.workers.watch_room(current)

    def _on_message(self, each: Worker, message: channel.Message) -> None:
        if each is not self._current:
            return  # it was replaced, and has no say
        if message.kind == channel.OUTPUT:
            self._hang.extend()
            self._on_output(outputs.from_message(message, each.channel.types))
        elif message.kind == channel.DONE:
            number, status, _ = message.document
            self._on_done(each, number, status)
            self._finish_restart(each)
        elif message.kind == channel.READY:
            self._on_ready(each, message.document)
        elif message.kind == channel.RESTORING:
            each.is_restoring = True
            self._hang.begin(each, "restore")
        elif message.kind == channel.RELOADED:
            self._requests.reloaded(message.document)
        elif message.kind == channel.RECOVERED:
            self._decide(each)

    def _on_ready(self, each: Worker, document: dict[str, Any]) -> None:
        each.is_ready = True
        each.beside = None
        each.ready = document
        self.account.take_ready(document)
        self._history = policy.after_restore(self._history)
        if undone := self._offer.accepted():
            self.account.last_rollback = undone
            log.error(
                "the state is that after event %(to)d: the effects of %(undone)d later events are undone",
                undone,
            )
        if self._keeper is not None:
            self._keeper.begin()
        if self._in_flight is not None:
            self._hang.begin(each, "event")
        else:
            self._hang.end()
        if self.state is State.STARTING:
            self.state = State.RUNNING  # (1)
            self._publish(self.status())
        if self._in_flight is None:
            self._finish_restart(each)

    def _on_output(self, output: Output) -> None:
        if output.number == 0:
            if output.id not in self.config.immediate:
                self.account.unreplayed += 1
            self._send(output)
        elif self._in_flight is not None and output.number == self._in_flight.number:
            self._held.append(output)

    def _on_done(self, by: Worker, number: int, status: int) -> None:
        """The event's commit is there: its outputs leave, and it is over."""
        event = self._in_flight
        if event is None or event.number != number:
            return
        by.commits += 1
        self._history = History()
        self._in_flight = None
        self._hang.end()
        if event.letter:
            self._letters.tidy()
            self._publish(self.status())
        held, self._held = self._held, []
        killpoint.reach("forward", number)
        for output in held:
            self._send(output)
        killpoint.reach("after-forward", number)
        event.over(inputs.DONE)
        if status != step.CONTINUE:
            self._on_status(by, status)
        if event.type == "STOP":
            clean = self._is_all_handled() and not self._gave_up
            self._begin_stop(clean=clean, why="dora said stop")

    def _on_status(self, by: Worker, status: int) -> None:
        if status == step.STOP_ALL:
            log.warning("STOP_ALL acts as STOP: dora has no call that stops a dataflow")
        by.asked_to_stop = True
        if self.config.policy.restart_policy == "always":
            self.workers.send(by, channel.STOP)  # its end then counts as asked for
        else:
            self._begin_stop(clean=True, why="the operator asked to stop")

    # Starts and deaths

    def _start_worker(self, after: Worker | None = None) -> None:
        """Make the spare, or a new worker, the current one: nobody older may commit any more."""
        assert self._store is not None
        new = self.workers.take()
        self._store.fence(new.incarnation)
        self._current = new
        self.state = State.STARTING
        self._send_start(None if after is None or after.is_gone else after)

    def _send_start(self, beside: Worker | None = None) -> None:
        """Build the operator, unless what is left of an earlier one may still hold what it opens."""
        new = self._current
        if new is None or new.was_started or self._awaited:
            return
        new.was_started = True
        new.started = time.monotonic()
        new.beside = beside
        self._hang.begin(new, "start")
        document = self._offer.document(self.input.dropped, replays=self._replay is not None)
        self.workers.send(new, channel.START, document)
        self._dispatch()

    def _take_on(self, dead: Worker) -> None:
        """Its lifeline has started the spare, with the event if that is to be handled again."""
        assert dead.report is not None
        new = self._current = self.workers.take_started()
        new.was_started = True
        new.started = dead.report[3]
        new.beside = None if dead.is_gone else dead
        self.state = State.STARTING
        if dead.has_replay:
            self._in_flight, self._replay = self._replay, None
            assert self._in_flight is not None
            self._in_flight.lend_to(new.channel)
        self._hang.begin(new, "start")
        self._dispatch()

    def _prepare_handover(self) -> None:
        """Tell the lifeline what to do at a death, or to do nothing if it is not clear by now.

        To be called whenever something may have changed.
        """
        current, spare = self._current, self.workers.warm_spare
        if (
            self.state is not State.RUNNING
            or spare is None
            or current is None
            or not current.is_ready
            or current.asked_to_stop
        ):
            self._disarm()
            return
        # What the decision depends on, to make it only when it may be another.
        terms = (
            *(current, spare, current.holds_nothing, current.commits > 0, self._history),
            *(self._attempts(), self.input.dropped_count),
        )
        if terms == self._handover.terms:
            return
        self._disarm()
        if current is self._current and self._restarts_at_once(current):
            assert self._store is not None
            start = self._offer.document(self.input.dropped, replays=False, reason="exit")
            self._handover.arm(terms, current, spare, self._store, start, self._in_flight)
            if self.input.dropped_count != terms[-1]:
                self._handover.withdraw()

    def _restarts_at_once(self, current: Worker) -> bool:
        """Whether the policy is certain to say so, were it to die now."""
        ending = Ending(progressed=current.commits > 0, attempts=self._attempts())
        decision, _ = policy.decide(self.config.policy, self._history, ending, now=time.monotonic())
        return decision.action is Action.RESTART and decision.delay == 0 and not decision.bury

    def _attempts(self) -> int:
        """At the event that the worker has, or would get next."""
        event = self._in_flight
        return event.attempt - event.conflicts if event is not None else 1

    def _hand_out(self, event: Event) -> bool:
        """Before an event is sent. False: the worker is dead."""
        if event.type == "STOP":
            self._disarm()
            return True
        if event.attempt - event.conflicts != 1:
            self._disarm()  # until it is clear what happens when this attempt fails too
            return True
        return self._handover.give(event)

    def _disarm(self) -> None:
        """If a successor was started meanwhile, it is the current worker from here on."""
        dead = self._handover.disarm()
        if dead is not None:
            self.workers.end(dead)

    def _fence_off(self, dead: Worker) -> None:
        """Before its last words are read: what it committed and what it said are both final."""
        if dead is self._current and self._store is not None:
            number = self._in_flight.number if self._in_flight is not None else 0
            killpoint.reach("before-fence", number)
            self._store.fence(dead.incarnation + 1)
            killpoint.reach("after-fence", number)

    def _on_gone(self, dead: Worker) -> None:
        self._awaited.discard(dead)
        self._send_start()

    def _on_death(self, dead: Worker) -> None:
        if not self.workers.ever_imported:
            raise import_error(self.config.operator, dead)
        if dead is not self._current:
            return
        self._current = None
        self._handover.disarm()
        self._hang.end()
        if self._keeper is not None:
            self._keeper.end()
        self._requests.restarted()
        self._settle(dead)
        if not dead.holds_nothing:
            self._awaited.add(dead)
        if self.state is State.STOPPING:
            self._end()  # (8)
        if self.state is State.ENDED:
            return  # also when what it had committed last was the wish to stop
        if dead.conflict is not None:
            self.account.conflicts += 1
            if self._replay is not None:
                self._replay.conflicts += 1
            log.debug("the handler runs again, as the shared store has changed: %s", dead.conflict)
            self._offer.take_death(dead)
            self._follow(dead)  # (2), and nobody is charged for it
            return
        ending = self._ending(dead)
        self._note_crash(dead)
        self._offer.take_death(dead)
        decision = self._judge(dead, ending)
        self._begin_restart(dead)
        if self._is_over_after(ending, decision):
            pass  # (6)
        elif decision.action is Action.STOP:
            self._failed = not ending.asked
            self._begin_stop(clean=ending.asked, why=decision.why)  # (7)
        else:
            self.account.restarts += 1
            if decision.action is Action.RESTART and decision.delay == 0:
                self._follow(dead)  # (2)
            else:
                self._start_at = time.monotonic() + decision.delay
                degrades = decision.action is Action.DEGRADE
                self.state = State.DEGRADED if degrades else State.WAITING  # (4) (3)
                self._publish(self.status())
        self._log_death(dead, decision)

    def _follow(self, dead: Worker) -> None:
        """Start the next worker, unless the dead one's lifeline has done so."""
        if dead.has_successor:
            self._take_on(dead)
        else:
            self._start_worker(after=dead)

    def _judge(self, dead: Worker, ending: Ending) -> policy.Decision:
        if not dead.is_ready and not ending.restoring and dead.beside is not None:
            # Its __init__ ran beside what was left of its predecessor, and may have failed for that:
            # not charged, and the next one waits.
            if not dead.beside.is_gone:
                self._awaited.add(dead.beside)
            dead.beside = None
            return policy.Decision(Action.RESTART)
        decision = self._decide_restart(dead, ending)
        # It was restarted because this was certain to be the decision.
        return policy.Decision(Action.RESTART) if dead.has_successor else decision

    def _settle(self, dead: Worker) -> None:
        """Decide about the event that a dead worker had. The only place that does."""
        assert self._store is not None
        event = self._in_flight
        if event is not None and dead.begun == event.number:
            event.attempt += 1
        self._decide(dead)

    def _decide(self, dead: Worker) -> None:
        """Read the record, behind the fence of _fence_off. An event whose step is prepared stays
        open until the next worker has finished or dropped that, and says RECOVERED.
        """
        assert self._store is not None
        record = step.read(self._store)
        event = self._in_flight
        if event is None:
            return
        # A successor that has the event may have committed it by now; then the dead had not.
        if record.number == event.number and not dead.has_replay:
            if record.outputs != len(self._held):
                log.error(
                    "event %d was committed with %d outputs, but %d were received",
                    *(event.number, record.outputs, len(self._held)),
                )
            self._on_done(dead, event.number, record.status)
            return
        if shared_step.pending_number(self._store) == event.number and not dead.has_replay:
            return
        self._held.clear()
        self._in_flight = None
        self._replay = event

    def _ending(self, dead: Worker) -> Ending:
        assert self._store is not None
        failure = dead.failure
        restoring = failure["phase"] == "restore_state" if failure else dead.is_restoring
        event = self._replay if dead.is_ready else None
        return Ending(
            asked=dead.asked_to_stop,
            progressed=dead.commits > 0,
            attempts=event.attempt - 1 - event.conflicts if event is not None else 0,
            restoring=restoring and not dead.is_ready,
            has_fallback=restoring and self._offer.has_older(self._store),
        )

    def _decide_restart(self, dead: Worker, ending: Ending) -> policy.Decision:
        """Decide, and set aside what is to blame: the event, or the state."""
        assert dead.noticed_end is not None
        history, jitter = self._history, random.uniform(-1, 1)
        decision, self._history = policy.decide(
            self.config.policy, history, ending, now=dead.noticed_end, jitter=jitter
        )
        if decision.bury and not self._bury(dead, ending.attempts):
            decision, self._history = policy.decide(
                self.config.policy,
                history,
                replace(ending, attempts=0),
                now=dead.noticed_end,
                jitter=jitter,
            )
        if decision.roll_back:
            assert self._store is not None
            self._offer.roll_back(self._store)
        return decision

    def _bury(self, dead: Worker, attempts: int) -> bool:
        """The event goes to the dead letters. False: they cannot be written now."""
        event = self._replay
        assert event is not None
        self.workers.await_reason(dead, _REASON_PATIENCE_S)
        try:
            letter = self._letters.bury(event, attempts, dead)
        except (StateError, OSError) as error:
            log.error("event %d cannot be set aside: %s", event.number, error)
            return False
        self._replay = None
        event.over(inputs.DEAD)
        log.error(
            "event %d of input %s is set aside as a dead letter after %d attempts: %s",
            *(letter.number, letter.input_id, letter.attempts, letter.reason),
        )
        return True

    def _is_over_after(self, ending: Ending, decision: policy.Decision) -> bool:
        """A wish to stop came while the worker lived, and there is nothing left to start another for."""
        if (
            decision.action is Action.STOP
            or not self._wants_to_stop()
            or not self._is_all_handled()
        ):
            return False
        # An event that was given up was not handled: not a clean stop.
        clean = self._stop_is_clean and not self._gave_up and not decision.bury
        self._begin_stop(clean=clean, why="told to stop")
        return True

    def _log_death(self, dead: Worker, decision: policy.Decision) -> None:
        """Called after the successor was started, which takes less time than writing a line."""
        failure = dead.failure
        if failure is not None:
            log.error(
                "the operator failed in %s: %s\n%s",
                *(failure["phase"], failure["error"], failure["traceback"].rstrip()),
            )
        if decision.action is Action.DEGRADE:
            log.error(
                "the operator is degraded: %s; its outputs are silent, next try in %g s",
                *(decision.why, decision.delay),
            )
        elif decision.action is Action.STOP and not dead.asked_to_stop:
            log.error("the operator is not restarted: %s", decision.why)
        elif decision.delay:
            log.warning("the operator is restarted in %.2f s", decision.delay)

    # What is told about restarts

    def _begin_restart(self, dead: Worker) -> None:
        if self._restart is not None and self._restart.successor is not None:
            self._restart.log(self.config.node_id)  # nobody could tell its reason in time
        assert dead.noticed_end is not None
        self._restart = Restart(dead, dead.noticed_end)
        if self._replay is not None:
            self._restart.number = self._replay.number
            self._restart.attempt = self._replay.attempt

    def _note_crash(self, dead: Worker) -> None:
        event = self._replay
        if event is None or dead.begun != event.number:
            self.account.take_crash(dead, None, 0)
        else:
            self.account.replayed += 1
            self.account.take_crash(dead, event.number, event.attempt - 1)

    def _finish_restart(self, each: Worker) -> None:
        """The first event after a restart is handled, or it is ready and there is none."""
        restart = self._restart
        if restart is None or restart.successor is not None:
            return
        restart.finish(each, time.monotonic())
        self.account.restart_ms.append(restart.took_ms)
        self._publish(self.status())
        self._on_reaped(restart.dead)

    def _on_reaped(self, dead: Worker) -> None:
        """How a worker ended is known now, which may be before or after the restart is over."""
        if self.account.take_end(dead):
            self._publish(self.status())
        restart = self._restart
        if restart is not None and restart.dead is dead and restart.is_told_completely:
            restart.log(self.config.node_id)
            self._restart = None

    # The end

    def _wants_to_stop(self) -> bool:
        return self.input.stop_seen or self._input_closed or self._stop_requested

    def _begin_grace(self) -> None:
        now = time.monotonic()
        self._deadline = now + self.config.shutdown_grace_s
        self._last_call = now + self.config.shutdown_grace_s * _BACKLOG_PART

    def _drop_backlog(self) -> None:
        """What is left of the grace is for STOP and the teardown: they must not be cut off."""
        count = self.input.drop_inputs()
        if count:
            self._gave_up = True
            log.error(
                "%d events that came before the stop are dropped: their handling takes longer than "
                "the grace of %g s",
                *(count, self.config.shutdown_grace_s),
            )

    def _is_time_to_stop(self) -> bool:
        if self.state in (State.WAITING, State.DEGRADED):
            return True  # nobody is there to handle what has come in
        if self._in_flight is not None:
            return False
        return self._stop_requested or (self._input_closed and self._is_all_handled())

    def _is_all_handled(self) -> bool:
        return self._in_flight is None and self._replay is None and len(self.input) == 0

    def _begin_stop(self, *, clean: bool, why: str) -> None:
        """(6) (7) From here on no event is handed out."""
        self._disarm()
        if self.state in (State.STOPPING, State.ENDED):
            return
        self._clean, self._why = clean, why
        self.state = State.STOPPING
        self.workers.closing = True
        self.workers.kill_spare()
        if self._deadline is None:
            self._begin_grace()
        self._last_call = None
        if self._current is None:
            self._end()
        else:
            self.workers.send(self._current, channel.STOP)

    def _cut_off(self) -> None:
        """The grace is over."""
        log.error(
            "the operator did not stop within %g s and is killed", self.config.shutdown_grace_s
        )
        if self.state is not State.STOPPING:
            self._begin_stop(clean=False, why="the operator did not stop in time")
        self._clean = False
        if self._current is not None:
            self.workers.kill(self._current)

    def _end(self) -> None:
        """(8)"""
        if self._restart is not None and self._restart.successor is not None:
            self._restart.log(self.config.node_id)
            self._restart = None
        self.state = State.ENDED
        self.outcome = Outcome(self._clean, self._why, self._failed)
        waiting = len(self.input) + (self._replay is not None)
        if waiting:
            log.warning("%d events were not handled", waiting)
        self._publish(self.status())

    # Setting up

    def _open_store(self, path: Path) -> None:
        """Open the operator's store, and go on counting where the last host stopped."""
        self._store = Store(str(path), durability=self.config.durability)
        fence = self._store.stats()["fence"]
        self._store.fence(fence + 1)  # a worker of a host before us has no say any more
        record = step.read(self._store)
        # What is prepared counts as handed out: it may turn out to have been committed.
        self._number = max(record.number, shared_step.pending_number(self._store))
        incarnation = max(fence, record.incarnation)
        self.workers.open_store(path, self.config.durability, incarnation)
        for event in self._letters.open(self._store):
            self.input.put(event)
        self._keeper = snapshot.Keeper(path, self.config.durability, self.config.snapshot_period_s)
        try:
            self._control = Control(control.path_beside(path), self._poller, self._requests.take)
        except OSError as error:
            log.warning("the command line cannot talk to this host: %s", error)

    def _reload(self) -> bool:
        """For Requests. A worker that is to be started gets the new code anyway."""
        if self.state in (State.STOPPING, State.ENDED):
            raise StateError("the operator is about to end; start the dataflow again")
        if self._current is None:
            self._start_at = time.monotonic()
            return False
        if not self._current.was_started:
            raise StateError("the operator is being restarted just now; reload it again")
        self.workers.send(self._current, channel.RELOAD)
        return True

    def _make_zygote(self) -> Zygote:
        assert self._relay is not None
        config = self.config
        return Zygote(
            WorkerConfig(
                operator=str(config.operator.resolve()),
                class_name=config.class_name,
                immediate=tuple(sorted(config.immediate)),
                outputs=tuple(sorted(config.outputs)) if config.outputs is not None else None,
                node_id=config.node_id,
                descriptor=config.descriptor,
                arrow_outputs=config.arrow_outputs,
            ),
            preload=config.preload,
            forks=config.standby != "process",
            environment=config.environment,
            stdout=self._relay.stdout,
            stderr=self._relay.stderr,
        )
