"""The event that is with the worker and the outputs that are held for it, and what counts of both
when the worker has died.

After any end of a worker: SIGKILL it (workers.py), `fence`, read the commit record. Only that reading
decides about the event that was with it: recorded means its held outputs leave, not recorded means
they are dropped and the event is handed out again. A lock-free read instead could miss a commit that
repair then completes, and the event would count twice.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from dora_state._core import Store
from dora_state.runtime import inputs, killpoint, shared_step, step
from dora_state.runtime.handle import Worker
from dora_state.runtime.inputs import Event, InputBuffer
from dora_state.runtime.outputs import Output
from dora_state.runtime.status import Account
from dora_state.runtime.step import Step

log = logging.getLogger("dora_state.supervisor")


class Delivery:
    """One event at a time, from its hand-out until it is over.

    Args:
        send: takes an Output whose event is committed.
        immediate: ids of outputs that need no event.
    """

    def __init__(
        self,
        input: InputBuffer,
        send: Callable[[Output], None],
        account: Account,
        immediate: frozenset[str],
    ) -> None:
        self._input = input
        self._send = send
        self._account = account
        self._immediate = immediate
        self._number = 0  # of the last event handed out for the first time
        self.event: Event | None = None  # with the worker
        self.replay: Event | None = None  # to be handed out again; comes before all others
        self._drawn: Event | None = None  # from the input, not handed out yet
        self._held: list[Output] = []

    def open(self, store: Store) -> None:
        """Go on counting where the last host stopped."""
        # What is prepared counts as handed out: it may turn out to have been committed.
        self._number = max(step.read(store).number, shared_step.pending_number(store))

    @property
    def waiting(self) -> int:
        return len(self._input) + (self.replay is not None) + (self._drawn is not None)

    @property
    def is_all_handled(self) -> bool:
        return self.event is None and self.waiting == 0

    @property
    def attempts(self) -> int:
        """At the event that the worker has, or would get next."""
        return self.event.attempt - self.event.conflicts if self.event is not None else 1

    # Handing out

    def next(self) -> Event | None:
        """The next event, with its number. It stays the next one until it is handed out."""
        if self.replay is not None:
            return self.replay
        if self._drawn is None:
            self._drawn = self._input.take()
            if self._drawn is not None:
                self._number += 1
                self._drawn.number = self._number
        return self._drawn

    def hand_out(self, event: Event, to: Worker) -> None:
        """`event` is the next one."""
        self.event = event
        if event is self.replay:
            self.replay = None
        else:
            self._drawn = None
        with contextlib.suppress(OSError):  # it is dying; its lifeline will tell
            event.send(to.channel)
        killpoint.reach("after-hand-out", event.number)

    def was_handed_out(self, to: Worker) -> None:
        """A lifeline has sent what was to be handed out again."""
        self.event, self.replay = self.replay, None
        assert self.event is not None
        self.event.lend_to(to.channel)

    # The end of it

    def take_output(self, output: Output) -> None:
        if self.event is not None and output.number == self.event.number:
            self._held.append(output)
            return
        # Of no event, or of one that is over: a thread with the handler's context was slower than its commit.
        if output.id not in self._immediate:
            self._account.unreplayed += 1
        self._send(output)

    def close(self, number: int) -> Event | None:
        """The event's commit is there. None: it was over before."""
        event = self.event
        if event is None or event.number != number:
            return None
        self.event = None
        return event

    def forward(self, event: Event) -> None:
        """The outputs of an event that was closed leave, and it is over."""
        held, self._held = self._held, []
        killpoint.reach("forward", event.number)
        for output in held:
            self._send(output)
        killpoint.reach("after-forward", event.number)
        event.over(inputs.DONE)

    # After a death

    def fence_off(self, store: Store, dead: Worker) -> None:
        """Before its last words are read: what it committed and what it said are both final."""
        number = self.event.number if self.event is not None else 0
        killpoint.reach("before-fence", number)
        store.fence(dead.incarnation + 1)
        killpoint.reach("after-fence", number)

    def settle(self, store: Store, dead: Worker) -> Step | None:
        """Decide about the event that a dead worker had. See `decide`."""
        if self.event is not None and dead.begun == self.event.number:
            self.event.attempt += 1
        return self.decide(store, dead)

    def decide(self, store: Store, dead: Worker) -> Step | None:
        """Read the record, behind the fence: the event's commit, else None. The only place that
        decides, but for the lifeline, which has done so ahead of it.

        An event whose step is prepared stays open until the next worker has finished or dropped that,
        and says RECOVERED; then this is to be called again.
        """
        record = step.read(store)
        event = self.event
        if event is None:
            return None
        # A successor that has the event may have committed it by now; then the dead had not.
        if record.number == event.number and not dead.has_replay:
            if record.outputs != len(self._held):
                log.error(
                    "event %d was committed with %d outputs, but %d were received",
                    *(event.number, record.outputs, len(self._held)),
                )
            return record
        if shared_step.pending_number(store) == event.number and not dead.has_replay:
            return None
        self._held.clear()
        self.event = None
        self.replay = event
        return None
