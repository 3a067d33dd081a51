"""What the operator prints: read from pipes that the host owns, written to the host's own output.

The workers must not hold the node's stdout and stderr: dora reports a node's end only at EOF of
both, so one process that the operator left behind would hold up dora's restart (8.5 s were seen). A
thread relays, because writing can block for as long as dora likes. It never stops reading, so that
printing never blocks the operator; what exceeds the rate is dropped, and said.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time

RATE_BYTES = 1 << 20  # per second
BURST_BYTES = 4 << 20
QUIET_MS = 1000  # without output, before what was dropped is told
_CHUNK = 1 << 16


class Relay:
    """Two pipes and the thread that empties them. Give `stdout` and `stderr` to the children."""

    def __init__(self, to_stdout: int = 1, to_stderr: int = 2) -> None:
        self._targets: dict[int, int] = {}
        ends = []
        for target in (to_stdout, to_stderr):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            self._targets[reader] = target
            ends.append(writer)
        self.stdout, self.stderr = ends
        self._stop_reader, self._stop_writer = os.pipe()
        self._budget = _Budget()
        self._cut = to_stdout  # where something was dropped last
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 1.0) -> None:
        """Relay what is in the pipes, then end. To be called when the children are gone."""
        os.close(self.stdout)
        os.close(self.stderr)
        os.write(self._stop_writer, b"x")
        self._thread.join(timeout)  # whoever reads our output may have stopped reading
        if self._thread.is_alive():
            return
        for fd in (*self._targets, self._stop_reader, self._stop_writer):
            os.close(fd)

    def _run(self) -> None:
        poll = select.poll()
        for fd in (*self._targets, self._stop_reader):
            poll.register(fd, select.POLLIN)
        open_pipes = set(self._targets)
        while open_pipes:
            # What was dropped is told also if nothing more is printed.
            ready = {fd for fd, _ in poll.poll(QUIET_MS if self._budget.dropped else None)}
            if not ready:
                self._tell_dropped(self._cut)
            for fd in ready & open_pipes:
                if not self._move(fd):
                    open_pipes.discard(fd)
                    poll.unregister(fd)
            if self._stop_reader in ready and not ready & open_pipes:
                break  # someone the operator left behind may hold a pipe for ever
        self._tell_dropped(self._cut)

    def _move(self, fd: int) -> bool:
        """Relay one chunk; False at EOF."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return True
        if not data:
            return False
        target = self._targets[fd]
        if self._budget.take(len(data)):
            self._tell_dropped(target)
            _write(target, data)
        else:
            self._cut = target
        return True

    def _tell_dropped(self, target: int) -> None:
        if dropped := self._budget.collect_dropped():
            said = "\n[dora-state] dropped %d bytes of the operator's output: over %d KiB/s\n"
            _write(target, (said % (dropped, RATE_BYTES >> 10)).encode())


class _Budget:
    """A token bucket."""

    def __init__(self) -> None:
        self._tokens = float(BURST_BYTES)
        self._when = time.monotonic()
        self.dropped = 0

    def take(self, size: int) -> bool:
        now = time.monotonic()
        self._tokens = min(BURST_BYTES, self._tokens + (now - self._when) * RATE_BYTES)
        self._when = now
        if self._tokens < size:
            self.dropped += size
            return False
        self._tokens -= size
        return True

    def collect_dropped(self) -> int:
        dropped, self.dropped = self.dropped, 0
        return dropped


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    with contextlib.suppress(OSError):  # nobody reads our output any more
        while view:
            view = view[os.write(fd, view) :]
