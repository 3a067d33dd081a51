"""The few Linux calls that tie processes together.

A child of ours must never outlive the node: dora notices a node's end only at EOF of its output,
and a worker that goes on alone would go on acting. PR_SET_PDEATHSIG lets the kernel see to that,
whatever kills the parent. It is tied to the parent *thread* that forked, and it is not set yet if
the parent dies first: hence `die_with_parent` compares the parent afterwards.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when the thread that forked it ends. `parent` is the pid
    it had.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died between the fork and the call above


def become_subreaper() -> None:
    """Adopt the orphans among our descendants, so that they can be killed and reaped here."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> list[int]:
    """Pids of this single-threaded process's children, dead ones included."""
    me = os.getpid()
    try:
        with open(f"/proc/self/task/{me}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == me]


def _parent(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may hold anything, also ") "; what follows the last one is
            # fixed.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


class Footprint(NamedTuple):
    descriptors: int
    threads: int
    resident_bytes: int


def footprint() -> Footprint:
    """What this process holds."""
    with open("/proc/self/statm", "rb") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Footprint(len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident)


def ignore_stop_signals() -> None:
    """Leave SIGTERM and SIGINT to the host: dora signals the whole group, and the host stops its
    children in order.

    A handler that does nothing rather than SIG_IGN, because exec keeps SIG_IGN: a subprocess of the
    operator could then not be terminated. System calls are restarted, so an operator's C code sees
    no EINTR.
    """
    for number in _STOP_SIGNALS:
        signal.signal(number, _do_nothing)
        signal.siginterrupt(number, False)


def restore_stop_signals_in_forks() -> None:
    """Undo ignore_stop_signals in what an operator forks, so that it can be terminated.

    The signals are blocked during the fork: one that comes before the child has restored them would
    be lost.
    """
    masks: list[set[int | signal.Signals]] = []

    def before() -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS))

    def after_in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    def after_in_child() -> None:
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) is _do_nothing:  # else the operator installed something
                signal.signal(number, signal.SIG_DFL)
        after_in_parent()

    os.register_at_fork(
        before=before, after_in_parent=after_in_parent, after_in_child=after_in_child
    )


def _do_nothing(number: int, frame: object) -> None:
    pass


def describe_status(status: int | None) -> str:
    """A wait status in words: "signal 9 (SIGKILL)", "exit code 3"."""
    if status is None:
        return "unknown end"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "?"
        return f"signal {number} ({name})"
    return f"exit code {os.WEXITSTATUS(status)}"
