"""The adapter to dora, against a node that is scripted: what is called, in which thread, and when."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosting import EAGER, LEDGER, PATIENCE_S, kill, ledger

from dora_state import Store, dora
from dora_state.errors import OperatorError
from dora_state.runtime import status as status_record
from dora_state.runtime.outputs import Output
from dora_state.runtime.policy import RestartPolicy
from dora_state.runtime.value import BYTES

CONFIG = """
dataflow_id: {run}
node_id: counter
run_config:
  inputs: {{in: {{source: a/b, queue_size: 1000}}, tick: dora/timer/millis/10}}
  outputs: [sum]
daemon_communication: !Tcp
  socket_addr: 127.0.0.1:1
dataflow_descriptor:
  nodes: [{{id: counter, path: dora-state}}]
"""


GIL_HOLD_US = 200  # what dora's send_output takes for a small output

_holding_the_gil = ctypes.PyDLL(None)  # unlike CDLL


class FakeNode:
    """Stands for dora.Node. `next` takes no timeout: with one, dora returned ERROR events.

    `send_output` holds the GIL, as dora's does, and then may block.
    """

    def __init__(self) -> None:
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.sent: queue.Queue[tuple[str, Any, dict[str, Any]]] = queue.Queue()
        self.threads: set[str] = set()
        self.may_send = threading.Event()
        self.may_send.set()

    def next(self) -> dict[str, Any] | None:
        self.threads.add(f"next in {threading.current_thread().name}")
        return self.events.get()

    def send_output(self, output_id: str, data: Any, metadata: dict[str, Any]) -> None:
        self.threads.add(f"send_output in {threading.current_thread().name}")
        _holding_the_gil.usleep(GIL_HOLD_US)
        assert self.may_send.wait(PATIENCE_S)
        self.sent.put((output_id, data, metadata))

    def give(self, *numbers: int) -> None:
        for number in numbers:
            self.events.put(
                {
                    "kind": "dora",
                    "type": "INPUT",
                    "id": "in",
                    "value": b"%d" % number,
                    "metadata": {},
                }
            )

    def stop(self) -> None:
        self.events.put({"kind": "dora", "type": "STOP", "id": "MANUAL"})

    def take(self, count: int) -> list[str]:
        return [self.sent.get(timeout=PATIENCE_S)[1].decode() for _ in range(count)]


class Flow:
    """A dataflow's folder, and runs of `dora-state run` in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.runs = 0
        self._monkeypatch = monkeypatch
        self.operator = folder / "op.py"
        monkeypatch.chdir(folder)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        monkeypatch.delenv("DORA_STATE_DIR", raising=False)

    def run(
        self,
        script: Callable[[FakeNode], None] = FakeNode.stop,
        source: str = LEDGER,
        build: Callable[[FakeNode], None] = lambda node: None,
        **options: Any,
    ) -> int:
        """Host the operator in this thread, while `script` drives its node in another."""
        self.runs += 1
        self.operator.write_text(textwrap.dedent(source))
        self._monkeypatch.setenv("DORA_NODE_CONFIG", CONFIG.format(run=f"run-{self.runs}"))
        node = FakeNode()

        def build_node() -> FakeNode:
            build(node)
            thread.start()
            return node

        errors: list[BaseException] = []

        def drive() -> None:
            try:
                script(node)
            except BaseException as error:
                errors.append(error)
                os.kill(os.getpid(), signal.SIGTERM)  # so that the host ends

        thread = threading.Thread(target=drive)
        self._monkeypatch.setattr(dora, "_build_node", build_node)
        options = {"restart": EAGER, **options}
        code = dora.run(dora.RunOptions(operator=Path("op.py"), **options))
        if thread.ident is not None:
            thread.join(PATIENCE_S)
        if errors:
            raise errors[0]
        return code

    def status(self) -> dict[str, Any]:
        with Store(self.folder / "state" / "shared") as store:
            if (found := status_record.read(store, "counter")) is None:
                raise KeyError("counter")
            return found

    def worker_pid(self) -> int:
        """Of the running worker; polled, since the status is made for polling."""
        for _ in range(int(PATIENCE_S / 0.005)):
            try:
                if (status := self.status())["state"] == "running":
                    return status["worker_pid"]
            except KeyError:
                pass
            threading.Event().wait(0.005)
        raise AssertionError("no worker")


