"""Whatever ends an operator, it comes back with its saved state (I31), and every event counts
exactly once.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import textwrap
import threading
from pathlib import Path

import pytest
from hosting import LEDGER, kill, kill_at_random, ledger, wait_file, wait_gone

from dora_state._core import Store
from dora_state.runtime import killpoint, supervisor
from dora_state.runtime.outputs import Output
from dora_state.runtime.policy import RestartPolicy

KILLS = int(os.environ.get("DORA_STATE_TEST_KILLS", "100"))  # set it to 10000 for a soak

CRASHES = {
    "an exception": "raise ValueError('no')",
    "sys.exit": "import sys; sys.exit(0)",
    "os._exit(0)": "import os; os._exit(0)",
    "os.abort": "import os; os.abort()",
    "a segfault": "import ctypes; ctypes.string_at(0)",
    "SIGKILL": "import os; os.kill(os.getpid(), 9)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "a thread that exits": "import os, threading as t; x = t.Thread(target=os._exit, args=[3]); "
    "x.start(); x.join()",
    "closing all its descriptors": "import os, time; os.closerange(3, 4096); time.sleep(1000)",
}


@pytest.mark.parametrize("crash", CRASHES.values(), ids=CRASHES.keys())
def test_a_crash_loses_nothing_and_doubles_nothing(host, crash):
    source = LEDGER.replace(
        'send_output("sum"',
        f'if number == 3 and event["attempt"] == 1: {crash}\n                send_output("sum"',
    )
    hosted = host(source).start()
    hosted.send(*range(6))
    assert hosted.wait_outputs(6) == ledger(6)
    assert hosted.finish().clean
    assert hosted.texts == ledger(6)
    assert hosted.state() == {"count": b"6", "total": b"15"}
    assert hosted.supervisor.restarts == 1


def test_nothing_special_happens_without_a_crash(host):
    hosted = host().start()
    hosted.send(*range(100))
    assert hosted.finish().clean
    assert hosted.texts == ledger(100)
    assert hosted.supervisor.restarts == 0


POINTS = [
    *(f"{name}@{n}" for name in killpoint.EVENT_POINTS for n in (1, 4, 8)),
    *(f"event@2,{name}@{n}" for name in killpoint.START_POINTS for n in (2, 3)),
]


@pytest.mark.parametrize("point", POINTS)
def test_death_at_a_named_point_leaves_the_ledger_exact(host, point):
    source = LEDGER.replace(
        'self.count, self.total = int(state["count"])',
        'save_state("restored", b"yes")\n            self.count, self.total = int(state["count"])',
    )
    hosted = host(source, kill=point).start()
    hosted.send(*range(8))
    assert hosted.wait_outputs(8) == ledger(8)
    hosted.finish()
    assert hosted.texts == ledger(8)
    state = hosted.state()
    assert (state["count"], state["total"]) == (b"8", b"28")
    assert hosted.supervisor.restarts >= ("@8" not in point or "after-ack" not in point)


@pytest.mark.parametrize("how", ["abort", "segv", "exit", "quit", "raise"])
@pytest.mark.parametrize("point", ["after-output", "before-commit", "after-commit", "after-ack"])
def test_the_manner_of_death_makes_no_difference(host, point, how):
    hosted = host(kill=f"{point}@2={how},{point}@5={how}").start()
    hosted.send(*range(6))
    assert hosted.wait_outputs(6) == ledger(6)  # the sixth is only handled after the second death
    hosted.finish()
    assert hosted.texts == ledger(6)
    assert hosted.supervisor.restarts == 2


def test_what_a_dead_worker_said_is_read_to_the_end(host):
    """The loop is kept busy until the worker is dead. It then finds both its death and more than one
    read takes in, and all of it was committed.
    """
    hosted = host(
        """
        import os

        class Operator:
            def on_event(self, event, send_output):
                send_output("now", b"%d" % os.getpid())
                for n in range(6):
                    send_output("held", b"%d" % n * 20_000)
                return 0
        """,
        kill="after-commit@1",
        immediate=frozenset({"now"}),
    ).start()
    take = hosted.machine.delivery._send

    def wait_for_death(output: Output) -> None:
        if output.id == "now":
            assert wait_gone(int(bytes(output.value)))
        take(output)

    hosted.machine.delivery._send = wait_for_death
    hosted.send(0)
    hosted.finish()
    assert hosted.texts[1:] == [str(n) * 20_000 for n in range(6)]


class Recording:
    """A store that notes in which order the host fences and reads the record."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: list[tuple[str, int]] = []

    def fence(self, incarnation: int) -> None:
        self._store.fence(incarnation)
        self.calls.append(("fence", incarnation))

    def _get(self, keyspace: int, key: str) -> object:
        self.calls.append(("read", 0))
        return self._store._get(keyspace, key)

    def close(self) -> None:
        self._store.close()


