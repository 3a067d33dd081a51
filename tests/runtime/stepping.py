"""Runs a stopped worker one instruction at a time, to kill it within its commit.

A hook in the engine would cost every commit something, so the processor does it. The points are where append.c
publishes something: they are seen in the files, which are mapped here, too.

The tracer is the calling thread: ptrace belongs to threads.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import signal
import struct
import time
from pathlib import Path

import pytest
from hosting import PATIENCE_S, Hosted

# What is in the files when the worker dies, in the order of append.c. From word0 on its commit counts.
COMMIT_POINTS = ("before-word0", "word0", "index", "committed")

# Elsewhere the registers lie at other places, and stepping through a pair of exclusive load and store, of which
# atomic operations may be made on arm64, breaks the pair each time: that would never end.
only_where_steps_work = pytest.mark.skipif(
    platform.machine() != "x86_64",
    reason="the worker is stepped through instruction by instruction",
)

_ATTACH, _STEP, _PEEK_USER, _WALL = 16, 9, 3, 0x40000000
_RIP = 128  # of the instruction pointer in what _PEEK_USER reads
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_COMMITTED = 256  # its place in the control page
_FRAME_MARK = 0xD57A


def trace(request: int, pid: int) -> None:
    if _libc.ptrace(request, pid, None, None) < 0:
        number = ctypes.get_errno()
        if number == 1:
            pytest.skip("no permission to trace the worker")
        raise OSError(number, os.strerror(number))


def attach_to_stopped(hosted: Hosted, incarnation: int) -> int:
    """The worker that has stopped itself."""
    pid = hosted.wait_running(incarnation)["worker_pid"]
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.001)
    trace(_ATTACH, pid)
    _, status = os.waitpid(pid, _WALL)
    while os.WSTOPSIG(status) != signal.SIGTRAP:  # its own SIGSTOP, and the one of attaching
        trace(_STEP, pid)
        _, status = os.waitpid(pid, _WALL)
    return pid


def steps(pid: int, count: int) -> None:
    for _ in range(count):
        assert step_once(pid)


def step_once(pid: int) -> bool:
    """False if the worker has stopped itself again."""
    trace(_STEP, pid)
    _, status = os.waitpid(pid, _WALL)
    assert os.WIFSTOPPED(status), "it has ended"
    return os.WSTOPSIG(status) != signal.SIGSTOP


def steps_in_the_engine(pid: int) -> tuple[int, int]:
    """The first and the last step that is made in the engine's code, until the worker stops itself."""
    low, high = engine_code(pid)
    inside = []
    count = 0
    while step_once(pid):
        count += 1
        if low <= _libc.ptrace(_PEEK_USER, pid, _RIP, None) < high:
            inside.append(count)
    return inside[0], inside[-1]


def engine_code(pid: int) -> tuple[int, int]:
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    (code,) = [line for line in maps if "/_core." in line and " r-xp " in line]
    low, _, high = code.split()[0].partition("-")
    return int(low, 16), int(high, 16)


def kill_traced(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while not os.WIFSIGNALED(os.waitpid(pid, _WALL)[1]):
        pass


class CommitWatch:
    """Which point the commit that comes next has reached, by the files of a store with one segment."""

    def __init__(self, store: Path) -> None:
        (index,), (log,) = store.glob("index.*"), store.glob("*.log")
        self._control, self._index, self._log = map(_map, (store / "control", index, log))
        self._slots = self._index[:]
        self._begin = self._committed()
        assert self.point() is None

    def point(self) -> str | None:
        if self._committed() != self._begin:
            return "committed"
        if self._index[:] != self._slots:
            return "index"
        word0, *rest = struct.unpack_from("<3Q", self._log, self._begin)
        if word0:
            assert word0 >> 48 == _FRAME_MARK
            return "word0"
        return "before-word0" if any(rest) else None

    def _committed(self) -> int:
        (offset,) = struct.unpack_from("<Q", self._control, _COMMITTED)
        assert 0 < offset < len(self._log)
        return int(offset)


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def step_to(pid: int, watch: CommitWatch, point: str) -> None:
    while watch.point() != point:
        assert step_once(pid), f"the commit was over before {point} was seen"