@pytest.fixture
def flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    return Flow(tmp_path, monkeypatch)


def test_events_go_in_and_outputs_come_out_in_threads_of_their_own(flow):
    def script(node: FakeNode) -> None:
        node.give(0, 1, 2)
        assert node.take(3) == ledger(3)
        node.stop()
        assert node.threads == {"next in dora-in", "send_output in dora-out"}

    assert flow.run(script) == 0


# As dora 1.1 gives them: `kind` and `type` always, the rest by type.
EVENTS = [
    {
        "type": "INPUT",
        "id": "in",
        "value": b"1",
        "metadata": {"k": 1, "open_telemetry_context": ""},
    },
    {"type": "INPUT_CLOSED", "id": "in"},
    {"type": "INPUT_RECOVERED", "id": "in"},
    {"type": "NODE_RESTARTED", "id": "other"},
    {"type": "NODE_FAILED", "id": "other", "error": "it broke", "source_node_id": "other"},
    {"type": "PARAM_UPDATE", "key": "gain", "value": 3.5},
    {"type": "PARAM_DELETED", "key": "gain"},
    {"type": "RELOAD", "id": None},
    {"type": "ERROR", "error": "the event could not be read"},
    {"type": "STOP", "id": "MANUAL"},
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event["type"])
def test_every_type_of_event_reaches_the_operator_as_dora_gives_it(flow, event):
    """Also when the worker that has it is killed, and another gets it."""
    source = """
        class Operator:
            def on_event(self, event, send_output):
                send_output("sum", repr(event).encode())
                return 0
    """
    event = {"kind": "dora", **event}

    def script(node: FakeNode) -> None:
        node.events.put(dict(event))
        (text,) = node.take(1)
        assert eval(text) == {**event, "attempt": 2}
        if event["type"] != "STOP":
            node.stop()
            assert "STOP" in node.take(1)[0]

    flow._monkeypatch.setenv("DORA_STATE_KILL", "after-output@1")
    assert flow.run(script, source=source) == 0


def test_the_node_is_built_after_init_and_restore(flow):
    """From then on dora's queue fills; built earlier, it overflowed while a model was loaded."""
    restored = flow.folder / "restored"
    source = f"""
        class Operator:
            def __init__(self):
                open("built", "w").close()

            def restore_state(self, state):
                open({str(restored)!r}, "w").close()

            def on_event(self, event, send_output):
                self.save_state("a", b"1")
                return 0
    """

    def built(node: FakeNode) -> None:
        assert (flow.folder / "built").exists()

    def both(node: FakeNode) -> None:
        assert restored.exists()

    flow.run(source=source, build=built)
    assert not restored.exists()
    flow.run(source=source, build=both, keep=True)


