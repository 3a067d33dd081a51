"""The zygote: a small process that forks workers quickly, and both ends of the talk with it.

It is exec'd, so it shares nothing with the host's threads; it stays single-threaded, so forking is
safe; it has the heavy modules imported, so a worker starts in milliseconds (4.4 against 89 for a
new interpreter). As subreaper it adopts what a dead worker leaves behind, kills it and reaps it.

The talk is datagrams of msgpack over a seqpacket socket pair:

    host to zygote   {"spawn": token, "late": bool}             with the worker's ends of its channel and its lifeline
    zygote to host   {"born": pid}                              once, when it is ready to fork, with its pidfd
                     {"spawned": token}                         with its pidfd
                     {"exited": token, "status": wait status}
    end of stream    the host is gone: kill all that is below, end; so too when the guardian is gone

`standby="process"` makes workers new interpreters instead of forks, for what does not survive a
fork (CUDA).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from dora_state.errors import OperatorError
from dora_state.runtime import channel, process
from dora_state.runtime import worker as worker_module
from dora_state.runtime.birth import Birth, WorkerConfig
from dora_state.runtime.guardian import stand_guard

_DATAGRAM_BYTES = 4096
_BOOT = "from dora_state.runtime import zygote; zygote.{}()"
# What `python -c` puts in front of sys.path is the dataflow's folder, where a user's numpy.py would
# win.
_CLEAN_PATH = "import sys; sys.path[:] = [p for p in sys.path if p]; "


class Zygote:
    """The host's handle. Start it from a thread that lives as long as the workers should
    (PDEATHSIG).
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        preload: Sequence[str] = (),
        forks: bool = True,
        environment: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = {
            "socket": theirs.fileno(),
            "parent": os.getpid(),
            "preload": list(preload),
            "forks": forks,
        }
        alive, self._alive = os.pipe()
        settings["alive"] = alive
        # The worker's part goes through a pipe: a dataflow's descriptor can be longer than an
        # argument may be.
        reader, writer = os.pipe()
        settings["config"] = reader
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CLEAN_PATH + _BOOT.format("main"), json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=dict(environment) if environment is not None else None,
                pass_fds=(theirs.fileno(), reader, alive),
            )
        except BaseException:
            ours.close()
            os.close(writer)
            os.close(self._alive)
            raise
        finally:
            theirs.close()
            os.close(reader)
            os.close(alive)
        with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "wb") as file:
            file.write(channel.pack(config.as_dict()))
        self.socket = ours
        self.socket.setblocking(False)
        self.pid: int | None = None  # once it is ready
        self._pidfd: int | None = None
        self.guardian_pid = self.process.pid

    def fileno(self) -> int:
        return self.socket.fileno()

    def spawn(self, token: int, sock: socket.socket, lifeline: int, *, late: bool) -> None:
        """Ask for a worker that talks over `sock`; `late`: that imports the operator when it is
        started. The answer comes through `receive`.
        """
        document = channel.pack({"spawn": token, "late": late})
        socket.send_fds(self.socket, [document], [sock.fileno(), lifeline])

    def receive(self) -> tuple[dict[str, Any], int | None] | None:
        """The next message and the pidfd that came with it; None when the zygote is gone. May raise
        BlockingIOError.
        """
        try:
            data, fds, _, _ = socket.recv_fds(self.socket, _DATAGRAM_BYTES, 1)
        except ConnectionResetError:
            return None
        if not data:
            return None
        return channel.unpack(data), (fds[0] if fds else None)

    def is_born(self, pid: int, pidfd: int) -> None:
        self.pid, self._pidfd = pid, pidfd

    def wake(self) -> None:
        """In case somebody has stopped it."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Whatever state it is in. Its end is noticed as the end of its socket."""
        self._signal(signal.SIGKILL)
        self.process.kill()

    def _signal(self, number: int) -> None:
        assert self._pidfd is not None
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def close(self, timeout: float = 1.0) -> None:
        """End the zygote and, through it, everything it has forked."""
        self.socket.close()
        os.close(self._alive)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._pidfd is not None:
            # The guardian has waited for it, unless it was killed: then the zygote is at it now.
            process.await_ends([self._pidfd], timeout)
            os.close(self._pidfd)
            self._pidfd = None


