"""Flush, immediate outputs, attempts, calls from other threads, and overload: each under real kills."""

from __future__ import annotations

import signal
import time

import pytest
from hosting import PATIENCE_S, kill, wait_file

from dora_state.runtime import sending
from dora_state.runtime.inputs import QUEUE_BYTES


def test_a_flush_survives_the_kill_of_its_handler_and_may_repeat(host):
    """Its event is handled again, so the step was not advanced by it; nothing else of the handler is there."""
    hosted = host(
        """
        from dora_state import save_state

        class Operator:
            tries = 0

            def restore_state(self, state):
                self.tries = int(state["tries"])
                assert set(state) <= {"tries", "staged"}, state

            def on_event(self, event, send_output):
                self.tries += 1
                save_state("staged", event["value"])
                save_state("tries", b"%d" % self.tries, flush=True)
                send_output("tries", b"%d %d" % (self.tries, event["attempt"]))
                return 0
        """,
        kill="after-output@1,before-commit@2",
    ).start()
    hosted.send(0, 1, 2)
    assert hosted.wait_outputs(3) == ["2 2", "4 2", "5 1"]
    hosted.finish()
    assert hosted.state() == {"tries": b"5", "staged": b"2"}
    assert hosted.step().number == 3


@pytest.mark.parametrize("point", ["after-output", "before-commit", "after-commit"])
def test_an_immediate_output_leaves_with_every_attempt_the_others_once(host, point):
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                send_output("now", b"%s %d" % (event["value"], event["attempt"]))
                send_output("held", b"%s %d" % (event["value"], event["attempt"]))
                return 0
        """,
        immediate=frozenset({"now"}),
        kill=f"{point}@2",
    ).start()
    hosted.send(0, 1, 2)
    is_repeated = point in ("after-output", "before-commit")
    hosted.wait_outputs(7 if is_repeated else 6)
    hosted.finish()
    last = 2 if is_repeated else 1
    now = [
        text
        for output, text in zip(hosted.outputs, hosted.texts, strict=True)
        if output.id == "now"
    ]
    held = [
        text
        for output, text in zip(hosted.outputs, hosted.texts, strict=True)
        if output.id == "held"
    ]
    assert now == ["0 1", *(f"1 {n}" for n in range(1, last + 1)), "2 1"]
    assert held == ["0 1", f"1 {last}", "2 1"]


def test_attempt_counts_the_kills_at_an_event_and_begins_anew_with_the_next(host):
    hosted = host(
        """
        import os

        class Operator:
            def on_event(self, event, send_output):
                send_output("now", b"%s %d" % (event["value"], event["attempt"]))
                if event["attempt"] < 3 and event["value"] != b"2":
                    os.kill(os.getpid(), 9)
                return 0
        """,
        immediate=frozenset({"now"}),
    ).start()
    hosted.send(0, 1, 2)
    assert hosted.wait_outputs(7) == ["0 1", "0 2", "0 3", "1 1", "1 2", "1 3", "2 1"]


# A thread of its own, and one that carries the context of a handler which is over by then.
THREADS = """
    import contextvars, os, threading
    from dora_state import save_state

    class Operator:
        def restore_state(self, state):
            pass

        def on_event(self, event, send_output):
            over = threading.Event()

            def work(name):
                if name == "late":
                    assert over.wait(60)
                save_state(name, event["value"])
                send_output(name, event["value"])
                done.set()

            done = threading.Event()
            if event["value"] == b"thread":
                threading.Thread(target=work, args=["thread"]).start()
                assert done.wait(60)
                os.kill(os.getpid(), 9) if event["attempt"] == 1 else None
            elif event["value"] == b"late":
                context = contextvars.copy_context()
                threading.Thread(target=context.run, args=[work, "late"]).start()
                self.over, self.done = over, done
            else:  # the handler of "late" has returned, so its thread may go on
                self.over.set()
                assert self.done.wait(60)
            send_output("handled", event["value"])
            return 0