def test_the_record_is_read_behind_a_fence_for_the_dead_worker(host):
    """Without the fence a lock-free read could miss a commit that repair then completes."""
    hosted = host(standby="off").start()
    incarnation = hosted.wait_running()["incarnation"]
    store = hosted.machine.store = Recording(hosted.machine.store)
    kill(hosted.statuses[-1]["worker_pid"])
    hosted.wait_running(incarnation + 1)
    hosted.finish()
    # The death of the first worker, the start of the second, its end.
    assert store.calls == [
        ("fence", incarnation + 1),
        ("read", 0),
        ("fence", incarnation + 1),
        ("fence", incarnation + 2),
        ("read", 0),
    ]


def test_every_point_in_one_life(host):
    """All the points around an event, one after the other, each several times."""
    # Every other event: one that is handed to a worker that dies after its ack counts as attempted.
    names = killpoint.EVENT_POINTS * 4
    points = [f"{name}@{2 * n}" for n, name in enumerate(names, start=1)]
    hosted = host(kill=",".join(points)).start()
    hosted.send(*range(60))
    assert hosted.wait_outputs(60) == ledger(60)
    hosted.finish()
    assert hosted.supervisor.restarts == len(points)
    assert hosted.state() == {"count": b"60", "total": b"1770"}


def test_random_kills_leave_the_ledger_exact(host):
    hosted = host().start()
    events = kill_at_random(hosted, KILLS)
    assert hosted.wait_outputs(events) == ledger(events)
    assert hosted.finish().clean
    assert hosted.supervisor.restarts == KILLS
    assert hosted.texts == ledger(events)
    assert int(hosted.state()["count"]) == events


def test_kills_at_any_moment_leave_the_ledger_exact(host):
    """Kills by the clock, also of workers that are still starting, while events flow all the time."""
    events = 20 * KILLS
    hosted = host().start()
    over = threading.Event()

    def killer() -> None:
        chance = random.Random(KILLS)
        for _ in range(KILLS):
            if over.wait(chance.uniform(0, 0.02)):
                return
            if pid := hosted.statuses[-1]["worker_pid"]:
                kill(pid)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        for start in range(0, events, 5):  # never more than some in the queue: the kills shall hit
            hosted.send(*range(start, start + 5))
            hosted.wait(lambda n=start: len(hosted.outputs) >= n)
        assert hosted.wait_outputs(events) == ledger(events)
    finally:
        over.set()
        thread.join()
    assert hosted.finish().clean
    assert hosted.texts == ledger(events)
    assert int(hosted.state()["total"]) == events * (events - 1) // 2


def test_restarts_leave_nothing_open_and_no_process_behind(host):
    hosted = host().start()
    open_after = []
    incarnation = 0
    for round in range(20):
        status = hosted.wait_running(incarnation + 1)
        incarnation = status["incarnation"]
        hosted.send(round)
        hosted.wait_outputs(round + 1)
        open_after.append(len(os.listdir("/proc/self/fd")))
        kill(status["worker_pid"])
    hosted.wait_running(incarnation + 1)
    # One to three workers exist at any time, one of them dying, six descriptors each.
    assert max(open_after) <= open_after[0] + 12
    zygote = hosted.supervisor.workers.births.zygote_pid
    hosted.finish()
    assert wait_gone(zygote)


