"""The loop's waker: what is handed in goes first, and what the descriptors say is never kept from it."""

from __future__ import annotations

import os

import pytest

from dora_state.runtime.poller import READ, Poller
from dora_state.runtime.waker import Waker


def test_one_who_wakes_all_the_time_keeps_nothing_from_the_loop() -> None:
    poller = Poller()
    waker = Waker(poller)
    reader, writer = os.pipe()
    calls: list[int] = []
    try:
        poller.register(reader, READ, lambda: calls.append(1))
        os.write(writer, b"x")
        for turn in range(1, 11):
            waker.wake()
            waker.turn(lambda: None)
            assert len(calls) == turn // 2
    finally:
        poller.close()
        os.close(reader)
        os.close(writer)


def test_a_wake_is_not_slept_over() -> None:
    poller = Poller()
    waker = Waker(poller)
    try:
        waker.wake()
        waker.turn(lambda: 3600.0)  # goes on at once
        waker.wake()
        waker.turn(lambda: 3600.0)  # looks, and does not wait
    finally:
        poller.close()


def test_one_that_is_closed_cannot_be_woken_and_closes_nothing_twice() -> None:
    poller = Poller()
    waker = Waker(poller)

    def close() -> None:
        waker.close()
        waker.wake()  # as from a thread that took it for asleep

    poller.register(reader := os.eventfd(0), READ, close)
    os.eventfd_write(reader, 1)
    waker.turn(lambda: 3600.0)
    poller.close()
    os.close(reader)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(waker.fileno())
    waker.wake()
    waker.close()
