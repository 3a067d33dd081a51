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
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from dora_state import location
from dora_state import operator as operator_api
from dora_state.async_host import AsyncHost
from dora_state.errors import OperatorError
from dora_state.futures import Rooms, deadline_of, wait
from dora_state.host_thread import Hosted, HostThread
from dora_state.runtime import inputs, shared_step
from dora_state.runtime.config import SupervisorConfig
from dora_state.runtime.policy import RestartPolicy
from dora_state.traffic import Output, input_event

OVERLOAD = ("block", "drop-oldest")
_NO_LIMIT = 1 << 62


class OperatorHost(Hosted):
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
        if not isinstance(policy, RestartPolicy | None):
            raise TypeError(f"policy is a {type(policy).__name__}; use a RestartPolicy")
        if not isinstance(name, str | None):
            raise TypeError(f"name is a {type(name).__name__}; use a str")
        path, class_name = _locate(operator)
        self.name = name or (path.stem if class_name == "Operator" else class_name)
        asked = Path(state_dir) if state_dir is not None else None
        where = location.resolve(asked, Path.cwd())
        variables = os.environ if environment is None else environment
        self._host = HostThread(
            SupervisorConfig(
                operator=path,
                class_name=class_name,
                node_id=self.name,
                policy=policy or RestartPolicy(),
                durability=durability,
                standby=standby,
                shutdown_grace_s=shutdown_grace_s,
                immediate=frozenset(_names("immediate", immediate)),
                queue_size=queue_size if overload == "drop-oldest" else _NO_LIMIT,
                preload=_names("preload", preload),
                environment={**variables, shared_step.VARIABLE: str(where / "shared")},
            ),
            where,
            keep=keep and not fresh,
            fresh=fresh,
            rooms=Rooms(queue_size, inputs.QUEUE_BYTES) if overload == "block" else None,
        )
        self._traffic = self._host.traffic

    # Its life

    def start(self) -> OperatorHost:
        """Start the operator; returns when it is ready to handle events, or degraded.

        Raises OperatorError if its file or the state directory cannot be used.
        """
        self._host.begin()
        self._host.started.result()
        return self

    def close_input(self) -> None:
        """No more events will come: the operator handles all that was taken, and then ends within its grace.

        One that is degraded ends at once: nobody is there to handle anything.
        """
        self._host.close_input()

    def close(self) -> None:
        """Close the input, and wait until the operator has handled everything and ended."""
        self.close_input()
        self._host.wait_ended()

    def stop(self) -> None:
        """End after the event that is being handled. What waits behind it is lost."""
        self._host.request_stop()
        self._host.wait_ended()

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
        self._host.begin()
        try:
            await asyncio.wrap_future(self._host.started)
        except asyncio.CancelledError:
            self._host.request_stop()
            raise
        return AsyncHost(self._host)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close_input()
        else:
            self._host.request_stop()
        await asyncio.shield(asyncio.wrap_future(self._host.ended))

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
        return self.send_event(input_event(input_id, value, metadata), timeout=timeout)

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
        self.submit_event(input_event(input_id, value, metadata), timeout=timeout)

    def send_event(self, event: Mapping[str, Any], *, timeout: float | None = None) -> list[Output]:
        """As `send`, with an event of any type, as dora would give it: `{"type": "PARAM_UPDATE", ...}`.

        Raises TypeError for what is no dict, has no `type` that is a str, or is an INPUT without an `id`; ValueError
        for an empty type. Nothing is taken then.
        """
        deadline = deadline_of(timeout)
        taken = self._make_room(event, deadline)
        answer: Future[list[Output]] = Future()
        self._traffic.put(taken, answer)
        what = f"input {taken.id!r}" if taken.type == "INPUT" else taken.type
        return wait(answer, deadline, f"{what} was not handled within {timeout} s")

    def submit_event(self, event: Mapping[str, Any], *, timeout: float | None = None) -> None:
        """As `submit`, with an event of any type. Refuses what `send_event` refuses."""
        self._traffic.put(self._make_room(event, deadline_of(timeout)), None)

    def receive(self, timeout: float | None = None) -> Output | None:
        """The next output that was no answer to a `send`; None after the end. Raises TimeoutError."""
        return wait(
            self._traffic.next_output(), deadline_of(timeout), f"no output came within {timeout} s"
        )

    def __iter__(self) -> Iterator[Output]:
        """Outputs as they come, until the operator has ended: after `close_input`, or by itself.

        An operator whose outputs nobody takes has to wait, once they are 64 MiB.
        """
        while (output := self.receive()) is not None:
            yield output

    def _make_room(self, content: Mapping[str, Any], deadline: float | None) -> inputs.Event:
        event = self._traffic.take_apart(content)
        if (room := self._traffic.room(event)) is not None:
            wait(room, deadline, f"there was no room for an event of input {event.id!r} in time")
        return event

    # Seen from outside

    def wait_status(
        self, condition: Callable[[dict[str, Any]], bool], timeout: float | None = None
    ) -> dict[str, Any]:
        """Wait for a status that meets the condition, and return it. Raises TimeoutError."""
        return self._host.wait_status(condition, timeout)


def _names(option: str, names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):  # which is an iterable of str, too: its letters
        raise TypeError(f"{option} is {names!r}; use a list of names: [{names!r}]")
    return tuple(names)


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