def test_i31_restore_gets_the_last_saved_state_before_the_next_event(host, tmp_path):
    hosted = host(
        """
        from dora_state.operator import delete_state, save_state

        class Operator:
            log = []

            def __init__(self):
                self.log.append("init")

            def restore_state(self, state):
                self.log.append("restore " + repr(sorted(state.items())))

            def on_event(self, event, send_output):
                send_output("log", "; ".join([*self.log, "event"]).encode())
                number = int(event["value"])
                save_state("n", b"%d" % number)
                if number == 1:
                    delete_state("gone")
                else:
                    save_state("gone", b"x")
                return 0
        """,
        kill="event@3",
    ).start()
    hosted.send(0, 1, 2)
    assert hosted.wait_outputs(3) == [
        "init; event",
        "init; event",
        "init; restore [('n', b'1')]; event",
    ]


def test_a_replay_is_the_same_event_and_says_so(host):
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                if event["attempt"] < 3:
                    raise ValueError
                send_output("event", repr(sorted(event.items())).encode())
                return 0
        """
    ).start()
    hosted.supervisor.submit(
        {"kind": "dora", "type": "INPUT", "id": "in", "value": b"v", "metadata": {"a": [1, 2.5]}}
    )
    assert hosted.wait_outputs(1) == [
        "[('attempt', 3), ('id', 'in'), ('kind', 'dora'), ('metadata', {'a': [1, 2.5]}), "
        "('type', 'INPUT'), ('value', b'v')]"
    ]


def test_an_exception_discards_the_saves_and_the_outputs_of_its_handler(host):
    hosted = host(
        """
        from dora_state.operator import save_state

        class Operator:
            def restore_state(self, state):
                assert state == {"kept": b"1"}, state

            def on_event(self, event, send_output):
                if event["value"] == b"2" and event["attempt"] == 1:
                    save_state("lost", b"2")
                    send_output("lost", b"2")
                    raise ValueError
                save_state("kept", event["value"])
                send_output("kept", event["value"])
                return 0
        """
    ).start()
    hosted.send(1, 2)
    assert hosted.wait_outputs(2) == ["1", "2"]
    hosted.finish()
    assert [output.id for output in hosted.outputs] == ["kept", "kept"]
    assert hosted.state() == {"kept": b"2"}


def test_one_event_is_one_commit(host, tmp_path):
    """Many saves and the step raise the store's sequence as one."""
    hosted = host(
        """
        from dora_state.operator import save_state

        class Operator:
            def on_event(self, event, send_output):
                for n in range(10):
                    save_state(f"key {n}", event["value"])
                return 0
        """
    ).start()
    hosted.send(1)
    hosted.finish()
    from dora_state._core import RUNTIME, USER, Store

    store = Store(str(hosted.store_path))
    sequences = {sequence for _, _, sequence in store._scan(USER)}
    sequences.add(store._get(RUNTIME, "step")[1])
    store.close()
    assert len(sequences) == 1
    assert hosted.step().number == 1
    assert hosted.step().incarnation == 1


def test_a_new_host_goes_on_from_what_is_on_record(host):
    first = host().start()
    first.send(0, 1, 2)
    first.finish()
    before = first.step()
    assert before.number == 3

    second = host().start()
    second.send(3)
    assert second.wait_outputs(1) == ["3 4 6"]
    second.finish()
    assert second.step().number == 4
    assert second.step().incarnation > before.incarnation


def test_saves_in_init_are_kept_once_and_then_discarded_with_a_warning(host, capfd):
    hosted = host(
        """
        from dora_state.operator import save_state

        class Operator:
            def __init__(self):
                save_state("made", b"by init")

            def restore_state(self, state):
                self.restored = state["made"]
                save_state("restores", b"1")

            def on_event(self, event, send_output):
                save_state("made", b"by event")
                send_output("restored", getattr(self, "restored", b"nothing"))
                return 0
        """,
        kill="event@2",
    ).start()
    hosted.send(1, 2)
    assert hosted.wait_outputs(2) == ["nothing", "by event"]
    hosted.finish()
    assert hosted.state() == {"made": b"by event", "restores": b"1"}
    assert "saves made in __init__ are discarded" in capfd.readouterr().err