def test_the_zygote_is_started_before_dora_is_imported():
    """Node() starts 22 threads, and a fork with threads is undefined."""
    code = """
    import sys, dora_state.dora
    assert "dora" not in sys.modules and "pyarrow" not in sys.modules, "imported too early"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_worker_is_restarted_while_dora_is_busy_with_an_output(flow):
    """send_output may block: it is not the supervisor's to call. While it holds the GIL nothing helps
    but a process of its own; for small outputs, as here, that is 0.2 ms.
    """

    def script(node: FakeNode) -> None:
        node.may_send.clear()
        node.give(0)
        first = flow.worker_pid()
        kill(first)
        while flow.worker_pid() == first:
            pass
        node.give(1)
        node.may_send.set()
        assert node.take(2) == ledger(2)
        node.stop()

    assert flow.run(script) == 0


def test_outputs_that_dora_does_not_take_hold_the_operator_back(monkeypatch):
    """The supervisor asks has_room before each event, and is woken when there is room again."""
    monkeypatch.setattr(dora, "BACKLOG_BYTES", 5)
    outlet, woken = dora._Outlet(), threading.Event()
    outlet.wake = woken.set
    for data in (b"abc", b"def"):
        outlet.put(Output(1, "sum", {}, (BYTES,), [memoryview(data)], {}))
    assert not outlet.has_room()

    node = FakeNode()
    threading.Thread(target=outlet.run, args=(node,), daemon=True).start()
    assert node.take(2) == ["abc", "def"]
    assert woken.wait(PATIENCE_S)
    outlet.close(PATIENCE_S)
    assert outlet.has_room()


def test_after_a_clean_stop_the_next_run_starts_empty(flow):
    def script(node: FakeNode) -> None:
        node.give(0, 1)
        assert node.take(2) == ledger(2)
        node.stop()

    assert flow.run(script) == 0
    assert flow.run(script) == 0


def test_after_a_crash_the_next_run_adopts_the_state(flow):
    def crashes(node: FakeNode) -> None:
        node.give(0, 1)
        assert node.take(2) == ledger(2)
        node.give(5)

    source = LEDGER.replace("self.count += 1", "self.count += 1\n                1 / (number - 5)")
    assert flow.run(crashes, source=source, restart=RestartPolicy(restart_policy="never")) == 1
    assert flow.run(goes_on) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_the_next_run_adopts_the_state(flow, number):
    def is_signalled(node: FakeNode) -> None:
        node.give(0, 1)
        assert node.take(2) == ledger(2)
        signal.pthread_kill(threading.get_ident(), number)  # not to the thread of the loop

    assert flow.run(is_signalled) == 0
    assert flow.run(goes_on) == 0


def goes_on(node: FakeNode) -> None:
    node.give(2)
    assert node.take(1) == ["2 3 3"]
    node.stop()


def test_the_status_is_in_the_shared_store(flow):
    def script(node: FakeNode) -> None:
        first = flow.worker_pid()
        kill(first)
        while (status := flow.status())["restarts"] == 0 or not status["restart_ms"]:
            pass
        assert status["worker_pid"] not in (0, first)
        assert status["incarnation"] > 1
        assert len(status["restart_ms"]) == 1
        node.stop()

    assert flow.run(script) == 0
    assert flow.status()["state"] == "ended"


def test_the_operator_finds_the_shared_store(flow):
    source = """
        from dora_state import kvs_read, kvs_write

        class Operator:
            def on_event(self, event, send_output):
                if event["type"] == "INPUT":
                    kvs_write("from the operator", event["value"])
                    send_output("sum", kvs_read("from the operator"))
                return 0
    """

    def script(node: FakeNode) -> None:
        node.give(7)
        assert node.take(1) == ["7"]
        node.stop()

    assert flow.run(script, source=source) == 0
    with Store(flow.folder / "state" / "shared") as store:
        assert store["from the operator"] == b"7"


def test_the_end_of_the_inputs_is_a_clean_stop(flow):
    def script(node: FakeNode) -> None:
        node.give(0)
        node.events.put(None)
        assert node.take(1) == ledger(1)

    assert flow.run(script) == 0
    assert flow.run(script) == 0


def test_an_exhausted_policy_ends_the_node_without_an_error_code(flow, caplog):
    """A non-zero exit under dora's own policy looped 70 times in 3 s."""
    source = LEDGER.replace("self.count = self.total = 0", "raise RuntimeError('broken')")
    policy = RestartPolicy(max_restarts=1, restart_delay=0, exhausted="stop")
    assert flow.run(source=source, restart=policy) == 0
    assert "RuntimeError: broken" in caplog.text
    assert "not restarted" in caplog.text


