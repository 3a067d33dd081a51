"""Processes that are stopped (SIGSTOP): nothing hangs for them, and one that is resumed has no say any more."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from hosting import LEDGER, PATIENCE_S, Hosted, kill, ledger, wait_file, wait_gone

from dora_state.runtime import births

# Waits inside of its first event, until a file is there, and tells that it does.
WAITS = LEDGER.replace(
    'number = int(event["value"])',
    """number = int(event["value"])
                import os, time
                if number == 1 and event["attempt"] == 1:
                    print("busy", file=open({busy!r}, "w"))
                    while not os.path.exists({go!r}):
                        time.sleep(0.001)""",
)


def in_the_loop(hosted: Hosted, function) -> None:
    """Call something in the supervisor's thread."""
    done = threading.Event()
    original = hosted.supervisor._waker._on_wake

    def call() -> None:
        original()
        if not done.is_set():
            function()
            done.set()

    poller, reader = hosted.supervisor._poller, hosted.supervisor._waker._reader
    poller._calls[reader.fileno()] = call
    os.write(hosted.supervisor.wakeup_fd, b"\0")  # wake() writes none to a loop that is awake
    assert done.wait(PATIENCE_S)


@pytest.mark.parametrize("point", ["before the commit", "before an output"])
def test_a_stale_incarnation_that_is_resumed_can_neither_commit_nor_send(host, tmp_path, point):
    """It is stopped inside its handler, taken for dead, and replaced. Nobody kills it: that is what fails
    here. Then it goes on.
    """
    busy, go = tmp_path / "busy", tmp_path / "go"
    source = WAITS.format(busy=str(busy), go=str(go))
    if point == "before the commit":  # its output is out already
        source = source.replace(
            "if number == 1", 'send_output("early", b"early")\n                if number == 1'
        )
    hosted = host(source).start()
    hosted.send(0, 1)
    wait_file(busy)
    stale = hosted.machine.succession.current
    hosted.supervisor.workers.kill = lambda each: None
    kill(stale.pid, signal.SIGSTOP)
    in_the_loop(hosted, lambda: hosted.supervisor.workers.end(stale))
    hosted.send(2)
    texts = ledger(3)
    hosted.wait(lambda: [each for each in hosted.texts if each != "early"] == texts)
    go.touch()
    del hosted.supervisor.workers.kill
    kill(stale.pid, signal.SIGCONT)
    assert wait_gone(stale.pid)  # it fails at its commit, or at its output
    hosted.send(3)
    hosted.wait(lambda: [each for each in hosted.texts if each != "early"] == ledger(4))
    hosted.finish()
    assert hosted.state() == {"count": b"4", "total": b"6"}
    assert hosted.texts.count("early") == (4 if point == "before the commit" else 0)


def test_a_stopped_worker_does_not_keep_the_host_from_ending(host):
    hosted = host(shutdown_grace_s=0.3).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    pid = hosted.wait_running()["worker_pid"]
    kill(pid, signal.SIGSTOP)
    assert not hosted.finish().clean
    assert wait_gone(pid)


@pytest.mark.parametrize("resumes", [True, False], ids=["SIGCONT helps", "it hangs"])
def test_a_zygote_that_does_not_answer_is_woken_and_then_replaced(
    host, monkeypatch, caplog, resumes
):
    monkeypatch.setattr(births, "_ANSWER_S", 0.2)
    hosted = host().start()
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.wait_spare()
    zygote = hosted.supervisor.workers.births.zygote_pid
    if not resumes:
        hosted.supervisor.workers.births._zygote.wake = lambda: None
    kill(zygote, signal.SIGSTOP)
    for incarnation in (1, 2):  # the spare takes over once, and then there is none
        kill(hosted.wait_running(incarnation)["worker_pid"])
    hosted.wait_running(incarnation=3)
    hosted.send(1)
    assert hosted.wait_outputs(2) == ledger(2)
    assert "does not answer; it gets SIGCONT" in caplog.text
    assert ("it is killed" in caplog.text) == (not resumes)
    assert (hosted.supervisor.workers.births.zygote_pid == zygote) == resumes


def test_a_backlog_that_is_longer_than_the_grace_leaves_time_for_the_teardown(
    host, tmp_path, caplog
):
    """STOP is handled and the operator torn down in order; what was handled is committed, the rest
    dropped, and the next run goes on from there.
    """
    ended = tmp_path / "ended"
    source = LEDGER.replace(
        'number = int(event["value"])',
        'number = int(event["value"]); import time; time.sleep(0.02)',
    ).replace(
        "return 0",
        f"""if event["type"] == "STOP":
                send_output("stop", b"stop")
            return 0

        def __del__(self):
            print("ended", file=open({str(ended)!r}, "w"))""",
    )
    hosted = host(source, shutdown_grace_s=1.0).start()
    hosted.send(*range(1000))
    hosted.supervisor.submit({"kind": "dora", "type": "STOP", "id": "MANUAL"})
    outcome = hosted.wait_end()
    assert not outcome.clean
    assert ended.read_text() == "ended\n"
    *handled, last = hosted.texts
    assert last == "stop"
    assert handled == ledger(len(handled))
    assert hosted.state()["count"] == b"%d" % len(handled)
    assert hosted.supervisor.input.dropped == {"in": 1000 - len(handled)}
    assert "events that came before the stop are dropped" in caplog.text
    assert "is killed" not in caplog.text