def test_state_and_delete_are_methods_too(host):
    hosted = host(
        """
        class Operator:
            def __init__(self):
                self.save_state("a", b"1")
                self.save_state("b", b"1")

            def on_event(self, event, send_output):
                self.delete_state("a")
                self.delete_state("never there")
                return 0
        """
    ).start()
    hosted.send(1)
    hosted.finish()
    assert hosted.state() == {"b": b"1"}


def test_a_save_from_another_thread_commits_at_once(host):
    hosted = host(
        """
        import threading
        from dora_state.operator import save_state

        class Operator:
            def on_event(self, event, send_output):
                def work():
                    save_state("thread", b"1")
                    send_output("thread", b"now")
                thread = threading.Thread(target=work)
                thread.start()
                thread.join()
                save_state("handler", b"1")
                if event["attempt"] == 1:
                    raise ValueError
                send_output("seen", b"later")
                return 0

            def restore_state(self, state):
                assert list(state) == ["thread"]
        """
    ).start()
    hosted.send(1)
    assert hosted.wait_outputs(3) == ["now", "now", "later"]
    hosted.finish()
    assert hosted.state() == {"thread": b"1", "handler": b"1"}


def test_flush_commits_at_once_and_wins_over_what_was_staged_before(host):
    hosted = host(
        """
        from dora_state.operator import save_state

        class Operator:
            def on_event(self, event, send_output):
                save_state("a", b"staged")
                save_state("b", b"staged")
                save_state("a", b"flushed", flush=True)
                if event["attempt"] == 1:
                    raise ValueError
                return 0

            def restore_state(self, state):
                assert state == {"a": b"flushed"}, state
        """
    ).start()
    hosted.send(1)
    hosted.finish()
    assert hosted.state() == {"a": b"flushed", "b": b"staged"}


@pytest.mark.parametrize("place", ["init", "restore"])
def test_a_flush_before_the_state_is_restored_does_not_overwrite_it(host, place):
    """Killed right after it, too."""
    hosted = host(
        """
        from dora_state import save_state

        class Operator:
            def __init__(self):
                self.count = 0
                save_state("count", b"0", flush=True)

            def restore_state(self, state):
                self.count = int(state["count"])
                save_state("count", b"-1", flush=True)
                save_state("count", state["count"])

            def on_event(self, event, send_output):
                self.count += 1
                save_state("count", b"%d" % self.count)
                send_output("count", b"%d" % self.count)
                return 0
        """,
        kill=f"before-commit@2,after-{place}@2,after-{place}@3",
    ).start()
    hosted.send(0, 0, 0)
    assert hosted.wait_outputs(3) == ["1", "2", "3"]
    hosted.finish()
    assert hosted.state() == {"count": b"3"}
    assert hosted.supervisor.restarts == 3


@pytest.mark.parametrize("place", ["init", "restore"])
def test_a_thread_does_not_overwrite_a_state_before_it_is_restored(host, place):
    hosted = host(
        """
        import threading
        from dora_state import save_state

        def save(value):
            thread = threading.Thread(target=save_state, args=("count", value))
            thread.start()
            thread.join()

        class Operator:
            def __init__(self):
                self.count = 0
                save(b"0")

            def restore_state(self, state):
                self.count = int(state["count"])
                save(b"-1")
                save_state("count", state["count"])

            def on_event(self, event, send_output):
                self.count += 1
                save(b"%d" % self.count)  # at once
                send_output("count", b"%d" % self.count)
                return 0
        """,
        kill=f"before-commit@2,after-{place}@2,after-{place}@3",
    ).start()
    hosted.send(0, 0, 0)
    assert hosted.wait_outputs(3) == ["1", "3", "4"]  # what a thread has saved is not undone
    hosted.finish()
    assert hosted.state() == {"count": b"4"}
    assert hosted.supervisor.restarts == 3


