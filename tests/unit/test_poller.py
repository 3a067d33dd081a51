"""The poller: a call is made for what was ready, and for nothing that got its number since."""

from __future__ import annotations

import os

from dora_state.runtime.poller import READ, Poller


def ready_pipe() -> int:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    os.close(writer)
    return reader


def test_what_is_ready_is_called_and_what_was_unregistered_is_not():
    poller, called = Poller(), []
    first, second = ready_pipe(), ready_pipe()

    def end(other: int) -> None:
        called.append(other)
        poller.unregister(other)

    poller.register(first, READ, lambda: end(second))
    poller.register(second, READ, lambda: end(first))
    poller.turn(0)
    assert len(called) == 1  # whichever came first has kept the other from it
    poller.close()
    for fd in (first, second):
        os.close(fd)


def test_a_descriptor_that_gets_the_number_of_a_closed_one_is_not_taken_for_it():
    poller, called = Poller(), []
    fds = [ready_pipe(), ready_pipe()]

    def replace(other: int) -> None:
        poller.unregister(other)
        os.close(other)
        new, _ = os.pipe()  # gets the lowest number that is free; it has nothing to read
        os.dup2(new, other)
        poller.register(other, READ, lambda: called.append("wrong"))

    poller.register(fds[0], READ, lambda: replace(fds[1]))
    poller.register(fds[1], READ, lambda: replace(fds[0]))
    poller.turn(0)
    assert called == []
    poller.close()
