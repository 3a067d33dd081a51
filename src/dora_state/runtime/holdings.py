"""What a process holds that two processes must not hold at once: sockets, devices, locks.

A dead worker's files are closed only after its memory is freed, 60 ms later at 1 GiB. A successor
that opens the same port or camera in `__init__` has to wait for that; one whose predecessor held
nothing of the kind need not.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

_HARMLESS = {
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
}


class Descriptor(NamedTuple):
    """What is open under a number, as the next file may get the number."""

    fd: int
    device: int
    inode: int


def descriptors() -> frozenset[Descriptor]:
    """The descriptors that are open: a baseline."""
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # that of the listing itself is closed by now
            status = os.fstat(fd)
            found.add(Descriptor(fd, status.st_dev, status.st_ino))
    return frozenset(found)


def beyond(baseline: frozenset[Descriptor]) -> list[str]:
    """What is held since, as the kernel names it; child processes too, as they hold what they
    please.
    """
    held = []
    for fd, _, _ in sorted(descriptors() - baseline):
        with contextlib.suppress(OSError):  # another thread has closed it
            name = os.readlink(f"/proc/self/fd/{fd}")
            if _is_exclusive(name) or _is_locked(fd):
                held.append(name)
    return held + _mapped_devices() + _children()


def _is_exclusive(name: str) -> bool:
    return name.startswith("socket:") or (
        name.startswith("/dev/")
        and name not in _HARMLESS
        and not name.startswith(("/dev/shm/", "/dev/pts/"))
    )


def _is_locked(fd: int) -> bool:
    """Exclusively: a shared lock, as each of our stores has one, lets the successor have it too."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return any(line.startswith(b"lock:") and b" WRITE " in line for line in file)


def _mapped_devices() -> list[str]:
    """A device whose descriptor was closed stays open while it is mapped."""
    with open("/proc/self/maps", "rb") as file:
        lines = [line.decode(errors="replace") for line in file if b" /dev/" in line]
    names = {line.split(maxsplit=5)[5].strip().removesuffix(" (deleted)") for line in lines}
    return sorted(filter(_is_exclusive, names))


def _children() -> list[str]:
    found: list[str] = []
    with contextlib.suppress(OSError):  # a kernel without CONFIG_PROC_CHILDREN
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children") as file:
                found += [f"process {pid}" for pid in file.read().split()]
    return found