def test_immediate_outputs_do_not_wait_for_the_commit(host):
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                send_output("now", b"now %d" % event["attempt"])
                send_output("held", b"held %d" % event["attempt"])
                if event["attempt"] == 1:
                    raise ValueError
                return 0
        """,
        immediate=frozenset({"now"}),
    ).start()
    hosted.send(1)
    assert hosted.wait_outputs(3) == ["now 1", "now 2", "held 2"]


def test_a_changed_operator_file_is_used_by_the_next_restart(host):
    hosted = host().start()
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.wait_spare()
    hosted.operator.write_text(hosted.operator.read_text().replace("%d %d %d", "new %d %d %d"))
    pid = hosted.wait_running()["worker_pid"]
    kill(pid)
    hosted.wait_running(incarnation=2)
    hosted.send(1)
    assert hosted.wait_outputs(2) == ["0 1 0", "new 1 2 1"]


@pytest.mark.parametrize(
    ("taken", "told"),
    [
        ("import socket; held = socket.socket()", "opened socket:["),
        ("import fcntl; held = open(__file__); fcntl.flock(held, fcntl.LOCK_EX)", "op.py"),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=[99]).start()",
            "threads",
        ),
        ("held = bytearray(b'x') * (80 << 20)", "MiB of memory"),
    ],
)
def test_what_two_processes_should_not_hold_stops_the_spare_before_the_import(
    host, caplog, tmp_path, taken, told
):
    imports = tmp_path / "imports"
    taken += f"\nopen({str(imports)!r}, 'a').write('imported ')\n"
    hosted = host(taken + textwrap.dedent(LEDGER)).start()
    hosted.send(0, 1)
    assert hosted.wait_outputs(2) == ledger(2)
    first = hosted.wait_running()
    hosted.wait_spare(imported=False)
    assert imports.read_text() == "imported "
    kill(first["worker_pid"])
    hosted.wait_running(first["incarnation"] + 1)
    hosted.send(2)
    assert hosted.wait_outputs(3) == ledger(3)
    assert imports.read_text() == "imported imported "
    assert f"a spare must not import {hosted.operator}: that " in caplog.text
    assert told in caplog.text


@pytest.mark.parametrize("standby", ["fork", "process"])
def test_what_is_preloaded_does_not_stop_the_spare(host, caplog, tmp_path, standby):
    """numpy, for example, starts threads when it is imported."""
    (tmp_path / "threaded.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=[99], daemon=True).start()\n"
    )
    hosted = host(
        "import threaded\n" + textwrap.dedent(LEDGER),
        standby=standby,
        preload=("threaded",),
        environment={"PYTHONPATH": str(tmp_path)},
    ).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.wait_spare()
    kill(hosted.wait_running()["worker_pid"])
    hosted.send(1)
    assert hosted.wait_outputs(2) == ledger(2)
    assert "a spare must not import" not in caplog.text


def test_a_restart_is_logged_and_published(host, caplog):
    caplog.set_level(logging.INFO)
    hosted = host().start()
    hosted.send(0)
    hosted.wait_outputs(1)
    first = hosted.wait_running()
    kill(first["worker_pid"])
    second = hosted.wait(lambda: hosted.statuses[-1]["restart_ms"] and hosted.statuses[-1])
    assert second["restarts"] == 1
    assert second["state"] == "running"
    assert second["worker_pid"] != first["worker_pid"]
    assert len(second["restart_ms"]) == 1
    hosted.finish()  # the reason may become known after the restart is over
    (record,) = [each for each in caplog.records if hasattr(each, "dora_state")]
    assert record.dora_state["restored_keys"] == 2
    assert record.dora_state["incarnation"] > first["incarnation"]


def test_what_happens_to_an_operator_is_logged_with_fields(host, caplog):
    source = LEDGER.replace(
        "self.count += 1",
        "number == 2 and event['attempt'] == 1 and threading.Event().wait()\n"
        "                assert number != 1\n"
        "                self.count += 1",
    ).replace("class Operator", "import threading\n    class Operator")
    policy = RestartPolicy(max_event_attempts=2, event_deadline=0.2, kill_hung=("event",))
    hosted = host(source, policy=policy, node_id="arm").start()
    hosted.send(0, 1, 2)
    hosted.wait_outputs(2)
    hosted.finish()
    told = [vars(record).get("dora_state", {}) for record in caplog.records]
    assert all(fields["node"] == "arm" for fields in told if fields)
    crash, *_ = (fields for fields in told if fields.get("phase"))
    assert crash["reason"].startswith("exception in event: AssertionError")
    assert (crash["phase"], crash["incarnation"], crash["action"]) == ("event", 1, "restart")
    (letter,) = (fields for fields in told if "dead_letter" in fields)
    assert (letter["dead_letter"], letter["input"], letter["attempts"]) == (2, "in", 2)
    (hang,) = (fields for fields in told if "hang" in fields)
    assert (hang["hang"], hang["killed"]) == ("event", True)


def test_the_reason_of_a_crash_is_in_the_log(host, caplog):
    hosted = host(kill="event@1=raise").start()
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.finish()
    assert "the operator failed in event: KilledError: a kill point" in caplog.text
    assert 'raise KilledError("a kill point")' in caplog.text


FAILURES_THAT_RESIST = {
    "surrogates": (r"""raise RuntimeError("x\udcff")""", r"RuntimeError: x\udcff"),
    "a __str__ that fails": ("raise Odd", "Odd: <its __str__ failed>"),
    "a __str__ that exits": ("raise Exits", "Exits: <its __str__ failed>"),
    "a __cause__ that fails": ("raise Hides", "on stderr"),
}


@pytest.mark.parametrize("place", ["__init__", "event"])
@pytest.mark.parametrize(
    ("failure", "told"), FAILURES_THAT_RESIST.values(), ids=FAILURES_THAT_RESIST.keys()
)
def test_a_failure_that_is_hard_to_tell_is_told(
    host, caplog, capfd, tmp_path, place, failure, told
):
    once = f"if not os.path.exists({str(tmp_path / 'failed')!r}):"
    fails = f"open({str(tmp_path / 'failed')!r}, 'w').close(); {failure}"
    source = f"""
        import os

        class Odd(Exception):
            def __str__(self):
                raise ValueError("no words")

        class Exits(Exception):
            def __str__(self):
                raise SystemExit

        class Hides(Exception):
            __cause__ = property(lambda self: 1 / 0)

        class Operator:
            def __init__(self):
                if {place == "__init__"}:
                    {once} {fails}

            def on_event(self, event, send_output):
                if {place == "event"}:
                    {once} {fails}
                send_output("done", b"done")
                return 0
    """
    hosted = host(source).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    hosted.finish()
    if told == "on stderr":  # the traceback module cannot format it, the interpreter can
        assert failure in capfd.readouterr().err
    else:
        assert f"the operator failed in {place}: {told}" in caplog.text
        assert failure in caplog.text  # the line of the traceback


@pytest.mark.parametrize("standby", ["off", "process"])
def test_other_kinds_of_standby_lose_nothing_either(host, standby):
    hosted = host(kill="before-commit@2,after-commit@4", standby=standby).start()
    hosted.send(*range(5))
    assert hosted.wait_outputs(5) == ledger(5)
    hosted.finish()
    assert hosted.supervisor.restarts == 2


def test_an_operator_that_asks_to_stop_is_stopped(host, tmp_path):
    path = tmp_path / "deleted"
    hosted = host(
        f"""
        class Operator:
            def on_event(self, event, send_output):
                send_output("last", b"words")
                self.save_state("a", b"1")
                return 1

            def __del__(self):
                open({str(path)!r}, "w").write("yes")
        """
    ).start()
    hosted.send(1)
    outcome = hosted.wait_end()
    assert (outcome.clean, outcome.failed) == (True, False)
    assert hosted.texts == ["words"]
    assert hosted.state() == {"a": b"1"}
    assert path.read_text() == "yes"  # dora's operators tear down in __del__


def test_always_restarts_also_what_asked_to_stop(host):
    source = LEDGER.replace("return 0", "return 1")
    hosted = host(source, policy=RestartPolicy(restart_policy="always")).start()
    hosted.send(0, 1)
    assert hosted.wait_outputs(2) == ledger(2)
    hosted.wait(lambda: hosted.supervisor.restarts >= 2)


def test_never_ends_with_the_first_crash(host):
    hosted = host(kill="before-commit@2", policy=RestartPolicy(restart_policy="never")).start()
    hosted.send(0, 1, 2)
    outcome = hosted.wait_end()
    assert (outcome.clean, outcome.failed) == (False, True)
    assert hosted.texts == ledger(1)
    assert hosted.state() == {"count": b"1", "total": b"0"}


def test_an_init_that_always_fails_degrades_instead_of_spinning(host, caplog):
    policy = RestartPolicy(max_restarts=3, restart_delay=0.001, degraded_retry=0.001)
    hosted = host(
        """
        class Operator:
            def __init__(self):
                raise RuntimeError("the camera is gone")

            def on_event(self, event, send_output):
                return 0
        """,
        policy=policy,
    ).start()
    hosted.wait(lambda: any(status["state"] == "degraded" for status in hosted.statuses))
    assert "RuntimeError: the camera is gone" in caplog.text
    assert "Traceback" in caplog.text
    assert "degraded" in caplog.text
    hosted.wait(lambda: hosted.supervisor.restarts >= 6)  # it goes on trying


def test_an_init_that_always_fails_stops_if_that_is_wanted(host, caplog):
    policy = RestartPolicy(max_restarts=2, restart_delay=0.001, exhausted="stop")
    hosted = host(
        """
        class Operator:
            def __init__(self):
                raise RuntimeError("the camera is gone")

            def on_event(self, event, send_output):
                return 0
        """,
        policy=policy,
    ).start()
    assert hosted.wait_end().failed
    assert caplog.text.count("RuntimeError: the camera is gone") >= 3
    assert "3 restarts without a committed event" in caplog.text


def troubled(folder: Path) -> tuple[str, Path]:
    """An operator whose start fails for as long as the file is there."""
    trouble = folder / "trouble"
    trouble.touch()
    source = LEDGER.replace(
        "def __init__(self):",
        "def __init__(self):\n            import os\n"
        f"            assert not os.path.exists({str(trouble)!r})",
    )
    return source, trouble


@pytest.mark.parametrize("max_restarts", [0, 100], ids=["unlimited", "many"])
def test_start_returns_when_the_operator_has_failed_often_but_not_for_good(
    host, tmp_path, caplog, max_restarts
):
    """The rest of the dataflow must not wait for it: dora starts no node before all are there."""
    source, trouble = troubled(tmp_path)
    policy = RestartPolicy(
        max_restarts=max_restarts, restart_delay=0.001, max_restart_delay=0.01, restart_window=0.0
    )
    hosted = host(source, policy=policy).start()
    assert "the operator does not start; its outputs are silent until it does" in caplog.text
    assert caplog.text.count("AssertionError") >= supervisor._STARTS_AWAITED
    assert not any(status["state"] in ("running", "degraded") for status in hosted.statuses)
    hosted.send(0, 1)
    trouble.unlink()  # it goes on trying beside run()
    assert hosted.wait_outputs(2) == ledger(2)


def test_a_degraded_operator_comes_back_when_its_trouble_is_over(host, tmp_path):
    source, trouble = troubled(tmp_path)
    policy = RestartPolicy(max_restarts=1, restart_delay=0.001, degraded_retry=0.001)
    hosted = host(source, policy=policy).start()
    hosted.wait(lambda: any(status["state"] == "degraded" for status in hosted.statuses))
    hosted.send(0, 1)
    trouble.unlink()
    assert hosted.wait_outputs(2) == ledger(2)


def test_arrow_values_pass_through_both_ways(host):
    pa = pytest.importorskip("pyarrow")
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                send_output("back", event["value"], event["metadata"])
                return 0
        """
    ).start()
    arrays = [
        pa.array([1, 2, 3], pa.int32()),
        pa.array(["a", None, "ccc"]),
        pa.array([[1, 2], [3]]),
        pa.array([], pa.float64()),
        pa.nulls(0),
        pa.array(bytes(1_000_000), pa.uint8()),
        pa.array([{"x": 1}, {"x": 2}]),
    ]
    for array in arrays:
        hosted.supervisor.submit(
            {"type": "INPUT", "id": "in", "value": array, "metadata": {"n": len(array)}}
        )
    hosted.wait(lambda: len(hosted.outputs) == len(arrays))
    for output, array in zip(hosted.outputs, arrays, strict=True):
        assert output.value.type == array.type
        assert output.value.equals(array)
        assert output.metadata == {"n": len(array)}


