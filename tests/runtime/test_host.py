"""OperatorHost: the runtime in a program of one's own, with the promises of a dataflow's node."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hosting import EAGER, LEDGER, PATIENCE_S, kill, ledger, wait_gone

from dora_state import OperatorHost, RestartPolicy, Store
from dora_state.errors import OperatorError
from dora_state.runtime import control, dead_letter, inputs, process, step

KILLS = int(os.environ.get("DORA_STATE_TEST_KILLS", "30"))


@pytest.fixture
def operator(tmp_path) -> Path:
    return write(tmp_path, LEDGER)


def write(folder: Path, source: str, name: str = "op.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(source))
    return path


def gated(folder: Path, first: str = "pass") -> tuple[Path, Path]:
    """An operator that answers when a file is there; `first` is what it does before it waits."""
    gate = folder / "gate"
    source = f"""
        import os, time

        class Operator:
            def on_event(self, event, send_output):
                {first}
                while not os.path.exists({str(gate)!r}):
                    time.sleep(0.001)
                send_output("out", event["value"])
                return 0
        """
    return write(folder, source), gate


def make(operator: object, tmp_path: Path, **options: object) -> OperatorHost:
    options = {"policy": EAGER, "durability": "process", **options}
    return OperatorHost(operator, tmp_path / "state", **options)  # type: ignore[arg-type]


def texts(outputs) -> list[str]:
    return [output.value.decode() for output in outputs]


def killer(host: OperatorHost, stop: threading.Event, kills: list[int], seed: int) -> None:
    """Kills the worker at random moments, each one once."""
    chance, last = random.Random(seed), 0
    while not stop.is_set() and len(kills) < KILLS:
        pid = host.status.get("worker_pid", 0)
        if pid and pid != last:
            time.sleep(chance.uniform(0, 0.02))
            kill(pid)
            kills.append(pid)
            last = pid
        else:
            time.sleep(0.001)


# With threads


def test_send_returns_the_outputs_of_its_event(operator, tmp_path):
    with make(operator, tmp_path) as host:
        for n, line in enumerate(ledger(5)):
            (output,) = host.send("in", str(n).encode())
            assert (output.id, output.value, output.metadata) == ("sum", line.encode(), {})
        pid = host.status["worker_pid"]
        with Store(host.store_path, read_only=True) as store:
            assert store["count"] == b"5"
    assert host.outcome.clean
    assert wait_gone(pid)


@pytest.mark.parametrize("standby", ["fork", "process", "off"])
def test_whatever_stands_ready_takes_over(operator, tmp_path, standby):
    with make(operator, tmp_path, standby=standby, durability="group") as host:
        assert texts(host.send("in", b"0")) == ledger(1)
        kill(host.status["worker_pid"])
        assert texts(host.send("in", b"1")) == ledger(2)[1:]
    assert host.status["restarts"] == 1


def test_many_kills_lose_nothing_and_double_nothing(operator, tmp_path):
    """Several threads send; each gets the outputs of its own events, and the account is exact."""
    host = make(operator, tmp_path)
    got: list[str] = []
    sent = threading.Semaphore(0)
    numbers = iter(range(1_000_000))
    stop, kills, lock = threading.Event(), [], threading.Lock()

    def drive() -> None:
        while not stop.is_set():
            with lock:
                number = next(numbers)
            (output,) = host.send("in", b"%d" % number, timeout=PATIENCE_S)
            assert output.value.startswith(b"%d " % number)
            got.append(output.value.decode())
            sent.release()

    with host:
        threads = [threading.Thread(target=drive) for _ in range(3)]
        for thread in threads:
            thread.start()
        killer(host, stop, kills, seed=1)
        host.wait_status(lambda status: status["restarts"] == KILLS, PATIENCE_S)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    by_count = sorted(
        ([int(part) for part in line.split()] for line in got), key=lambda each: each[1]
    )
    assert [count for _, count, _ in by_count] == list(range(1, len(got) + 1))
    total = 0
    for number, _, said in by_count:
        total += number
        assert said == total
    assert sorted(number for number, _, _ in by_count) == list(range(len(got)))
    assert len(kills) == KILLS
    assert host.status["restarts"] == KILLS


def test_submitted_events_come_out_of_the_iteration_in_order_through_kills(operator, tmp_path):
    stop, kills = threading.Event(), []
    with make(operator, tmp_path, queue_size=50) as host:
        thread = threading.Thread(target=killer, args=(host, stop, kills, 2))
        thread.start()
        got = []
        taker = threading.Thread(target=lambda: got.extend(texts(host)))
        taker.start()
        count = 0
        while len(kills) < KILLS:  # each waits for room, so this keeps up with the operator
            host.submit("in", b"%d" % count, timeout=PATIENCE_S)
            count += 1
        thread.join()
        host.close_input()
        taker.join(PATIENCE_S)
    assert got == ledger(count)
    assert host.outcome.clean


def test_a_full_input_makes_the_source_wait(tmp_path):
    operator, gate = gated(tmp_path)
    with make(operator, tmp_path, queue_size=3) as host:
        for n in range(3):
            host.submit("in", b"%d" % n)
        with pytest.raises(TimeoutError, match="no room for an event of input 'in'"):
            host.submit("in", b"refused", timeout=0.01)
        host.submit("other", b"x")  # another input has room of its own
        waiting = threading.Thread(target=host.submit, args=("in", b"3"))
        waiting.start()
        gate.touch()
        waiting.join(PATIENCE_S)
        host.close_input()
        assert sorted(texts(host)) == ["0", "1", "2", "3", "x"]
    assert host.status["dropped"] == {}


def test_bytes_make_the_source_wait_too_but_never_for_ever(operator, tmp_path):
    big = bytes(17 << 20)
    source = """
        class Operator:
            def on_event(self, event, send_output):
                send_output("size", b"%d" % len(event["value"]))
                return 0
    """
    with make(write(tmp_path, source), tmp_path) as host:
        for _ in range(3):
            host.submit("in", big)
        host.close_input()
        assert texts(host) == [str(len(big))] * 3


def test_drop_oldest_drops_and_counts(tmp_path):
    operator, gate = gated(tmp_path, 'send_output("began", event["value"])')
    with make(
        operator, tmp_path, queue_size=2, overload="drop-oldest", immediate=["began"]
    ) as host:
        host.submit("in", b"0")
        assert host.receive(PATIENCE_S).id == "began"  # it waits no more
        answers: list[object] = []

        def send() -> None:
            try:
                answers.append(host.send("in", b"1"))
            except OperatorError as error:
                answers.append(str(error))

        thread = threading.Thread(target=send)
        thread.start()
        while len(host._traffic.supervisor.input) < 1:
            time.sleep(0.001)
        for n in range(2, 6):
            host.submit("in", b"%d" % n)
        thread.join(PATIENCE_S)
        assert answers == ["an event of input 'in' was given up: dropped, as the buffer was full"]
        gate.touch()
        host.close_input()
        assert [output.value for output in host if output.id == "out"] == [b"0", b"4", b"5"]
    assert host.status["dropped"] == {"in": 3}


def test_a_send_that_takes_too_long_is_handled_all_the_same(tmp_path):
    operator, gate = gated(tmp_path)
    with make(operator, tmp_path) as host:
        with pytest.raises(TimeoutError, match=r"input 'in' was not handled within 0.01 s"):
            host.send("in", b"late", timeout=0.01)
        with pytest.raises(TimeoutError, match="no output came"):
            host.receive(0.01)
        gate.touch()
        assert host.receive(PATIENCE_S).value == b"late"
        assert texts(host.send("in", b"next")) == ["next"]


def test_events_of_every_type_can_be_handed_in(tmp_path):
    source = """
        class Operator:
            def on_event(self, event, send_output):
                send_output("saw", {"type": event["type"], "key": event.get("key")})
                return 0
    """
    with make(write(tmp_path, source), tmp_path) as host:
        host.submit_event({"type": "PARAM_UPDATE", "key": "gain", "value": 3})
        assert host.receive(PATIENCE_S).value == {"type": "PARAM_UPDATE", "key": "gain"}
        host.submit_event({"type": "STOP"})
        assert [output.value["type"] for output in host] == ["STOP"]
    assert host.outcome.clean


NO_EVENTS = [
    ({}, TypeError, "the type of an event is a str, not NoneType"),
    ({"type": 5}, TypeError, "the type of an event is a str, not int: 5"),
    ({"type": b"INPUT", "id": "in"}, TypeError, "the type of an event is a str, not bytes"),
    ({"type": ""}, ValueError, "the type of an event is empty"),
    ({"type": "INPUT", "value": b"1"}, TypeError, "an input id is a str, not NoneType"),
    (None, TypeError, "an event is a dict, not NoneType"),
    ([("type", "INPUT")], TypeError, "an event is a dict, not list"),
]


def test_what_is_no_event_is_refused_and_changes_nothing(operator, tmp_path):
    async def asynchronously() -> None:
        async with make(operator, tmp_path) as host:
            for event, error, says in NO_EVENTS:
                with pytest.raises(error, match=says):
                    await host.send_event(event)
                with pytest.raises(error, match=says):
                    await host.submit_event(event)
            assert texts(await host.send("in", b"1")) == ["1 2 1"]
        assert host.outcome.clean

    with make(operator, tmp_path, queue_size=1) as host:
        for event, error, says in NO_EVENTS:
            with pytest.raises(error, match=says):
                host.send_event(event, timeout=PATIENCE_S)
            with pytest.raises(error, match=says):
                host.submit_event(event, timeout=PATIENCE_S)
        assert texts(host.send("in", b"0", timeout=PATIENCE_S)) == ledger(1)
    assert host.outcome.clean
    with Store(host.store_path, read_only=True) as store:
        assert step.read(store).number == 1
    asyncio.run(asynchronously())


def test_an_event_that_is_over_is_gone_at_once(operator, tmp_path):
    """Not only when the garbage collector comes by: a large value occupies memory that is shared."""
    source = """
        class Operator:
            def on_event(self, event, send_output):
                send_output("size", len(event["value"]))
                return 0
    """

    def events() -> list[inputs.Event]:
        return [each for each in gc.get_objects() if isinstance(each, inputs.Event)]

    gc.collect()
    before = events()  # other tests may have left some
    gc.disable()
    try:
        with make(write(tmp_path, source), tmp_path) as host:
            for _ in range(3):
                assert host.send("in", bytes(1 << 20))[0].value == 1 << 20
        assert len(events()) == len(before)
    finally:
        gc.enable()


# Its end


def test_after_an_operators_own_stop_nothing_is_taken(tmp_path):
    with make(write(tmp_path, LEDGER.replace("return 0", "return 1")), tmp_path) as host:
        assert texts(host.send("in", b"7")) == ["7 1 7"]
        assert host.receive(PATIENCE_S) is None
        for call in (host.send, host.submit):
            with pytest.raises(
                OperatorError, match="operator op has ended: the operator asked to stop"
            ):
                call("in", b"8")


def test_an_operator_that_is_given_up_answers_with_its_crash(tmp_path):
    policy = RestartPolicy(restart_policy="never")
    source = LEDGER.replace(
        'number = int(event["value"])', 'number = int(event["value"]); assert number < 2'
    )
    with make(write(tmp_path, source), tmp_path, policy=policy) as host:
        assert texts(host.send("in", b"1")) == ["1 1 1"]
        with pytest.raises(
            OperatorError, match=r"has ended: .*AssertionError(.|\n)*assert number < 2"
        ):
            host.send("in", b"2")
    assert host.outcome.failed


def test_how_an_operator_ended_that_is_given_up_is_known(tmp_path):
    """Nothing comes after it that could tell later."""
    policy = RestartPolicy(restart_policy="never")
    with make(write(tmp_path, LEDGER), tmp_path, policy=policy) as host:
        host.send("in", b"1")
        kill(host.status["worker_pid"])
        with pytest.raises(OperatorError, match=r"signal 9 \(SIGKILL\)"):
            host.send("in", b"2")
        assert host.status["last_crash"]["signal"] == signal.SIGKILL


def test_an_operator_that_cannot_start_is_told_at_once(tmp_path):
    policy = RestartPolicy(restart_policy="never")
    source = LEDGER.replace("self.count = self.total = 0", "self.count = 1 / 0")
    with (
        pytest.raises(OperatorError, match=r"ZeroDivisionError"),
        make(write(tmp_path, source), tmp_path, policy=policy),
    ):
        raise AssertionError("it must not come up")


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("missing.py", "is not a file"),
        ("import nowhere", "nowhere"),
        ("x = 1", "has no class Operator"),
        (int, "class int cannot be imported by another process"),
        (type("Local", (), {}), "has no class Local"),
        (type("a.b", (), {}), "define it at the top of a Python file"),
    ],
)
def test_what_is_no_operator_is_refused_and_leaves_nothing_behind(tmp_path, operator, message):
    if isinstance(operator, str):
        path = tmp_path / "op.py"
        if not operator.endswith(".py"):
            path.write_text(operator)
        operator = path
    with pytest.raises(OperatorError, match=message), make(operator, tmp_path):
        raise AssertionError("it must not come up")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "options",
    [{"overload": "wait"}, {"queue_size": 0}, {"standby": "on"}, {"shutdown_grace_s": -1}],
)
def test_wrong_options_are_refused(operator, tmp_path, options):
    with pytest.raises(ValueError, match=r"; use (one|0)|; use 1 or more"):
        make(operator, tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"immediate": "sum"}, r"use a list of names: \['sum'\]"),
        ({"preload": "numpy"}, r"use a list of names: \['numpy'\]"),
        ({"policy": "never"}, "use a RestartPolicy"),
        ({"name": 5}, "use a str"),
    ],
)
def test_options_of_another_type_are_refused(operator, tmp_path, options, says):
    with pytest.raises(TypeError, match=says):
        make(operator, tmp_path, **options)


def test_a_forked_child_is_no_host(operator, tmp_path):
    with make(operator, tmp_path) as host:
        child = os.fork()
        if child == 0:
            try:
                host.send("in", b"0")
            except OperatorError as error:
                os._exit("was forked from" in str(error))
            finally:
                os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        assert texts(host.send("in", b"0")) == ledger(1)


def test_it_starts_once(operator, tmp_path):
    with make(operator, tmp_path) as host, pytest.raises(OperatorError, match="starts once"):
        host.start()


def test_an_operator_cannot_host_operators_by_being_imported(tmp_path):
    source = f"""
        import dora_state

        dora_state.OperatorHost(__file__, {str(tmp_path / "inner")!r})

        class Operator:
            def on_event(self, event, send_output):
                return 0
    """
    with (
        pytest.raises(OperatorError, match='__name__ == "__main__"'),
        make(write(tmp_path, source), tmp_path),
    ):
        raise AssertionError("it must not come up")


def test_closing_waits_for_all_that_was_taken_and_takes_no_more(tmp_path):
    """Also if that takes longer than the grace."""
    source = LEDGER.replace("number = int", "__import__('time').sleep(0.005); number = int")
    with make(write(tmp_path, source), tmp_path, shutdown_grace_s=0.2) as host:
        for n in range(100):
            host.submit("in", b"%d" % n)
        host.close_input()
        with pytest.raises(OperatorError, match="the input of operator op is closed"):
            host.submit("in", b"100")
        assert texts(host) == ledger(100)
    assert host.outcome.clean


def test_closing_does_not_wait_for_one_that_is_degraded(tmp_path):
    policy = RestartPolicy(max_restarts=1, restart_delay=0.0, degraded_retry=3600.0)
    source = LEDGER.replace("self.count = self.total = 0", "raise RuntimeError('broken')")
    with make(write(tmp_path, source), tmp_path, policy=policy) as host:
        host.wait_status(lambda status: status["state"] == "degraded", PATIENCE_S)
        host.submit("in", b"1")
    assert not host.outcome.clean


# State


def test_the_next_host_goes_on_unless_told_otherwise(operator, tmp_path):
    def say(**options: object) -> str:
        with make(operator, tmp_path, **options) as host:
            return texts(host.send("in", b"1"))[0]

    assert say() == "1 1 1"
    assert say() == "1 2 2"
    assert say(fresh=True) == "1 1 1"
    assert say(keep=False) == "1 1 1"
    assert say() == "1 2 2"


def test_an_error_in_the_block_is_no_clean_end(operator, tmp_path):
    with pytest.raises(ZeroDivisionError), make(operator, tmp_path, keep=False) as host:
        host.send("in", b"1")
        raise ZeroDivisionError
    with make(operator, tmp_path, keep=False) as host:
        assert texts(host.send("in", b"1")) == ["1 2 2"]


def relays() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "relay"}


def test_a_second_host_of_the_same_name_is_refused(operator, tmp_path):
    refused = pytest.raises(OperatorError, match=r"the state of node 'op' .* is in use by process")
    with make(operator, tmp_path):
        before = relays(), process.children()
        with refused:
            make(operator, tmp_path).start()
        # Gone when it is told: processes, with the operator's file imported, and the thread that relays their output.
        assert (relays(), process.children()) == before


def test_a_host_that_was_not_started_says_so_instead_of_waiting(operator, tmp_path):
    host = make(operator, tmp_path)
    for call in (
        lambda: host.send("in", b"0"),
        lambda: host.submit("in", b"0"),
        lambda: host.receive(),
        lambda: next(iter(host)),
    ):
        with pytest.raises(OperatorError, match=r"op is not started; use `with"):
            call()
    host.close()  # there is nothing to wait for
    make(operator, tmp_path).stop()
    with make(operator, tmp_path) as host:
        assert texts(host.send("in", b"0")) == ledger(1)


def test_an_ended_host_has_closed_all_its_descriptors(operator, tmp_path):
    """Without a garbage collection, and however it has ended."""

    def descriptors() -> set[str]:
        return {each for fd in os.listdir("/proc/self/fd") if (each := name_of(fd))}

    def name_of(fd: str) -> str:
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            return f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}"
        return ""

    def is_used() -> None:
        with make(operator, tmp_path) as host:
            host.send("in", b"0")
            kill(host.status["worker_pid"])
            host.send_event({"type": "PARAM_UPDATE", "value": b"x" * (1 << 20)})
        assert host.outcome.clean
        host.close()
        hosts.append(host)

    def is_stopped() -> None:
        hosts.append(make(operator, tmp_path).start())
        hosts[-1].stop()

    def fails() -> None:
        hosts.append(make(tmp_path / "none.py", tmp_path))
        with pytest.raises(OperatorError, match="is not a file"):
            hosts[-1].start()

    def never_starts() -> None:
        hosts.append(make(operator, tmp_path))
        hosts[-1].close()
        with pytest.raises(OperatorError, match="starts once"):
            hosts[-1].start()

    def is_awaited() -> None:
        async def main() -> None:
            async with make(operator, tmp_path) as host:
                await host.send("in", b"2")

        asyncio.run(main())

    hosts: list[OperatorHost] = []
    gc.collect()
    gc.disable()
    try:
        is_used()  # what is opened once for the process
        before = descriptors()
        for way in (is_used, is_stopped, fails, never_starts, is_awaited, is_used):
            way()
            assert descriptors() == before, way.__name__
        for host in hosts:  # nor may they use what is somebody else's by now
            host.stop()
            with pytest.raises(OperatorError):
                host.submit("in", b"3")
        assert descriptors() == before
    finally:
        gc.enable()


def test_an_ended_host_has_unmapped_the_shared_memory(tmp_path):
    """At once: the garbage collection that would do it does not come for memory, and may be long in coming."""
    echo = """
        class Operator:
            def on_event(self, event, send_output):
                send_output("out", event["value"])
                return 0
    """
    path, large = write(tmp_path, echo), b"1" * 1_000_000

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:dora-state")

    gc.collect()
    gc.disable()
    try:
        before = mapped()
        for _ in range(3):
            with make(path, tmp_path) as host:
                assert [output.value for output in host.send("in", large)] == [large]
                kill(host.status["worker_pid"])
                kept = host.send("in", large)
            # What somebody still holds stays as it is.
            assert [output.value for output in kept] == [large]
            assert mapped() == before
        with pytest.raises(OperatorError):  # which is no crash without that memory
            host.send("in", large)
    finally:
        gc.enable()


def test_hosts_of_one_process_share_a_store(tmp_path):
    writer = """
        from dora_state import kvs_write

        class Operator:
            def on_event(self, event, send_output):
                kvs_write("said", event["value"])
                return 0
    """
    reader = """
        from dora_state import kvs_read

        class Operator:
            def on_event(self, event, send_output):
                send_output("heard", kvs_read("said", default=b"nothing"))
                return 0
    """
    one = make(write(tmp_path, writer, "writer.py"), tmp_path)
    other = make(write(tmp_path, reader, "reader.py"), tmp_path)
    with one, other:
        one.send("in", b"hello")
        assert texts(other.send("in")) == ["hello"]


def test_a_class_is_hosted_from_its_file(tmp_path, monkeypatch):
    write(tmp_path, LEDGER.replace("class Operator", "class Adder"), "adders_of_this_test.py")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("adders_of_this_test")
    with make(module.Adder, tmp_path) as host:
        assert host.name == "Adder"
        kill(host.status["worker_pid"])
        assert texts(host.send("in", b"3")) == ["3 1 3"]


HOST = """
import json, os, signal, sys
from dora_state import OperatorHost

