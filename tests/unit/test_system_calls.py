"""T5: which system calls of the engine can fail in a test: those in CALL(), by test_faults each_call_site_fails."""

from __future__ import annotations

import re
from pathlib import Path

ENGINE = Path(__file__).parents[2] / "csrc"

# fmt: off
CALLS = [
    "open", "openat", "creat", "read", "pread", "write", "pwrite", "close", "fstat", "stat",
    "lstat", "statx", "fstatfs", "statfs", "fchmod", "fchown", "mkdir", "rmdir", "unlink",
    "unlinkat", "rename", "renameat", "link", "linkat", "symlink", "mmap", "munmap", "msync",
    "madvise", "mprotect", "mremap", "fsync", "fdatasync", "ftruncate", "fallocate", "flock",
    "fcntl", "dup", "dup2", "getrandom", "syscall", "poll", "nanosleep", "clock_gettime",
    "clock_nanosleep", "sysconf", "sigaction", "readdir", "opendir", "fdopendir", "closedir",
    "realpath", "ioctl",
]
# fmt: on

# What is not in CALL(), and why nothing is lost by that.
FREES = "it gives back what is valid: there is nothing to do if it fails"
HINT = "a hint, whose failure changes nothing but the time it takes"
CLOCK = "a clock that every kernel has"
OUTSIDE = {
    "os.c": {
        "close": FREES,
        "munmap": FREES,
        "madvise": HINT,
        "flock": "LOCK_UN: " + FREES,
        "sysconf": "the size of a page",
    },
    "os_directory.c": {"close": FREES, "closedir": FREES},
    "os_machine.c": {
        "close": FREES,
        "clock_gettime": CLOCK,
        "poll": "only sleeps",
        "syscall": "a futex, whose sleepers look again each second; membarrier, without which writers make fences",
        "mmap": "without it each call asks for the process's id",
        "madvise": "as for mmap",
    },
    "keeper.c": {"clock_gettime": CLOCK},
    "lock.c": {"clock_gettime": CLOCK},
    "sigbus.c": {
        "mmap": "in a signal's handler, which passes the signal on where it fails; without a list, no mapping",
        "munmap": FREES,
        "sigaction": "of a signal that exists",
        "sysconf": "the size of a page",
    },
}
ITS_OWN = {"lifeline.c"}  # no part of the engine: csrc/README.md


def without_calls(source: str) -> str:
    """The source without comments, strings, and what is between the parentheses of each CALL()."""
    source = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    source = re.sub(r'"(?:[^"\\\n]|\\.)*"', '""', source)
    parts = source.split("CALL(")
    kept = [parts[0]]
    for part in parts[1:]:
        depth, end = 1, 0
        while depth > 0:
            depth += (part[end] == "(") - (part[end] == ")")
            end += 1
        kept.append(part[end:])
    return "".join(kept)


def made(source: str) -> set[str]:
    """The system calls of a C source that are outside of CALL()."""
    return set(re.findall(rf"(?<![\w>.])({'|'.join(CALLS)})\(", without_calls(source)))


def test_every_system_call_can_fail_in_a_test_or_has_a_reason_not_to():
    for path in sorted(ENGINE.glob("*.[ch]")):
        if path.name not in ITS_OWN:
            assert made(path.read_text()) == set(OUTSIDE.get(path.name, ())), path.name


def test_the_test_sees_a_call():
    assert made("int fd = open(path, 0);") == {"open"}
    assert made("int fd = CALL(-1, open(path, 0)), gone = close(3);") == {"close"}
    assert made('ds__os_close(fd); file.read(x); s->write(y); /* open(x) */ "stat(x)"') == set()
