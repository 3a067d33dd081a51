"""Who is the current worker, and how the next one takes its place.

A successor becomes current when its predecessor is dead; nobody older may commit from then on. Its
`__init__` runs when nothing is left of a predecessor that two must not hold at once. While the
policy is certain to restart at once, the lifeline may start the spare before the loop hears of the
death (handover.py).
"""

from __future__ import annotations

import time
from pathlib import Path

from dora_state._core import Store
from dora_state.runtime import channel
from dora_state.runtime.deadline import Deadline
from dora_state.runtime.delivery import Delivery
from dora_state.runtime.handle import Worker
from dora_state.runtime.handover import Handover
from dora_state.runtime.inputs import Event, InputBuffer
from dora_state.runtime.offer import Offer
from dora_state.runtime.verdict import Verdict
from dora_state.runtime.workers import Workers


class Succession:
    def __init__(
        self,
        operator: Path,
        input: InputBuffer,
        workers: Workers,
        delivery: Delivery,
        offer: Offer,
        verdict: Verdict,
        hang: Deadline,
    ) -> None:
        self.current: Worker | None = None
        self._handover = Handover(operator)
        self._awaited: set[Worker] = set()  # dead, not gone; the current worker's START waits
        self._input = input
        self._workers = workers
        self._delivery = delivery
        self._offer = offer
        self._verdict = verdict
        self._hang = hang

    # Starts

    def start(self, store: Store, after: Worker | None) -> bool:
        """Make the spare, or a new worker, the current one: nobody older may commit any more.

        True: it was told to start, and takes events.
        """
        self.current = self._workers.take()
        store.fence(self.current.incarnation)
        return self._send_start(None if after is None or after.is_gone else after)

    def _send_start(self, beside: Worker | None = None) -> bool:
        """Build the operator, unless what is left of an earlier one may still hold what it opens."""
        new = self.current
        if new is None or new.was_started or self._awaited:
            return False
        new.was_started = True
        new.started = time.monotonic()
        new.beside = beside
        self._hang.begin(new, "start")
        replays = self._delivery.replay is not None
        document = self._offer.document(self._input.dropped, replays=replays)
        self._workers.send(new, channel.START, document)
        return True

    def take_on(self, dead: Worker) -> None:
        """Its lifeline has started the spare, with the event if that is to be handled again."""
        assert dead.report is not None
        new = self._workers.spares.take()
        assert new is not None
        self.current = new
        new.was_started = True
        new.started = dead.report[3]
        new.beside = None if dead.is_gone else dead
        if dead.has_replay:
            self._delivery.was_handed_out(new)
        self._hang.begin(new, "start")

    # Ends

    def on_death(self) -> None:
        """The current worker is dead."""
        self.current = None
        self._handover.disarm()
        self._hang.end()

    def await_gone(self, dead: Worker) -> None:
        """The next START waits until the kernel has freed what this one held."""
        if not dead.is_gone:
            self._awaited.add(dead)

    def on_gone(self, dead: Worker) -> bool:
        """True: the current worker has waited for that, and was told to start."""
        self._awaited.discard(dead)
        return self._send_start()

    # The lifeline

    def prepare(self, store: Store) -> None:
        """Tell the lifeline what to do at a death, or to do nothing if it is not clear by now.

        To be called whenever something may have changed.
        """
        current, spare = self.current, self._workers.spares.warm
        if spare is None or current is None or not current.is_ready or current.asked_to_stop:
            self.disarm()
            return
        # What the decision depends on, to make it only when it may be another.
        terms = (
            *(current, spare, current.holds_nothing, current.commits > 0, self._verdict.history),
            *(self._delivery.attempts, self._input.dropped_count),
        )
        if terms == self._handover.terms:
            return
        self.disarm()
        if current is self.current and self._verdict.restarts_at_once(current):
            start = self._offer.document(self._input.dropped, replays=False, reason="exit")
            self._handover.arm(terms, current, spare, store, start, self._delivery.event)
            if self._input.dropped_count != terms[-1]:
                self._handover.withdraw()

    def give(self, event: Event) -> bool:
        """Before an event is handed out. False: the worker is dead."""
        if event.type == "STOP":
            self.disarm()
            return True
        if event.attempt - event.conflicts != 1:
            self.disarm()  # until it is clear what happens when this attempt fails too
            return True
        return self._handover.give(event)

    def disarm(self) -> None:
        """If a successor was started meanwhile, it is the current worker from here on."""
        dead = self._handover.disarm()
        if dead is not None:
            self._workers.end(dead)

    def withdraw(self) -> None:
        """From any thread: what START would tell is not true any more."""
        self._handover.withdraw()
