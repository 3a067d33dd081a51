"""The zygote as the host keeps it: asks it for workers, sees that it answers, and starts it again when
it has died.

    asked before it is born    kept until it is; one that dies before has lost nothing
    no answer for 5 s          SIGCONT, in case somebody has stopped it; SIGKILL after 5 more
    it has died                the next one at once; after more deaths in a row 0.1 s, doubled up to 10 s

Nobody is there to start a robot's node again, so there is no last try. Deaths are in a row until a
worker has become ready, or a zygote has lived for 10 s. Only one that has never forked at all is given
up: then the installation is broken, and somebody is just starting it.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from dora_state.errors import StateError
from dora_state.runtime import process
from dora_state.runtime.poller import READ, Poller
from dora_state.runtime.zygote import Zygote

log = logging.getLogger("dora_state.supervisor")

_FIRST_TRIES = 5
_DELAY_S = 0.1
_LONGEST_DELAY_S = 10.0
_PROVEN_S = 10.0
_ANSWER_S = 5.0  # a fork takes milliseconds
_SWEEP_PATIENCE_S = 1.0


def delay_s(deaths: int) -> float:
    """Before the next zygote, after so many in a row."""
    if deaths <= 1:
        return 0.0
    return min(_DELAY_S * 2.0 ** min(deaths - 2, 30), _LONGEST_DELAY_S)


class Request(NamedTuple):
    """For a worker. The descriptors are ours until it is sent."""

    token: int
    socket: socket.socket
    lifeline: int
    late: bool

    def close(self) -> None:
        self.socket.close()
        os.close(self.lifeline)


class Births:
    """The talk with at most one zygote at a time.

    Args:
        adopts: whether this process is the subreaper above the zygote, and kills what that leaves
            when it was killed itself. For a process that starts no others meanwhile.
        on_spawned: a worker lives; takes its token and its pidfd.
        on_exited: a worker was reaped; takes its token and its wait status.
        on_lost: the zygote is gone, and with it all workers but those that wait for their birth.
    """

    def __init__(
        self,
        make_zygote: Callable[[], Zygote],
        poller: Poller,
        *,
        adopts: bool,
        on_spawned: Callable[[int, int], None],
        on_exited: Callable[[int, int], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._make_zygote = make_zygote
        self._poller = poller
        self._adopts = adopts
        self._not_ours: set[int] = set()  # children of this process that were there before
        self._on_spawned = on_spawned
        self._on_exited = on_exited
        self._on_lost = on_lost
        self._zygote: Zygote | None = None
        self._waiting: list[Request] = []  # not asked yet
        self._asked: set[int] = set()  # tokens that are not answered
        self._woken = False
        self._ever_spawned = False
        self._deaths = 0  # in a row
        self._born = 0.0
        self._closing = False
        self.due: float | None = None  # when `check` is to be called, by time.monotonic()

    @property
    def zygote_pid(self) -> int | None:
        return self._zygote.pid if self._zygote is not None else None

    def open(self) -> None:
        if self._adopts:
            process.become_subreaper()
            self._not_ours = process.children()
        self._start()

    def close_down(self) -> None:
        """No worker is wanted any more: those that are not born are reported as lost."""
        self._closing = True
        if self._zygote is None:
            self.due = time.monotonic()

    def close(self) -> None:
        """End the zygote and everything below it. Does nothing the second time."""
        self._closing = True
        if self._zygote is not None:
            self._end_zygote()
        while self._waiting:
            self._waiting.pop().close()
        self.due = None
        if self._adopts:
            process.become_subreaper(False)
            self._adopts = False

    # Asking

    def ask(self, token: int, sock: socket.socket, lifeline: int, *, late: bool) -> None:
        """For a worker that talks over `sock`; `late`: that imports the operator when it is started."""
        self._waiting.append(Request(token, sock.dup(), os.dup(lifeline), late))
        self._send_requests()

    def is_waiting(self, token: int) -> bool:
        """Whether no zygote was asked for this worker yet."""
        return any(each.token == token for each in self._waiting)

    def _send_requests(self) -> None:
        if self._zygote is None or self._zygote.pid is None:
            return
        while self._waiting:
            request = self._waiting[0]
            try:
                self._zygote.spawn(
                    request.token, request.socket, request.lifeline, late=request.late
                )
            except OSError:  # it is dead, which is noticed in a moment, or stopped
                break
            self._asked.add(request.token)
            self._waiting.pop(0).close()
        if self.due is None:
            self._expect_answer()

    def _expect_answer(self) -> None:
        """Not born yet it may still import, which takes its time."""
        self.due = time.monotonic() + _ANSWER_S if self._asked else None

    def is_proven(self) -> None:
        """A worker is ready: what has killed zygotes is over."""
        self._deaths = 0

    def check(self, now: float) -> None:
        """To be called when `due` has come."""
        if self.due is None or now < self.due:
            return
        if self._zygote is None:
            self._start_again()
        elif self._woken:
            log.error("the process that forks the workers does not answer; it is killed")
            self.due = None
            self._zygote.kill()
        else:
            self._woken = True
            log.warning("the process that forks the workers does not answer; it gets SIGCONT")
            self.due = now + _ANSWER_S
            self._zygote.wake()

    # Answers

    def await_answer(self, patience_s: float) -> bool:
        """Wait for what the zygote says next, and take it in. False: it has said nothing."""
        if self._zygote is None:
            return False
        if not select.select([self._zygote], [], [], max(0.0, patience_s))[0]:
            return False
        self._on_zygote()
        return True

    def _on_zygote(self) -> None:
        while self._zygote is not None:
            try:
                received = self._zygote.receive()
            except BlockingIOError:
                return
            if received is None:
                self._on_death()
                return
            message, pidfd = received
            if "born" in message:
                assert pidfd is not None
                self._zygote.is_born(message["born"], pidfd)
                self._send_requests()
            elif "spawned" in message:
                assert pidfd is not None
                self._take_spawned(message["spawned"], pidfd)
            else:
                self._on_exited(message["exited"], message["status"])

    def _take_spawned(self, token: int, pidfd: int) -> None:
        self._ever_spawned = True
        self._woken = False
        self._asked.discard(token)
        self._expect_answer()
        self._send_requests()
        self._on_spawned(token, pidfd)

    # Its life

    def _start(self) -> None:
        self._zygote = self._make_zygote()
        self._born = time.monotonic()
        self.due = None
        self._poller.register(self._zygote, READ, self._on_zygote)

    def _start_again(self) -> None:
        self.due = None
        if self._closing:
            while self._waiting:
                self._waiting.pop().close()
            self._on_lost()
            return
        try:
            self._start()
        except OSError as error:
            log.error("the process that forks the workers cannot be started: %s", error)
            self._wait_for_next()

    def _on_death(self) -> None:
        """Its workers die with it, by PDEATHSIG, and their ends are ends like any."""
        self._end_zygote()
        self._asked.clear()
        self._woken = False
        if time.monotonic() - self._born >= _PROVEN_S:
            self._deaths = 0
        self._wait_for_next()
        self._on_lost()

    def _wait_for_next(self) -> None:
        self._deaths += 1
        if not self._ever_spawned and self._deaths >= _FIRST_TRIES:
            raise StateError(
                "the process that forks the workers does not come up; see its output above"
            )
        delay = 0.0 if self._closing else delay_s(self._deaths)
        self.due = time.monotonic() + delay
        if not self._closing:
            log.error(
                "the process that forks the workers is gone; it is started again%s",
                f" in {delay:g} s" if delay else "",
            )

    def _end_zygote(self) -> None:
        """What it could not kill any more has become ours."""
        assert self._zygote is not None
        self._poller.unregister(self._zygote)
        self._zygote.close()
        self._zygote = None
        if self._adopts:
            process.end_children(self._not_ours, _SWEEP_PATIENCE_S)