# Bad input: refused before dora knows of the node, and without a trace


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("class Operater: pass", "op.py has no class Operator; define one with"),
        ("class Operator: pass", "class Operator has no method on_event; define"),
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named"),
        ("def broken(:", "cannot be imported: SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(3)", "cannot be imported: SystemExit: 3"),
        ("import os; os._exit(3)", "ended its process while it was imported"),
        ("import os; os.abort()", "ended its process while it was imported"),
    ],
)
def test_a_bad_operator_file_is_refused(flow, source, told):
    def built(node: FakeNode) -> None:
        raise AssertionError("the node was built")

    with pytest.raises(OperatorError, match=r"op.py") as caught:
        flow.run(source=source, build=built, fresh=True)
    assert told in str(caught.value)
    assert not (flow.folder / "state").exists()


def test_a_missing_operator_file_is_refused(flow):
    flow._monkeypatch.setenv("DORA_NODE_CONFIG", CONFIG.format(run="run"))
    with pytest.raises(OperatorError, match=r"nowhere.py is not a file; give the path"):
        dora.run(dora.RunOptions(operator=Path("nowhere.py")))
    assert not (flow.folder / "state").exists()


def test_a_run_outside_of_dora_is_refused(flow):
    flow._monkeypatch.delenv("DORA_NODE_CONFIG", raising=False)
    with pytest.raises(OperatorError, match=r"dora did not start this; write `path: dora-state`"):
        dora.run(dora.RunOptions(operator=Path("op.py")))


def test_a_state_directory_that_is_not_ours_is_refused(flow):
    (flow.folder / "state").mkdir()
    (flow.folder / "state" / "thesis.tex").touch()
    with pytest.raises(OperatorError, match=r"thesis.tex"):
        flow.run()


def test_outputs_are_what_dora_takes(flow):
    source = """
        class Operator:
            def on_event(self, event, send_output):
                if event["type"] == "INPUT":
                    for bad in (5, None, "text", [1]):
                        try:
                            send_output("sum", bad)
                        except TypeError as error:
                            send_output("sum", str(error).encode())
                return 0
    """

    def script(node: FakeNode) -> None:
        node.give(0)
        for name, text in zip(("int", "NoneType", "str", "list"), node.take(4), strict=True):
            assert f"a {name} is no output; send bytes or a pyarrow array" in text
        node.stop()

    assert flow.run(script, source=source) == 0


def test_metadata_that_dora_refuses_is_refused_at_the_call(flow):
    """After the commit it would be too late: the output would be lost."""
    source = """
        class Operator:
            def on_event(self, event, send_output):
                if event["type"] == "INPUT":
                    for bad in ("text", [1], {1: 2}, {"a": 1 << 63}, {"a": [0, 1 << 63]}, {"a": [1, "x"]}):
                        try:
                            send_output("sum", b"never", bad)
                        except (TypeError, OverflowError) as error:
                            send_output("sum", str(error).encode())
                    for good in (None, {}, {"a": None, "b": [1.5, 2], "c": [True], "d": -(1 << 63), "e": []}):
                        send_output("sum", b"good", good)
                return 0
    """

    def script(node: FakeNode) -> None:
        node.give(0)
        told = node.take(9)
        wanted = ("is a str", "is a list", "the key 1", "beyond 64", "beyond 64", "of int and str")
        for want, text in zip(wanted, told, strict=False):
            assert want in text
        assert told[6:] == ["good"] * 3
        node.stop()

    assert flow.run(script, source=source) == 0


def test_metadata_that_dora_has_no_type_for_becomes_text(flow):
    source = """
        import fractions

        class Operator:
            def on_event(self, event, send_output):
                if event["type"] == "INPUT":
                    send_output("sum", b"", {"a": fractions.Fraction(1, 2), "b": [1, 2], "c": True})
                return 0
    """

    def script(node: FakeNode) -> None:
        node.give(0)
        _, _, metadata = node.sent.get(timeout=PATIENCE_S)
        assert metadata == {"a": "1/2", "b": [1, 2], "c": True}
        node.stop()

    assert flow.run(script, source=source) == 0
