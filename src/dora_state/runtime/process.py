"""The few Linux calls that tie processes together.

A child of ours must never outlive the node: dora notices a node's end only at EOF of its output,
and a worker that goes on alone would go on acting. PR_SET_PDEATHSIG lets the kernel see to that,
whatever kills the parent. It is tied to the parent *thread* that forked, and it is not set yet if
the parent dies first: hence `die_with_parent` compares the parent afterwards. What the operator
starts has no such signal: it falls to a subreaper among us, and that kills it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Collection
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    passed = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    if _libc.prctl(option, passed, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that forked it ends. `parent` is
    the pid it had.
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)  # it died between the fork and the call above


def be_called(name: str) -> None:
    """What ps and killall call this process: 15 bytes at most."""
    _prctl(_PR_SET_NAME, name.encode())


def become_subreaper(yes: bool = True) -> None:
    """Adopt the orphans among our descendants, so that they can be killed and reaped here."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(yes))


def children() -> set[int]:
    """Pids of this process's children, dead ones included."""
    found: set[int] = set()
    try:
        for task in os.listdir("/proc/self/task"):  # each thread has those that it forked
            with open(f"/proc/self/task/{task}/children", "rb") as file:
                found.update(int(pid) for pid in file.read().split())
    except OSError:  # a thread that ended just now, or a kernel without CONFIG_PROC_CHILDREN
        return _children_by_search()
    return found


def _children_by_search() -> set[int]:
    me = os.getpid()
    return {int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == me}


def kill_child(pid: int) -> bool:
    """SIGKILL. False if it is not ours to kill: a program with other rights, such as sudo."""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            return False
    return True


def end_children(spared: Collection[int] = (), patience_s: float | None = None) -> None:
    """Kill and reap our children, and what falls to us, a subreaper, when they die.

    Waits for each: only when one is dead, its own children are ours. After `patience_s` it gives
    up, as a process that hangs in the kernel does not die.
    """
    deadline = None if patience_s is None else time.monotonic() + patience_s
    untouchable = set(spared)
    # proc(5): the kernel's list may miss some while others end. That there are none is looked up.
    while pids := (children() - untouchable) or (_children_by_search() - untouchable):
        for pid in pids:
            if not kill_child(pid):
                untouchable.add(pid)
        for pid in pids - untouchable:
            if not _reap(pid, deadline):
                return


def _reap(pid: int, deadline: float | None) -> bool:
    """Wait for the end of a child until `deadline`."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it was reaped already
        fd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1e3
            if not poll.poll(left):
                return False
        finally:
            os.close(fd)
        os.waitpid(pid, 0)
    return True


def await_ends(pidfds: Collection[int], patience_s: float) -> None:
    """Wait until all these processes have ended, or the time is over."""
    deadline = time.monotonic() + patience_s
    for pidfd in pidfds:
        left = max(0.0, deadline - time.monotonic())
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(left * 1e3)


def _parent(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may hold anything, also ") "; what follows the last one is
            # fixed.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


class Footprint(NamedTuple):
    threads: int
    resident_bytes: int


def footprint() -> Footprint:
    """What this process holds."""
    with open("/proc/self/statm", "rb") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Footprint(len(os.listdir("/proc/self/task")), resident)


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
