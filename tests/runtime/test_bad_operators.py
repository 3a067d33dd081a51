"""Operators that do what they should not: each has a defined answer, and the node lives on.

What ends a process in other ways is in test_restart.py (CRASHES), what operators print without end and leave
behind in test_processes.py, files that are no operator in test_dora_adapter.py.
"""

from __future__ import annotations

import os
import threading

import pytest
from hosting import LEDGER, kill, ledger, wait_gone

from dora_state import Store
from dora_state.runtime import dead_letter
from dora_state.runtime.policy import RestartPolicy

POLICY = RestartPolicy(restart_delay=0.0)


def test_an_operator_that_raises_everywhere_degrades_and_ends_when_told(host):
    hosted = host(
        """
        class Operator:
            def __init__(self):
                self.save_state("a", b"1")

            def restore_state(self, state):
                pass

            def on_event(self, event, send_output):
                send_output("never", b"")
                raise RuntimeError("not this")

            def __del__(self):
                raise RuntimeError("not even this")
        """,
        policy=POLICY,
    ).start()
    hosted.send(*range(10))
    hosted.wait(lambda: hosted.statuses[-1]["state"] == "degraded")
    assert hosted.statuses[-1]["dead_letters"]["kept"] == 3
    hosted.supervisor.request_stop()
    outcome = hosted.wait_end()
    assert (outcome.clean, outcome.why) == (False, "told to stop")  # there is input left
    assert hosted.outputs == []
    assert hosted.state() == {"a": b"1"}


def test_a_teardown_that_raises_is_a_clean_stop_all_the_same(host, capfd):
    source = LEDGER + "\n        def __del__(self):\n            raise RuntimeError('no')\n"
    hosted = host(source).start()
    hosted.send(0, 1)
    assert hosted.finish().clean
    assert hosted.texts == ledger(2)
    assert "RuntimeError: no" in capfd.readouterr().err


def test_threads_that_never_end_do_not_hold_up_the_end(host):
    source = LEDGER.replace(
        "self.count = self.total = 0",
        "self.count = self.total = 0\n"
        "            import threading\n"
        "            for _ in range(20): threading.Thread(target=threading.Event().wait).start()",
    )
    hosted = host(source, kill="before-commit@2").start()
    pid = hosted.wait_running()["worker_pid"]
    hosted.send(0, 1, 2)
    assert hosted.finish().clean
    assert hosted.texts == ledger(3)
    assert wait_gone(pid)


def test_closing_stderr_and_opening_something_else_there_hides_no_crash(host, tmp_path, capfd):
    """Descriptor 2 is then a file of the operator's: the stacks must not go there."""
    mine = tmp_path / "mine"
    source = LEDGER.replace(
        "self.count = self.total = 0",
        "self.count = self.total = 0\n"
        "            import os\n"
        "            os.close(2)\n"
        f"            self.file = open({str(mine)!r}, 'a')\n"
        "            assert self.file.fileno() == 2",
    )
    hosted = host(source, kill="event@2=segv").start()
    hosted.send(0, 1, 2)
    assert hosted.wait_outputs(3) == ledger(3)
    hosted.finish()
    assert "Fatal Python error: Segmentation fault" in capfd.readouterr().err
    assert mine.read_text() == ""


def test_closing_all_standard_streams_harms_nothing(host):
    source = LEDGER.replace(
        "self.count = self.total = 0",
        "self.count = self.total = 0\n"
        "            import os\n"
        "            for fd in (0, 1, 2): os.close(fd)",
    )
    hosted = host(source, kill="event@2=raise").start()
    hosted.send(0, 1, 2)
    assert hosted.wait_outputs(3) == ledger(3)
    assert hosted.finish().clean


