"""Operators that hang: told in the log, and killed if that is asked for, with all stacks in the log first."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace

import pytest
from hosting import EAGER, LEDGER, kill, ledger

from dora_state.errors import OperatorError
from dora_state.runtime.policy import RestartPolicy


def hangs_once(place: str, tmp_path, how: str = "threading.Event().wait()") -> str:
    """LEDGER, with a second thread, that hangs the first time it comes to a place."""
    flag = tmp_path / "hung"
    once = (
        f"if not os.path.exists({str(flag)!r}):\n"
        f"                open({str(flag)!r}, 'x').close()\n"
        f"                {how}\n            "
    )
    source = LEDGER.replace("class Operator", "import os, signal, threading\n    class Operator")
    before = {
        "start": "self.count = self.total = 0",
        "restore": 'self.count, self.total = int(state["count"])',
        "event": "if event[",
    }[place]
    return source.replace(before, once + before)


@pytest.mark.parametrize("place", ["start", "restore", "event"])
def test_a_hang_is_told_and_killed_with_its_stacks_in_the_log(host, tmp_path, caplog, capfd, place):
    seconds = (
        0.5 if place == "start" else 0.05
    )  # a start begins with the import, which takes a while
    policy = replace(EAGER, kill_hung=(place,), **{f"{place}_deadline": seconds})
    hosted = host(hangs_once(place, tmp_path), policy=policy)
    if place == "restore":
        (tmp_path / "hung").touch()
    hosted.start()
    hosted.send(0, 1)
    if place == "restore":
        hosted.wait_outputs(2)
        (tmp_path / "hung").unlink()
        kill(hosted.wait_running()["worker_pid"])
    hosted.send(2)
    assert hosted.wait_outputs(3) == ledger(3)
    hosted.finish()
    where = {"start": "__init__", "restore": "restore_state", "event": "on_event"}[place]
    assert f"the operator has been in {where} for 0." in caplog.text
    assert "it is killed" in caplog.text
    errors = capfd.readouterr().err
    assert "Fatal Python error: Aborted" in errors
    assert "op.py" in errors
    assert f"hang in {place}" in str([each["last_crash"] for each in hosted.statuses])
    assert hosted.statuses[-1]["hangs"] >= 1


def test_by_default_a_hang_is_only_told(host, tmp_path, caplog):
    """It is let go by a signal, not by a kill."""
    how = "signal.signal(signal.SIGUSR1, lambda *_: None); signal.pause()"
    policy = RestartPolicy(event_deadline=0.05)
    hosted = host(hangs_once("event", tmp_path, how), policy=policy).start()
    hosted.send(0)
    hosted.wait(lambda: hosted.statuses[-1]["hangs"])
    kill(hosted.wait_running()["worker_pid"], signal.SIGUSR1)
    assert hosted.wait_outputs(1) == ledger(1)
    assert hosted.finish().clean
    assert hosted.supervisor.restarts == 0
    assert "the operator has been in on_event for 0." in caplog.text
    assert "it is killed" not in caplog.text


def test_a_worker_that_does_not_take_the_abort_is_killed(host, tmp_path):
    how = "os.kill(os.getpid(), signal.SIGSTOP)"
    policy = replace(EAGER, event_deadline=0.05, kill_hung=["event"])
    hosted = host(hangs_once("event", tmp_path, how), policy=policy).start()
    hosted.send(0, 1)
    assert hosted.wait_outputs(2) == ledger(2)
    hosted.finish()
    assert hosted.supervisor.restarts >= 1  # more if the machine is slow


@pytest.mark.parametrize("standby", ["fork", "off"])
def test_one_that_comes_to_its_end_after_the_abort_is_killed_all_the_same(host, standby):
    """At once, so that no other event is to blame, and no later death is taken for the hang."""
    policy = RestartPolicy(event_deadline=0.05, kill_hung=["event"])
    hosted = host(
        """
        import signal
        from dora_state import restore_info

        class Operator:
            def on_event(self, event, send_output):
                if event["value"] == b"hangs" and event["attempt"] == 1:
                    signal.signal(signal.SIGABRT, lambda *_: None)
                    signal.pause()
                send_output("why", f"{restore_info().reason} {event['attempt']}".encode())
                return 0
        """,
        policy=policy,
        standby=standby,
    ).start()
    hosted.send(b"hangs", b"the next")
    hosted.wait_outputs(2)
    status = hosted.wait_running(2)
    kill(status["worker_pid"])
    hosted.wait_running(status["incarnation"] + 1)
    hosted.send(b"after a kill")
    assert hosted.wait_outputs(3) == ["start 1", "hang 1", "exit 1"]
    hosted.finish()
    reasons = [each["last_crash"]["reason"] for each in hosted.statuses if each["last_crash"]]
    assert "hang in event" in reasons
    assert reasons[-1] == "signal 9 (SIGKILL)"


@pytest.mark.parametrize("kills", [True, False])
def test_an_import_that_hangs_is_told_too_and_killed_if_that_is_asked_for(
    host, tmp_path, caplog, capfd, kills
):
    wait = "while not os.path.exists({!r}): time.sleep(0.01)".format(str(tmp_path / "go"))
    source = LEDGER.replace("class Operator", f"import os, time\n    {wait}\n    class Operator")
    policy = RestartPolicy(start_deadline=0.05, kill_hung=["start"] if kills else [])
    hosted = host(source, policy=policy)
    if kills:
        with pytest.raises(OperatorError, match="hung while it was imported and was killed"):
            hosted.start()
        assert "op.py" in capfd.readouterr().err, "its stacks"
    else:
        threading.Thread(target=hosted.start).start()
        hosted.wait(lambda: hosted.statuses and hosted.statuses[-1]["hangs"])
        (tmp_path / "go").touch()
        hosted.send(0)
        assert hosted.wait_outputs(1) == ledger(1)
        assert hosted.finish().clean
    assert "the operator has been in its import for 0." in caplog.text


def test_an_output_restarts_the_deadline(host, caplog):
    """A handler that takes longer than its deadline, but sends all the while."""
    hosted = host(
        """
        import time

        class Operator:
            def on_event(self, event, send_output):
                end = time.monotonic() + 1.5
                while time.monotonic() < end:
                    send_output("alive", b"")
                    time.sleep(0.001)
                return 0
        """,
        policy=RestartPolicy(event_deadline=1.0, kill_hung=["event"]),
    ).start()
    hosted.send(0)
    hosted.finish()
    assert hosted.supervisor.restarts == 0
    assert "the operator has been in" not in caplog.text


@pytest.mark.parametrize("standby", ["fork", "off"])
@pytest.mark.parametrize("takes_the_abort", [True, False], ids=["aborted", "killed"])
def test_the_successor_of_a_killed_hang_is_told_that_it_was_one(host, standby, takes_the_abort):
    """A spare is started by the lifeline, which has nothing but a note to tell it by."""
    how = "threading.Event().wait()" if takes_the_abort else "os.kill(os.getpid(), signal.SIGSTOP)"
    hosted = host(
        f"""
        import os, signal, threading
        import dora_state

        class Operator:
            def on_event(self, event, send_output):
                if event["attempt"] == 1 and int(event["value"]) == 1:
                    {how}
                info = dora_state.restore_info()
                send_output("told", f"{{info.reason}}: {{info.detail}}".encode())
                return 0
        """,
        policy=replace(EAGER, event_deadline=0.3, kill_hung=["event"]),
        standby=standby,
    ).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    if standby == "fork":
        hosted.wait_spare()
    hosted.send(1)
    told = hosted.wait_outputs(2)[1]
    assert told.startswith("hang: ")
    assert "hang in event" in told
    hosted.finish()


def test_an_event_that_hangs_each_time_is_a_dead_letter(host):
    source = LEDGER.replace(
        "self.count += 1",
        "if number == 1: __import__('threading').Event().wait()\n                self.count += 1",
    )
    policy = RestartPolicy(restart_delay=0.0, event_deadline=0.4, kill_hung=["event"])
    hosted = host(source, policy=policy).start()
    hosted.send(0, 1, 2)
    assert hosted.wait_outputs(2) == ["0 1 0", "2 2 2"]
    hosted.finish()
    assert hosted.statuses[-1]["dead_letters"]["kept"] == 1
    assert hosted.statuses[-1]["last_crash"]["reason"] == "hang in event"


def test_an_operator_that_waits_for_events_does_not_hang(host):
    policy = RestartPolicy(restart_delay=0.0, event_deadline=0.001, kill_hung=["event"])
    hosted = host(policy=policy).start()
    assert hosted.machine.hang.due is None
    kill(hosted.wait_running()["worker_pid"])
    hosted.wait(lambda: hosted.statuses[-1]["restart_ms"])
    assert hosted.machine.hang.due is None
