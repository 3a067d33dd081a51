"""Reloading: an operator of the new code takes the place of the old one, between two events.

As dora's own runtime does it: the file is executed again, `Operator()` is called, and its `__dict__`
is replaced by that of the old object. Other than there the new code gets a module of its own, so that
code that fails half-way leaves nothing changed under the old object, which then stays. Code that hangs is made
to fail, if that is asked for: the host interrupts it (deadline.py).
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

# Ignored by default, so one that comes when the reload is just through changes nothing.
INTERRUPT = signal.SIGURG


class HungError(BaseException):
    """The new code took too long. No Exception: what it tries again for ever must not catch it."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """INTERRUPT raises HungError in here, wherever the main thread is, unless that is in C and does not return."""

    def interrupt(number: int, frame: object) -> None:
        raise HungError("it was interrupted, as its start_deadline had passed")

    before = signal.signal(INTERRUPT, interrupt)
    try:
        yield
    finally:
        signal.signal(INTERRUPT, before or signal.SIG_DFL)  # None: of one that was set in C


def replace(
    module: ModuleType,
    old: Any,
    class_name: str,
    load: Callable[[str], ModuleType],
    accept: Callable[[Any], None] = lambda operator: None,
) -> tuple[ModuleType, Any]:
    """The new module and the new operator, of the class that goes by `class_name` there.

    `load` imports the file under a name; `accept` may refuse the new operator by raising.

    Raises whatever the new code raises; `old` and its module are then as they were.
    """
    name = module.__name__
    carried = old.__dict__  # the same dict, as threads of the old object go on with it
    before = dict(carried)
    try:
        with interruptible():
            new_module = load(name)
            new = getattr(new_module, class_name)()
            new.__dict__ = carried
            accept(new)
    except BaseException:
        sys.modules[name] = module
        carried.clear()
        carried.update(before)
        raise
    return new_module, new