def main() -> NoReturn:
    """The zygote process."""
    settings = json.loads(sys.argv[1])
    # Not to be ended with it: what the operator started has to be killed first.
    guardian = stand_guard(
        settings["parent"], settings["alive"], [settings["socket"], settings["config"]]
    )
    process.ignore_stop_signals()
    process.become_subreaper()
    with os.fdopen(settings["config"], "rb") as file:
        config = channel.unpack(file.read())
    if settings["forks"]:
        _preload(settings["preload"])
    sock = socket.socket(fileno=settings["socket"])
    sock.set_inheritable(False)
    gc.collect()
    gc.freeze()  # a collection in a worker would otherwise copy every page that is shared
    _Nursery(sock, guardian, config, settings["preload"], forks=settings["forks"]).serve()
    os._exit(0)


def _preload(names: Sequence[str]) -> None:
    for name in names:
        # What is missing here fails, or does not, where the operator imports it.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


class _Nursery:
    """The zygote's loop: spawn, reap, report."""

    def __init__(
        self,
        sock: socket.socket,
        guardian: int,
        config: dict[str, Any],
        preload: Sequence[str],
        *,
        forks: bool,
    ) -> None:
        self._socket = sock
        self._guardian = guardian
        self._config = config
        self._preload = preload
        self._forks = forks
        self._workers: dict[int, int] = {}  # pid: token
        self._wake_reader, self._wake_writer = os.pipe()
        for fd in (self._wake_reader, self._wake_writer):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, _noted)
        # It comes to the whole group with the end of a terminal, and must not end us before the
        # rest.
        signal.signal(signal.SIGHUP, _noted)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN)
        poll.register(self._guardian, select.POLLIN)
        with contextlib.suppress(OSError):  # the host is gone; we notice in a moment
            me = os.pidfd_open(os.getpid())
            socket.send_fds(self._socket, [channel.pack({"born": os.getpid()})], [me])
            os.close(me)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wake_reader in ready:
                with contextlib.suppress(BlockingIOError):
                    while os.read(self._wake_reader, 512):
                        pass
                self._reap()
            if self._guardian in ready:
                break
            if self._socket.fileno() in ready and not self._answer():
                break
        process.end_children()

    def _answer(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _DATAGRAM_BYTES, 2)
        except ConnectionResetError:  # the host is gone, and had not read all we said
            return False
        if not data:
            return False
        request = channel.unpack(data)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_worker(Birth(fds[0], fds[1], request["spawn"], request["late"]), parent)
        for fd in fds:
            os.close(fd)
        self._workers[pid] = request["spawn"]
        # The pid cannot be reused before we reap it, and we reap only after this.
        pidfd = os.pidfd_open(pid)
        document = channel.pack({"spawned": request["spawn"]})
        with contextlib.suppress(OSError):  # the host is gone; we notice in a moment
            socket.send_fds(self._socket, [document], [pidfd])
        os.close(pidfd)
        return True

    def _become_worker(self, birth: Birth, parent: int) -> NoReturn:
        try:
            process.die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            self._socket.close()
            os.close(self._wake_reader)
            os.close(self._wake_writer)
            os.close(self._guardian)
            if self._forks:
                worker_module.run(birth, WorkerConfig(**self._config))
            self._become_interpreter(birth)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(worker_module.FAILED_EXIT)

    def _become_interpreter(self, birth: Birth) -> NoReturn:
        reader = _as_file(channel.pack(self._config))
        settings = {"birth": birth, "config": reader, "preload": self._preload}
        for fd in (birth.socket, birth.lifeline, reader):
            os.set_inheritable(fd, True)
        code = _CLEAN_PATH + _BOOT.format("worker_main")
        os.execv(sys.executable, [sys.executable, "-c", code, json.dumps(settings)])

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            token = self._workers.pop(pid, None)
            if token is not None:
                with contextlib.suppress(OSError):
                    self._socket.send(channel.pack({"exited": token, "status": status}))
                self._sweep()

    def _sweep(self) -> None:
        """Kill what a dead worker left to us. Killing one may hand us its children: SIGCHLD brings
        us back.
        """
        for pid in process.children() - self._workers.keys():
            process.kill_child(pid)


def worker_main() -> NoReturn:
    """A worker that is an interpreter of its own."""
    settings = json.loads(sys.argv[1])
    process.ignore_stop_signals()
    with os.fdopen(settings["config"], "rb") as file:
        config = channel.unpack(file.read())
    birth = Birth(*settings["birth"])
    for fd in (birth.socket, birth.lifeline):
        os.set_inheritable(fd, False)
    _preload(settings["preload"])
    worker_module.run(birth, WorkerConfig(**config))


def _as_file(data: bytes) -> int:
    """A file descriptor that reads as `data`, of any size."""
    fd = os.memfd_create("dora-state")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _noted(number: int, frame: object) -> None:
    """A signal needs a handler for the wakeup descriptor to be written."""


__all__ = ["OperatorError", "Zygote", "main", "worker_main"]
