"""The guardian: a small process between the host and the zygote, which ends what both leave behind.

The kernel ends our own processes with their parents (PDEATHSIG), but not what the operator has
started, perhaps in a session of its own. That falls to the nearest living subreaper above: the
zygote, then the guardian, then the host. Host and zygote can be killed in the same moment, as by
SIGKILL to the node's process group or to every python3. So the guardian has a session of its own,
which no signal to the group reaches, and a name of its own, which `killall python3` does not hit. It
does nothing but wait:

    the host is dead, or has closed its end of the pipe    kill and reap all that is below, end
    the zygote is dead                                     the same; the host notices, and begins anew
    the guardian itself is dead                            the zygote does the same (zygote.py)

Only when all three are killed in one moment does something that the operator started go on; our own
processes end even then. A fourth that watches could be killed with the three, and those that no watcher
needs (a PID namespace, a cgroup, PTRACE_O_EXITKILL) take rights that a node does not have.
"""

from __future__ import annotations

import os
import select
import signal

from dora_state.runtime import process

NAME = "dora-guardian"


def stand_guard(host: int, alive: int, closed: list[int]) -> int:
    """Fork the zygote, and guard it until the end. Returns in the zygote only: a pidfd of the guardian.

    Args:
        host: the pid of the host, our parent.
        alive: a pipe that ends with the host.
        closed: the zygote's descriptors, which must not be held here.
    """
    process.die_with_parent(host, signal.SIGCONT)  # one that was stopped gets to know
    host_pidfd = os.pidfd_open(host)
    if os.getppid() != host:  # the pid may be another's by now
        os._exit(1)
    me = os.getpid()
    my_pidfd = os.pidfd_open(
        me
    )  # here, as the zygote's parent may be another one by the time it asks
    zygote = os.fork()
    if zygote == 0:
        os.close(host_pidfd)
        os.close(alive)
        process.die_with_parent(me, signal.SIGCONT)
        return my_pidfd
    try:
        process.be_called(NAME)
        for fd in closed:
            os.close(fd)
        os.setsid()
        process.ignore_stop_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        process.become_subreaper()
        _wait_for_any(host_pidfd, alive, os.pidfd_open(zygote))
        process.end_children()
    finally:
        os._exit(0)


def _wait_for_any(*descriptors: int) -> None:
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    poll.poll()