def test_a_large_event_and_a_large_output_cross_without_blocking_each_other(host):
    """Both are larger than a socket holds, and travel at the same time."""
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                send_output("big", event["value"])
                return 0
        """,
        kill="after-output@2",
    ).start()
    data = os.urandom(1 << 20)
    hosted.send(data, data[::-1], data)
    hosted.wait(lambda: len(hosted.outputs) == 3)
    assert [output.value for output in hosted.outputs] == [data, data[::-1], data]


@pytest.mark.parametrize(
    ("type", "extra"),
    [
        ("INPUT_CLOSED", {"id": "in"}),
        ("INPUT_RECOVERED", {"id": "in"}),
        ("NODE_RESTARTED", {"id": "other"}),
        ("NODE_FAILED", {"error": "x", "source_node_id": "other"}),
        ("PARAM_UPDATE", {"key": "gain", "value": 3}),
        ("PARAM_DELETED", {"key": "gain"}),
        ("RELOAD", {"id": None}),
        ("ERROR", {"error": "late"}),
    ],
)
def test_every_kind_of_event_reaches_the_operator_as_it_is(host, type, extra):
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                send_output("event", repr(event).encode())
                return 0
        """
    ).start()
    hosted.supervisor.submit({"kind": "dora", "type": type, **extra})
    (text,) = hosted.wait_outputs(1)
    assert eval(text) == {"kind": "dora", "type": type, **extra, "attempt": 1}