GARBAGE = {
    "zeros": "bytes(1000)",
    "ones": "b'\\xff' * 1000",  # too large for any memory
    "text": "b'Traceback (most recent call last):\\n' * 30",
    "a size that is not that of its document": "struct.pack('<BBHIQ', 19, 0, 0, 8, 1 << 33)",
    "a kind that there is not, large": "struct.pack('<BBHIQ', 99, 0, 0, 1 << 20, 1 << 20)",
    "an output of nowhere": "struct.pack('<BBHIQ', 18 | 128, 9, 0, 8, 80) + bytes(80)",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_writing_into_the_hosts_socket_is_an_end_of_the_operator_not_of_the_host(
    host, garbage, caplog
):
    wild = f"""
                if number == 1 and event["attempt"] < 3:
                    for fd in range(3, 64):
                        with contextlib.suppress(OSError):
                            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                                os.write(fd, {garbage})
                    threading.Event().wait()
    """
    source = LEDGER.replace("self.count += 1", f"{wild.strip()}\n                self.count += 1")
    source = source.replace(
        "class Operator", "import contextlib, os, stat, struct, threading\n    class Operator"
    )
    hosted = host(source, policy=POLICY).start()
    hosted.send(0, 1, 2)
    assert hosted.wait_outputs(3) == ledger(3)
    assert hosted.finish().clean
    assert "what came from it is no message" in caplog.text


def test_a_gigabyte_of_output_is_cut_and_holds_nothing_up(host, capfd):
    source = LEDGER.replace(
        "self.count += 1",
        "for _ in range(1024): os.write(1, bytes(1 << 20))\n                self.count += 1",
    ).replace("class Operator", "import os\n    class Operator")
    hosted = host(source).start()
    hosted.send(0)
    assert hosted.wait_outputs(1) == ledger(1)
    assert hosted.finish().clean
    printed = capfd.readouterr().out
    assert len(printed) < 64 << 20
    assert "[dora-state] dropped" in printed


def test_an_operator_that_ignores_sigterm_is_stopped_in_order(host):
    source = LEDGER.replace(
        "self.count = self.total = 0",
        "self.count = self.total = 0\n"
        "            import signal\n"
        "            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT):\n"
        "                signal.signal(number, signal.SIG_IGN)",
    )
    hosted = host(source).start()
    hosted.send(0, 1)
    assert hosted.finish().clean
    assert hosted.texts == ledger(2)


def test_children_of_an_operator_that_crashed_are_gone_when_it_is_back(host, tmp_path):
    source = LEDGER.replace(
        "self.count = self.total = 0",
        "self.count = self.total = 0\n"
        "            import subprocess\n"
        "            child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        f"            print(child.pid, file=open({str(tmp_path / 'pids')!r}, 'a'))",
    )
    hosted = host(source, kill="event@1,event@2,event@3").start()
    hosted.send(*range(4))
    assert hosted.wait_outputs(4) == ledger(4)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 4
    for pid in pids[:-1]:
        assert wait_gone(pid)
    hosted.finish()
    assert wait_gone(pids[-1])


WRONG = ["'CONTINUE'", "3", "-1", "True", "1.0", "object()", "[0]"]


@pytest.mark.parametrize("returned", WRONG)
def test_a_wrong_return_value_is_a_failure_of_the_event(host, returned):
    source = LEDGER.replace("return 0", f"return {returned} if number == 1 else 0")
    hosted = host(source, policy=POLICY).start()
    hosted.send(0, 1, 2)
    assert hosted.wait_outputs(2) == ["0 1 0", "2 2 2"]
    hosted.finish()
    with Store(hosted.store_path) as store:
        (letter,) = dead_letter.read(store).letters
    assert "TypeError: on_event returned" in letter.reason
    assert "return a DoraStatus" in letter.reason


def test_an_unknown_output_is_ignored_with_one_warning_as_in_dora(host, capfd):
    source = LEDGER.replace(
        'send_output("sum"',
        'send_output("sun", b"misspelled")\n                send_output("sum"',
    )
    hosted = host(source, outputs=frozenset({"sum", "mean"})).start()
    hosted.send(0, 1, 2)
    hosted.finish()
    assert hosted.texts == ledger(3)
    said = capfd.readouterr().err
    assert said.count("the output 'sun' is ignored") == 1
    assert "it has mean, sum" in said


REFUSED = {
    "a key that is too long": ("save_state('x' * 65536, b'')", "TooLarge", "the limit is 65535"),
    "a long key of few characters": (
        "save_state('\\u20ac' * 30000, b'')",
        "TooLarge",
        "has 90000 bytes",
    ),
    "a key that is no text": ("save_state(5, b'')", "TypeError", "a key is a str"),
    "a key with half a character": (
        "save_state('\\ud800', b'')",
        "ValueError",
        "cannot be written as UTF-8",
    ),
    "a value that is no buffer": ("save_state('a', 5)", "TypeError", "is not a buffer"),
    "a value beyond 1 GiB": (
        "save_state('a', bytes((1 << 30) + 1))",
        "TooLarge",
        "the limit is 1073741824",
    ),
    "an output id that is no text": ("send_output(5, b'')", "TypeError", "an output id is a str"),
    "an output that cannot be sent": ("send_output('a', object())", "TypeError", "cannot send"),
}


@pytest.mark.parametrize(("call", "kind", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_refused_at_the_call_and_changes_nothing(host, call, kind, told):
    hosted = host(
        f"""
        from dora_state import save_state

        class Operator:
            def on_event(self, event, send_output):
                save_state("before", b"1")
                try:
                    {call}
                except Exception as error:
                    send_output("told", f"{{type(error).__name__}}: {{error}}".encode())
                return 0
        """
    ).start()
    hosted.send(0)
    (text,) = hosted.wait_outputs(1)
    assert text.startswith(f"{kind}: ")
    assert told in text
    hosted.finish()
    assert hosted.state() == {"before": b"1"}


def test_a_key_of_the_longest_size_is_saved(host):
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                self.save_state("k" * 65535, b"1")
                return 0
        """
    ).start()
    hosted.send(0)
    assert hosted.finish().clean
    assert hosted.state() == {"k" * 65535: b"1"}


def test_saves_that_are_too_many_for_one_commit_fail_the_event_and_nothing_else(host):
    source = LEDGER.replace(
        "self.count += 1",
        "if number == 1:\n"
        "                    for n in range(1200): save_state(f'{n:065535}', b'')\n"
        "                self.count += 1",
    )
    hosted = host(source, policy=POLICY).start()
    hosted.send(0, 1, 2)
    assert hosted.wait_outputs(2) == ["0 1 0", "2 2 2"]
    hosted.finish()
    with Store(hosted.store_path) as store:
        (letter,) = dead_letter.read(store).letters
    assert "TooLarge" in letter.reason
    assert hosted.state() == {"count": b"2", "total": b"2"}


def test_a_large_value_is_saved_and_restored(host):
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                self.save_state("large", bytes(70 << 20))
                return 0

            def restore_state(self, state):
                assert len(state["large"]) == 70 << 20
        """,
        kill="after-commit@1",
    ).start()
    hosted.send(0, 1)
    assert hosted.finish().clean


def test_outputs_beyond_what_is_held_are_refused_at_the_call(host, monkeypatch):
    hosted = host(
        """
        from dora_state.runtime import sending
        sending.HELD_OUTPUT_BYTES = 1000

        class Operator:
            def on_event(self, event, send_output):
                send_output("a", bytes(600))
                try:
                    send_output("a", bytes(600))
                except ValueError as error:
                    send_output("told", type(error).__name__.encode())
                return 0
        """
    ).start()
    hosted.send(0)
    assert [len(text) for text in hosted.wait_outputs(2)] == [600, len("TooLarge")]


# Stopping


def test_a_stop_while_it_waits_for_its_next_try_ends_at_once(host, tmp_path):
    policy = RestartPolicy(restart_delay=3600.0, max_restart_delay=3600.0)
    trouble = tmp_path / "trouble"
    fails = f"import os\n            assert not os.path.exists({str(trouble)!r})\n            "
    source = LEDGER.replace("self.count = self.total = 0", fails + "self.count = self.total = 0")
    hosted = host(source, policy=policy).start()
    trouble.touch()
    kill(hosted.wait_running()["worker_pid"])
    hosted.wait(lambda: hosted.statuses[-1]["state"] == "waiting")
    hosted.supervisor.request_stop()
    outcome = hosted.wait_end()
    assert outcome.why == "told to stop"
    assert hosted.statuses[-1]["state"] == "ended"


def test_a_death_after_the_wish_to_stop_starts_nobody_when_all_is_handled(host, tmp_path):
    """The wish is looked at again after the death: the next start would only be stopped again."""
    starts = tmp_path / "starts"
    os.mkfifo(tmp_path / "fifo")
    source = LEDGER.replace(
        "self.count = self.total = 0",
        f"self.count = self.total = 0\n            print('start', file=open({str(starts)!r}, 'a'))",
    ).replace(
        "self.count += 1",
        f"open({str(tmp_path / 'fifo')!r}).read()\n                self.count += 1",
    )
    hosted = host(source, kill="after-commit@1", standby="off").start()
    hosted.send(0)
    with open(tmp_path / "fifo", "w"):  # until it reads from there
        hosted.supervisor.close_input()
    assert hosted.wait_end().clean
    assert hosted.texts == ledger(1)
    assert starts.read_text().split() == ["start"]


def test_every_end_publishes_a_terminal_status(host):
    """Also one that is an error of the host."""
    hosted = host().start()

    def fail(*args: object) -> None:
        raise RuntimeError("the disk went away")

    hosted.supervisor.workers._on_message = fail
    hosted.send(0)
    with pytest.raises(RuntimeError, match="the disk went away"):
        hosted.wait_end()
    assert hosted.statuses[-1]["state"] == "ended"


def test_a_stop_from_many_threads_is_one_stop(host):
    hosted = host().start()
    threads = [threading.Thread(target=hosted.supervisor.request_stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert hosted.wait_end().clean
    for thread in threads:
        thread.join()
    assert sum(status["state"] == "ended" for status in hosted.statuses) == 1
    assert not [name for name in os.listdir(hosted.store_path.parent) if name.endswith(".control")]
