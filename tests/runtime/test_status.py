"""What others can see of an operator: the record in the shared store, written and read."""

from __future__ import annotations

import signal

from hosting import kill

from dora_state import Store
from dora_state.runtime import status


def test_a_record_is_read_as_it_was_written_and_collides_with_no_user_key(tmp_path):
    with Store(tmp_path / "shared") as store:
        store.put("status/counter", b"a user's")
        assert status.read(store, "counter") is None
        status.write(store, "counter", {"state": "running", "restarts": 1})
        status.write(store, "other/status", {"state": "ended"})
        assert status.read(store, "counter") == {"state": "running", "restarts": 1}
        assert status.read_all(store) == {
            "counter": {"state": "running", "restarts": 1},
            "other/status": {"state": "ended"},
        }
        assert store["status/counter"] == b"a user's"


def test_a_crash_by_an_exception_is_on_record_with_its_traceback(host):
    hosted = host(kill="event@2=raise").start()
    hosted.send(0, 1)
    hosted.wait_outputs(2)
    hosted.finish()
    crash = hosted.statuses[-1]["last_crash"]
    assert crash["reason"] == "exception in event: KilledError: a kill point"
    assert crash["phase"] == "event"
    assert crash["error"] == "KilledError: a kill point"
    assert "raise KilledError" in crash["traceback"]
    assert (crash["event"], crash["attempt"]) == (2, 1)
    assert crash["signal"] is None
    assert hosted.statuses[-1]["replayed"] == 1


def test_a_crash_by_a_signal_is_on_record_with_its_signal(host):
    hosted = host().start()
    hosted.send(0)
    hosted.wait_outputs(1)
    kill(hosted.wait_running()["worker_pid"], signal.SIGSEGV)
    # The kernel tells of the death first, and of its reason when the zygote has reaped it.
    last = hosted.wait(
        lambda: (
            hosted.statuses[-1]["last_crash"]
            and hosted.statuses[-1]["last_crash"]["signal"]
            and hosted.statuses[-1]
        )
    )
    assert last["last_crash"]["signal"] == signal.SIGSEGV
    assert last["last_crash"]["reason"] == "signal 11 (SIGSEGV)"
    assert last["last_crash"]["event"] is None
    assert last["restarts"] == 1
    assert last["replayed"] == 0


def test_an_exit_code_is_on_record(host):
    hosted = host(kill="event@1=exit").start()
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.finish()
    assert hosted.statuses[-1]["last_crash"]["exit_code"] == 0


def test_restores_are_counted_by_their_time(host):
    hosted = host(kill="event@2,event@3").start()
    hosted.send(*range(4))
    hosted.wait_outputs(4)
    hosted.finish()
    histogram = hosted.statuses[-1]["restore_ms"]
    assert [bound for bound, _ in histogram] == [*status.RESTORE_BOUNDS_MS, None]
    assert sum(count for _, count in histogram) == 2


def test_the_last_record_says_that_it_ended_and_why(host):
    hosted = host().start()
    hosted.finish()
    assert hosted.statuses[-1]["state"] == "ended"
    assert hosted.statuses[-1]["why"] == "told to stop"
