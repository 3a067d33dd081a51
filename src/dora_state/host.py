"""The operator runtime without dora: a program of one's own hosts an operator in a child process.

    with OperatorHost("counter.py", "state") as host:
        outputs = host.send("number", 1)            # waits for the commit; the outputs of this event

    with OperatorHost(Counter, "state") as host:    # a class: its file is what the child imports
        for number in range(10):
            host.submit("number", number)           # does not wait for the commit
        host.close_input()
        for output in host:                         # in the order of the events, until the operator has ended
            ...

    async with OperatorHost("counter.py", "state") as host:
        outputs = await host.send("number", 1)      # the same names, to be awaited

The promises are those of the node in a dataflow: an event has its effect on the state and its outputs exactly
once, whatever happens to the operator. Three things differ. An event that finds no room is waited with, instead of
an older one dropped. After a clean end the next host goes on with the state, as it was told where to keep it. And
closing the input waits for all that was taken, however long that is.

The supervisor's loop runs in a thread of the host's, which also forks: the kernel ends the children with it. All
methods may be called from any thread; what comes out of the iteration is shared among those who iterate.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from dora_state import location
from dora_state import operator as operator_api
from dora_state.errors import OperatorError
from dora_state.futures import Rooms, Stream, deadline_of, refuse, serve, wait
from dora_state.runs import run_in
from dora_state.runtime import inputs, outputs, shared_step
from dora_state.runtime.config import SupervisorConfig
from dora_state.runtime.machine import State
from dora_state.runtime.policy import RestartPolicy
from dora_state.runtime.publisher import Publisher
from dora_state.runtime.stopping import Outcome
from dora_state.runtime.supervisor import Supervisor

OVERLOAD = ("block", "drop-oldest")
BACKLOG_BYTES = 64 << 20  # outputs that nobody has taken yet, before the operator has to wait
_NO_LIMIT = 1 << 62


class Output(NamedTuple):
    """What an operator has sent."""

    id: str
    value: Any
    metadata: dict[str, Any]


class OperatorHost:
    """Hosts an operator. It runs from `with`, `async with` or `start` until their end, or `close`.

    Args:
        operator: the operator's Python file, or its class. The child imports the class's file, so that
            must be importable again without doing anything: guard a script with `if __name__ == "__main__"`.
        state_dir: where its state lives; by default DORA_STATE_DIR, else `state` in the working directory. Hosts
            with different names may use it together; the default place only within one process.
        name: of the operator in there, and in logs; by default that of its file or class.
        durability: of its saves: "process", "group" or "commit".
        policy: when and how often it is restarted.
        standby: "fork", "process" or "off": what stands ready to take over.
        keep: go on with the state of a host that ended cleanly, too.
        fresh: start empty, whatever is there.
        overload: "block": whoever submits waits for room; "drop-oldest": as dora does it.
        queue_size: events of one input that may wait.
        shutdown_grace_s: how long it may take to stop before it is killed.
        immediate: ids of outputs that leave at once instead of with the commit of their event.
        preload: modules imported ahead of time: once for all forks, or in each spare that is an interpreter.
        environment: of the operator's process; by default that of this one.

    What an event and an output carry: bytes, pyarrow arrays, or what msgpack knows.
    """

    def __init__(
        self,
        operator: str | os.PathLike[str] | type,
        state_dir: str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
        durability: str = "group",
        policy: RestartPolicy | None = None,
        standby: str = "fork",
        keep: bool = True,
        fresh: bool = False,
        overload: str = "block",
        queue_size: int = 1000,
        shutdown_grace_s: float = 5.0,
        immediate: Iterable[str] = (),
        preload: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if operator_api.session is not None:
            raise OperatorError(
                "an operator's own process cannot host operators; in a script, make the OperatorHost "
                'behind `if __name__ == "__main__"`'
            )
        if overload not in OVERLOAD:
            raise ValueError(f"overload is {overload!r}; use one of {', '.join(OVERLOAD)}")
        if queue_size < 1:
            raise ValueError(f"queue_size is {queue_size}; use 1 or more")
        path, class_name = _locate(operator)
        self.name = name or (path.stem if class_name == "Operator" else class_name)
        asked = Path(state_dir) if state_dir is not None else None
        self._state_dir = location.resolve(asked, Path.cwd())
        self._keep, self._fresh = keep and not fresh, fresh
        self._rooms = Rooms(queue_size, inputs.QUEUE_BYTES) if overload == "block" else None
        self._stream: Stream[Output] = Stream(BACKLOG_BYTES, self._wake)
        self._publisher = Publisher(self.name)
        self._status: dict[str, Any] = {}
        self._unanswered: set[Future[list[Output]]] = set()
        self._unhandled = 0  # events that were taken
        self._input_closed = False
        self._is_over = False  # it has ended
        self._lock = threading.Condition()  # over the five above
        self._sent: list[tuple[Output, int]] = []  # by the event that is being committed
        self._pid = os.getpid()
        self._started: Future[None] = Future()
        self._ended: Future[None] = Future()
        variables = os.environ if environment is None else environment
        self._supervisor = Supervisor(
            SupervisorConfig(
                operator=path,
                class_name=class_name,
                node_id=self.name,
                policy=policy or RestartPolicy(),
                durability=durability,
                standby=standby,
                shutdown_grace_s=shutdown_grace_s,
                immediate=frozenset(immediate),
                queue_size=queue_size if overload == "drop-oldest" else _NO_LIMIT,
                preload=tuple(preload),
                environment={**variables, shared_step.VARIABLE: str(self._state_dir / "shared")},
            ),
            self._take_output,
            publish=self._take_status,
            can_send=self._stream.has_room,
        )
        self._thread = threading.Thread(target=self._run, name="dora-state-host", daemon=True)

    # Its life

    def start(self) -> OperatorHost:
        """Start the operator; returns when it is ready to handle events, or degraded.

        Raises OperatorError if its file or the state directory cannot be used.
        """
        self._begin()
        self._started.result()
        return self

    def close_input(self) -> None:
        """No more events will come: the operator handles all that was taken, and then ends within its grace.

        One that is degraded ends at once: nobody is there to handle anything.
        """
        with self._lock:
            self._input_closed = True
        self._close_when_idle()

    def close(self) -> None:
        """Close the input, and wait until the operator has handled everything and ended."""
        self.close_input()
        self._ended.result()

    def stop(self) -> None:
        """End after the event that is being handled. What waits behind it is lost."""
        self._supervisor.request_stop(clean=False)
        self._ended.result()

    def __enter__(self) -> OperatorHost:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.stop()

    async def __aenter__(self) -> AsyncHost:
        self._begin()
        try:
            await asyncio.wrap_future(self._started)
        except asyncio.CancelledError:
            self._supervisor.request_stop(clean=False)
            raise
        return AsyncHost(self)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close_input()
        else:
            self._supervisor.request_stop(clean=False)
        await asyncio.shield(asyncio.wrap_future(self._ended))

    # Events and outputs

    def send(
        self,
        input_id: str,
        value: Any = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[Output]:
        """Hand over an event and wait until it has been handled and committed; returns its outputs.

        Crashes on the way are not seen here. Raises OperatorError if the operator has ended for good or has
        given this event up; TimeoutError after `timeout` seconds. If the event was taken by then it will still
        be handled, and its outputs come out of the iteration.
        """
        return self.send_event(_input(input_id, value, metadata), timeout=timeout)

    def submit(
        self,
        input_id: str,
        value: Any = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Hand over an event; its outputs come out of the iteration.

        With `overload="block"` it waits for room. Raises OperatorError if the operator has ended, TimeoutError if
        there was no room within `timeout` seconds: the event was then not taken.
        """
        self.submit_event(_input(input_id, value, metadata), timeout=timeout)

    def send_event(self, event: Mapping[str, Any], *, timeout: float | None = None) -> list[Output]:
        """As `send`, with an event of any type, as dora would give it: `{"type": "PARAM_UPDATE", ...}`."""
        deadline = deadline_of(timeout)
        taken = self._make_room(event, deadline)
        answer: Future[list[Output]] = Future()
        self._put(taken, answer)
        what = f"input {taken.id!r}" if taken.type == "INPUT" else taken.type
        return wait(answer, deadline, f"{what} was not handled within {timeout} s")

    def submit_event(self, event: Mapping[str, Any], *, timeout: float | None = None) -> None:
        """As `submit`, with an event of any type."""
        self._put(self._make_room(event, deadline_of(timeout)), None)

    def receive(self, timeout: float | None = None) -> Output | None:
        """The next output that was no answer to a `send`; None after the end. Raises TimeoutError."""
        return wait(self._stream.take(), deadline_of(timeout), f"no output came within {timeout} s")

    def __iter__(self) -> Iterator[Output]:
        """Outputs as they come, until the operator has ended: after `close_input`, or by itself.

        An operator whose outputs nobody takes has to wait, once they are 64 MiB.
        """
        while (output := self.receive()) is not None:
            yield output

    # Seen from outside

    @property
    def status(self) -> dict[str, Any]:
        """The status as of the last start, restart or end; docs/runtime.md has its fields."""
        with self._lock:
            return dict(self._status)

    def wait_status(
        self, condition: Callable[[dict[str, Any]], bool], timeout: float | None = None
    ) -> dict[str, Any]:
        """Wait for a status that meets the condition, and return it. Raises TimeoutError."""
        with self._lock:
            if not self._lock.wait_for(lambda: condition(self._status), timeout):
                raise TimeoutError(f"no such status within {timeout} s; it is {self._status}")
            return dict(self._status)

    @property
    def outcome(self) -> Outcome | None:
        """How it has ended; None as long as it has not."""
        return self._supervisor.outcome

    @property
    def store_path(self) -> Path:
        """The operator's private store. Anybody may open it read-only."""
        return self._state_dir / location.escape(self.name)

    # Inside

    def _make_room(self, content: Mapping[str, Any], deadline: float | None) -> inputs.Event:
        event = self._supervisor.take_apart(content)
        if (room := self._room(event)) is not None:
            wait(room, deadline, f"there was no room for an event of input {event.id!r} in time")
        return event

    def _room(self, event: inputs.Event) -> Future[None] | None:
        if self._rooms is None or event.type != "INPUT":
            return None
        return self._rooms.take(event.id, event.size_bytes)

    def _free(self, event: inputs.Event) -> None:
        if self._rooms is not None and event.type == "INPUT":
            self._rooms.give_back(event.id, event.size_bytes)

    def _put(self, event: inputs.Event, answer: Future[list[Output]] | None) -> None:
        """Give an event that has room to the supervisor."""
        if os.getpid() != self._pid:
            raise OperatorError(
                f"operator {self.name} belongs to the process that this one was forked from; "
                "make an OperatorHost of its own in here"
            )
        event.on_over = functools.partial(self._on_over, event, answer)
        with self._lock:
            if self._is_over:
                raise self._ended_error()
            if self._input_closed:
                raise OperatorError(
                    f"the input of operator {self.name} is closed; make a new OperatorHost"
                )
            self._unhandled += 1
            if answer is not None:
                self._unanswered.add(answer)
        self._supervisor.put(event)

    def _close_when_idle(self) -> None:
        with self._lock:
            is_degraded = self._status.get("state") == State.DEGRADED.value
            is_time = self._input_closed and (self._unhandled == 0 or is_degraded)
        if is_time:
            self._supervisor.close_input()

    def _wake(self) -> None:
        self._supervisor.wake()

    def _begin(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:
            raise OperatorError("an OperatorHost starts once; make a new one") from None

    # The thread that owns the supervisor's loop

    def _run(self) -> None:
        try:
            self._host()
        except BaseException as error:
            self._end()
            if self._started.done():
                self._ended.set_exception(error)
            else:
                self._started.set_exception(error)
                self._ended.set_result(None)
        else:
            self._end()
            self._ended.set_result(None)

    def _host(self) -> None:
        supervisor = self._supervisor
        supervisor.load()
        with run_in(self._state_dir) as run:
            claim = location.claim(
                *(run, self.name),
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
                    raise self._ended_error()
                self._started.set_result(None)
                clean = supervisor.run().clean
            finally:
                supervisor.close()  # before the claim goes: two hosts must never share a store
                self._publisher.close()
                claim.finish(clean)

    def _end(self) -> None:
        """Whoever waits for anything gets to know that it will not come."""
        error = self._ended_error()
        with self._lock:
            self._is_over = True
            unanswered, self._unanswered = self._unanswered, set()
            self._status = {**self._status, "state": State.ENDED.value}
            self._lock.notify_all()
        if self._rooms is not None:
            self._rooms.close(error)
        for answer in unanswered:
            refuse(answer, error)
        self._stream.close()

    def _ended_error(self) -> OperatorError:
        outcome = self._supervisor.outcome
        why = outcome.why if outcome is not None else "its host was stopped"
        if not (outcome and outcome.clean):
            why += _of_crash(self._status.get("last_crash"))
        return OperatorError(f"operator {self.name} has ended: {why}; make a new OperatorHost")

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
        self._free(event)
        with self._lock:
            self._unhandled -= 1
        self._answer(event, answer, how, sent)
        self._close_when_idle()

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
        if how == inputs.DEAD:
            why += _of_crash(self._supervisor.account.last_crash)
        return OperatorError(why)

    def _take_status(self, status: dict[str, Any]) -> None:
        self._publisher.put(status)
        with self._lock:
            self._status = status
            self._lock.notify_all()
        self._close_when_idle()


class AsyncHost:
    """What `async with OperatorHost(...)` gives: the same names, to be awaited in one event loop.

    A call that is cancelled takes nothing back: an event that was taken is handled, and its outputs come out of
    the iteration.
    """

    def __init__(self, host: OperatorHost) -> None:
        self._host = host

    async def send(
        self, input_id: str, value: Any = None, metadata: Mapping[str, Any] | None = None
    ) -> list[Output]:
        """Hand over an event, wait until it is committed, and return its outputs. See OperatorHost.send."""
        return await self.send_event(_input(input_id, value, metadata))

    async def submit(
        self, input_id: str, value: Any = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Hand over an event as soon as there is room."""
        await self._put(_input(input_id, value, metadata), None)

    async def send_event(self, event: Mapping[str, Any]) -> list[Output]:
        """As `send`, with an event of any type."""
        answer: Future[list[Output]] = Future()
        await self._put(event, answer)
        return await asyncio.wrap_future(answer)

    async def submit_event(self, event: Mapping[str, Any]) -> None:
        """As `submit`, with an event of any type."""
        await self._put(event, None)

    async def receive(self) -> Output | None:
        """The next output that was no answer to a `send`; None after the end."""
        return await asyncio.wrap_future(self._host._stream.take())

    async def __aiter__(self) -> AsyncIterator[Output]:
        while (output := await self.receive()) is not None:
            yield output

    def close_input(self) -> None:
        """No more events will come: the operator handles what is there, and ends."""
        self._host.close_input()

    @property
    def status(self) -> dict[str, Any]:
        """The status as of the last start, restart or end."""
        return self._host.status

    @property
    def outcome(self) -> Outcome | None:
        """How it has ended; None as long as it has not."""
        return self._host.outcome

    @property
    def store_path(self) -> Path:
        """The operator's private store. Anybody may open it read-only."""
        return self._host.store_path

    async def _put(self, content: Mapping[str, Any], answer: Future[list[Output]] | None) -> None:
        event = self._host._supervisor.take_apart(content)
        if (room := self._host._room(event)) is not None:
            try:
                await asyncio.wrap_future(room)
            except asyncio.CancelledError:
                if not room.cancelled():  # it was given at the last moment
                    self._host._free(event)
                raise
        self._host._put(event, answer)


def _input(input_id: str, value: Any, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(input_id, str):
        raise TypeError(f"an input id is a str, not {type(input_id).__name__}: {input_id!r:.80}")
    content = {"kind": "dora", "type": "INPUT", "id": input_id, "value": value}
    return {**content, "metadata": dict(metadata or {})}


def _of_crash(crash: Mapping[str, Any] | None) -> str:
    return f", after {crash['reason']}\n{crash.get('traceback') or ''}".rstrip() if crash else ""


def _locate(operator: str | os.PathLike[str] | type) -> tuple[Path, str]:
    """The file of an operator, and the name of the class in it."""
    if not isinstance(operator, type):
        return Path(os.path.abspath(operator)), "Operator"
    name = operator.__qualname__
    try:
        path = Path(inspect.getfile(operator)).resolve()
    except (TypeError, OSError):
        path = Path()
    if "." in name or path.suffix != ".py":
        raise OperatorError(
            f"class {name} cannot be imported by another process; define it at the top of a Python file"
        )
    return path, name
