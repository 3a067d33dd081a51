"""The zygote is killed again and again: a robot that is left alone goes on."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from hosting import LEDGER, PATIENCE_S, Hosted, kill, ledger
from test_processes import descendants

from dora_state.errors import StateError
from dora_state.runtime import births
from dora_state.runtime.policy import RestartPolicy


def test_the_delay_grows_with_the_deaths_in_a_row():
    assert [births.delay_s(deaths) for deaths in range(6)] == [0.0, 0.0, 0.1, 0.2, 0.4, 0.8]
    assert births.delay_s(1000) == 10.0


def guardian_pid(hosted: Hosted) -> int | None:
    zygote = hosted.supervisor.workers.births._zygote
    return zygote.guardian_pid if zygote is not None else None


def kill_before_it_is_born(hosted: Hosted, count: int) -> None:
    """As many zygotes, one after the other, as soon as they are there. Polled: nobody tells of them."""
    deadline = time.monotonic() + PATIENCE_S
    last = None
    while count:
        assert hosted.error is None
        assert time.monotonic() < deadline
        pid = guardian_pid(hosted)
        if pid not in (None, last):
            kill(pid)
            last, count = pid, count - 1
        time.sleep(0.0005)


def test_zygotes_that_are_killed_as_they_come_up_do_not_end_the_node(host, monkeypatch, caplog):
    monkeypatch.setattr(births, "_LONGEST_DELAY_S", 0.2)
    hosted = host().start()
    hosted.send(0)
    hosted.wait_outputs(1)
    kill_before_it_is_born(hosted, 12)
    hosted.send(1, 2)
    assert hosted.wait_outputs(3) == ledger(3)
    hosted.wait_running()
    assert "it is started again in 0.2 s" in caplog.text
    assert hosted.supervisor.workers.births._deaths == 0  # a worker has become ready
    assert hosted.finish().clean
    assert hosted.state()["count"] == b"3"


def test_random_kills_of_everything_below_the_host_do_not_end_the_node(host, monkeypatch):
    """As fast as they can be found, for a second; then as a robot has it, one now and then."""
    monkeypatch.setattr(births, "_LONGEST_DELAY_S", 0.2)
    hosted = host().start()
    ours = descendants(os.getpid()) - descendants(guardian_pid(hosted)) - {guardian_pid(hosted)}
    killed = set()
    end = time.monotonic() + 1.0
    count = 0
    while time.monotonic() < end or len(killed) < 20:
        hosted.send(count)
        count += 1
        for pid in descendants(os.getpid()) - ours:
            kill(pid)
            killed.add(pid)
    hosted.wait_outputs(count)
    for _ in range(births._FIRST_TRIES + 1):
        kill(guardian_pid(hosted))
        hosted.send(count)
        count += 1
        hosted.wait_outputs(count)
    assert hosted.texts == ledger(count)
    assert hosted.finish().clean


def waits_for_its_birth(hosted: Hosted, incarnation: int) -> bool:
    current = hosted.machine.succession.current
    if current is None or current.incarnation != incarnation or not current.was_started:
        return False
    return current.token in hosted.supervisor.workers.births._asked


def test_a_worker_that_was_never_born_is_not_charged(host):
    """Its zygote was asked, and is dead before it could fork. That says nothing about the operator."""
    policy = RestartPolicy(max_restarts=1, restart_delay=0.0, exhausted="stop")
    # It holds something, so its successor is told to start when nothing is left of it.
    holds = "import socket; self.socket = socket.socket(); self.count = self.total = 0"
    source = LEDGER.replace("self.count = self.total = 0", holds)
    hosted = host(source, policy=policy, standby="off").start()
    for number in range(4):
        hosted.send(number)
        hosted.wait_outputs(number + 1)
        status = hosted.wait_running()
        zygote = hosted.supervisor.workers.births.zygote_pid
        kill(zygote, signal.SIGSTOP)
        kill(status["worker_pid"])
        deadline = time.monotonic() + PATIENCE_S
        while not waits_for_its_birth(hosted, status["incarnation"] + 1):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        kill(zygote)
        hosted.wait_running(status["incarnation"] + 2)  # the one between was never born
        assert hosted.machine.verdict.history.charges == ()
    assert hosted.finish().clean


def test_a_host_that_waits_for_its_next_zygote_ends_at_once(host, monkeypatch):
    monkeypatch.setattr(births, "_DELAY_S", 3600.0)
    monkeypatch.setattr(births, "_LONGEST_DELAY_S", 3600.0)
    hosted = host(shutdown_grace_s=1000.0).start()
    kill_before_it_is_born(hosted, 2)
    deadline = time.monotonic() + PATIENCE_S
    while guardian_pid(hosted) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    hosted.supervisor.request_stop()
    hosted.wait_end()


def test_one_that_cannot_be_started_is_tried_again(host, monkeypatch, caplog):
    monkeypatch.setattr(births, "_DELAY_S", 0.01)
    hosted = host().start()
    make = hosted.supervisor.workers.births._make_zygote
    refused = threading.Event()

    def refuse() -> object:
        if refused.is_set():
            return make()
        refused.set()
        raise BlockingIOError("Resource temporarily unavailable")

    hosted.supervisor.workers.births._make_zygote = refuse
    kill(guardian_pid(hosted))
    assert refused.wait(PATIENCE_S)
    hosted.send(0)
    assert hosted.wait_outputs(1) == ledger(1)
    assert "cannot be started: Resource temporarily unavailable" in caplog.text


def test_one_that_has_never_forked_is_given_up(host, monkeypatch):
    """Somebody is just starting it, and reads what is wrong."""
    monkeypatch.setattr(births, "_DELAY_S", 0.001)
    monkeypatch.setattr("dora_state.runtime.zygote._BOOT", "raise SystemExit(3)#{}")
    with pytest.raises(StateError, match="does not come up; see its output above"):
        host().start()