"""


def test_a_call_from_a_thread_commits_at_once_and_its_output_leaves_at_once_unreplayed(host):
    hosted = host(THREADS).start()
    hosted.send(b"thread")
    assert hosted.wait_outputs(3) == ["thread", "thread", "thread"]
    assert [output.id for output in hosted.outputs] == ["thread", "thread", "handled"]
    hosted.finish()
    assert hosted.state() == {"thread": b"thread"}
    assert hosted.step().number == 1
    assert hosted.statuses[-1]["unreplayed"] == 2


def test_an_output_of_a_thread_that_the_commit_overtakes_leaves_all_the_same(host):
    """As asyncio.to_thread does it, the thread has the context of the handler. Its output was begun within that."""
    hosted = host(
        """
        import contextvars, threading

        begun, go_on = threading.Event(), threading.Event()

        class Slow:
            def __str__(self):
                begun.set()
                go_on.wait()
                return "slow"

        class Operator:
            def on_event(self, event, send_output):
                if int(event["value"]) == 0:
                    late = contextvars.copy_context().run
                    arguments = (send_output, "late", b"late", {"metadata": Slow()})
                    self.thread = threading.Thread(target=late, args=arguments)
                    self.thread.start()
                    begun.wait()
                else:
                    go_on.set()
                    self.thread.join()
                send_output("sum", event["value"])
                return 0
        """
    ).start()
    hosted.send(0, 1)
    assert hosted.wait_outputs(3) == ["0", "late", "1"]
    hosted.finish()
    assert hosted.supervisor.account.unreplayed == 1


def test_a_call_after_the_handler_ended_belongs_to_no_event(host):
    hosted = host(THREADS, kill="before-commit@2").start()
    hosted.send(b"late")
    hosted.wait_outputs(1)
    hosted.send(b"next")
    hosted.wait(lambda: hosted.supervisor.restarts >= 1)  # its handler fails from then on
    hosted.wait(lambda: "late" in [output.id for output in hosted.outputs])
    assert hosted.texts == ["late", "late"], "the output of `next` is still held"
    hosted.supervisor.request_stop()
    hosted.wait_end()
    assert hosted.state() == {"late": b"late"}, "it is there although the step of `next` is not"
    assert hosted.step().number == 1
    assert hosted.statuses[-1]["unreplayed"] == 1


def test_an_output_that_was_refused_is_not_counted(host, caplog):
    """After a crash the record's count is compared with what has come: none is said to be missing."""
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                endless = []
                endless.append(endless)
                try:
                    send_output("sum", event["value"], {"endless": endless})
                except (RecursionError, ValueError):
                    send_output("sum", b"refused")
                return 0
        """,
        kill="after-commit@1",
    ).start()
    hosted.send(0)
    assert hosted.wait_outputs(1) == ["refused"]
    hosted.finish()
    assert "were received" not in caplog.text


def test_outputs_of_one_event_are_bounded_and_the_handler_may_go_on(host):
    assert sending.HELD_OUTPUT_BYTES == 256 << 20
    hosted = host(
        """
        from dora_state.errors import TooLarge
        from dora_state.runtime import sending
        sending.HELD_OUTPUT_BYTES = 1 << 20

        class Operator:
            def on_event(self, event, send_output):
                for n in range(3):
                    try:
                        send_output("held", bytes(400_000))
                        send_output("now", bytes(400_000))
                    except TooLarge as error:
                        send_output("told", str(error).encode())
                return 0
        """,
        immediate=frozenset({"now"}),
    ).start()
    hosted.send(0)
    hosted.wait(lambda: len(hosted.outputs) == 5)
    assert [output.id for output in hosted.outputs] == ["now", "now", "held", "held", "told"]
    assert hosted.texts[-1] == (
        "the outputs of one event exceed 1 MiB; declare 'held' as an immediate output, or send less per event"
    )
    assert hosted.supervisor.restarts == 0


# Overload: the operator stands still while its inputs go on.

STANDS_STILL = """
    import os
    from dora_state import restore_info

    class Operator:
        def on_event(self, event, send_output):
            with open("{path}", "w") as file:
                print(os.getpid(), file=file)
            send_output(event["id"], event["value"][:8])
            send_output("told", repr(sorted(restore_info().dropped.items())).encode())
            return 0
"""


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL], ids=["goes on", "is killed"])
def test_overload_drops_the_oldest_of_each_input_and_every_drop_is_counted(host, tmp_path, end):
    path = tmp_path / "pid"
    sizes = {"in": 10, "fresh": 1, "large": 1000}
    # Without a spare: one that a lifeline starts may be told a moment's less than is exact.
    source = STANDS_STILL.format(path=path)
    hosted = host(source, queue_sizes=sizes, standby="off").start()
    hosted.send(b"first")
    pid = int(wait_file(path))
    hosted.wait_outputs(2)
    kill(pid, signal.SIGSTOP)
    hosted.send(b"second")  # this one it has, and does not answer
    hosted.supervisor.wake()
    wait_taken(hosted)
    megabyte = bytes(1 << 20)
    for n in range(30):
        hosted.send(b"in %d" % n, id="in")
        hosted.send(b"fresh %d" % n, id="fresh")
        hosted.send(b"L%06d " % n + megabyte, id="large")
    kept = QUEUE_BYTES // (len(megabyte) + 100)
    dropped = {"in": 20, "fresh": 29, "large": 30 - kept}
    kill(pid, end)
    hosted.wait(lambda: len(hosted.outputs) == 2 * (2 + 10 + 1 + kept))
    hosted.finish()
    values = {name: [] for name in ("in", "fresh", "large")}
    for output, text in zip(hosted.outputs[::2], hosted.texts[::2], strict=True):
        values[output.id].append(text)
    assert values["in"] == ["first", "second", *(f"in {n}" for n in range(20, 30))]
    assert values["fresh"] == ["fresh 29"]
    assert values["large"] == [f"L{n:06d} " for n in range(30 - kept, 30)]
    assert hosted.statuses[-1]["dropped"] == dropped
    told = repr(sorted(dropped.items())) if end == signal.SIGKILL else "[]"
    assert hosted.texts[-1] == told


def wait_taken(hosted) -> None:
    """Wait until nothing is in the buffer: the worker has got it."""
    for _ in range(int(PATIENCE_S / 0.002)):
        if len(hosted.supervisor.input) == 0:
            return
        time.sleep(0.002)
    raise AssertionError("nobody takes the event")
