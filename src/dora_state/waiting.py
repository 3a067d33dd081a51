"""A blocking wait as a coroutine: it neither blocks the event loop nor outlives its await for long.

A wait sleeps on a word in shared memory, which no event loop can watch, so it gets a thread of its own. Not one of
the loop's pool: that one has few, and waits for minutes would take them all. When the await is cancelled the coroutine
ends at once, and the thread with its present slice of sleep.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


async def in_thread(wait: Callable[[threading.Event], _T]) -> _T:
    """What `wait` returns or raises. It runs in a thread, and is to end soon once its argument is set."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()
    cancelled = threading.Event()

    def tell(deliver: Callable[[Any], None], outcome: Any) -> None:
        if not done.done():
            deliver(outcome)

    def run() -> None:
        deliver: Callable[[Any], None]
        try:
            outcome: Any = wait(cancelled)
            deliver = done.set_result
        except BaseException as error:
            outcome, deliver = error, done.set_exception
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(tell, deliver, outcome)

    # A daemon: the end of the program does not wait for what nobody awaits.
    threading.Thread(target=run, name="dora-state wait", daemon=True).start()
    try:
        return await done
    finally:
        cancelled.set()
