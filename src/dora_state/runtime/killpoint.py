"""Named kill points: where a test lets a worker die, at an exact place that a random kill would
hardly ever hit.

The environment variable DORA_STATE_KILL lists them as `name@n` or `name@n=how`, separated by
commas. For the points around an event, n is its number, and only the first attempt dies; for those
around a start, n is the incarnation, except for import, where it counts the host's workers. `how` is
kill (SIGKILL, the default), abort, segv, exit, quit (sys.exit), raise, or stop (SIGSTOP). Without the variable,
`reach` does nothing. The names, in the order in which a worker meets them:

    import init after-init restore after-restore after-restore-commit
    event output torn-output after-output before-commit after-commit after-ack

and with `shared_writes = "commit"` (shared_step.py), around the two stores and when a successor recovers:

    before-prepare after-prepare after-marker       recover after-claim after-recover

within a commit, where a hook would cost every commit something, tests/runtime/stepping.py stops a worker:

    before-word0 word0 index committed

and in the host, by the number of the event that is with the worker (hand-out: before it is sent):

    hand-out after-hand-out   before-fence after-fence   forward after-forward

DORA_STATE_KILL_FILE names a file that says it while the worker runs: `name@n=how`, for the first worker that gets
there with that number or a higher one. It takes the file away (dora_state.testing).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

START_POINTS = (
    "import",
    "init",
    "after-init",
    "restore",
    "after-restore",
    "after-restore-commit",
)
EVENT_POINTS = (
    "event",
    "output",
    "torn-output",
    "after-output",
    "before-commit",
    "after-commit",
    "after-ack",
)
SHARED_POINTS = ("before-prepare", "after-prepare", "after-marker")
RECOVERY_POINTS = ("recover", "after-claim", "after-recover")
HOST_POINTS = (
    "hand-out",
    "after-hand-out",
    "before-fence",
    "after-fence",
    "forward",
    "after-forward",
)
_OF_A_START = START_POINTS + RECOVERY_POINTS
_NAMES = _OF_A_START + EVENT_POINTS + SHARED_POINTS + HOST_POINTS
ENVIRONMENT = "DORA_STATE_KILL"
FILE_ENVIRONMENT = "DORA_STATE_KILL_FILE"


class KilledError(Exception):
    """What `how` = raise raises."""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _abort() -> None:
    os.abort()


def _segv() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _exit() -> None:
    os._exit(0)


def _quit() -> None:
    sys.exit(0)


def _raise() -> None:
    raise KilledError("a kill point")


HOW: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "stop": _stop,
    "abort": _abort,
    "segv": _segv,
    "exit": _exit,
    "quit": _quit,
    "raise": _raise,
}


def _parse(text: str) -> dict[tuple[str, int], str]:
    points = {}
    for item in filter(None, text.split(",")):
        place, _, how = item.partition("=")
        name, _, n = place.partition("@")
        if name not in _NAMES or not n.isdigit() or (how or "kill") not in HOW:
            raise ValueError(f"{ENVIRONMENT} has {item!r}; use name@number or name@number=how")
        points[name, int(n)] = how or "kill"
    return points


_points = _parse(os.environ.get(ENVIRONMENT, ""))
_file = os.environ.get(FILE_ENVIRONMENT)
_attempt = 1


def attempt(number: int) -> None:
    """Tell which attempt at its event this process is making."""
    global _attempt
    _attempt = number


def _is_listed(name: str, n: int) -> bool:
    return (name, n) in _points and (name in _OF_A_START or _attempt == 1)


def _armed(name: str, n: int) -> str | None:
    """How to die here, if the file says so."""
    if _file is None:
        return None
    try:
        with open(_file, encoding="ascii") as file:
            [((wanted, least), how)] = _parse(file.read()).items()
    except FileNotFoundError:
        return None
    return how if wanted == name and n >= least else None


def is_set(name: str, n: int) -> bool:
    return _is_listed(name, n) or _armed(name, n) is not None


def reach(name: str, n: int) -> None:
    """Die here if the environment says so."""
    if _points and _is_listed(name, n):
        HOW[_points[name, n]]()
    if _file is not None and (how := _armed(name, n)) is not None:
        os.unlink(_file)
        HOW[how]()