def test_stop_is_handled_like_an_event_and_then_ends_it(host):
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                send_output("saw", event["type"].encode())
                return 0
        """
    ).start()
    hosted.send(0)
    hosted.supervisor.submit({"kind": "dora", "type": "STOP", "id": "MANUAL"})
    assert hosted.wait_end().clean
    assert hosted.texts == ["INPUT", "STOP"]


@pytest.mark.parametrize("point", ["before-commit@2", "after-commit@2", "after-ack@2"])
def test_a_crash_around_the_commit_of_stop_does_not_start_anything_anew(host, point):
    source = LEDGER.replace(
        "return 0", 'send_output("saw", event["type"].encode())\n            return 0'
    )
    hosted = host(source, kill=point).start()
    hosted.send(0)
    hosted.supervisor.submit({"kind": "dora", "type": "STOP", "id": "MANUAL"})
    assert hosted.wait_end().clean
    assert hosted.texts == ["0 1 0", "INPUT", "STOP"]


@pytest.mark.parametrize("point", ["before-commit@1", "after-commit@1", "after-ack@1"])
def test_a_crash_around_the_commit_of_a_wish_to_stop_does_not_forget_it(host, point):
    hosted = host(LEDGER.replace("return 0", "return 1"), kill=point).start()
    hosted.send(0)
    assert hosted.wait_end().clean
    assert hosted.texts == ledger(1)


def test_forks_of_one_zygote_draw_different_random_numbers(host):
    pytest.importorskip("numpy")
    hosted = host(
        """
        import numpy

        class Operator:
            def on_event(self, event, send_output):
                send_output("random", b"%d" % numpy.random.randint(1 << 60))
                return 0
        """,
        preload=("numpy", "numpy.random"),
        kill="after-ack@1,after-ack@2",
    ).start()
    hosted.send(0, 1, 2)
    assert len(set(hosted.wait_outputs(3))) == 3


def test_the_descriptor_is_set_after_init(host):
    hosted = host(
        """
        class Operator:
            def __init__(self):
                assert not hasattr(self, "dataflow_descriptor")

            def on_event(self, event, send_output):
                send_output("descriptor", repr(self.dataflow_descriptor).encode())
                return 0
        """,
        descriptor={"nodes": [{"id": "x" * 300_000}]},
    ).start()
    hosted.send(0)
    assert hosted.wait_outputs(1) == [repr({"nodes": [{"id": "x" * 300_000}]})]


def test_what_a_crash_does_to_a_signal_is_told_in_words(host, tmp_path):
    path = tmp_path / "pid"
    hosted = host(
        f"""
        import os

        class Operator:
            def on_event(self, event, send_output):
                with open({str(path)!r}, "w") as file:
                    print(os.getpid(), file=file)
                return 0
        """
    ).start()
    hosted.send(0)
    pid = int(wait_file(path))
    kill(pid, signal.SIGSEGV)
    hosted.wait(lambda: hosted.supervisor.restarts == 1)
