"""The host's view of one worker: what it is, what it has told, and how it has ended.

workers.py brings it up and watches it; whoever decides about it reads it here.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from dora_state._core import Lifeline
from dora_state.errors import OperatorError
from dora_state.runtime import channel, process
from dora_state.runtime.slots import ArenaFile


class Worker:
    """The host's view of one worker. Its incarnation is given with the store, spare or not."""

    def __init__(self, token: int, sock: socket.socket) -> None:
        self.token = token  # names it towards the zygote
        self.incarnation = 0
        self.channel = channel.Channel(sock)
        self.outputs: ArenaFile | None = None  # where it puts large outputs
        self.pid = 0  # told with IMPORTED
        self.pidfd: int | None = None
        self.born_with: tuple[int, ...] | None = None  # the signature of the operator's file then
        self.signature: tuple[int, ...] | None = None  # the same, as it was imported
        self.ready: dict[str, Any] = {}  # what READY told
        self.is_ready = False
        self.commits = 0
        self.is_restoring = False  # __init__ is done, there is state
        self.asked_to_stop = False  # it returned DoraStatus.STOP
        self.hung = ""  # in which phase, if that is why it was killed
        self.failure: dict[str, Any] | None = None  # what FAILED told
        self.conflict: str | None = None  # what CONFLICT told
        self.noticed_end: float | None = None
        self.lifeline = Lifeline()
        self.holds: list[str] | None = None  # what HOLDS told
        self.was_started = False
        self.started = 0.0  # when START was sent, by time.monotonic()
        self.beside: Worker | None = None  # its predecessor, if that was not gone at the START
        self.report: tuple[bool, bool, float, float] | None = None  # Lifeline.disarm()
        self.begun = 0  # the number of the event that it handled last, or was handling
        self.is_dead = False
        self.is_gone = False
        self.wait_status: int | None = None
        self._watches_room = False

    @property
    def was_born(self) -> bool:
        """To be asked at its death. Else the zygote has died before it could fork this one."""
        return self.pidfd is not None

    @property
    def is_ending(self) -> bool:
        return self.is_dead or self.noticed_end is not None

    @property
    def holds_nothing(self) -> bool:
        """Whether a successor's `__init__` may run beside what the kernel has not freed yet."""
        return self.is_gone or not self.was_started or self.holds == []

    @property
    def has_successor(self) -> bool:
        """Whether its lifeline has started the spare."""
        return self.report is not None and self.report[0]

    @property
    def has_replay(self) -> bool:
        """And whether that has got its event."""
        return self.report is not None and self.report[1]

    @property
    def end_is_known(self) -> bool:
        return self.failure is not None or self.wait_status is not None

    def describe_end(self) -> str:
        if self.failure is not None:
            return channel.describe_failure(self.failure)
        if self.hung:
            return f"hang in {self.hung}"
        return process.describe_status(self.wait_status)


def import_error(path: Path, dead: Worker) -> OperatorError:
    """Why an operator's file cannot be used."""
    if dead.hung:
        return OperatorError(
            f"{path} hung while it was imported and was killed; its stacks are in the output above"
        )
    if dead.failure is None:
        return OperatorError(
            f"{path} ended its process while it was imported; "
            f"see its output above and try `python {path}`"
        )
    error = dead.failure["error"]
    prefix = OperatorError.__name__ + ": "
    if error.startswith(prefix):
        return OperatorError(error[len(prefix) :])
    return OperatorError(
        f"{path} cannot be imported: {error}\n{dead.failure['traceback'].rstrip()}; "
        f"`python {path}` shows the same error"
    )
