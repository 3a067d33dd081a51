"""What passes in and out of a hosted operator: each event finds room first, and each output the one who waits for it.

An event is *unhandled* from the moment it is taken until the supervisor tells that it is over; what its commit has
released by then is its answer. If nobody waits for that, and for outputs that belong to no event, there is the stream.

Events are taken by any thread. They are answered by the one that runs the supervisor's loop.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from dora_state.errors import OperatorError
from dora_state.futures import Rooms, Stream, refuse, serve
from dora_state.runtime import inputs, outputs
from dora_state.runtime.config import SupervisorConfig
from dora_state.runtime.supervisor import Supervisor

BACKLOG_BYTES = 64 << 20  # outputs that nobody has taken yet, before the operator has to wait


class Output(NamedTuple):
    """What an operator has sent."""

    id: str
    value: Any
    metadata: dict[str, Any]


def input_event(input_id: str, value: Any, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """An INPUT as dora would give it."""
    check_id(input_id)
    content = {"kind": "dora", "type": "INPUT", "id": input_id, "value": value}
    return {**content, "metadata": dict(metadata or {})}


def check_event(content: object) -> None:
    """What dora gives is a dict with a type, and an INPUT with the id of its input. Raises TypeError, ValueError."""
    if type(content) is not dict and not isinstance(content, Mapping):
        raise TypeError(
            f"an event is a dict, not {type(content).__name__}: {content!r:.80}; "
            'use {"type": ..., ...}, as dora gives it'
        )
    kind = content.get("type")
    if not isinstance(kind, str):
        raise TypeError(
            f"the type of an event is a str, not {type(kind).__name__}: {kind!r:.80}; "
            'use "INPUT" or another type of dora'
        )
    if not kind:
        raise ValueError('the type of an event is empty; use "INPUT" or another type of dora')
    if kind == "INPUT":
        check_id(content.get("id"))


def check_id(input_id: object) -> None:
    if not isinstance(input_id, str):
        raise TypeError(f"an input id is a str, not {type(input_id).__name__}: {input_id!r:.80}")


class Traffic:
    """Takes events for a supervisor of its own, and answers them.

    Args:
        rooms: what bounds the events that wait; None: the supervisor drops the oldest.
        publish: takes each status of the operator, in the supervisor's thread.
    """

    def __init__(
        self,
        config: SupervisorConfig,
        rooms: Rooms | None,
        publish: Callable[[dict[str, Any]], None],
    ) -> None:
        self._name = config.node_id
        self._rooms = rooms
        self._stream: Stream[Output] = Stream(BACKLOG_BYTES, self._wake)
        self.supervisor = Supervisor(
            config, self._take_output, publish=publish, can_send=self._stream.has_room
        )
        self.supervisor.letters.on_over = self._on_letter_over
        self._unanswered: set[Future[list[Output]]] = set()
        self._unhandled = 0  # events that were taken
        self._is_begun = False
        self._is_closed = False  # no more will come
        self._is_over = False  # the operator has ended
        self._lock = threading.Lock()  # over the four above
        self._sent: list[tuple[Output, int]] = []  # by the event that is being committed
        self._pid = os.getpid()

    # From any thread

    def take_apart(self, content: Mapping[str, Any]) -> inputs.Event:
        """Copy an event; it needs room next. Raises TypeError or ValueError for what is none."""
        self._check_begun()
        check_event(content)
        return self.supervisor.take_apart(content)

    def room(self, event: inputs.Event) -> Future[None] | None:
        """Room for an event, to be waited for; None: it needs none."""
        if self._rooms is None or event.type != "INPUT":
            return None
        return self._rooms.take(event.id, event.size_bytes)

    def give_back(self, event: inputs.Event) -> None:
        """Its room, which is needed no more."""
        if self._rooms is not None and event.type == "INPUT":
            self._rooms.give_back(event.id, event.size_bytes)

    def put(self, event: inputs.Event, answer: Future[list[Output]] | None) -> None:
        """Take an event that has room. Its outputs go to `answer`; without one, to the stream."""
        if os.getpid() != self._pid:
            raise OperatorError(
                f"operator {self._name} belongs to the process that this one was forked from; "
                "make an OperatorHost of its own in here"
            )
        event.on_over = functools.partial(self._on_over, event, answer)
        with self._lock:
            if self._is_over:
                raise self.ended_error()
            if self._is_closed:
                raise OperatorError(
                    f"the input of operator {self._name} is closed; make a new OperatorHost"
                )
            self._unhandled += 1
            if answer is not None:
                self._unanswered.add(answer)
        self.supervisor.put(event)

    def next_output(self) -> Future[Output | None]:
        """The next output that was no answer; None when there will be no more."""
        self._check_begun()
        return self._stream.take()

    def begin(self) -> None:
        """The supervisor runs: whoever waits from here on will be answered."""
        self._is_begun = True

    def _check_begun(self) -> None:
        if not self._is_begun:
            raise OperatorError(
                f"operator {self._name} is not started; use `with OperatorHost(...) as host`, or call start()"
            )

    def close(self) -> None:
        """No more events will come."""
        with self._lock:
            self._is_closed = True

    @property
    def is_through(self) -> bool:
        """Whether no more events will come, and all that came are handled."""
        with self._lock:
            return self._is_closed and self._unhandled == 0

    @property
    def is_closed(self) -> bool:
        with self._lock:
            return self._is_closed

    # The thread of the supervisor's loop

    def end(self) -> None:
        """The operator has ended: whoever waits for anything gets to know that it will not come."""
        error = self.ended_error()
        with self._lock:
            self._is_over = True
            unanswered, self._unanswered = self._unanswered, set()
        if self._rooms is not None:
            self._rooms.close(error)
        for answer in unanswered:
            refuse(answer, error)
        self._stream.close()

    def ended_error(self) -> OperatorError:
        outcome = self.supervisor.outcome
        why = outcome.why if outcome is not None else "its host was stopped"
        if not (outcome and outcome.clean):
            why += self._last_crash()
        return OperatorError(f"operator {self._name} has ended: {why}; make a new OperatorHost")

    def _wake(self) -> None:
        self.supervisor.wake()

    def _take_output(self, output: outputs.Output) -> None:
        sent = Output(output.id, output.value, output.metadata), output.size_bytes
        if output.number:
            self._sent.append(sent)
        else:  # it belongs to no event, or does not wait for its commit
            self._stream.put([sent])

    def _on_over(self, event: inputs.Event, answer: Future[list[Output]] | None, how: str) -> None:
        """An event is "done", and what was sent since the last one is its; or it was given up."""
        sent: list[tuple[Output, int]] = []
        if how == inputs.DONE:
            sent, self._sent = self._sent, []
        self.give_back(event)
        with self._lock:
            self._unhandled -= 1
        self._answer(event, answer, how, sent)
        if self.is_through:
            self.supervisor.close_input()

    def _on_letter_over(self, how: str) -> None:
        """A dead letter that was handed out again: nobody waits for what was sent, and it is no other event's."""
        sent, self._sent = self._sent, []
        self._stream.put(sent)

    def _answer(
        self,
        event: inputs.Event,
        answer: Future[list[Output]] | None,
        how: str,
        sent: list[tuple[Output, int]],
    ) -> None:
        if answer is not None:
            with self._lock:
                self._unanswered.discard(answer)
            if how != inputs.DONE:
                refuse(answer, self._given_up(event, how))
            elif serve(answer, [output for output, _ in sent]):
                return
        self._stream.put(sent)

    def _given_up(self, event: inputs.Event, how: str) -> OperatorError:
        why = f"an event of input {event.id!r} was given up: {how}"
        return OperatorError(why + (self._last_crash() if how == inputs.DEAD else ""))

    def _last_crash(self) -> str:
        crash = self.supervisor.account.last_crash
        if crash is None:
            return ""
        return f", after {crash['reason']}\n{crash.get('traceback') or ''}".rstrip()
