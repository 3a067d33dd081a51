"""The processes below the host: the zygote, the workers it forks, and the spare among them.

`Workers` brings them up, watches their sockets and pidfds in the supervisor's poller, and reports
messages, and two ends. The *death*, from the lifeline (csrc/include/lifeline.h) or, if that fails,
from the pidfd: it was sent SIGKILL, its main thread runs no instruction any more, it is fenced off,
and all that it said before has been handed over. And that it is *gone*, from the pidfd: its files
are closed.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dora_state.runtime import channel, process, value
from dora_state.runtime.births import Births
from dora_state.runtime.handle import Worker
from dora_state.runtime.poller import READ, WRITE, Poller
from dora_state.runtime.slots import HostMemory
from dora_state.runtime.spares import Spares
from dora_state.runtime.zygote import Zygote

log = logging.getLogger("dora_state.supervisor")

_END_PATIENCE_S = 1.0
_TOLD_ON = (channel.DONE, channel.OUTPUT)  # what comes with every event is looked for first
_RETURNED_AT_ONCE = 16  # slots; fewer wait for the next event


class Workers:
    """Brings workers up and tells of their messages and deaths.

    Args:
        make_zygote: makes a zygote.
        operator: the operator's file; a spare that imported an older one is not used.
        memory: what the workers share with the host.
        has_spare: whether a spare is kept.
        adopts: see Births.
    """

    def __init__(
        self,
        make_zygote: Callable[[], Zygote],
        operator: Path,
        poller: Poller,
        memory: HostMemory,
        *,
        has_spare: bool,
        adopts: bool,
        on_message: Callable[[Worker, channel.Message], None],
        on_end: Callable[[Worker], None],
        on_death: Callable[[Worker], None],
        on_gone: Callable[[Worker], None],
        on_reaped: Callable[[Worker], None],
        on_spare_end: Callable[[], None],
    ) -> None:
        self._incarnation = 0  # the highest one given
        self._store: tuple[str, str] | None = None
        self.ever_imported = False
        self._closing = False  # deaths are wanted from here on
        self._poller = poller
        self._memory = memory
        self._on_message = on_message
        self._on_end = on_end  # before what it said last is read
        self._on_death = on_death
        self._on_gone = on_gone
        self._on_reaped = on_reaped
        self._on_spare_end = on_spare_end
        self.births = Births(
            make_zygote,
            poller,
            adopts=adopts,
            on_spawned=self._on_spawned,
            on_exited=self._on_exited,
            on_lost=self._on_lost,
        )
        self._tokens = itertools.count(1)
        self._alive: dict[int, Worker] = {}
        self._unreaped: dict[int, Worker] = {}
        self.spares = Spares(operator, is_kept=has_spare)
        self._eventfd: int | None = None  # written by the lifelines

    def open(self) -> None:
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.register(self._eventfd, READ, self._on_lifelines)
        self.births.open()

    def open_store(self, path: Path, durability: str, incarnation: int) -> None:
        """Have the workers, also those to come, open the store; their incarnations follow the given
        one.
        """
        self._incarnation = incarnation
        self._store = str(path), durability
        for each in self._alive.values():
            self._give_store(each)

    def _give_store(self, each: Worker) -> None:
        if self._store is not None:
            self._incarnation += 1
            each.incarnation = self._incarnation
            self.send(each, channel.OPEN, (*self._store, each.incarnation))

    def close(self) -> None:
        """Kill everything and wait until it is gone. Does nothing the second time."""
        self._closing = True
        for each in list(self._alive.values()):
            self.kill(each)
        self.births.close()
        pidfds = [each.pidfd for each in self._alive.values() if each.pidfd is not None]
        process.await_ends(pidfds, _END_PATIENCE_S)  # also of one whose zygote was killed
        for each in list(self._alive.values()):
            self._forget(each)
        self.spares.take()
        if self._eventfd is not None:
            self._unregister(self._eventfd)
            os.close(self._eventfd)
            self._eventfd = None

    # Bringing up

    def take(self) -> Worker:
        """A worker to start: the spare if there is a good one, else a new one."""
        spare = self.spares.take()
        if spare is not None and not spare.is_ending:
            if self.spares.is_current(spare):
                return spare
            self.kill(spare)
        return self._spawn()

    def wants_spare(self) -> bool:
        return self.spares.is_wanted() and not self._closing

    def make_spare(self) -> Worker:
        self.spares.spare = spare = self._spawn()
        return spare

    def _spawn(self) -> Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        new = Worker(next(self._tokens), ours)
        new.born_with = self.spares.signature()
        with theirs:
            self.births.ask(new.token, theirs, new.lifeline.fileno(), late=self.spares.imports_late)
        new.lifeline.close_memfd()
        self._alive[new.token] = self._unreaped[new.token] = new
        self._poller.register(ours, READ, lambda: self._on_socket(new))
        new.outputs, memory = self._memory.share_with(new.channel.sharing)
        self.send(new, channel.MEMORY, memory)
        self._give_store(new)
        return new

    # Talking

    def send(self, to: Worker, kind: int, document: object = None) -> None:
        with contextlib.suppress(OSError):  # it is dying; its pidfd will tell
            to.channel.send(kind, channel.pack(document))
        self.watch_room(to)

    def watch_room(self, to: Worker) -> None:
        """Have the loop send on what did not fit into the socket. To be called after each send."""
        wanted = not to.channel.is_flushed
        if wanted == to._watches_room:
            return
        to._watches_room = wanted
        events = READ | (WRITE if wanted else 0)
        if to.channel.fileno() >= 0:
            self._poller.modify(to.channel.socket, events)

    def _on_socket(self, each: Worker) -> None:
        if each is self.spares.spare:
            self._collect_deaths()  # it may speak because a lifeline has started it
        if each._watches_room:
            with contextlib.suppress(OSError):
                each.channel.flush()
            self.watch_room(each)
        self._read(each, False)

    def _read(self, each: Worker, everything: bool) -> None:
        """Take in what has arrived: one read, or, from a dead worker, all there is."""
        while True:
            try:
                messages = each.channel.receive()
            except BlockingIOError:
                return
            except OSError:
                messages = None
            except Exception as error:
                log.error(
                    "the operator's process is ended, as what came from it is no message (%s: %s); "
                    "its code has written to a descriptor that is not its own",
                    *(type(error).__name__, error),
                )
                messages = None
            if messages is None:
                # It is dead, or its code has closed descriptors that are not its own. Either way it
                # ends.
                self._unregister(each.channel.socket)
                self.kill(each)
                return
            for message in messages:
                self._take_in(each, message)
            if len(each.channel.sharing.returned) > _RETURNED_AT_ONCE:
                with contextlib.suppress(OSError):
                    each.channel.tell_returned()
            if not everything:
                return

    def _take_in(self, each: Worker, message: channel.Message) -> None:
        if message.kind in _TOLD_ON:
            self._on_message(each, message)
        elif message.kind == channel.TYPE:
            value.learn_type(each.channel, message.document)
        elif message.kind == channel.IMPORTED:
            each.pid = message.document["pid"]
            each.signature = tuple(message.document["signature"])
            self.ever_imported = True
            self.spares.has_imported(message.document["why_late"])
            self._watch(each)
        elif message.kind == channel.HOLDS:
            each.holds = message.document
        elif message.kind == channel.FAILED:
            each.failure = message.document
            self.kill(each)
        elif message.kind == channel.CONFLICT:
            each.conflict = message.document
            self.kill(each)
        else:
            self._on_message(each, message)

    # Ending

    def kill(self, each: Worker) -> None:
        """SIGKILL. Its death is reported when it has happened."""
        if each.noticed_end is None:
            each.noticed_end = time.monotonic()
        if each.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(each.pidfd, signal.SIGKILL)

    def send_signal(self, each: Worker, number: int) -> None:
        if each.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(each.pidfd, number)

    def await_reason(self, dead: Worker, patience_s: float) -> None:
        """Wait until the zygote has told how a dead worker ended, which takes it a moment."""
        deadline = time.monotonic() + patience_s
        while not dead.end_is_known:
            if not self.births.await_answer(deadline - time.monotonic()):
                return

    def close_down(self) -> None:
        """No more are wanted but the current one, until its end."""
        self._closing = True
        self.births.close_down()
        if self.spares.spare is not None:
            self.kill(self.spares.spare)

    def _watch(self, each: Worker) -> None:
        """Once the worker holds its lifeline, which IMPORTED says, and its pidfd is here."""
        if each.pid and each.pidfd is not None and self._eventfd is not None:
            each.lifeline.watch(each.pidfd, self._eventfd)

    def _on_lifelines(self) -> None:
        assert self._eventfd is not None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        self._collect_deaths()

    def _collect_deaths(self) -> None:
        """The oldest first: a lifeline may have made a younger one its successor."""
        for each in list(self._alive.values()):
            if not each.is_dead and each.lifeline.died:
                self.end(each)

    def _on_pidfd(self, each: Worker) -> None:
        each.is_gone = True
        self._collect_deaths()
        self.end(each)
        self._forget(each)
        self._on_gone(each)

    def end(self, each: Worker) -> None:
        """It is dead: take in what it said, and report its death. Does nothing the second time."""
        if each.is_dead:
            return
        each.is_dead = True
        if each is self.spares.spare:
            # It is the current worker if a lifeline has started it, and must not be started from here on.
            self._on_spare_end()
        each.report = each.lifeline.disarm()
        each.begun = each.lifeline.begun
        if each.noticed_end is None:
            each.noticed_end = each.report[2] if each.report else time.monotonic()
        self._on_end(each)
        self._read(each, True)
        self._unregister(each.channel.socket)
        each.channel.close()
        if each is not self.spares.spare or not self.ever_imported:
            self._on_death(each)
        elif self._closing:
            self.spares.take()
        else:
            self.spares.has_ended(each)

    def _forget(self, each: Worker) -> None:
        """Free what belongs to a worker that is gone."""
        self._unregister(each.channel.socket)
        each.channel.close()
        each.lifeline.close()
        if each.pidfd is not None:
            self._unregister(each.pidfd)
            os.close(each.pidfd)
            each.pidfd = None
        each.channel.sharing.take_all_back()
        if each.outputs is not None:
            each.outputs.close()  # what it has sent stays mapped
        self._alive.pop(each.token, None)

    def _unregister(self, thing: Any) -> None:
        self._poller.unregister(thing)

    # What the zygote tells

    def _on_spawned(self, token: int, pidfd: int) -> None:
        each = self._alive.get(token)
        if each is None:
            os.close(pidfd)
            return
        each.pidfd = pidfd
        self._poller.register(pidfd, READ, lambda: self._on_pidfd(each))
        self._watch(each)
        if each.noticed_end is not None:  # someone wanted it dead before it was born
            self.kill(each)

    def _on_exited(self, token: int, status: int) -> None:
        each = self._unreaped.pop(token, None)
        if each is not None:
            each.wait_status = status
            self._on_reaped(each)

    def _on_lost(self) -> None:
        """Nobody is left who could tell of their ends; those that have a pidfd tell themselves."""
        for each in list(self._alive.values()):
            if self.births.is_waiting(each.token):
                continue
            self._unreaped.pop(each.token, None)
            if each.channel.fileno() >= 0:
                self.kill(each)
            if each.pidfd is None:  # it was never born
                self._on_pidfd(each)
