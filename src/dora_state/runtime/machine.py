"""The state machine: one loop that starts workers, hands them events, and goes on after one has died.

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

What an event's commit and a death mean for the event is in delivery.py, the restart decision in
verdict.py, who follows whom in succession.py, and the time that a stop has in stopping.py. What is left
here is one idea and stays in one file: every transition is made here, and nowhere else.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from typing import Any

from dora_state._core import Store
from dora_state.errors import StateError
from dora_state.runtime import channel, killpoint, outputs, policy, step
from dora_state.runtime.config import SupervisorConfig
from dora_state.runtime.dead_letter import LetterBox
from dora_state.runtime.deadline import Deadline, earlier
from dora_state.runtime.delivery import Delivery
from dora_state.runtime.handle import Worker, import_error
from dora_state.runtime.inputs import InputBuffer
from dora_state.runtime.offer import Offer
from dora_state.runtime.outputs import Output
from dora_state.runtime.policy import Action, Ending
from dora_state.runtime.poller import Poller
from dora_state.runtime.requests import Requests
from dora_state.runtime.restart import Restarts
from dora_state.runtime.slots import HostMemory
from dora_state.runtime.snapshot import Keeper
from dora_state.runtime.status import Account
from dora_state.runtime.stopping import Outcome, Stopping
from dora_state.runtime.succession import Succession
from dora_state.runtime.verdict import REASON_PATIENCE_S, Verdict, log_death
from dora_state.runtime.workers import Workers
from dora_state.runtime.zygote import Zygote

log = logging.getLogger("dora_state.supervisor")

_TOLD_CONFLICTS = frozenset(10**n for n in range(1, 10))  # of one event


class State(enum.Enum):
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    ENDED = "ended"


class Machine:
    """Moves on when the supervisor's loop calls: after a wait `run_timers` and `advance`, and in it
    what the poller calls in `workers`.
    """

    def __init__(
        self,
        config: SupervisorConfig,
        input: InputBuffer,
        poller: Poller,
        memory: HostMemory,
        make_zygote: Callable[[], Zygote],
        *,
        send: Callable[[Output], None],
        publish: Callable[[dict[str, Any]], None],
        can_send: Callable[[], bool],
    ) -> None:
        self.state = State.STARTING
        self.outcome: Outcome | None = None
        self.store: Store | None = None
        self.keeper: Keeper | None = None
        self._config = config
        self._input = input
        self._publish = publish
        self._can_send = can_send
        self._start_at = 0.0

        self.account = Account()
        self.stopping = Stopping(input, config.shutdown_grace_s)
        self.workers = Workers(
            make_zygote,
            config.operator,
            poller,
            memory,
            has_spare=config.standby != "off",
            adopts=config.adopts,
            on_message=self._on_message,
            on_end=self._on_end,
            on_death=self._on_death,
            on_gone=self._on_gone,
            on_reaped=lambda dead: self._restarts.on_reaped(dead),
            on_spare_end=lambda: self.succession.disarm(),
        )
        self.letters = LetterBox()
        self.requests = Requests(
            config.operator,
            self.letters,
            put=input.put,
            reload=self._reload,
            publish=self.publish,
        )
        self.hang = Deadline(config.node_id, config.policy, self.workers)
        self.delivery = Delivery(input, send, self.account, config.immediate)
        self._offer = Offer()
        self.verdict = Verdict(
            *(config.node_id, config.policy, self.workers),
            *(self.delivery, self._offer, self.letters),
        )
        self.succession = Succession(
            config.operator,
            input,
            self.workers,
            self.delivery,
            self._offer,
            self.verdict,
            self.hang,
        )
        self._restarts = Restarts(config.node_id, self.account, self.publish)

    def status(self) -> dict[str, Any]:
        """What others may see, as plain data."""
        current = self.succession.current
        return {
            **self.account.as_dict(),
            "state": self.state.value,
            "why": self.stopping.why,
            "worker_pid": current.pid if current is not None else 0,
            "incarnation": current.incarnation if current is not None else 0,
            "dropped": dict(self._input.dropped),
            "dead_letters": self.letters.counts(),
            "hangs": self.hang.passed,
        }

    def publish(self) -> None:
        self._publish(self.status())

    @property
    def failed_starts(self) -> int:
        """In a row."""
        return self.verdict.history.streak

    # What the loop calls

    def timeout(self) -> float | None:
        due = earlier(self.hang.due, self.workers.births.due)
        due = earlier(due, self.stopping.due)
        if self.state is State.WAITING or self.state is State.DEGRADED:
            due = earlier(due, self._start_at)
        if self._wants_spare():
            due = earlier(due, self.workers.spares.not_before)
        return None if due is None else max(0.0, due - time.monotonic())

    def run_timers(self) -> None:
        now = time.monotonic()
        if self.stopping.check(now) and self.state is not State.ENDED:
            self._cut_off()
        if self.workers.births.due is not None:
            self.workers.births.check(now)
        if self.hang.check(now):
            self.publish()
        if (self.state is State.WAITING or self.state is State.DEGRADED) and now >= self._start_at:
            self.start_worker()  # (5)

    def advance(self) -> None:
        """Do what can be done now: stop, hand out the next event, make a spare."""
        if self.state is State.STOPPING or self.state is State.ENDED:
            return
        if self.stopping.is_wanted:
            self.stopping.begin_grace()
            if self._is_time_to_stop():
                handled = self.delivery.is_all_handled
                clean = self.stopping.is_clean(is_all_handled=handled)
                self._begin_stop(clean=clean, why="told to stop")
                return
        if self.state is State.RUNNING:
            assert self.store is not None
            self.succession.prepare(self.store)
        else:
            self.succession.disarm()
        self._dispatch()
        if self._wants_spare() and time.monotonic() >= self.workers.spares.not_before:
            self.workers.make_spare()

    def _wants_spare(self) -> bool:
        """A spare is made when the worker is idle or has proven itself: not while it restores."""
        current = self.succession.current
        return (
            self.state is State.RUNNING
            and current is not None
            and (self.delivery.event is None or current.commits > 0)
            and self.workers.wants_spare()
        )

    # Events and outputs

    def _dispatch(self) -> None:
        """Hand out the next event. A worker that is still starting gets it too, and finds it when
        it is ready.
        """
        current = self.succession.current
        if current is None or current.is_ending or current.asked_to_stop:
            return
        if not current.was_started:
            return
        if self.delivery.event is not None or not self._can_send():
            return
        event = self.delivery.next()
        if event is None:
            return
        killpoint.reach("hand-out", event.number)
        if not self.succession.give(event):
            return
        if current is not self.succession.current:
            return  # it died meanwhile: its successor was given what was next, in a call of this within
        if current.is_ready:
            self.hang.begin(current, "event")
        self.delivery.hand_out(event, current)
        self.workers.watch_room(current)

    def _on_message(self, each: Worker, message: channel.Message) -> None:
        if each is not self.succession.current:
            return  # it was replaced, and has no say
        if message.kind == channel.DONE:
            number, status, _ = message.document
            self._on_done(each, number, status)
            self._restarts.finish(each)
        elif message.kind == channel.OUTPUT:
            self.hang.extend()
            self.delivery.take_output(outputs.from_message(message, each.channel.types))
        elif message.kind == channel.READY:
            self._on_ready(each, message.document)
        elif message.kind == channel.RESTORING:
            each.is_restoring = True
            self.hang.begin(each, "restore")
        elif message.kind == channel.RELOADING:
            self.hang.begin(each, "reload")
        elif message.kind == channel.RELOADED:
            self._expect_event(each)
            self.requests.reloaded(message.document)
        elif message.kind == channel.RECOVERED:
            assert self.store is not None
            self._conclude(each, self.delivery.decide(self.store, each))

    def _on_ready(self, each: Worker, document: dict[str, Any]) -> None:
        each.is_ready = True
        each.beside = None
        each.ready = document
        self.workers.births.is_proven()
        self.account.take_ready(document)
        self.verdict.after_restore()
        if undone := self._offer.accepted():
            self.account.last_rollback = undone
            log.error(
                "the state is that after event %(to)d: the effects of %(undone)d later events are undone",
                undone,
            )
        if self.keeper is not None:
            self.keeper.begin()
        self._expect_event(each)
        if self.state is State.STARTING:
            self.state = State.RUNNING  # (1)
            self.publish()
        if self.delivery.event is None:
            self._restarts.finish(each)

    def _expect_event(self, each: Worker) -> None:
        """It is through with something else; an event that it was given meanwhile begins now."""
        self.hang.end()
        if self.delivery.event is not None:
            self.hang.begin(each, "event")

    def _conclude(self, by: Worker, commit: step.Step | None) -> None:
        """What was read from the record, after a death or a recovery."""
        if commit is not None:
            self._on_done(by, commit.number, commit.status)

    def _on_done(self, by: Worker, number: int, status: int) -> None:
        """The event's commit is there: its outputs leave, and it is over."""
        event = self.delivery.close(number)
        if event is None:
            return
        by.commits += 1
        self.verdict.after_commit()
        self.hang.end()
        if event.letter:
            self.letters.tidy()
            self.publish()
        self.delivery.forward(event)
        if status != step.CONTINUE:
            self._on_status(by, status)
        if event.type == "STOP":
            handled = self.delivery.is_all_handled
            clean = self.stopping.is_clean_after_stop(is_all_handled=handled)
            self._begin_stop(clean=clean, why="dora said stop")

    def _on_status(self, by: Worker, status: int) -> None:
        if status == step.STOP_ALL:
            log.warning("STOP_ALL acts as STOP: dora has no call that stops a dataflow")
        by.asked_to_stop = True
        if self._config.policy.restart_policy == "always":
            self.workers.send(by, channel.STOP)  # its end then counts as asked for
        else:
            self._begin_stop(clean=True, why="the operator asked to stop")

    # Starts and deaths

    def start_worker(self, after: Worker | None = None) -> None:
        assert self.store is not None
        self.state = State.STARTING
        if self.succession.start(self.store, after):
            self._dispatch()

    def _on_end(self, dead: Worker) -> None:
        if dead is self.succession.current and self.store is not None:
            self.delivery.fence_off(self.store, dead)

    def _on_gone(self, dead: Worker) -> None:
        if self.succession.on_gone(dead):
            self._dispatch()

    def _on_death(self, dead: Worker) -> None:
        if not self.workers.ever_imported:
            raise import_error(self._config.operator, dead)
        if dead is not self.succession.current:
            return
        assert self.store is not None
        self.succession.on_death()
        if self.keeper is not None:
            self.keeper.end()
        if self.requests.awaits_reload:
            self.workers.await_reason(dead, REASON_PATIENCE_S)
            self.requests.died(dead.describe_end())
        self._conclude(dead, self.delivery.settle(self.store, dead))
        if not dead.holds_nothing:
            self.succession.await_gone(dead)
        if self.state is State.STOPPING:
            self._end()  # (8)
        if self.state is State.ENDED:
            return  # also when what it had committed last was the wish to stop
        if dead.conflict is not None:
            self._follow_conflict(dead)
        else:
            self._follow_crash(dead)

    def _follow_conflict(self, dead: Worker) -> None:
        """Nobody is charged for it, so somebody is told when it does not end."""
        self.account.conflicts += 1
        event = self.delivery.replay
        if event is not None:
            event.conflicts += 1
            if event.conflicts in _TOLD_CONFLICTS:
                log.warning(
                    "event %d has run into %d conflicts, and is tried on: %s",
                    *(event.number, event.conflicts, dead.conflict),
                )
        log.debug("the handler runs again, as the shared store has changed: %s", dead.conflict)
        self._offer.take_death(dead)
        self._follow(dead)  # (2)

    def _follow_crash(self, dead: Worker) -> None:
        assert self.store is not None
        ending = self.verdict.ending(self.store, dead)
        self._restarts.note_crash(dead, self.delivery.replay)
        self._offer.take_death(dead)
        decision = self._judge(dead, ending)
        self._restarts.begin(dead, self.delivery.replay)
        if self._is_over_after(ending, decision):
            pass  # (6)
        elif decision.action is Action.STOP:
            self.workers.await_reason(dead, REASON_PATIENCE_S)  # this is what is told at the end
            self.stopping.failed = not ending.asked
            self._begin_stop(clean=ending.asked, why=decision.why)  # (7)
        else:
            self.account.restarts += 1
            if decision.action is Action.RESTART and decision.delay == 0:
                self._follow(dead)  # (2)
            else:
                self._start_at = time.monotonic() + decision.delay
                degrades = decision.action is Action.DEGRADE
                self.state = State.DEGRADED if degrades else State.WAITING  # (4) (3)
                self.publish()
        log_death(self._config.node_id, dead, decision)

    def _follow(self, dead: Worker) -> None:
        """Start the next worker, unless the dead one's lifeline has done so."""
        if not dead.has_successor:
            self.start_worker(after=dead)
            return
        self.state = State.STARTING
        self.succession.take_on(dead)
        self._dispatch()

    def _judge(self, dead: Worker, ending: Ending) -> policy.Decision:
        assert self.store is not None
        if not dead.was_born:
            return policy.Decision(Action.RESTART)  # not charged; births.py has the delays
        if not dead.is_ready and not ending.restoring and dead.beside is not None:
            # Its __init__ ran beside what was left of its predecessor, and may have failed for that:
            # not charged, and the next one waits.
            self.succession.await_gone(dead.beside)
            dead.beside = None
            return policy.Decision(Action.RESTART)
        return self.verdict.pronounce(self.store, dead, ending)

    def _reload(self) -> bool:
        """For Requests. A worker that is to be started gets the new code anyway."""
        if self.state in (State.STOPPING, State.ENDED):
            raise StateError("the operator is about to end; start the dataflow again")
        current = self.succession.current
        if current is None:
            self._start_at = time.monotonic()
            return False
        if not current.was_started:
            raise StateError("the operator is being restarted just now; reload it again")
        self.workers.send(current, channel.RELOAD)
        return True

    # The end

    def _is_time_to_stop(self) -> bool:
        if self.state in (State.WAITING, State.DEGRADED):
            return True  # nobody is there to handle what has come in
        if self.delivery.event is not None:
            return False
        return self.stopping.is_due(is_all_handled=self.delivery.is_all_handled)

    def _is_over_after(self, ending: Ending, decision: policy.Decision) -> bool:
        """A wish to stop came while the worker lived, and there is nothing left to start another for."""
        if decision.action is Action.STOP or not self.stopping.is_wanted:
            return False
        if not self.delivery.is_all_handled:
            return False
        # An event that was given up was not handled: not a clean stop.
        clean = self.stopping.is_clean(is_all_handled=not decision.bury)
        self._begin_stop(clean=clean, why="told to stop")
        return True

    def _begin_stop(self, *, clean: bool, why: str) -> None:
        """(6) (7) From here on no event is handed out."""
        self.succession.disarm()
        if self.state in (State.STOPPING, State.ENDED):
            return
        self.state = State.STOPPING
        self.stopping.begin(clean=clean, why=why)
        self.workers.close_down()
        if self.succession.current is None:
            self._end()
        else:
            self.workers.send(self.succession.current, channel.STOP)

    def _cut_off(self) -> None:
        """The grace is over."""
        log.error(
            "the operator did not stop within %g s and is killed", self._config.shutdown_grace_s
        )
        if self.state is not State.STOPPING:
            self._begin_stop(clean=False, why="the operator did not stop in time")
        self.stopping.clean = False
        if self.succession.current is not None:
            self.workers.kill(self.succession.current)

    def _end(self) -> None:
        """(8)"""
        self._restarts.end()
        self.state = State.ENDED
        self.outcome = self.stopping.outcome()
        if self.delivery.waiting:
            log.warning("%d events were not handled", self.delivery.waiting)
        self.publish()

    def fail(self) -> None:
        """The host has run into an error. Does nothing after the end."""
        if self.state is not State.ENDED:
            self.state, self.stopping.why = State.ENDED, self.stopping.why or "the host failed"
            self.publish()
