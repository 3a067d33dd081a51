"""How the command line talks to a running host: a socket beside the operator's private store.

`state/<node>.control` takes one request for each connection, a msgpack map {"do": name, ...}, and
gives one answer, a map with the result or with "error". The name of a socket may only have 107 bytes,
so both ends reach it through a descriptor of its folder. Only this user, and root, is listened to.

    {"do": "reload"}                        put an operator of the new code in the place of the old
    {"do": "replay", "numbers": [...]}      hand dead letters out again
    {"do": "drop", "numbers": [...]}        forget dead letters
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from dora_state.errors import StateError
from dora_state.runtime.poller import READ, Poller

log = logging.getLogger("dora_state.supervisor")

_REQUEST_BYTES = 1 << 16
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid

Answer = dict[str, Any]
Reply = Callable[[Answer], None]


def path_beside(store: Path) -> Path:
    """Where the host of this private store listens."""
    return store.with_name(store.name + ".control")


class Control:
    """The host's end. `handle` gets each request, and a function that takes the answer, now or later."""

    def __init__(
        self,
        path: Path,
        poller: Poller,
        handle: Callable[[dict[str, Any], Reply], None],
    ) -> None:
        self._path = path
        self._poller = poller
        self._handle = handle
        self._clients: set[socket.socket] = set()
        self._socket = _socket()
        self._socket.setblocking(False)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # of a host that was killed: this store has one owner at a time
        with _reachable(path) as name:
            self._socket.bind(name)
        self._socket.listen()
        poller.register(self._socket, READ, self._on_connection)

    def close(self) -> None:
        for client in list(self._clients):
            self._end(client)
        with contextlib.suppress(KeyError):
            self._poller.unregister(self._socket)
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _on_connection(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:  # it went away again, or there is no descriptor left
            return
        client.setblocking(False)
        raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(raw)[1] not in (0, os.geteuid()):
            client.close()
            return
        self._clients.add(client)
        self._poller.register(client, READ, lambda: self._on_request(client))

    def _on_request(self, client: socket.socket) -> None:
        try:
            data = client.recv(_REQUEST_BYTES)
        except OSError:
            data = b""
        if not data:
            self._end(client)
            return

        def reply(answer: Answer) -> None:
            with contextlib.suppress(OSError):  # nobody waits for it any more
                client.send(msgpack.packb(answer))
            self._end(client)

        try:
            request = msgpack.unpackb(data)
            if not isinstance(request, dict):
                raise TypeError("a request is a map")
            self._handle(request, reply)
        except (StateError, ValueError, TypeError, LookupError, OSError) as error:
            reply({"error": f"{error}"})

    def _end(self, client: socket.socket) -> None:
        if client in self._clients:
            self._clients.remove(client)
            self._poller.unregister(client)
            client.close()


def ask(path: Path, request: dict[str, Any], timeout_s: float) -> Answer | None:
    """Ask the host that listens there; None if there is none. TimeoutError if it gives no answer in time."""
    with _socket() as sock:
        sock.settimeout(timeout_s)
        try:
            with _reachable(path) as name:
                sock.connect(name)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        try:
            sock.send(msgpack.packb(request))
            data = sock.recv(_REQUEST_BYTES)
        except (ConnectionResetError, BrokenPipeError):
            data = b""
    if not data:
        raise StateError("the host of the operator has ended without an answer; see its log")
    answer: Answer = msgpack.unpackb(data)
    return answer


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A short name for a file with a long path."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