if __name__ == "__main__":
    with OperatorHost(sys.argv[1], sys.argv[2], durability="process") as host:
        for line in sys.stdin:
            (output,) = host.send("in", line.strip().encode())
            child = os.fork()  # holds what this process holds
            if child == 0:
                signal.pause()
            pids = [host.status["worker_pid"], child]
            print(json.dumps([pids, output.value.decode()]), flush=True)
"""


def test_a_killed_host_leaves_its_state_to_the_next_and_no_process(operator, tmp_path):
    script = tmp_path / "host.py"
    script.write_text(HOST)
    process = subprocess.Popen(
        [sys.executable, script, operator, tmp_path / "state"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    forked = []
    try:
        for n, line in enumerate(ledger(3)):
            process.stdin.write(f"{n}\n")
            process.stdin.flush()
            (pid, child), said = json.loads(process.stdout.readline())
            forked.append(child)
            assert said == line
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert wait_gone(pid)
    finally:
        process.kill()
        for child in forked:
            kill(child)
        process.communicate()
    with make(operator, tmp_path, keep=False) as host:
        assert texts(host.send("in", b"3")) == ledger(4)[3:]


@pytest.mark.parametrize("when", ["in the running host", "by the next host"])
def test_what_a_replayed_dead_letter_sends_is_the_answer_to_no_other_event(tmp_path, when):
    """It is in the stream at once, and not kept for whoever sends next."""
    trouble = tmp_path / "trouble"
    trouble.touch()
    path = write(
        tmp_path,
        f"""
        import os

        class Operator:
            def on_event(self, event, send_output):
                assert event["value"] != b"bad" or not os.path.exists({str(trouble)!r})
                send_output("out", event["value"])
                return 0
        """,
    )
    host = make(path, tmp_path, policy=RestartPolicy(max_event_attempts=1, restart_delay=0.0))
    with host:
        with pytest.raises(OperatorError, match="a dead letter"):
            host.send("in", b"bad")
        trouble.unlink()
        if when == "in the running host":
            asked = {"do": "replay", "numbers": [1]}
            assert control.ask(control.path_beside(host.store_path), asked, PATIENCE_S) == {}
            assert texts([host.receive(PATIENCE_S)]) == ["bad"]
            assert texts(host.send("in", b"good")) == ["good"]
    if when == "by the next host":
        with Store(host.store_path) as store:
            dead_letter.mark(store, {1})
        with make(path, tmp_path) as host:
            assert texts([host.receive(PATIENCE_S)]) == ["bad"]
            assert texts(host.send("in", b"good")) == ["good"]
    assert list(host) == []


# With asyncio


def test_asyncio_the_same_through_kills(operator, tmp_path):
    stop, kills = threading.Event(), []

    async def main() -> tuple[list[str], OperatorHost]:
        got = []
        inner = make(operator, tmp_path)
        async with inner as host:
            thread = threading.Thread(target=killer, args=(inner, stop, kills, 3))
            thread.start()
            count = 0
            while len(kills) < KILLS:
                answers = await asyncio.gather(
                    *(host.send("in", b"%d" % n) for n in range(count, count + 5))
                )
                got += [line for answer in answers for line in texts(answer)]
                count += 5
            thread.join()
        return got, inner

    got, host = asyncio.run(main())
    assert got == ledger(len(got))
    assert host.outcome.clean


def test_asyncio_iteration_and_room(operator, tmp_path):
    async def main() -> list[str]:
        async with make(operator, tmp_path, queue_size=2) as host:

            async def feed() -> None:
                for n in range(100):
                    await host.submit("in", b"%d" % n)
                host.close_input()

            feeding = asyncio.create_task(feed())
            got = [output.value.decode() async for output in host]
            await feeding
            assert host.outcome.clean
            return got

    assert asyncio.run(main()) == ledger(100)


def test_asyncio_a_cancelled_call_takes_nothing_with_it(tmp_path):
    """A cancelled send was taken: its output comes out of the iteration. A cancelled submit that waited for room was
    not, and leaves the room to the next."""
    operator, gate = gated(tmp_path)

    async def main() -> list[str]:
        async with make(operator, tmp_path, queue_size=1) as host:
            for call in (host.send("in", b"sent"), host.send("in", b"no room")):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(call, 0.05)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(host.receive(), 0.05)
            gate.touch()
            got = [(await host.receive()).value.decode()]
            got += texts(await host.send("in", b"next"))
            return got

    assert asyncio.run(main()) == ["sent", "next"]


def test_asyncio_an_error_in_the_block_ends_it(operator, tmp_path):
    async def main(host: OperatorHost) -> None:
        async with host as inside:
            await inside.send("in", b"1")
            raise ZeroDivisionError

    host = make(operator, tmp_path)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(main(host))
    assert not host.outcome.clean


def test_asyncio_a_bad_file_raises_at_the_start(tmp_path):
    async def main() -> None:
        async with make(tmp_path / "missing.py", tmp_path):
            raise AssertionError("it must not come up")

    with pytest.raises(OperatorError, match="is not a file"):
        asyncio.run(main())
